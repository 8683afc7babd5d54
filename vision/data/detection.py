"""One face for all data with boxes: ids, and for an id its image, boxes, labels and crowds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from vision.data.coco import CocoInstances, load_instances
from vision.data.config import CocoOptions, DataOptions, ScenesOptions
from vision.data.example_ids import no_example
from vision.data.scenes import (
    CLASS_NAMES,
    POINTS,
    SPLITS,
    SceneSplit,
    drop_annotations,
    load_scenes,
)


@dataclass(frozen=True)
class DetectionSample:
    """An image as it is stored, with its boxes.

    Attributes:
      image: [h, w, 3] uint8, of any size.
      boxes: [N, 4] float64 y0 x0 y1 x1 as fractions of the image.
      labels: [N] int32, contiguous from 0.
      crowd: [N] bool.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray


class DetectionSource(Protocol):
    """A split of images with boxes.

    Attributes:
      class_names: by label.
      example_ids: in a fixed order.
    """

    class_names: Sequence[str]
    example_ids: Sequence[str]

    def load(self, example_id: str) -> DetectionSample:
        """Reads an example; `KeyError`: no such id."""
        ...

    def class_counts(self) -> np.ndarray:
        """[classes] int64: number of boxes of each class, without crowds."""
        ...


class ScenesSource:
    """The quick start's scenes."""

    class_names: Sequence[str] = CLASS_NAMES

    def __init__(self, scenes: SceneSplit) -> None:
        self._scenes = scenes
        self.example_ids: Sequence[str] = [f"scene-{index:06d}" for index in range(len(scenes))]
        self._index = {example_id: index for index, example_id in enumerate(self.example_ids)}

    def load(self, example_id: str) -> DetectionSample:
        """See `DetectionSource`."""
        if example_id not in self._index:
            raise KeyError(no_example(example_id, self.example_ids))
        index = self._index[example_id]
        boxes, labels = self._scenes.annotations(index)
        image = np.asarray(self._scenes.images[index])
        return DetectionSample(image, boxes / POINTS, labels, np.zeros(len(labels), bool))

    def class_counts(self) -> np.ndarray:
        """See `DetectionSource`."""
        return np.bincount(self._scenes.labels, minlength=len(self.class_names)).astype(np.int64)


class CocoSource:
    """Instances in COCO's format."""

    def __init__(self, instances: CocoInstances) -> None:
        self._instances = instances
        self.class_names: Sequence[str] = instances.class_names
        self.example_ids: Sequence[str] = list(instances.images)

    def load(self, example_id: str) -> DetectionSample:
        """See `DetectionSource`; `ImageError`: the image is missing or broken."""
        entry = self._instances.images.get(example_id)
        if entry is None:
            raise KeyError(no_example(example_id, self.example_ids))
        image = self._instances.read_image(example_id)
        return DetectionSample(image, entry.boxes, entry.labels, entry.crowd)

    def class_counts(self) -> np.ndarray:
        """See `DetectionSource`."""
        counts = np.zeros(len(self.class_names), np.int64)
        for entry in self._instances.images.values():
            np.add.at(counts, entry.labels[~entry.crowd], 1)
        return counts


def open_source(options: DataOptions, split: str) -> DetectionSource:
    """The data of a split ('train', 'validation', 'test').

    Raises:
      ValueError: an unknown split, or one that the options do not give.
      AnnotationError, ImageError, OSError: the data cannot be used; the message says why.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: one of {', '.join(SPLITS)}")
    if isinstance(options, ScenesOptions):
        return ScenesSource(_scenes(options, split, None))
    return CocoSource(_instances(options, split))


def prepare(options: DataOptions, progress: Callable[[str, int, int], None]) -> None:
    """Generates what is generated at first use, so that the workers find it done.

    Args:
      progress: called with (split, examples done, examples in all).
    """
    if isinstance(options, ScenesOptions):
        for split in SPLITS:
            _scenes(options, split, progress)


def _scenes(
    options: ScenesOptions, split: str, progress: Callable[[str, int, int], None] | None
) -> SceneSplit:
    count = {"train": options.train, "validation": options.validation, "test": options.test}[split]

    def report(done: int, total: int) -> None:
        if progress is not None:
            progress(split, done, total)

    scenes = load_scenes(options.seed, split, count, options.cache_dir, report)
    if split == "train" and options.drop_annotations:
        return drop_annotations(scenes, options.drop_annotations, options.seed)
    return scenes


def _instances(options: CocoOptions, split: str) -> CocoInstances:
    places = {"train": options.train, "validation": options.validation, "test": options.test}
    place = places[split]
    if place is None:
        given = ", ".join(name for name, value in places.items() if value is not None)
        raise ValueError(
            f"no data for split {split!r}: set data.{split}.annotations and data.{split}.images "
            f"(given: {given})"
        )
    instances = load_instances(place.annotations, place.images, options.on_bad_boxes)
    if options.check_images:
        instances.check_images()
    return instances
