"""The captioning reward: CIDEr-D of a sentence (Pinto et al. 2023, section 4.4)."""

from collections.abc import Sequence
from typing import Any, Protocol

from protos.trajectory import Outcome, Scored
from vision.metrics.cider import Cider
from vision.tasks.task import Example


class ReferencedTask(Protocol):
    """What the reward needs to know of a captioning task."""

    def training_references(self) -> Sequence[Sequence[str]]:
        """The normalised captions of every training image."""
        ...


class CiderReward:
    """CIDEr-D against the image's references, 0 .. 10; document frequencies of the training set.

    Memory and start-up grow with the training captions: COCO's 566,000 hold some millions of
    n-grams. The references of an image are counted when it is judged, in about 50 µs.

    Options:
      eos: the end of a sentence counts as a word, in candidates, references and frequencies; a
        caption that was cut has none. Without it models learn to end badly.

    Raises:
      ValueError: the training set has one image: every n-gram is then in every image, weighs
        nothing, and all rewards would be 0.
    """

    provides: Sequence[str] = ()

    def __init__(self, task: ReferencedTask, eos: bool = True) -> None:
        references = task.training_references()
        if len(references) < 2:
            raise ValueError(
                f"the training set has {len(references)} image: CIDEr weighs n-grams by the images "
                "that they are not in, and all rewards would be 0; at least 2 images are needed"
            )
        self._cider = Cider(references, end=eos)

    def score(self, examples: Sequence[Example], predictions: Sequence[Any]) -> list[Outcome]:
        """See `Reward`; predictions are `vision.tasks.captioning.Caption`."""
        position: dict[tuple[str, ...], int] = {}
        images = [position.setdefault(example.target.words, len(position)) for example in examples]
        scores = self._cider.score(
            self._cider.cook(list(position)),
            images,
            [prediction.words for prediction in predictions],
            [prediction.ended for prediction in predictions],
        )
        return [Scored(float(score)) for score in scores]
