"""What a reward is: a class with `score`, batched, pure, importable by a path."""

from collections.abc import Sequence
from typing import Any, Protocol

from protos.trajectory import Outcome
from vision.tasks.task import Example


class Reward(Protocol):
    """Judges predictions against examples; higher is better.

    A reward is constructed as `RewardClass(task, **options)` once in each reward worker, with the
    `options` of its config entry.

    Attributes:
      provides: names of the auxiliary arrays that its `Scored` outcomes carry (may be empty).
    """

    provides: Sequence[str]

    def score(self, examples: Sequence[Example], predictions: Sequence[Any]) -> list[Outcome]:
        """One outcome for each pair of example and prediction, in order.

        A sample that cannot be judged is `Abstained` or `Failed`, never a number. Raise
        `InfrastructureError` for what another worker may manage; any other exception counts as
        a failure of this group's data.
        """
        ...
