"""Whether every ordinal was trained exactly once: judged by what the learner wrote, step by step.

Nothing here asks the queue, whose own counting is what is in question.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path

from learner.ordinals import ORDINALS_FILE, OrdinalsLine, counts

Explains = Callable[[int, Sequence[str]], bool]
"""Whether an ordinal that trained nothing, and why, is what an injected fault may cost"""
SHOWN = 10


@dataclass
class Ledger:
    """A run's `ordinals.jsonl` while it grows.

    Attributes:
      steps: those that count: a learner that went back to a checkpoint made the later ones anew.
      resumed: how often a learner began.
      redone: steps that were trained once more.
    """

    run_directory: Path
    steps: list[OrdinalsLine] = field(default_factory=list)
    resumed: int = 0
    redone: int = 0
    last_resumed: float = 0.0
    _read: int = 0
    _epoch: str = ""

    def read(self) -> None:
        """Takes over the lines that are complete by now."""
        path = self.run_directory / ORDINALS_FILE
        if not path.exists():
            return
        with path.open("rb") as file:
            file.seek(self._read)
            text = file.read()
        complete = text[: text.rfind(b"\n") + 1]
        self._read += len(complete)
        for line in complete.decode().splitlines():
            try:
                values = json.loads(line)
            except json.JSONDecodeError:
                continue  # a crash cut it short: its step shows as missing if it is
            self.add(OrdinalsLine.from_json(values))

    def add(self, line: OrdinalsLine) -> None:
        """Takes over a line, unless it is of a learner whose place has been taken."""
        if not counts(line, self._epoch):
            return
        if not line.resumed:
            self.steps.append(line)
            return
        self._epoch = line.epoch
        self.resumed += 1
        self.last_resumed = line.time
        while self.steps and self.steps[-1].step > line.step:
            self.steps.pop()
            self.redone += 1

    @property
    def step(self) -> int:
        """Finished steps."""
        return self.steps[-1].step if self.steps else 0

    def first_step_after(self, time: float, by_new_learner: bool = False) -> float | None:
        """When the first step after a time was trained; by a learner that began after it."""
        if by_new_learner:
            if self.last_resumed <= time:
                return None
            time = self.last_resumed
        later = [line.time for line in takewhile(lambda s: s.time > time, reversed(self.steps))]
        return later[-1] if later else None


@dataclass(frozen=True)
class Verdict:
    """What became of a run's ordinals.

    Attributes:
      steps: finished.
      trained, quarantined, unscored, dropped: ordinals by what became of them.
      faults: sentences; none when nothing was lost, doubled, or missing without a reason.
    """

    steps: int
    trained: int
    quarantined: int
    unscored: int
    dropped: int
    lost: tuple[int, ...]
    twice: tuple[int, ...]
    unexplained: tuple[int, ...]
    faults: tuple[str, ...]


def verify(
    steps: Sequence[OrdinalsLine],
    groups_per_step: int,
    ordered: bool,
    window: int,
    explains: Explains,
) -> Verdict:
    """Judges the steps that count.

    Args:
      steps: `Ledger.steps`.
      groups_per_step: of the run.
      ordered: step s must train exactly the s-th G ordinals.
      window: groups that may be out, and so be missing below the highest ordinal, in async mode.
      explains: see `Explains`; asked once for each ordinal that trained nothing.
    """
    faults: list[str] = []
    numbers = [line.step for line in steps]
    if numbers != list(range(1, len(steps) + 1)):
        faults.append(f"steps are not 1 .. {len(steps)}, each once: {_gaps(numbers)}")
    seen: Counter[int] = Counter()
    unexplained: list[int] = []
    for line in steps:
        not_trained = {**line.unscored, **line.quarantined}
        taken = sorted([*line.trained, *line.unscored, *line.quarantined])
        seen.update([*taken, *line.dropped])
        first = (line.step - 1) * groups_per_step
        if len(taken) != groups_per_step:
            faults.append(f"step {line.step} has {len(taken)} groups, not {groups_per_step}")
        elif ordered and taken != list(range(first, first + groups_per_step)):
            faults.append(f"step {line.step} trained {taken[:SHOWN]}, not {first} and on")
        unexplained += [o for o, reasons in not_trained.items() if not explains(o, reasons)]
    highest = max(seen, default=-1)
    complete = highest + 1 if ordered else max(0, highest + 1 - window)
    lost = tuple(ordinal for ordinal in range(complete) if ordinal not in seen)
    twice = tuple(sorted(ordinal for ordinal, times in seen.items() if times > 1))
    for what, ordinals in (
        ("lost", lost),
        ("trained twice", twice),
        ("not trained, and no injected fault explains it", tuple(unexplained)),
    ):
        if ordinals:
            faults.append(f"{len(ordinals)} ordinals {what}: {list(ordinals[:SHOWN])}")
    return Verdict(
        steps=len(steps),
        trained=sum(len(line.trained) for line in steps),
        quarantined=sum(len(line.quarantined) for line in steps),
        unscored=sum(len(line.unscored) for line in steps),
        dropped=sum(len(line.dropped) for line in steps),
        lost=lost,
        twice=twice,
        unexplained=tuple(unexplained),
        faults=tuple(faults),
    )


def _gaps(numbers: Sequence[int]) -> str:
    odd = [number for index, number in enumerate(numbers) if number != index + 1]
    return f"from {odd[0]} on" if odd else "none"
