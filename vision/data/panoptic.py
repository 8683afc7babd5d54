"""One face for all data with segments: ids, and for an id its image and its segments."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from vision.data.coco_panoptic import Category, CocoPanoptic, load_panoptic
from vision.data.config import CocoPanopticOptions, PanopticDataOptions, PanopticScenesOptions
from vision.data.example_ids import no_example
from vision.data.panoptic_scenes import (
    CATEGORIES,
    PanopticScenes,
    drop_annotations,
    load_panoptic_scenes,
)
from vision.data.scenes import SPLITS
from vision.data.segments import SegmentMap


@dataclass(frozen=True)
class PanopticSample:
    """An image as it is stored, [h, w, 3] uint8 of any size, with its segments at that size."""

    image: np.ndarray
    segments: SegmentMap


class PanopticSource(Protocol):
    """A split of images with segments.

    Attributes:
      categories: by label - 1.
      example_ids: in a fixed order.
    """

    categories: Sequence[Category]
    example_ids: Sequence[str]

    def load(self, example_id: str) -> PanopticSample:
        """Reads an example.

        Raises:
          KeyError: no such id.
          AnnotationError, ImageError: its files cannot be used; the message says why.
        """
        ...


class PanopticScenesSource:
    """The quick start's scenes."""

    categories: Sequence[Category] = CATEGORIES

    def __init__(self, scenes: PanopticScenes) -> None:
        self._scenes = scenes
        self.example_ids: Sequence[str] = [f"scene-{index:06d}" for index in range(len(scenes))]
        self._index = {example_id: index for index, example_id in enumerate(self.example_ids)}

    def load(self, example_id: str) -> PanopticSample:
        """See `PanopticSource`."""
        if example_id not in self._index:
            raise KeyError(no_example(example_id, self.example_ids))
        index = self._index[example_id]
        return PanopticSample(np.asarray(self._scenes.images[index]), self._scenes.segments(index))


class CocoPanopticSource:
    """Segments in COCO's panoptic format."""

    def __init__(self, files: CocoPanoptic, images: Path) -> None:
        self._files, self._images = files, images
        self.categories: Sequence[Category] = files.categories
        self.example_ids: Sequence[str] = list(files.images)

    def load(self, example_id: str) -> PanopticSample:
        """See `PanopticSource`."""
        if example_id not in self._files.images:
            raise KeyError(no_example(example_id, self.example_ids))
        image = self._files.read_image(example_id, self._images)
        return PanopticSample(image, self._files.read_segments(example_id))


def open_source(options: PanopticDataOptions, split: str) -> PanopticSource:
    """The data of a split ('train', 'validation', 'test').

    Raises:
      ValueError: an unknown split, or one that the options do not give.
      AnnotationError, ImageError, OSError: the data cannot be used; the message says why.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: one of {', '.join(SPLITS)}")
    if isinstance(options, PanopticScenesOptions):
        return PanopticScenesSource(_scenes(options, split, None))
    return _coco(options, split)


def prepare(options: PanopticDataOptions, progress: Callable[[str, int, int], None]) -> None:
    """Generates what is generated at first use, so that the workers find it done.

    Args:
      progress: called with (split, examples done, examples in all).
    """
    if isinstance(options, PanopticScenesOptions):
        for split in SPLITS:
            _scenes(options, split, progress)


def _scenes(
    options: PanopticScenesOptions, split: str, progress: Callable[[str, int, int], None] | None
) -> PanopticScenes:
    count = {"train": options.train, "validation": options.validation, "test": options.test}[split]

    def report(done: int, total: int) -> None:
        if progress is not None:
            progress(split, done, total)

    scenes = load_panoptic_scenes(options.seed, split, count, options.cache_dir, report)
    if split == "train" and options.drop_annotations:
        return drop_annotations(scenes, options.drop_annotations, options.seed)
    return scenes


def _coco(options: CocoPanopticOptions, split: str) -> CocoPanopticSource:
    places = {"train": options.train, "validation": options.validation, "test": options.test}
    place = places[split]
    if place is None:
        given = ", ".join(name for name, value in places.items() if value is not None)
        raise ValueError(
            f"no data for split {split!r}: set data.{split}.annotations, .annotation_dir and "
            f".images (given: {given})"
        )
    files = load_panoptic(place.annotations, place.annotation_dir)
    if options.check_images:
        files.check_files(place.images)
    return CocoPanopticSource(files, place.images)
