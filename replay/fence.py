"""Which learner is the run's: the last one that said so; what earlier ones ask is refused."""

from replay.queue import LearnerFenced


class Fence:
    """Counts the learners of one queue; see `ReplayQueue.fence`."""

    def __init__(self, incarnation: str) -> None:
        """Begins with none; `incarnation` tells this queue from those before it."""
        self._incarnation = incarnation
        self._learners = 0
        self._begun = ""

    def advance(self) -> str:
        """Lets a new learner in; returns its epoch."""
        self._learners += 1
        return self._epoch

    @property
    def _epoch(self) -> str:
        return f"{self._incarnation}.{self._learners}"

    def check(self, epoch: str | None) -> None:
        """Raises `LearnerFenced` where an epoch is given that is not the last one."""
        if epoch is not None and epoch != self._epoch:
            raise fenced(epoch)

    def begins(self, epoch: str | None) -> bool:
        """Whether a learner's `restart` is its first, and has an effect; see `check`.

        A call that is sent again may also arrive late, when its learner has trained since.
        """
        self.check(epoch)
        if epoch is None:
            return True
        again, self._begun = epoch == self._begun, epoch
        return not again


def is_earlier(epoch: str, other: str) -> bool:
    """Whether an epoch came before another one of the same queue; epochs of two have no order."""
    queue, _, number = epoch.rpartition(".")
    others, _, others_number = other.rpartition(".")
    if queue != others or not (number.isdecimal() and others_number.isdecimal()):
        return False
    return int(number) < int(others_number)


def fenced(epoch: str) -> LearnerFenced:
    """What a learner is told whose place was taken."""
    return LearnerFenced(
        f"the learner of epoch {epoch} is not the run's learner any more: another one has taken "
        "over, or the queue was made anew. End this one"
    )
