"""What a queue's answers must be, kept beside it by the simplest account of its rules.

The ledger sees only questions and answers, so it can judge any queue. After every event, the places
of the ordinals that the event has touched are compared with the queue's own, and the sums of all:
so each ordinal is in exactly one place as long as it was before the event.
"""

import heapq
import itertools
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from deploy.simulation.history import History, Ordinals
from deploy.simulation.world import Violation
from protos.trajectory import FailureKind
from replay.config import QueueConfig
from replay.queue import Completion, Frontier, Lease, Stage
from replay.state import KEPT_QUARANTINED, QueueState

_NEXT = {Stage.TO_SAMPLE: Stage.TO_SCORE, Stage.TO_SCORE: Stage.TO_TRAIN}
_NONE: frozenset[str] = frozenset()


@dataclass(slots=True)
class _Group:
    """A group that is out: where it must be."""

    stage: Stage
    payload: bytes | None
    failed: int = 0
    tombstone: bool = False
    sampled_at: int = 0  # groups that were acked when its samples came in
    lease: Lease | None = None
    deadline: float = 0.0


def ticket(ordinal: int) -> bytes:
    """What a sampler is told."""
    return b"ticket %d" % ordinal


class Ledger:
    """The groups that are out and what has been acked, by what the queue has answered."""

    def __init__(self, config: QueueConfig, frontier: Frontier):
        self._config = config
        self.quarantined = 0
        self.begin(frontier)

    def begin(self, frontier: Frontier) -> None:
        """A queue began at a frontier, and knows nothing else."""
        self._given_up: deque[int] = deque(maxlen=KEPT_QUARANTINED)
        self._newest: dict[str, frozenset[str]] = {}
        self._deadlines: list[tuple[float, str]] = []
        self._begin(frontier, {})

    def _begin(self, frontier: Frontier, parked: dict[int, _Group]) -> None:
        self._groups: dict[int, _Group] = {}
        self._parked = parked
        self._by_lease: dict[str, int] = {}
        self._by_worker: dict[str, set[str]] = {}
        self._touched: set[int] = set()
        self.acked_ordinals = Ordinals(frontier.next_unacked, frontier.acked_above)

    def restarted(self, frontier: Frontier, history: History) -> None:
        """The learner of this history told the queue to go back: see `ReplayQueue.restart`."""
        before = {o: _Group(Stage.TO_TRAIN, None, tombstone=True) for o in self._given_up}
        before |= self._parked | self._groups
        acked = Ordinals(frontier.next_unacked, frontier.acked_above)
        if history.done != acked:
            raise Violation(
                f"the queue went back to {acked} acked; the learner that asked for it has trained "
                f"{history.done}"
            )
        parked = {
            ordinal: group
            for ordinal, group in sorted(before.items())
            if ordinal not in acked and self._survives(group, frontier)
        }
        self._begin(frontier, parked)
        self._make_room_for_survivors(frontier)
        for group in self._parked.values():
            group.lease = None
        for ordinal, group in self._groups.items():
            if group.stage is Stage.TO_TRAIN:
                group.lease = None
            if group.lease is not None:
                self._by_lease[group.lease.id] = ordinal
                self._by_worker.setdefault(group.lease.worker, set()).add(group.lease.id)
        self._touched.update(self._groups)

    def _survives(self, group: _Group, frontier: Frontier) -> bool:
        if self._config.mode == "ordered" or group.tombstone:
            return True
        return group.stage is not Stage.TO_SAMPLE and group.sampled_at < frontier.acked

    def _make_room_for_survivors(self, frontier: Frontier) -> None:
        """Blocks come back from the frontier on, as many as the window holds and the run needs."""
        size, room = self._config.block, self._config.window
        total, start = self._config.total_groups, frontier.next_unacked // size * size
        made_up_for = frontier.dropped if self._config.mode == "async" else 0
        end = None if total is None else total + -(-made_up_for // size) * size
        while self._parked and (end is None or start < end):
            block = [o for o in range(start, start + size) if o not in self.acked_ordinals]
            room, start = room - len(block), start + size
            if room < 0:
                return
            for ordinal in block:
                new = _Group(Stage.TO_SAMPLE, ticket(ordinal))
                self._groups[ordinal] = self._parked.pop(ordinal, new)

    def came_back(self, frontier: Frontier) -> None:
        """The queue started anew from the frontier it had kept, which must be the true one."""
        kept = Ordinals(frontier.next_unacked, frontier.acked_above)
        if kept != self.acked_ordinals:
            raise Violation(f"the queue came back with {kept}; acked were {self.acked_ordinals}")
        self.begin(frontier)

    @property
    def out(self) -> frozenset[int]:
        """Ordinals that were handed out and are not acked."""
        return frozenset(self._groups)

    def expire(self, now: float) -> None:
        """It is so late on the queue's clock."""
        while self._deadlines and self._deadlines[0][0] <= now:
            _, lease_id = heapq.heappop(self._deadlines)
            group = self._live(lease_id)
            if group is None:
                continue
            if group.deadline > now:  # renewed since
                heapq.heappush(self._deadlines, (group.deadline, lease_id))
            else:
                self._take_back(group, lease_id)

    def leased(
        self, stage: Stage, worker: str, leases: Sequence[Lease], now: float, anew: bool
    ) -> None:
        """A worker asked and was handed these; `anew`: what it held of them was given back."""
        self._newest[worker] = frozenset([lease.id for lease in leases]) if leases else _NONE
        for lease in leases:
            ordinal = lease.ordinal
            group = self._groups.get(ordinal)
            if group is None:
                if ordinal in self.acked_ordinals:
                    raise Violation(f"ordinal {ordinal} is handed out again; it has been acked")
                new = _Group(Stage.TO_SAMPLE, ticket(ordinal))
                group = self._groups[ordinal] = self._parked.pop(ordinal, new)
                if len(self._groups) > self._config.window:
                    raise Violation(
                        f"{len(self._groups)} groups are out; the window is {self._config.window}"
                    )
            if anew and group.lease is not None and group.lease.worker == worker:
                self._drop(group, group.lease.id)
            if group.lease is not None:
                raise Violation(
                    f"ordinal {ordinal} is handed to {lease.worker}, while {group.lease.worker} "
                    f"holds it until {group.deadline:.3f}"
                )
            seen = (lease.stage, lease.delivery, lease.tombstone, lease.payload)
            must = (group.stage, group.failed + 1, group.tombstone, group.payload)
            if seen != must or lease.stage is not stage:
                raise Violation(f"ordinal {ordinal} is leased as {seen}; it must be {must}")
            if group.tombstone and not lease.reasons:
                raise Violation(f"ordinal {ordinal} is quarantined without a reason")
            group.lease, group.deadline = lease, now + lease.ttl
            heapq.heappush(self._deadlines, (group.deadline, lease.id))
            self._by_lease[lease.id] = ordinal
            self._by_worker.setdefault(worker, set()).add(lease.id)
            self._touched.add(ordinal)
        if len(self._deadlines) > 2 * len(self._by_lease) + 1024:  # mostly of leases that are gone
            held = self._by_lease.items()
            self._deadlines = [(self._groups[o].deadline, lease_id) for lease_id, o in held]
            heapq.heapify(self._deadlines)

    def renewed(self, asked: Sequence[str], held: Sequence[str], now: float) -> None:
        """Of these, some are still held."""
        by_lease, groups = self._by_lease, self._groups
        if [lease_id for lease_id in asked if lease_id in by_lease] != list(held):
            raise Violation(f"of {asked} are renewed {held}")
        ordinals = [by_lease[lease_id] for lease_id in held]
        for lease_id, ordinal in zip(held, ordinals, strict=True):
            group = groups[ordinal]
            assert group.lease is not None
            deadline = now + group.lease.ttl
            if deadline < group.deadline:
                heapq.heappush(self._deadlines, (deadline, lease_id))
            group.deadline = deadline
        self._touched.update(ordinals)

    def completed(self, lease_id: str, payload: bytes, answer: Completion) -> None:
        """A worker gave the outcome."""
        group = self._outcome(lease_id, answer)
        if group is not None:
            if group.stage is Stage.TO_SAMPLE:
                group.sampled_at = len(self.acked_ordinals)
            group.stage, group.payload, group.failed = _NEXT[group.stage], payload, 0
            self._drop(group, lease_id)

    def failed(self, lease_id: str, kind: FailureKind, answer: Completion) -> None:
        """A worker gave it back as failed."""
        group = self._outcome(lease_id, answer)
        if group is not None:
            self._fail(group, lease_id, kind)

    def released(self, lease_ids: Sequence[str]) -> None:
        """Workers gave these back untried."""
        for lease_id in lease_ids:
            group = self._live(lease_id)
            if group is not None:
                self._drop(group, lease_id)

    def released_worker(self, worker: str, count: int) -> None:
        """A dead worker's groups were taken from it."""
        held = sorted(self._by_worker.get(worker, ()))
        if len(held) != count:
            raise Violation(f"{count} groups were taken from {worker}; it held {len(held)}")
        for lease_id in held:
            self._take_back(self._groups[self._by_lease[lease_id]], lease_id)

    def acked(self, ordinals: Sequence[int], history: History) -> None:
        """An ack of the learner of this history was accepted."""
        for ordinal in ordinals:
            if ordinal not in history.done:
                raise Violation(f"ordinal {ordinal} is acked; its learner has not trained it")
            if ordinal in self.acked_ordinals:
                continue
            group = self._groups.get(ordinal)
            if group is None or group.stage is not Stage.TO_TRAIN:
                raise Violation(f"ordinal {ordinal} was acked before it was scored")
            if group.lease is not None:
                self._drop(group, group.lease.id)
            del self._groups[ordinal]
            self._touched.add(ordinal)
            self.acked_ordinals.add(ordinal)

    # -- after every event ----------------------------------------------------------------------

    def check(self, state: QueueState) -> None:
        """Both invariants: the places that this event has changed, and the sums of all.

        Raises:
          Violation: an ordinal is in two places, in none or in another than it must be, or more
            groups are out than the window holds.
        """
        if len(state._items) > len(self._groups):
            self._unpark(state)
        to_sample, to_score, to_train = [ready.since for ready in state._ready.values()]
        out, held = len(self._groups), len(self._by_lease)
        ready = len(to_sample) + len(to_score) + len(to_train)
        sums = (len(state._items), len(state._leases), ready)
        if sums != (out, held, out - held):
            raise Violation(
                f"(out, leased, ready) are {sums}; they must be {(out, held, out - held)}"
            )
        if out > self._config.window:
            raise Violation(f"{out} groups are out; the window is {self._config.window}")
        if self._touched:
            self._check_places(state, to_sample, to_score, to_train)
            self._touched.clear()

    def _unpark(self, state: QueueState) -> None:
        """A block was handed out, and with it what has survived of it."""
        # Blocks are handed out in order: those behind the first that is not out are not out either.
        for ordinal in list(itertools.takewhile(state._items.__contains__, self._parked)):
            self._groups[ordinal] = self._parked.pop(ordinal)
            self._touched.add(ordinal)

    def _check_places(
        self,
        state: QueueState,
        to_sample: Mapping[int, float],
        to_score: Mapping[int, float],
        to_train: Mapping[int, float],
    ) -> None:
        """Each touched ordinal is where it must be and nowhere else; the most asked of questions.

        The mappings have what is ready in each stage.
        """
        groups, items, acked, leases = self._groups, state._items, state._acked, state._leases
        for ordinal in self._touched:
            group, item = groups.get(ordinal), items.get(ordinal)
            ready = (ordinal in to_sample) + (ordinal in to_score) + (ordinal in to_train)
            if group is None:
                right = item is None and not ready and ordinal in acked
            elif (
                item is None
                or item.stage is not group.stage
                or item.tombstone != group.tombstone
                or ordinal in acked
            ):
                right = False
            else:
                lease = None if item.lease_id is None else leases.get(item.lease_id)
                if group.lease is None:
                    since = state._ready[group.stage].since
                    right = lease is None and ready == 1 and ordinal in since
                else:
                    right = (
                        lease is not None
                        and not ready
                        and lease.ordinal == ordinal
                        and leases.deadline(lease) == group.deadline
                    )
            if not right:
                self._tell_place(state, ordinal)

    def _tell_place(self, state: QueueState, ordinal: int) -> NoReturn:
        group, item = self._groups.get(ordinal), state._items.get(ordinal)
        ready = [stage for stage, part in state._ready.items() if ordinal in part.since]
        acked = "acked" if state.is_acked(ordinal) else "not acked"
        lease = None if item is None or item.lease_id is None else state._leases.get(item.lease_id)
        raise Violation(
            f"ordinal {ordinal} is {item}, {acked}, held by {lease}, ready in {ready}; it must be "
            f"{group or 'acked'}"
        )

    def check_all(self, state: QueueState) -> None:
        """The places of all, touched or not."""
        self._touched = set(self._groups) | set(state._items)
        self.check(state)

    # -- inside ---------------------------------------------------------------------------------

    def _live(self, lease_id: str) -> _Group | None:
        """The group of a lease that is held."""
        ordinal = self._by_lease.get(lease_id)
        return None if ordinal is None else self._groups[ordinal]

    def _take_back(self, group: _Group, lease_id: str) -> None:
        """From a worker that died or fell silent: what it was handed last has failed."""
        assert group.lease is not None
        learning = group.stage is Stage.TO_TRAIN
        if not learning and lease_id in self._newest[group.lease.worker]:
            self._fail(group, lease_id, FailureKind.INFRASTRUCTURE)
        else:
            self._drop(group, lease_id)

    def _outcome(self, lease_id: str, answer: Completion) -> _Group | None:
        group = self._live(lease_id)
        must = Completion.TOO_LATE if group is None else Completion.DONE
        if answer is not must:
            raise Violation(f"the outcome of lease {lease_id} was answered {answer}, not {must}")
        return group

    def _fail(self, group: _Group, lease_id: str, kind: FailureKind) -> None:
        ordinal = self._by_lease[lease_id]
        self._drop(group, lease_id)
        group.failed += 1
        give_up = kind is FailureKind.DATA or group.failed >= self._config.max_deliveries
        if give_up and not group.tombstone:
            self.quarantined += 1
            group.stage, group.payload, group.tombstone = Stage.TO_TRAIN, None, True
            group.failed = 0
            self._given_up.append(ordinal)

    def _drop(self, group: _Group, lease_id: str) -> None:
        assert group.lease is not None
        worker = group.lease.worker
        self._touched.add(self._by_lease.pop(lease_id))
        held = self._by_worker[worker]
        held.remove(lease_id)
        if not held:
            del self._by_worker[worker]
        group.lease = None
