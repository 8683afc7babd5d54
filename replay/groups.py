"""What the queue's rules (`replay.state`) keep of the groups that are out."""

from collections import deque
from dataclasses import dataclass, field

from replay.queue import Stage, StageStats

KEPT_WAITS = 1024


@dataclass(slots=True)
class Item:
    """A group that is out."""

    stage: Stage
    payload: bytes | None = None
    tombstone: bool = False
    failed: int = 0  # deliveries in this stage
    reasons: list[str] = field(default_factory=list)
    lease_id: str | None = None


class Ready:
    """The ready ordinals of a stage, and since when."""

    def __init__(self) -> None:
        self.since: dict[int, float] = {}
        self._waits: deque[float] = deque(maxlen=KEPT_WAITS)

    def add(self, ordinal: int, now: float) -> None:
        """From now on it waits to be leased."""
        self.since[ordinal] = now

    def take(self, ordinal: int, now: float) -> None:
        """It was leased."""
        self._waits.append(now - self.since.pop(ordinal))

    def stats(self, leased: int, now: float) -> StageStats:
        """The stage now, of which so many are leased."""
        waits = sorted(self._waits) or [0.0]
        return StageStats(
            ready=len(self.since),
            leased=leased,
            oldest_wait=now - min(self.since.values(), default=now),
            wait_p50=waits[len(waits) // 2],
            wait_p95=waits[len(waits) * 95 // 100],
        )
