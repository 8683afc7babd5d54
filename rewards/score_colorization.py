"""Judges image files without a model: vivid fraction, hue entropy and reward of each."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vision.data.images import load_rgb, to_model
from vision.metrics.colorfulness import Hue, check_hue, colorfulness

MEANS = ("colorfulness", "vivid", "hue_entropy")


def score_colorization(images: Sequence[str | Path], hue: str = "atan2") -> dict[str, Any]:
    """The means over the images, their number, and the three figures of each at its own size.

    Whatever an image file holds is judged as it looks: gray has no hue, 16 bits keep their high
    byte, what is transparent is black.

    Returns:
      `colorfulness` (the mean of the images' rewards, not the product of the means), `vivid`,
      `hue_entropy`, `images`, and `by_image`: for each path, as given, those three.

    Raises:
      ImageError: a file is missing or cannot be decoded.
      ValueError: no image, or an unknown `hue`.
    """
    if not images:
        raise ValueError("no image to judge: name one file or more")
    known = check_hue(hue)
    by_image = {str(path): _judge(path, known) for path in images}
    means = {name: float(np.mean([v[name] for v in by_image.values()])) for name in MEANS}
    return {**means, "images": len(by_image), "by_image": by_image}


def _judge(path: str | Path, hue: Hue) -> dict[str, float]:
    figures = colorfulness(to_model(load_rgb(path)), hue)
    return {
        "colorfulness": figures.product,
        "vivid": figures.vivid,
        "hue_entropy": figures.entropy,
    }
