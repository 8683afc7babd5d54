"""Object detection as sequences of tokens (the paper's section 4.2), and how it is judged."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from vision.data.augment import AugmentOptions, augment
from vision.data.config import DataOptions, ScenesOptions
from vision.data.detection import DetectionSource, open_source, prepare
from vision.data.images import resize_rgb, to_model
from vision.tasks.boxes import (
    CLASS_SLOT,
    CONFIDENCE_LEVELS,
    CONFIDENCE_SLOT,
    END,
    TOKENS_PER_BOX,
    Boxes,
    BoxLayout,
    Detections,
)
from vision.tasks.task import Example

__all__ = ["Boxes", "DetectionConfig", "DetectionTask", "Detections"]


class DetectionConfig(BaseModel):
    """What is detected, where, and how it is written."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    kind: Literal["detection"] = "detection"
    data: DataOptions = Field(default_factory=ScenesOptions, discriminator="kind")
    """Where images and boxes come from: `kind: scenes` or `kind: coco`."""
    image_size: tuple[int, int] = (48, 48)
    """Height and width that the model sees; the image is stretched to it."""
    augment: AugmentOptions | None = None
    """How training images are changed; none by default."""
    coordinate_buckets: int = Field(default=192, ge=2, le=10_000)
    """Steps of a coordinate over the image's side (the paper: 1000)."""
    max_boxes: int = Field(default=6, ge=1, le=1000)
    """Boxes in a sequence, six tokens each (the paper: 100)."""
    box_order: Literal["random", "sorted"] = "random"
    """Order of the ground truth in maximum likelihood: random by seed, or from the top down."""
    rank: Literal["class", "confidence", "product"] = "class"
    """What ranks boxes in the metric: the probability of the class token, of confidence token 2,
    or their product."""
    reinforce_confidence: bool = False
    """Let the policy gradient train the confidence tokens too, as the released code does."""
    allowed: Literal["slots", "free"] = "slots"
    """`slots`: every token only where it belongs. `free`: end, coordinates and classes may stand
    in each other's place, and are clipped when read. Confidence keeps to its slots in both."""

    @model_validator(mode="after")
    def _fits_together(self) -> "DetectionConfig":
        if min(self.image_size) < 8:
            raise ValueError(f"image_size {self.image_size}: each side must be at least 8 pixels")
        if self.augment and self.augment.flip and isinstance(self.data, ScenesOptions):
            raise ValueError("augment.flip must be 0 for scenes: a mirrored digit is no digit")
        return self


