"""How many reward workers a run needs: by backlog over throughput, without haste downwards.

Pure: time is an argument. By Little's law n workers that score m groups a second each, and keep up
with what is sampled, hold a backlog of n * m * w groups, w being the seconds that a group takes
from sampled to scored. So for a wanted w there must be backlog / (m * w) of them, and never fewer
than are at work.
"""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from rewards.config import AutoscaleConfig

# Backlogs rise and fall within a training step: their mean over some steps counts.
BACKLOG_SECONDS = 10.0
# Long enough for a few slow groups, short enough to follow a reward that has become slower.
THROUGHPUT_SECONDS = 60.0
THROUGHPUT_GROUPS = 8
# Changes of less than this share are not worth a process's start or end.
TOLERANCE = 0.1


@dataclass
class Throughput:
    """What reward workers have got done lately."""

    _began: float | None = None
    _now: float = 0.0
    _before: dict[str, tuple[int, float]] = field(default_factory=dict)
    _done: deque[tuple[float, int, float]] = field(default_factory=deque)

    def observe(self, now: float, workers: Mapping[str, tuple[int, float]]) -> None:
        """Takes in each worker's groups and seconds of work so far; a restart begins at 0 again."""
        self._began = now if self._began is None else self._began
        self._now = now
        groups, working = 0, 0.0
        for name, (total_groups, total_working) in workers.items():
            before_groups, before_working = self._before.get(name, (0, 0.0))
            if total_groups >= before_groups and total_working >= before_working:
                groups += total_groups - before_groups
                working += total_working - before_working
        self._before = dict(workers)
        if groups or working:
            self._done.append((now, groups, working))
        while self._done and now - self._done[0][0] > THROUGHPUT_SECONDS:
            if self._groups() - self._done[0][1] < THROUGHPUT_GROUPS:
                break  # what is known is old, and better than nothing
            self._done.popleft()

    def _groups(self) -> int:
        return sum(groups for _, groups, _ in self._done)

    @property
    def per_worker(self) -> float | None:
        """Groups that one scores in a second of work; None until one has been scored."""
        groups = self._groups()
        working = sum(working for _, _, working in self._done)
        return groups / working if groups and working > 0 else None

    @property
    def busy(self) -> float:
        """How many were at work, in the mean of the last minute."""
        since = max(self._began or 0.0, self._now - THROUGHPUT_SECONDS)
        working = sum(working for when, _, working in self._done if when > since)
        return working / (self._now - since) if self._now > since else 0.0


class Autoscaler:
    """Decides on the target, as backlog and throughput come in.

    More workers come at once. Fewer are kept only when no moment of the last `settle_seconds`
    called for more, so that a load that comes in waves does not start and end processes in waves.
    """

    def __init__(self, config: AutoscaleConfig):
        self._config = config
        self._backlogs: deque[tuple[float, int]] = deque()
        self._wanted: deque[tuple[float, int]] = deque()

    def decide(
        self, now: float, current: int, backlog: int, per_worker: float | None, busy: float
    ) -> int:
        """The target.

        Args:
          now: seconds of any clock that never goes back.
          current: the target so far.
          backlog: groups that are sampled and not yet scored, in workers' hands or not.
          per_worker: see `Throughput`; None: not known yet, and nothing is changed.
          busy: see `Throughput`.

        Returns:
          Between `min` and `max`.
        """
        self._backlogs.append((now, backlog))
        while now - self._backlogs[0][0] > BACKLOG_SECONDS:
            self._backlogs.popleft()
        kept = self._clamp(current)
        if per_worker is None:
            return kept
        wanted = self._clamp(max(self._needed(per_worker), min(kept, math.ceil(busy))))
        self._wanted.append((now, wanted))
        # One older than the window stays, so that the window is full however rare the looks are.
        settle = self._config.settle_seconds
        while len(self._wanted) > 1 and now - self._wanted[1][0] >= settle:
            self._wanted.popleft()
        if wanted > kept * (1 + TOLERANCE):
            return wanted
        highest = max(count for _, count in self._wanted)
        settled = now - self._wanted[0][0] >= settle
        return highest if settled and highest < kept * (1 - TOLERANCE) else kept

    def _needed(self, per_worker: float) -> int:
        mean = sum(backlog for _, backlog in self._backlogs) / len(self._backlogs)
        needed = mean / (per_worker * self._config.target_wait)
        # A worker that has no group to score helps nobody, however slow the others are.
        return math.ceil(min(needed, mean))

    def _clamp(self, count: int) -> int:
        return max(self._config.min, min(count, self._config.max))
