"""What a reward is: a class with `score`, batched, pure, importable by a path.

A reward that is computed elsewhere has `submit` instead: it takes the sampled sequences, which are
small, and answers later. Whoever holds a group in hand calls `rewards.judge.start`, which treats
both alike.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, Protocol

from typing_extensions import TypeIs

from protos.reward import ScoreRequest
from protos.trajectory import Outcome
from vision.tasks.task import Example, Task


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
        `InfrastructureError` for what another worker may manage; what other exceptions count as
        says `protos.trajectory.failure_kind`: most are a failure of this group's data.
        """
        ...


class Group:
    """K sampled sequences of one example; example and predictions are made when asked for.

    Attributes:
      request: the sequences, as they travel to a remote reward.
      seconds: what was spent on it in this process, by part: `loading`, `decoding`, what the
        task tells apart from that (`vision.tasks.task.TimedTask`), and `scoring`.
    """

    def __init__(self, task: Task, request: ScoreRequest):
        self.request = request
        self.seconds: dict[str, float] = {}
        self._task = task
        self._example: Example | None = None
        self._predictions: list[Any] | None = None

    def __len__(self) -> int:
        return len(self.request)

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Adds to `seconds` what the block takes, also when it raises."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._add(part, time.perf_counter() - began)

    def _add(self, part: str, seconds: float) -> None:
        self.seconds[part] = self.seconds.get(part, 0.0) + seconds

    # No cached_property: that of Python 3.11 holds a lock that all groups share, so that a server's
    # threads would load and decode one after the other.
    @property
    def example(self) -> Example:
        """The example, augmented as the model saw it."""
        if self._example is None:
            seed = self.request.augmentation_seed
            with self.timed("loading"):
                self._example = self._task.load(self.request.split, self.request.example_id, seed)
        return self._example

    @property
    def predictions(self) -> list[Any]:
        """[K] predictions, as the task reads them."""
        if self._predictions is None:
            self._predictions = self._decoded()
        return self._predictions

    def _decoded(self) -> list[Any]:
        example = self.example  # its loading is no part of the decoding
        apart: Mapping[str, float] = getattr(self._task, "decode_seconds", {})
        before = dict(apart)
        try:
            with self.timed("decoding"):
                return self._task.decode(example, self.request.tokens, self.request.logprobs)
        finally:
            for part, seconds in before.items():
                self._add("decoding", seconds - apart[part])
                self._add(part, apart[part] - seconds)


class SubmittedReward(Protocol):
    """A reward that is computed elsewhere, by a server or by a person.

    Attributes:
      provides: as of a `Reward`.
      in_flight: how many groups a worker may have submitted and not answered.
    """

    provides: Sequence[str]
    in_flight: int

    def submit(self, group: Group) -> Future[Sequence[Outcome]]:
        """Returns at once; the future holds one outcome a sample, or raises as `score` does.

        It always ends: after a deadline of the reward's own with `InfrastructureError`.
        """
        ...


AnyReward = Reward | SubmittedReward


def is_submitted(reward: AnyReward) -> TypeIs[SubmittedReward]:
    """Whether the reward is computed elsewhere."""
    return callable(getattr(reward, "submit", None))
