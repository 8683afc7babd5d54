"""Segment maps: what every pixel belongs to, in ground truth and prediction."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class SegmentMap:
    """Every pixel's segment, and what the segments are.

    Segments are rows of a table. A row whose label is 0 is void; several rows may be. A row need
    not have pixels. Several rows of a stuff class are one segment to metric and reward.

    Attributes:
      ids: [H, W] int32, the row of each pixel's segment.
      labels: [N] int32, the class of each row: 0 void, 1 .. C in the order of the categories.
      crowd: [N] bool: a region of many things of one class, in ground truth.
    """

    ids: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        height, width = self.ids.shape
        return height, width

    def semantics(self) -> np.ndarray:
        """[H, W] int32, the label of each pixel."""
        return self.labels[self.ids]

    def resized(self, height: int, width: int) -> "SegmentMap":
        """The nearest pixel's segment; the table stays as it is."""
        return SegmentMap(resize_nearest(self.ids, height, width), self.labels, self.crowd)


def resize_nearest(array: np.ndarray, height: int, width: int) -> np.ndarray:
    """[h, w, ...] to [height, width, ...]: each pixel takes the one that its centre falls in."""
    h, w = array.shape[:2]
    if (h, w) == (height, width):
        return array
    rows = (2 * np.arange(height) + 1) * h // (2 * height)
    columns = (2 * np.arange(width) + 1) * w // (2 * width)
    return np.ascontiguousarray(array[rows[:, None], columns])
