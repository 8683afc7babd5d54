"""Panoptic segmentation with UViM (Pinto et al. 2023, section 4.1): a segment for every pixel.

A prediction is a sequence of code words. Stage I reads and writes two planes, `semantics` (the
label of each pixel, 0 void) and `instances` (a number for each segment, things and stuff alike);
what it decodes becomes segments as `vision.metrics.panoptic_merge` says.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from vision.data.augment import AugmentOptions, augment_segments
from vision.data.config import PanopticDataOptions, PanopticScenesOptions
from vision.data.images import resize_rgb, to_model
from vision.data.panoptic import PanopticSource, open_source, prepare
from vision.models.uvim_config import Plane
from vision.tasks.segments import PanopticTarget, SegmentMap
from vision.tasks.task import Example
from vision.tasks.uvim import NO_END, StageOneCodec, StageOneSettings

__all__ = ["PanopticConfig", "PanopticTask"]

_SEMANTICS, _INSTANCES = "semantics", "instances"


class PanopticConfig(BaseModel):
    """What is segmented, and how it is written."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    kind: Literal["panoptic"] = "panoptic"
    data: PanopticDataOptions = Field(default_factory=PanopticScenesOptions, discriminator="kind")
    """Where images and segments come from: `kind: panoptic_scenes` or `kind: coco_panoptic`."""
    image_size: tuple[int, int] = (48, 48)
    """Height and width that the model sees; image and segments are stretched to it."""
    augment: AugmentOptions | None = None
    """How training images are changed, their segments with them; none by default."""
    stage_one: StageOneSettings = StageOneSettings()
    """The autoencoder of segment maps whose code words are the tokens."""
    instances: int = Field(default=12, ge=2, le=4096)
    """Numbers that stage I has for segments, 0 for void included (the paper: 100)."""
    min_fraction: float = Field(default=0.0, ge=0, le=1)
    """Predicted segments with less than this share of the pixels become void."""

    @model_validator(mode="after")
    def _fits_together(self) -> "PanopticConfig":
        if self.augment and self.augment.flip and isinstance(self.data, PanopticScenesOptions):
            raise ValueError("augment.flip must be 0 for scenes: a mirrored digit is no digit")
        return self


