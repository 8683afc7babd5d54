"""What became of every ordinal, step by step: `ordinals.jsonl`, by the learner's own hand.

The file only grows. A learner that goes back to a checkpoint says so by a line of its own, and the
lines of later steps before it count no more: `surviving_steps` leaves them out. So a reader who
trusts nobody's counters can tell that nothing was lost and nothing trained twice.

A step is written before it is acknowledged: so a learner that was cut off may still write one
behind the line of the learner that has taken its place. Each line tells its learner's epoch, see
`counts`.
"""

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from protos.trajectory import Scored
from replay.fence import is_earlier

if TYPE_CHECKING:  # which would bring JAX to readers
    from learner.group_batches import TrainingGroup

ORDINALS_FILE = "ordinals.jsonl"


@dataclass(frozen=True)
class OrdinalsLine:
    """A line: either a step, or a learner that goes on from one.

    Attributes:
      step: finished steps; of a resuming learner, those of its checkpoint.
      time: wall clock, seconds.
      resumed: whether a learner began here.
      trained: ordinals whose groups had two scored samples or more.
      unscored: ordinals whose groups trained nothing for want of scored samples, with the reasons.
      quarantined: ordinals that were given up, with the reasons.
      dropped: ordinals that were too stale to train.
      epoch: what `ReplayQueue.fence` gave to the learner; "" where it did not tell it yet.
    """

    step: int
    time: float
    resumed: bool = False
    trained: tuple[int, ...] = ()
    unscored: dict[int, list[str]] = field(default_factory=dict)
    quarantined: dict[int, list[str]] = field(default_factory=dict)
    dropped: tuple[int, ...] = ()
    epoch: str = ""

    def to_json(self) -> dict[str, Any]:
        """Ordinals as ranges, [first, end)."""
        if self.resumed:
            return {"resumed": self.step, "time": round(self.time, 3), "epoch": self.epoch}
        values: dict[str, Any] = {
            "step": self.step,
            "time": round(self.time, 3),
            "trained": _ranges(self.trained),
        }
        more = {
            "unscored": self.unscored,
            "quarantined": self.quarantined,
            "dropped": _ranges(self.dropped),
            "epoch": self.epoch,
        }
        return values | {name: value for name, value in more.items() if value}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "OrdinalsLine":
        """From `to_json`'s values."""
        if "resumed" in values:
            epoch = values.get("epoch", "")
            return cls(values["resumed"], values["time"], resumed=True, epoch=epoch)
        return cls(
            step=values["step"],
            time=values["time"],
            trained=tuple(_unfold(values["trained"])),
            unscored=_by_ordinal(values.get("unscored", {})),
            quarantined=_by_ordinal(values.get("quarantined", {})),
            dropped=tuple(_unfold(values.get("dropped", []))),
            epoch=values.get("epoch", ""),
        )


Account = dict[str, list[Any]]
"""Of one host: `trained` ordinals, and (ordinal, reasons) of `unscored` and `quarantined` ones."""


def account(groups: "Sequence[TrainingGroup]") -> Account:
    """What a step makes of these groups; of JSON."""
    trained: list[Any] = []
    unscored: list[Any] = []
    quarantined: list[Any] = []
    for group in groups:
        if group.scored is None:
            quarantined.append((group.ordinal, list(group.reasons)))
            continue
        # By the group's own ticket: what is trained, whatever the queue called it.
        ordinal = group.scored.sampled.ticket.ordinal
        missed = [o for o in group.scored.outcomes if not isinstance(o, Scored)]
        if len(group.scored.outcomes) - len(missed) >= 2:
            trained.append(ordinal)
        else:
            unscored.append((ordinal, [outcome.reason for outcome in missed]))
    return {"trained": trained, "unscored": unscored, "quarantined": quarantined}


class OrdinalsWriter:
    """Appends to a run's file; a line is with the system when `write` returns."""

    def __init__(self, run_directory: Path, resumed_step: int, epoch: str) -> None:
        """Begins a learner that goes on from this step, and is the run's by this epoch."""
        self._epoch = epoch
        path = run_directory / ORDINALS_FILE
        cut_short = path.exists() and path.read_bytes()[-1:] not in (b"\n", b"")
        self._file = path.open("a", encoding="utf-8")
        if cut_short:  # a crash ended the last line: it is none
            self._file.write("\n")
        self._write(OrdinalsLine(resumed_step, time.time(), resumed=True, epoch=epoch))

    def write(self, step: int, accounts: Sequence[Account], dropped: Sequence[int]) -> None:
        """What a step made of its groups, by host; `dropped` before it."""
        self._write(
            OrdinalsLine(
                step=step,
                time=time.time(),
                trained=tuple(ordinal for of_host in accounts for ordinal in of_host["trained"]),
                unscored={o: why for of_host in accounts for o, why in of_host["unscored"]},
                quarantined={o: why for of_host in accounts for o, why in of_host["quarantined"]},
                dropped=tuple(dropped),
                epoch=self._epoch,
            )
        )

    def _write(self, line: OrdinalsLine) -> None:
        self._file.write(json.dumps(line.to_json()) + "\n")
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()


def read_ordinals(run_directory: Path) -> list[OrdinalsLine]:
    """All lines, in the order they were written; a line that a crash cut short is left out."""
    path = run_directory / ORDINALS_FILE
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    read: list[OrdinalsLine] = []
    for number, text in enumerate(lines):
        try:
            read.append(OrdinalsLine.from_json(json.loads(text)))
        except json.JSONDecodeError as error:
            last = number == len(lines) - 1
            if not last and "resumed" not in lines[number + 1]:
                raise ValueError(f"{path}, line {number + 1}: not JSON: {text[:80]!r}") from error
    return read


def counts(line: OrdinalsLine, epoch: str) -> bool:
    """Whether a line counts where the learner of an epoch began last before it.

    Of steps, only its own; of beginnings, all but those of learners that were the run's before it.
    """
    return not is_earlier(line.epoch, epoch) if line.resumed else line.epoch == epoch


def surviving_steps(lines: Iterable[OrdinalsLine]) -> list[OrdinalsLine]:
    """The steps that count: a learner that went back made those after its checkpoint anew."""
    steps: list[OrdinalsLine] = []
    epoch = ""
    for line in lines:
        if not counts(line, epoch):
            continue
        if not line.resumed:
            steps.append(line)
            continue
        epoch = line.epoch
        while steps and steps[-1].step > line.step:
            steps.pop()
    return steps


def _ranges(ordinals: Iterable[int]) -> list[list[int]]:
    ranges: list[list[int]] = []
    for ordinal in ordinals:
        if ranges and ranges[-1][1] == ordinal:
            ranges[-1][1] += 1
        else:
            ranges.append([ordinal, ordinal + 1])
    return ranges


def _unfold(ranges: Iterable[Sequence[int]]) -> Iterable[int]:
    return (ordinal for first, end in ranges for ordinal in range(first, end))


def _by_ordinal(values: dict[str, list[str]]) -> dict[int, list[str]]:
    return {int(ordinal): reasons for ordinal, reasons in values.items()}
