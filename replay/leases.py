"""Who holds what until when, for the queue's rules (`replay.state`)."""

import heapq
from collections import Counter
from collections.abc import Collection, Iterable, Sequence

from replay.queue import Lease, Stage


class Leases:
    """The leases that are held. A call costs O(log held) a lease.

    Attributes:
      in_stage: how many are of each stage.
    """

    def __init__(self) -> None:
        self.in_stage: Counter[Stage] = Counter()
        self._held: dict[str, Lease] = {}
        self._until: dict[str, float] = {}
        self._of_worker: dict[str, dict[str, None]] = {}
        # Of every lease that is held, and until they come to the top some of others.
        self._deadlines: list[tuple[float, str]] = []
        # What a worker was handed last, as far as it holds any of that. Names are the callers' to
        # choose: one that is done leaves nothing here.
        self._newest: dict[str, set[str]] = {}

    def __len__(self) -> int:
        return len(self._held)

    def get(self, lease_id: str) -> Lease | None:
        """The lease, if it is held."""
        return self._held.get(lease_id)

    def deadline(self, lease: Lease) -> float:
        """When it ends, as it was last renewed."""
        return self._until[lease.id]

    def values(self) -> Collection[Lease]:
        """All of them."""
        return self._held.values()

    def hand_out(self, worker: str, leases: Sequence[Lease]) -> None:
        """From now on these, of one stage, are held; they are what the worker was handed last."""
        self._newest.pop(worker, None)
        if not leases:
            return
        ids: dict[str, None] = {}
        for lease in leases:
            lease_id = lease.id
            ids[lease_id] = None
            self._held[lease_id] = lease
            self._until[lease_id] = lease.deadline
            heapq.heappush(self._deadlines, (lease.deadline, lease_id))
        self.in_stage[leases[0].stage] += len(leases)
        self._of_worker.setdefault(worker, {}).update(ids)
        self._newest[worker] = set(ids)
        if len(self._deadlines) > 2 * len(self._held) + 1024:  # mostly of leases that are gone
            self._deadlines = [(until, lease_id) for lease_id, until in self._until.items()]
            heapq.heapify(self._deadlines)

    def check_outcomes(self, lease_ids: Iterable[str]) -> None:
        """Raises ValueError where one of these is of `to_train`, which has no outcome to give."""
        for lease_id in lease_ids:
            lease = self._held.get(lease_id)
            if lease is not None and lease.stage is Stage.TO_TRAIN:
                raise ValueError(
                    f"ordinal {lease.ordinal} is in to_train, where it is acked instead"
                )

    def renew(self, lease_ids: Iterable[str], now: float) -> list[str]:
        """Those of them that are held are so for their ttl from now on; returns these."""
        held = []
        for lease_id in lease_ids:
            lease = self._held.get(lease_id)
            if lease is None:
                continue
            until = now + lease.ttl
            if until < self._until[lease_id]:  # the clock was set back
                heapq.heappush(self._deadlines, (until, lease_id))
            self._until[lease_id] = until
            held.append(lease_id)
        return held

    def drop(self, lease: Lease) -> None:
        """It is not held any more."""
        del self._held[lease.id], self._until[lease.id]
        self.in_stage[lease.stage] -= 1
        others = self._of_worker[lease.worker]
        del others[lease.id]
        if not others:
            del self._of_worker[lease.worker]
        newest = self._newest.get(lease.worker)
        if newest is not None:
            newest.discard(lease.id)
            if not newest:
                del self._newest[lease.worker]

    def is_newest(self, lease: Lease) -> bool:
        """Whether its worker was handed it with the last that it was handed."""
        return lease.id in self._newest.get(lease.worker, ())

    def of_worker(self, worker: str) -> list[Lease]:
        """All that a worker holds."""
        return [self._held[lease_id] for lease_id in self._of_worker.get(worker, ())]

    def held_by_worker(self) -> dict[str, int]:
        """How many each holds that holds any."""
        return {worker: len(held) for worker, held in self._of_worker.items()}

    def next_due(self, now: float) -> Lease | None:
        """A lease that is past its deadline, each once; who asks must drop it."""
        while self._deadlines and self._deadlines[0][0] <= now:
            _, lease_id = heapq.heappop(self._deadlines)
            lease = self._held.get(lease_id)
            if lease is None:
                continue
            until = self._until[lease_id]
            if until <= now:
                return lease
            heapq.heappush(self._deadlines, (until, lease_id))  # renewed since
        return None

    def next_deadline(self) -> float | None:
        """No lease ends before; None: nothing is held."""
        return self._deadlines[0][0] if self._deadlines else None
