"""What a task tells the rest of the system; the learner, the queue and the actors know no more.

A task says what an example is, how a prediction is written as tokens and read back, which tokens
may stand where, how predictions are judged on a split, and how they are drawn. Token 0 pads, and
is the decoder's first input.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

PAD = 0


@dataclass(frozen=True)
class Example:
    """One image with what is known of it.

    Attributes:
      example_id: unique within its split.
      image: [height, width, 3] float32 in [-1, 1], at the model's size.
      target: the task's own ground truth (for detection `vision.tasks.detection.Boxes`).
    """

    example_id: str
    image: np.ndarray
    target: Any


class TimedTask(Protocol):
    """What a task offers beside `Task` whose `decode` does more than read tokens.

    Attributes:
      decode_seconds: what of `decode`'s time in this process went into something else so far, by
        what it was. The names stay the same from the start.
    """

    decode_seconds: Mapping[str, float]


class NamedTokens(Protocol):
    """What a task offers beside `Task` whose tokens mean what its data says, such as words.

    Attributes:
      token_names: [vocabulary_size] what each token stands for. They are kept with every
        checkpoint, and one with other names is refused.
    """

    token_names: Sequence[str]


class Task(Protocol):
    """A task, built once in each process from its config.

    Attributes:
      vocabulary_size: tokens are 0 .. vocabulary_size - 1.
      max_length: L, the number of tokens of a prediction, padded.
      end_token: the token that ends a sequence; it belongs to the sequence, padding follows it.
      image_size: (height, width) of `Example.image`.
      ordered_tokens: (first, count) of a token range whose order means nearness (coordinates), or
        None. The model starts with smooth embeddings there.
      auxiliary_arrays: name -> shape of the float32 arrays that a reward gives beside its number
        for `auxiliary_loss` (for detection `match_iou: (max_boxes,)`). Empty: no such loss.
      headline: the name of the metric of `evaluate` that says which model is best.
    """

    vocabulary_size: int
    max_length: int
    end_token: int
    image_size: tuple[int, int]
    ordered_tokens: tuple[int, int] | None
    auxiliary_arrays: Mapping[str, tuple[int, ...]]
    headline: str

    def example_ids(self, split: str) -> Sequence[str]:
        """The ids of a split ('train', 'validation', 'test'), in a fixed order."""
        ...

    @classmethod
    def prepare(cls, config: Any, progress: Callable[[str, int, int], None]) -> None:
        """Makes what is made at first use, once for all processes of a machine.

        Args:
          config: the task's; building the task would make its data unseen.
          progress: told (what, done, total) now and then; not called when all is there.
        """
        ...

    def load(self, split: str, example_id: str, augmentation_seed: int | None) -> Example:
        """The example, augmented as a pure function of the seed; None: not augmented.

        Several threads may call it at the same time.
        """
        ...

    def allowed_tokens(self) -> np.ndarray:
        """[max_length, vocabulary_size] bool: what may stand where.

        Sampler and learner renormalise over the allowed tokens in the same way.
        """
        ...

    def reinforced_tokens(self) -> np.ndarray:
        """[max_length] bool: the positions that the policy gradient trains."""
        ...

    def target_tokens(self, example: Example, seed: int) -> np.ndarray:
        """[max_length] int32: the ground truth as tokens, for maximum likelihood."""
        ...

    def decode(self, example: Example, tokens: np.ndarray, logprobs: np.ndarray) -> list[Any]:
        """Predictions of the sequences that were sampled for one example.

        Args:
          example: what they were sampled for; a task may need its image to read them, and must
            not look at its target.
          tokens: [N, max_length] int32.
          logprobs: [N, max_length] float32, of the sampled tokens.
        """
        ...

    def auxiliary_loss(self, logits: Any, tokens: Any, auxiliary: Mapping[str, Any]) -> Any:
        """A supervised loss on the model's own samples; JAX, differentiable in `logits`.

        Args:
          logits: [N, max_length, vocabulary_size] float32, disallowed tokens already at -inf-like.
          tokens: [N, max_length] int32.
          auxiliary: the reward's arrays, [N, *shape].
        Returns:
          [N] float32, a loss for each sequence.
        """
        ...

    def evaluate(self, examples: Sequence[Example], predictions: Sequence[Any]) -> dict[str, float]:
        """Metrics of one prediction an example, over a split."""
        ...

    def draw(self, example: Example, prediction: Any | None) -> np.ndarray:
        """[H, W, 3] uint8: the prediction (None: the ground truth) on the image, to look at."""
        ...


def token_names(task: Task) -> Sequence[str] | None:
    """What each token stands for; None where the config alone says it. See `NamedTokens`."""
    names: Sequence[str] | None = getattr(task, "token_names", None)
    return names