class PanopticTask:
    """Implements `Task` and `TimedTask` of `vision.tasks.task`, and
    `vision.tasks.uvim.StageOneTask`; see there.

    A target is a `PanopticTarget`, a prediction a `SegmentMap` at the model's size.
    """

    headline = "PQ"
    end_token = NO_END
    ordered_tokens: tuple[int, int] | None = None
    auxiliary_arrays: Mapping[str, tuple[int, ...]] = {}

    def __init__(self, config: PanopticConfig) -> None:
        self.config = config
        self.image_size = config.image_size
        self._sources: dict[str, PanopticSource] = {}
        categories = self.source("train").categories
        self.class_names: Sequence[str] = [category.name for category in categories]
        self.is_stuff = np.array([False, *(not category.is_thing for category in categories)])
        planes = (Plane(_SEMANTICS, len(categories) + 1), Plane(_INSTANCES, config.instances))
        self.stage_one = StageOneCodec(config.stage_one, config.image_size, planes)
        self.vocabulary_size = self.stage_one.vocabulary_size
        self.max_length = self.stage_one.max_length
        self.decode_seconds = {"merging": 0.0}

    @classmethod
    def prepare(cls, config: PanopticConfig, progress: Callable[[str, int, int], None]) -> None:
        """See `Task`: scenes are generated."""
        prepare(config.data, progress)

    def source(self, split: str) -> PanopticSource:
        """The data of a split, opened when first asked for."""
        if split not in self._sources:
            source = open_source(self.config.data, split)
            expected = self._sources.get("train", source).categories
            if list(source.categories) != list(expected):
                strange = {c.name for c in source.categories} ^ {c.name for c in expected}
                raise ValueError(
                    f"the categories of split {split!r} differ from those of the training set: "
                    f"{sorted(strange) or 'in order, id or isthing'}"
                )
            self._sources[split] = source
        return self._sources[split]

    def example_ids(self, split: str) -> Sequence[str]:
        """See `Task`."""
        return self.source(split).example_ids

    def load(self, split: str, example_id: str, augmentation_seed: int | None) -> Example:
        """See `Task`; an augmented image has no size of its own but the model's."""
        sample = self.source(split).load(example_id)
        options = self.config.augment
        if augmentation_seed is None or options is None:
            image = resize_rgb(sample.image, *self.image_size)
            target = PanopticTarget(sample.segments.resized(*self.image_size), sample.segments)
        else:
            image, segments = augment_segments(
                sample.image, sample.segments, self.image_size, options, augmentation_seed
            )
            target = PanopticTarget(segments, segments)
        return Example(example_id, to_model(image), target)

    def allowed_tokens(self) -> np.ndarray:
        """See `Task`: every code anywhere, padding nowhere."""
        return self.stage_one.allowed_tokens()

    def reinforced_tokens(self) -> np.ndarray:
        """See `Task`: all."""
        return np.ones(self.max_length, bool)

    def target_tokens(self, example: Example, seed: int) -> np.ndarray:
        """See `Task`: the code words of the segments."""
        return self.stage_one.encode(self.stage_one_inputs(example), example.image)

    def stage_one_inputs(self, example: Example) -> Mapping[str, np.ndarray]:
        """See `StageOneTask`: the segments, numbered by their centres from the top down.

        Crowds are void, and so are the smallest segments where there are not numbers enough.
        """
        segments: SegmentMap = example.target.segments
        ids, rows = segments.ids, len(segments.labels)
        pixels = np.bincount(ids.ravel(), minlength=rows)
        kept = np.flatnonzero((segments.labels > 0) & ~segments.crowd & (pixels > 0))
        kept = kept[np.argsort(-pixels[kept], kind="stable")][: self.config.instances - 1]
        height, width = ids.shape
        # Sums of coordinates are exact in float64.
        y = np.bincount(ids.ravel(), np.repeat(np.arange(height), width), rows)[kept]
        x = np.bincount(ids.ravel(), np.tile(np.arange(width), height), rows)[kept]
        kept = kept[np.lexsort((x / pixels[kept], y / pixels[kept]))]
        number, label = np.zeros(rows, np.int32), np.zeros(rows, np.int32)
        number[kept] = np.arange(1, len(kept) + 1)
        label[kept] = segments.labels[kept]
        return {_SEMANTICS: label[ids], _INSTANCES: number[ids]}

    def stage_one_prediction(
        self, example: Example, outputs: Mapping[str, np.ndarray]
    ) -> SegmentMap:
        """See `StageOneTask`: the instances with their labels."""
        from vision.metrics.panoptic_merge import merge_logits

        ids, labels = merge_logits(
            outputs[_SEMANTICS],
            outputs[_INSTANCES],
            self.stage_one.config.grid,
            self.config.min_fraction,
        )
        return SegmentMap(ids, labels, np.zeros(len(labels), bool))

    def decode(
        self, example: Example, tokens: np.ndarray, logprobs: np.ndarray
    ) -> list[SegmentMap]:
        """See `Task`."""
        predictions = []
        for outputs in self.stage_one.decode(tokens, example.image):
            began = time.perf_counter()
            predictions.append(self.stage_one_prediction(example, outputs))
            self.decode_seconds["merging"] += time.perf_counter() - began
        return predictions

    def auxiliary_loss(self, logits: Any, tokens: Any, auxiliary: Mapping[str, Any]) -> Any:
        """See `Task`: there is none, and `auxiliary_arrays` says so."""
        raise NotImplementedError("panoptic segmentation has no auxiliary loss")

    def evaluate(
        self, examples: Sequence[Example], predictions: Sequence[SegmentMap]
    ) -> dict[str, float]:
        """Panoptic quality at the images' own sizes, as fractions, and segments an image.

        PQ, SQ and RQ over all classes, and with `_things` and `_stuff` over those (left out where
        no class of it occurs); `matched`, `unmatched` and `missed` are segments an image.

        Raises:
          ValueError: examples and predictions are not as many, or no segment is on either side.
        """
        from vision.metrics.panoptic import PanopticStatistics, match_segments

        if len(examples) != len(predictions):
            raise ValueError(f"{len(examples)} examples but {len(predictions)} predictions")
        statistics = PanopticStatistics(self.is_stuff)
        for example, prediction in zip(examples, predictions, strict=True):
            true: SegmentMap = example.target.own_size
            found = prediction.resized(*true.size)
            statistics.add(
                match_segments(
                    true.ids, true.labels, true.crowd, found.ids, found.labels, self.is_stuff
                )
            )
        qualities = {
            "": statistics.all(),
            "_things": statistics.things(),
            "_stuff": statistics.stuff(),
        }
        if qualities[""] is None:
            raise ValueError(f"no segment in {len(examples)} examples or their predictions")
        metrics: dict[str, float] = {}
        for suffix, quality in qualities.items():
            if quality is not None:
                figures = {"PQ": quality.pq, "SQ": quality.sq, "RQ": quality.rq}
                metrics |= {name + suffix: value for name, value in figures.items()}
        counts = [statistics.counts(label) for label in range(1, len(self.is_stuff))]
        for name in ("matched", "unmatched", "missed"):
            metrics[f"{name}_per_image"] = sum(count[name] for count in counts) / len(examples)
        return metrics

    def draw(self, example: Example, prediction: SegmentMap | None) -> np.ndarray:
        """See `Task`; enlarged so that the longer side has at least 288 pixels."""
        from vision.tasks.drawing import draw_segments

        shown: SegmentMap = example.target.segments if prediction is None else prediction
        return draw_segments(example.image, shown.ids, shown.labels, self.class_names)
