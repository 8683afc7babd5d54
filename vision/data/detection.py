"""One face for all data with boxes: ids, and for an id its image, boxes, labels and crowds."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from vision.data.config import ScenesOptions
from vision.data.images import resize_rgb
from vision.data.scenes import CLASS_NAMES, SIDE, SceneSplit, drop_annotations, load_scenes

Sample = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


class DetectionSource(Protocol):
    """A split of images with boxes.

    Attributes:
      class_names: by class, contiguous from 0.
      example_ids: in a fixed order.
    """

    class_names: Sequence[str]
    example_ids: Sequence[str]

    def load(self, example_id: str, size: tuple[int, int]) -> Sample:
        """An example, stretched to a size (height, width).

        Returns:
          image [height, width, 3] uint8, boxes [N, 4] float64 y0 x0 y1 x1 as fractions of the
          image, labels [N] int32, crowd [N] bool.

        Raises:
          KeyError: no such id.
        """
        ...

    def class_counts(self) -> np.ndarray:
        """[classes] int64: number of boxes of each class, without crowds."""
        ...


class ScenesSource:
    """The quick start's scenes."""

    class_names: Sequence[str] = CLASS_NAMES

    def __init__(self, scenes: SceneSplit, split: str) -> None:
        self._scenes = scenes
        self._split = split
        self.example_ids: Sequence[str] = [f"scene-{index:06d}" for index in range(len(scenes))]
        self._index = {example_id: index for index, example_id in enumerate(self.example_ids)}

    def load(self, example_id: str, size: tuple[int, int]) -> Sample:
        """See `DetectionSource`."""
        index = self._index.get(example_id)
        if index is None:
            raise KeyError(
                f"no example {example_id!r} in split {self._split!r} of the scenes: "
                f"{self.example_ids[0]} .. {self.example_ids[-1]}"
            )
        boxes, labels = self._scenes.annotations(index)
        image = resize_rgb(np.asarray(self._scenes.images[index]), *size)
        return image, boxes / SIDE, labels, np.zeros(len(labels), bool)

    def class_counts(self) -> np.ndarray:
        """See `DetectionSource`."""
        return np.bincount(self._scenes.labels, minlength=len(self.class_names)).astype(np.int64)


def open_source(options: ScenesOptions, split: str) -> DetectionSource:
    """The data of a split ('train', 'validation', 'test')."""
    count = {"train": options.train, "validation": options.validation, "test": options.test}
    if split not in count:
        raise ValueError(f"unknown split {split!r}: one of {', '.join(count)}")
    scenes = load_scenes(options.seed, split, count[split], options.cache_dir)
    if split == "train" and options.drop_annotations:
        scenes = drop_annotations(scenes, options.drop_annotations, options.seed)
    return ScenesSource(scenes, split)
