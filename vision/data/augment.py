"""Augmentation of an image with boxes, as a pure function of a seed.

Sampler, reward worker and learner each load the example by themselves: the same seed has to give
each of them the same pixels and the same boxes.
"""

from typing import Annotated

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, model_validator

from vision.data.images import resize_rgb

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
    least_visible: float = Field(default=0.25, ge=0, le=1)
    """A box stays when at least this share of its area is still in the frame."""

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
    random = np.random.default_rng(seed)
    # Drawn always and in this order, so that one option's value does not change another's draw.
    scale = float(np.exp(random.uniform(*np.log(options.scale))))
    place = random.uniform(size=2)  # of y and x, 0: at the start, 1: at the end
    mirrored = bool(random.uniform() < options.flip)
    strengths = (options.brightness, options.contrast, options.saturation)
    factors = 1 + np.array(strengths) * random.uniform(-1, 1, 3)

    scales, offsets, framed = _frame(image, size, scale, place)
    moved = boxes * np.tile(scales, 2) + np.tile(offsets, 2)
    if mirrored:
        framed = framed[:, ::-1]
        moved = np.stack([moved[:, 0], 1 - moved[:, 3], moved[:, 2], 1 - moved[:, 1]], 1)
    cut = np.clip(moved, 0, 1)
    whole, seen = _area(moved), _area(cut)
    kept = (seen > 0) & (seen >= options.least_visible * whole)
    return _recolour(np.ascontiguousarray(framed), factors), cut, kept


def _frame(
    image: np.ndarray, size: tuple[int, int], scale: float, place: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The frame's pixels, and how fractions of the image become fractions of the frame.

    Returns:
      scales [2] and offsets [2] of y and x: frame = image * scale + offset; pixels uint8.
    """
    height, width = size
    if scale >= 1:
        h, w = image.shape[:2]
        top, left = place * (1 - 1 / scale)  # fractions of the image
        window = (left * w, top * h, (left + 1 / scale) * w, (top + 1 / scale) * h)
        window = (window[0], window[1], min(window[2], w), min(window[3], h))
        pixels = Image.fromarray(image).resize(
            (width, height), Image.Resampling.BILINEAR, box=window
        )
        return np.full(2, scale), np.array([-top, -left]) * scale, np.array(pixels)
    # Whole pixels, and the boxes go by what was really drawn.
    inner = np.maximum(1, np.rint(np.array(size) * scale)).astype(int)
    start = np.rint(place * (np.array(size) - inner)).astype(int)
    pixels_in = resize_rgb(image, int(inner[0]), int(inner[1]))
    frame = np.full((height, width, 3), _GRAY, np.uint8)
    frame[start[0] : start[0] + inner[0], start[1] : start[1] + inner[1]] = pixels_in
    return inner / np.array(size), start / np.array(size), frame


def _area(boxes: np.ndarray) -> np.ndarray:
    return np.asarray(np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2], 0), axis=1))


def _recolour(image: np.ndarray, factors: np.ndarray) -> np.ndarray:
    brightness, contrast, saturation = (np.float32(factor) for factor in factors)
    if brightness == contrast == saturation == 1:
        return image
    values = image.astype(np.float32) * brightness
    gray = values @ np.array([0.299, 0.587, 0.114], np.float32)
    values = gray[..., None] + (values - gray[..., None]) * saturation
    mean = gray.mean(dtype=np.float32)
    values = mean + (values - mean) * contrast
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
