"""Augmentation of an image with boxes or segments, as a pure function of a seed.

Sampler, reward worker and learner each load the example by themselves: the same seed has to give
each of them the same pixels, the same boxes and the same segments.
"""

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, model_validator

from vision.data.images import resize_rgb
from vision.data.segments import SegmentMap

_GRAY = 128  # what lies around a shrunken image: the model's zero

Strength = Annotated[float, Field(ge=0, lt=1)]


class AugmentOptions(BaseModel):
    """How much an image may change."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    scale: tuple[float, float] = (0.5, 2.0)
    """Least and greatest magnification, drawn evenly by its logarithm. Above 1 a part of the image
    fills the frame, below 1 gray surrounds it."""
    flip: float = Field(default=0.5, ge=0, le=1)
    """Probability of a mirror image. Set 0 where left and right mean something (digits, text)."""
    brightness: Strength = 0.0
    """Greatest relative change of all values."""
    contrast: Strength = 0.0
    """Greatest relative change of the distance from the mean gray."""
    saturation: Strength = 0.0
    """Greatest relative change of the distance from each pixel's gray."""
    hue: float = Field(default=0.0, ge=0, le=0.5)
    """Greatest turn of all hues either way, as a share of the circle: 0.5 gives any; grays stay."""
    least_visible: float = Field(default=0.25, ge=0, le=1)
    """A box stays when at least this share of its area is still in the frame. (A segment stays
    with whatever is left of it.)"""

    @model_validator(mode="after")
    def _scale_is_a_range(self) -> "AugmentOptions":
        low, high = self.scale
        if not 0.05 <= low <= high <= 20:
            raise ValueError(f"scale {self.scale}: 0.05 <= least <= greatest <= 20 is needed")
        return self


