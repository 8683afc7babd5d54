"""Which workers have asked a queue for work lately."""

from collections import OrderedDict

from replay.queue import SEEN_SECONDS

MOST = 100_000
"""Names are the callers' to choose: so many are kept."""


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