class DetectionTask:
    """Implements `vision.tasks.task.Task`; see there for the contract of what is not said here."""

    headline = "mAP"
    end_token = END

    def __init__(self, config: DetectionConfig) -> None:
        self.config = config
        self.image_size = config.image_size
        self._sources: dict[str, DetectionSource] = {}
        self.class_names = self.source("train").class_names
        self.layout = BoxLayout(config.coordinate_buckets, len(self.class_names), config.max_boxes)
        self.vocabulary_size = self.layout.vocabulary_size
        self.max_length = self.layout.max_length
        self.ordered_tokens: tuple[int, int] | None = (
            self.layout.first_coordinate,
            config.coordinate_buckets + 1,
        )
        self.auxiliary_arrays: Mapping[str, tuple[int, ...]] = {"match_iou": (config.max_boxes,)}

    @classmethod
    def prepare(cls, config: DetectionConfig, progress: Callable[[str, int, int], None]) -> None:
        """See `Task`: scenes are generated."""
        prepare(config.data, progress)

    def source(self, split: str) -> DetectionSource:
        """The data of a split, opened when first asked for."""
        if split not in self._sources:
            source = open_source(self.config.data, split)
            expected = self._sources.get("train", source).class_names
            if list(source.class_names) != list(expected):
                raise ValueError(
                    f"the classes of split {split!r} differ from those of the training set: "
                    f"{sorted(set(source.class_names) ^ set(expected)) or 'another order'}"
                )
            self._sources[split] = source
        return self._sources[split]

    def class_counts(self) -> np.ndarray:
        """[classes] int64: the boxes of each class in the training set, without crowds."""
        return self._class_counts

    @cached_property
    def _class_counts(self) -> np.ndarray:
        return self.source("train").class_counts()

    def example_ids(self, split: str) -> Sequence[str]:
        """See `Task`."""
        return self.source(split).example_ids

    def load(self, split: str, example_id: str, augmentation_seed: int | None) -> Example:
        """See `Task`; the target is a `Boxes`."""
        sample = self.source(split).load(example_id)
        boxes, labels, crowd = sample.boxes, sample.labels, sample.crowd
        if augmentation_seed is None or self.config.augment is None:
            image = resize_rgb(sample.image, *self.image_size)
        else:
            image, boxes, kept = augment(
                sample.image, boxes, self.image_size, self.config.augment, augmentation_seed
            )
            boxes, labels, crowd = boxes[kept], labels[kept], crowd[kept]
        return Example(example_id, to_model(image), Boxes(self._buckets(boxes), labels, crowd))

    def _buckets(self, fractions: np.ndarray) -> np.ndarray:
        """[N, 4] fractions of the image to int32 buckets, rounded to the nearest."""
        buckets = np.rint(fractions * self.layout.levels)
        return np.clip(buckets, 0, self.layout.levels).astype(np.int32)

    def allowed_tokens(self) -> np.ndarray:
        """See `Task`."""
        return self.layout.allowed(freely=self.config.allowed == "free")

    def reinforced_tokens(self) -> np.ndarray:
        """See `Task`."""
        reinforced = np.ones(self.max_length, bool)
        if not self.config.reinforce_confidence:
            reinforced[CONFIDENCE_SLOT::TOKENS_PER_BOX] = False
        return reinforced

    def target_tokens(self, example: Example, seed: int) -> np.ndarray:
        """See `Task`.

        The confidence of ground truth is drawn from {1, 2}: a model that has only ever seen 2
        breaks when the confidence loss sets in.
        """
        target: Boxes = example.target.without_crowds()
        random = np.random.default_rng(seed)
        order = random.permutation(len(target))
        if self.config.box_order == "sorted":
            order = np.lexsort((target.boxes[:, 1], target.boxes[:, 0]))
        confidences = random.integers(1, CONFIDENCE_LEVELS + 1, len(target))
        return self.layout.encode(target.boxes[order], target.labels[order], confidences)

    def decode(
        self, example: Example, tokens: np.ndarray, logprobs: np.ndarray
    ) -> list[Detections]:
        """See `Task`; boxes are read without the image."""
        boxes, labels, valid = self.layout.decode(tokens)
        probabilities = np.exp(logprobs).astype(np.float32)
        slots = probabilities.reshape(-1, self.config.max_boxes, TOKENS_PER_BOX)
        said = tokens.reshape(slots.shape)[..., CONFIDENCE_SLOT] >= CONFIDENCE_LEVELS
        said_probability = slots[..., CONFIDENCE_SLOT]
        # The slot allows tokens 1 and 2 only, so one probability tells both.
        confidences = np.where(said, said_probability, 1 - said_probability).astype(np.float32)
        return [
            Detections(boxes[i, v], labels[i, v], confidences[i, v], slots[i, v, CLASS_SLOT])
            for i, v in enumerate(valid)
        ]

    def scores(self, prediction: Detections) -> np.ndarray:
        """[M] float32: what ranks the boxes in the metric."""
        if self.config.rank == "class":
            return prediction.class_probabilities
        if self.config.rank == "confidence":
            return prediction.confidences
        return prediction.class_probabilities * prediction.confidences

    def auxiliary_loss(self, logits: Any, tokens: Any, auxiliary: Mapping[str, Any]) -> Any:
        """The confidence loss: cross-entropy of each box's confidence with its match IoU.

        The target is 1 - iou on token 1 and iou on token 2; boxes are summed. Padding is forced,
        not predicted, and costs nothing.
        """
        import jax
        import jax.numpy as jnp

        iou = auxiliary["match_iou"]  # [N, max_boxes]
        logprobs = jax.nn.log_softmax(logits[:, CONFIDENCE_SLOT::TOKENS_PER_BOX], axis=-1)
        ended = jnp.cumsum(tokens == END, axis=1) > 0
        said = ~ended[:, CONFIDENCE_SLOT::TOKENS_PER_BOX]
        cross_entropy = -(1 - iou) * logprobs[..., 1] - iou * logprobs[..., 2]
        return jnp.sum(jnp.where(said, cross_entropy, 0.0), axis=-1)

    def dense_targets(
        self, example: Example, grid: tuple[int, int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """What each patch of the image shows, to warm up an encoder.

        A patch shows the box that holds its centre, of several the one whose own centre is
        nearest; a box that would be nobody's gets the patch of its centre.

        Args:
          grid: patches in height and width.

        Returns:
          class [gh * gw] int32, `len(class_names)` for background, and box [gh * gw, 4] float32
          y0 x0 y1 x1 as fractions of the image, 0 for background.
        """
        target: Boxes = example.target.without_crowds()
        height, width = grid
        classes = np.full(height * width, len(self.class_names), np.int32)
        boxes = np.zeros((height * width, 4), np.float32)
        if not len(target):
            return classes, boxes
        fractions = target.boxes.astype(np.float32) / self.layout.levels  # [N, 4]
        y = np.repeat((np.arange(height) + 0.5) / height, width)[:, None]
        x = np.tile((np.arange(width) + 0.5) / width, height)[:, None]
        y0, x0, y1, x1 = fractions.T
        inside = (y >= y0) & (y < y1) & (x >= x0) & (x < x1)  # [patches, N]
        middle_y, middle_x = (y0 + y1) / 2, (x0 + x1) / 2
        distance = ((y - middle_y) / (y1 - y0 + 1e-6)) ** 2
        distance += ((x - middle_x) / (x1 - x0 + 1e-6)) ** 2
        owner = np.where(inside, distance, np.inf).argmin(1)
        owner[~inside.any(1)] = -1
        for box in set(range(len(target))) - set(owner.tolist()):
            row = min(int(middle_y[box] * height), height - 1)
            owner[row * width + min(int(middle_x[box] * width), width - 1)] = box
        shown = owner >= 0
        classes[shown] = target.labels[owner[shown]]
        boxes[shown] = fractions[owner[shown]]
        return classes, boxes

    def evaluate(
        self, examples: Sequence[Example], predictions: Sequence[Detections]
    ) -> dict[str, float]:
        """COCO's metrics over a split, as fractions: mAP, AP50, AP75, AR100, and box counts."""
        from vision.metrics.coco import evaluate_boxes

        if len(examples) != len(predictions):
            raise ValueError(f"{len(examples)} examples but {len(predictions)} predictions")
        targets: list[Boxes] = [example.target for example in examples]
        figures = evaluate_boxes(
            [target.boxes for target in targets],
            [target.labels for target in targets],
            [prediction.boxes for prediction in predictions],
            [prediction.labels for prediction in predictions],
            [self.scores(prediction) for prediction in predictions],
            len(self.class_names),
            [target.crowd for target in targets],
        )
        images = max(1, len(examples))
        return {
            "mAP": figures.pop("AP"),
            **figures,
            "boxes_per_image": sum(len(prediction) for prediction in predictions) / images,
            "true_boxes_per_image": sum(len(target) for target in targets) / images,
        }

    def draw(self, example: Example, prediction: Detections | None) -> np.ndarray:
        """See `Task`; enlarged so that the longer side has at least 288 pixels."""
        from vision.tasks.drawing import draw_boxes

        if prediction is None:
            target: Boxes = example.target
            return draw_boxes(
                example.image, target.boxes / self.layout.levels, target.labels, self.class_names
            )
        return draw_boxes(
            example.image,
            prediction.boxes / self.layout.levels,
            prediction.labels,
            self.class_names,
            self.scores(prediction),
        )
