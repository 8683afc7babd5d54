"""What a queue knows of workers by name. Names are the callers' to choose: so many are kept."""

from collections import OrderedDict
from collections.abc import Mapping

from replay.queue import SEEN_SECONDS

MOST = 100_000
MOST_EXPIRED = 4096
OTHERS = "(others)"
"""Stands for the workers whose names were not kept."""


class SeenWorkers:
    """When each last asked, the one that asked longest ago first."""

    def __init__(self) -> None:
        self._asked: OrderedDict[str, float] = OrderedDict()

    def asked(self, worker: str, now: float) -> None:
        """It asks now."""
        self._asked[worker] = now
        self._asked.move_to_end(worker)
        self._forget(now)

    def workers(self, now: float) -> list[str]:
        """Those that have asked within the last `SEEN_SECONDS`."""
        self._forget(now)
        return list(self._asked)

    def _forget(self, now: float) -> None:
        while self._asked:
            worker, asked = next(iter(self._asked.items()))
            if now - asked <= SEEN_SECONDS and len(self._asked) <= MOST:
                return
            del self._asked[worker]


class ExpiredLeases:
    """How many leases ran out: in all, and of each worker that had one lately.

    Attributes:
      count: in all.
    """

    def __init__(self) -> None:
        self.count = 0
        self._of_worker: OrderedDict[str, int] = OrderedDict()  # who had one latest is last

    def add(self, worker: str) -> None:
        """One more, of this worker."""
        self.count += 1
        self._of_worker[worker] = self._of_worker.get(worker, 0) + 1
        self._of_worker.move_to_end(worker)
        if len(self._of_worker) > MOST_EXPIRED:
            self._of_worker.popitem(last=False)

    def by_worker(self) -> dict[str, int]:
        """See `Stats.expired_by_worker`."""
        return with_others(self._of_worker, self.count)


def with_others(of_worker: Mapping[str, int], count: int) -> dict[str, int]:
    """The workers' counts, and under `OTHERS` what is left of all."""
    left = count - sum(of_worker.values())
    return {**of_worker, OTHERS: left} if left > 0 else dict(of_worker)
