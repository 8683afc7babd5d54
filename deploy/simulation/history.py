"""What a learner has trained, as far as it goes back to, and what it leaves on the disk."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from deploy.simulation.world import Violation
from replay.queue import Frontier

KEPT_CHECKPOINTS = 2


class Ordinals:
    """A set of ordinals of which most are all below one."""

    def __init__(self, below: int = 0, above: Iterable[int] = ()):
        self.below, self.above = below, set(above)

    def __contains__(self, ordinal: int) -> bool:
        return ordinal < self.below or ordinal in self.above

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Ordinals):
            return NotImplemented
        return (self.below, self.above) == (other.below, other.above)

    __hash__ = None  # type: ignore[assignment]  # it changes

    def __len__(self) -> int:
        return self.below + len(self.above)

    def __repr__(self) -> str:
        return f"all below {self.below} and {sorted(self.above)[:5]}"

    def add(self, ordinal: int) -> None:
        """One more."""
        self.above.add(ordinal)
        while self.below in self.above:
            self.above.remove(self.below)
            self.below += 1

    def copy(self) -> "Ordinals":
        """Another one of the same."""
        return Ordinals(self.below, self.above)


@dataclass
class Step:
    """What a step trained: (ordinal, policy version; None for a quarantined group's row)."""

    groups: list[tuple[int, int | None]]
    dropped: list[int]


@dataclass
class History:
    """The steps of one learner, those of its checkpoint first.

    Attributes:
      steps: trained, in order.
      done: ordinals that are trained or dropped, those of the step at work included.
      kept: those of `steps`, which a checkpoint holds.
    """

    steps: list[Step] = field(default_factory=list)
    done: Ordinals = field(default_factory=Ordinals)
    kept: Ordinals = field(default_factory=Ordinals)

    def finish(self, step: Step) -> None:
        """A step is trained; what it dropped was done before."""
        trained = [ordinal for ordinal, _ in step.groups]
        self.do(trained)
        self.steps.append(step)
        for ordinal in (*trained, *step.dropped):
            self.kept.add(ordinal)

    def do(self, ordinals: Iterable[int]) -> None:
        """It trains or drops these; `Violation` where it has done so before."""
        for ordinal in ordinals:
            if ordinal in self.done:
                raise Violation(f"ordinal {ordinal} is trained twice, in step {len(self.steps)}")
            self.done.add(ordinal)

    def frontier(self) -> Frontier:
        """What it has done, for a checkpoint."""
        dropped = sum(len(step.dropped) for step in self.steps)
        return Frontier(self.kept.below, tuple(sorted(self.kept.above)), dropped)

    def copy(self) -> "History":
        """For another learner to go on from."""
        return History(list(self.steps), self.kept.copy(), self.kept.copy())


@dataclass
class Checkpoint:
    """What a learner goes on from."""

    frontier: Frontier = field(default_factory=Frontier)
    history: History = field(default_factory=History)


class Disk:
    """The run directory: it outlives every process, and every learner writes to it."""

    def __init__(self) -> None:
        self._checkpoints = {0: Checkpoint()}

    def save(self, step: int, checkpoint: Checkpoint) -> None:
        """As `learner.checkpoints`: a step that is there stays as it is."""
        self._checkpoints.setdefault(step, checkpoint)
        for old in sorted(self._checkpoints)[:-KEPT_CHECKPOINTS]:
            del self._checkpoints[old]

    def latest(self) -> tuple[int, Checkpoint]:
        """The step to go on from."""
        step = max(self._checkpoints)
        return step, self._checkpoints[step]


def judge(history: History, mode: str, groups_per_step: int, lag: int) -> None:
    """A history that a run may have.

    Raises:
      Violation: a step of another size or, in ordered mode, other ordinals; groups that are too
        old or, in ordered mode, too young.
    """
    for step, entry in enumerate(history.steps):
        ordinals = [ordinal for ordinal, _ in entry.groups]
        if len(ordinals) != groups_per_step:
            raise Violation(f"step {step} trained {len(ordinals)} groups")
        ages = {step - version for _, version in entry.groups if version is not None}
        if mode == "async":
            if any(not 0 <= age <= lag for age in ages):
                raise Violation(f"step {step} trained groups of ages {sorted(ages)}")
            continue
        if ordinals != list(range(step * groups_per_step, (step + 1) * groups_per_step)):
            raise Violation(f"step {step} trained the ordinals {ordinals}")
        if ages - {min(step, lag)}:
            raise Violation(f"step {step} trained groups of ages {sorted(ages)}")
