"""Boxes as tokens and back, as the paper's detector writes them.

Tokens: 0 pads and ends, 1 and 2 are confidence, then `levels + 1` coordinates, then the classes.
A box is six tokens, `y0 x0 y1 x1 class confidence`; coordinates are fractions of the image in
`levels` steps.
"""

from dataclasses import dataclass

import numpy as np

END = 0
TOKENS_PER_BOX = 6
CLASS_SLOT, CONFIDENCE_SLOT = 4, 5
CONFIDENCE_LEVELS = 2  # tokens 1 and 2


@dataclass(frozen=True)
class Boxes:
    """The boxes that an image is known to have.

    Attributes:
      boxes: [N, 4] int32 y0 x0 y1 x1 in coordinate buckets, 0 .. levels.
      labels: [N] int32 classes, contiguous from 0.
      crowd: [N] bool: the box covers many objects; unknown to training and rewards, ignored by
        the metric.
    """

    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray

    def __len__(self) -> int:
        """The number of boxes, crowds among them."""
        return len(self.labels)

    def without_crowds(self) -> "Boxes":
        """The boxes of single objects."""
        if not self.crowd.any():
            return self
        kept = ~self.crowd
        return Boxes(self.boxes[kept], self.labels[kept], self.crowd[kept])


@dataclass(frozen=True)
class Detections:
    """The boxes that a sequence of tokens says, in its order; box i is of slot i.

    Attributes:
      boxes: [M, 4] int32 y0 x0 y1 x1 in coordinate buckets; not necessarily in order.
      labels: [M] int32 classes.
      confidences: [M] float32, the probability of confidence token 2.
      class_probabilities: [M] float32, the probability of the class token.
    """

    boxes: np.ndarray
    labels: np.ndarray
    confidences: np.ndarray
    class_probabilities: np.ndarray

    def __len__(self) -> int:
        """The number of boxes."""
        return len(self.labels)


@dataclass(frozen=True)
class BoxLayout:
    """Which token means what.

    Attributes:
      levels: coordinates are 0 .. levels (the paper: 1000).
      classes: number of classes.
      max_boxes: boxes in a sequence; a full sequence has no end token.
    """

    levels: int
    classes: int
    max_boxes: int

    @property
    def first_coordinate(self) -> int:
        """The token of coordinate 0."""
        return CONFIDENCE_LEVELS + 1

    @property
    def first_class(self) -> int:
        """The token of class 0."""
        return self.first_coordinate + self.levels + 1

    @property
    def vocabulary_size(self) -> int:
        """Number of tokens."""
        return self.first_class + self.classes

    @property
    def max_length(self) -> int:
        """Number of tokens of a sequence."""
        return TOKENS_PER_BOX * self.max_boxes

    def allowed(self, freely: bool) -> np.ndarray:
        """[max_length, vocabulary_size] bool: what may stand where.

        Args:
          freely: let end, coordinates and classes stand in each other's slots, as the paper does;
            confidence tokens are kept to their slots all the same.
        """
        slot = np.zeros((TOKENS_PER_BOX, self.vocabulary_size), bool)
        slot[:CLASS_SLOT, self.first_coordinate : self.first_class] = True
        slot[CLASS_SLOT, self.first_class :] = True
        slot[0, END] = True
        if freely:
            slot[:CONFIDENCE_SLOT] = slot.any(0)
        slot[CONFIDENCE_SLOT, 1 : CONFIDENCE_LEVELS + 1] = True
        return np.tile(slot, (self.max_boxes, 1))

    def encode(self, boxes: np.ndarray, labels: np.ndarray, confidences: np.ndarray) -> np.ndarray:
        """[max_length] int32 of the first `max_boxes` boxes [N, 4], labels [N], tokens [N]."""
        count = min(len(labels), self.max_boxes)
        tokens = np.full((self.max_boxes, TOKENS_PER_BOX), END, np.int32)
        tokens[:count, :CLASS_SLOT] = boxes[:count] + self.first_coordinate
        tokens[:count, CLASS_SLOT] = labels[:count] + self.first_class
        tokens[:count, CONFIDENCE_SLOT] = confidences[:count]
        return tokens.ravel()

    def decode(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What sequences [N, max_length] mean, slot by slot.

        A token of another kind counts as the nearest of the kind that its slot wants. All after
        an end token is padding; a box counts when its confidence does, so one that the end cuts
        short does not.

        Returns:
          boxes [N, max_boxes, 4] int32, labels [N, max_boxes] int32, valid [N, max_boxes] bool.
        """
        ended = np.cumsum(tokens == END, axis=1) > 0
        slots = np.where(ended, END, tokens).reshape(-1, self.max_boxes, TOKENS_PER_BOX)
        boxes = np.clip(slots[..., :CLASS_SLOT] - self.first_coordinate, 0, self.levels)
        labels = np.clip(slots[..., CLASS_SLOT] - self.first_class, 0, self.classes - 1)
        valid = slots[..., CONFIDENCE_SLOT] > 0
        return boxes.astype(np.int32), labels.astype(np.int32), valid