def augment(
    image: np.ndarray, boxes: np.ndarray, size: tuple[int, int], options: AugmentOptions, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scales, crops or pads, mirrors and recolours.

    Args:
      image: [h, w, 3] uint8 of any size.
      boxes: [N, 4] y0 x0 y1 x1 as fractions of the image.
      size: (height, width) of the result, to which the image is stretched at scale 1.
      seed: of all that is drawn.

    Returns:
      image [height, width, 3] uint8, all boxes [N, 4] float64 as fractions of it, cut to the
      frame, and [N] bool: those that stay.
    """
    frame = _draw(size, options, seed)
    moved = frame.boxes(boxes)
    cut = np.clip(moved, 0, 1)
    whole, seen = _area(moved), _area(cut)
    kept = (seen > 0) & (seen >= options.least_visible * whole)
    return frame.image(image), cut, kept


def augment_segments(
    image: np.ndarray,
    segments: SegmentMap,
    size: tuple[int, int],
    options: AugmentOptions,
    seed: int,
) -> tuple[np.ndarray, SegmentMap]:
    """The same for segments: each pixel takes the segment that its centre falls in.

    Args:
      image: [h, w, 3] uint8 of any size.
      segments: at the image's size.
      size, seed: see `augment`, which does the same to the image.

    Returns:
      image [height, width, 3] uint8, and its segments, without those that have left the frame.
      Row 0 is void, as is what surrounds a shrunken image.
    """
    frame = _draw(size, options, seed)
    ids = frame.ids(segments.ids + 1, outside=0)
    shown, rows = np.unique(ids, return_inverse=True)
    if shown[0] == 0:
        shown = shown[1:]
    else:
        rows = rows + 1
    labels = np.concatenate([np.zeros(1, segments.labels.dtype), segments.labels[shown - 1]])
    crowd = np.concatenate([np.zeros(1, bool), segments.crowd[shown - 1]])
    return frame.image(image), SegmentMap(rows.reshape(size).astype(np.int32), labels, crowd)


@dataclass(frozen=True)
class _Frame:
    """Which part of an image is seen, where, and in which colours.

    Attributes:
      size: (height, width) in pixels.
      extent: [2] float64, height and width of the whole image in the frame's pixels.
      start: [2] float64, y and x of its top left corner there; negative where it is cut.
      mirrored: left and right change places, after all that.
      factors: [3] float64 of brightness, contrast and saturation.
      turn: of the hues, in radians.
    """

    size: tuple[int, int]
    extent: np.ndarray
    start: np.ndarray
    mirrored: bool
    factors: np.ndarray
    turn: float

    def image(self, image: np.ndarray) -> np.ndarray:
        """[h, w, 3] uint8 to [height, width, 3] uint8."""
        pixels = self._magnified(image) if (self.extent >= self.size).all() else self._set_in(image)
        mirrored = np.ascontiguousarray(pixels[:, ::-1] if self.mirrored else pixels)
        return _recolour(mirrored, self.factors, self.turn)

    def _magnified(self, image: np.ndarray) -> np.ndarray:
        height, width = self.size
        whole = np.array(image.shape[:2])
        first = -self.start * whole / self.extent
        last = np.minimum((self.size - self.start) * whole / self.extent, whole)
        window = (first[1], first[0], last[1], last[0])
        resized = Image.fromarray(image).resize(
            (width, height), Image.Resampling.BILINEAR, box=window
        )
        return np.array(resized)

    def _set_in(self, image: np.ndarray) -> np.ndarray:
        (height, width), (top, left) = self.extent.astype(int), self.start.astype(int)
        pixels = np.full((*self.size, 3), _GRAY, np.uint8)
        pixels[top : top + height, left : left + width] = resize_rgb(image, height, width)
        return pixels

    def boxes(self, boxes: np.ndarray) -> np.ndarray:
        """[N, 4] fractions of the image to fractions of the frame, which they may leave."""
        size = np.array(self.size)
        moved = boxes * np.tile(self.extent / size, 2) + np.tile(self.start / size, 2)
        if self.mirrored:
            moved = np.stack([moved[:, 0], 1 - moved[:, 3], moved[:, 2], 1 - moved[:, 1]], 1)
        return moved

    def ids(self, ids: np.ndarray, outside: int) -> np.ndarray:
        """[h, w] to [height, width]; `outside` where there is no image."""
        (rows, inside_y), (columns, inside_x) = (
            self._nearest(axis, length) for axis, length in enumerate(ids.shape)
        )
        seen = np.where(inside_y[:, None] & inside_x, ids[rows[:, None], columns], outside)
        return seen[:, ::-1] if self.mirrored else seen

    def _nearest(self, axis: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Which of the image's `length` pixels holds each pixel's centre, and whether one does."""
        centres = np.arange(self.size[axis]) + 0.5 - self.start[axis]
        nearest = np.floor(centres * length / self.extent[axis]).astype(int)
        return np.clip(nearest, 0, length - 1), (centres > 0) & (centres < self.extent[axis])


def _draw(size: tuple[int, int], options: AugmentOptions, seed: int) -> _Frame:
    random = np.random.default_rng(seed)
    # Drawn always and in this order, so that one option's value does not change another's draw.
    scale = float(np.exp(random.uniform(*np.log(options.scale))))
    place = random.uniform(size=2)  # of y and x, 0: at the start, 1: at the end
    mirrored = bool(random.uniform() < options.flip)
    strengths = (options.brightness, options.contrast, options.saturation)
    factors = 1 + np.array(strengths) * random.uniform(-1, 1, 3)
    turn = 2 * math.pi * options.hue * float(random.uniform(-1, 1))

    extent = np.array(size) * scale
    if scale < 1:  # whole pixels, and boxes and segments go by what is really drawn
        extent = np.maximum(1, np.rint(extent))
    start = place * (np.array(size) - extent)
    return _Frame(size, extent, np.rint(start) if scale < 1 else start, mirrored, factors, turn)


def _area(boxes: np.ndarray) -> np.ndarray:
    return np.asarray(np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2], 0), axis=1))


def _recolour(image: np.ndarray, factors: np.ndarray, turn: float) -> np.ndarray:
    brightness, contrast, saturation = (np.float32(factor) for factor in factors)
    if brightness == contrast == saturation == 1 and turn == 0:
        return image
    values = image.astype(np.float32) * brightness
    # Element by element, and the mean exact: a matrix product rounds as the CPU likes.
    red, green, blue = (values[..., channel] for channel in range(3))
    gray = np.float32(0.299) * red + np.float32(0.587) * green + np.float32(0.114) * blue
    values = gray[..., None] + (_turned(values, gray, turn) - gray[..., None]) * saturation
    mean = np.float32(gray.mean(dtype=np.float64))
    values = mean + (values - mean) * contrast
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _turned(values: np.ndarray, gray: np.ndarray, turn: float) -> np.ndarray:
    """Turns the plane of the colour differences Cb and Cr (ITU-R BT.601); keeps the luma."""
    if turn == 0:
        return values
    cosine, sine = np.float32(math.cos(turn)), np.float32(math.sin(turn))
    # Cb and Cr have a range of one each: blue's and red's share of it.
    of_blue, of_red = np.float32(2 * (1 - 0.114)), np.float32(2 * (1 - 0.299))
    cb, cr = (values[..., 2] - gray) / of_blue, (values[..., 0] - gray) / of_red
    red = gray + of_red * (sine * cb + cosine * cr)
    blue = gray + of_blue * (cosine * cb - sine * cr)
    green = (gray - np.float32(0.299) * red - np.float32(0.114) * blue) / np.float32(0.587)
    return np.stack([red, green, blue], axis=-1)
