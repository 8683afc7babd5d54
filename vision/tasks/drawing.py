"""Boxes or segments with names on an enlarged image, to look at."""

import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

from vision.data.images import from_model

_LEAST_SIDE = 288  # pixels; smaller images are enlarged by a whole factor
# Distinct on dark and bright ground, and for the colour-blind (after Okabe and Ito).
_COLOURS = ("#56b4e9", "#e69f00", "#2ec4a0", "#f0e442", "#ff7a50", "#e88fc4", "#ffffff", "#9be564")


def draw_boxes(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    scores: np.ndarray | None = None,
) -> np.ndarray:
    """Draws labelled boxes.

    Args:
      image: [H, W, 3] float32 in [-1, 1].
      boxes: [N, 4] y0 x0 y1 x1 as fractions of the image, in any order.
      labels: [N] classes.
      scores: [N], written beside the class as per cent; None: left out.

    Returns:
      [H', W', 3] uint8, its longer side at least 288 pixels.
    """
    pixels = Image.fromarray(from_model(image))
    factor = max(1, -(-_LEAST_SIDE // max(pixels.size)))
    width, height = pixels.width * factor, pixels.height * factor
    canvas = pixels.resize((width, height), Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=max(13, max(width, height) // 24))
    for index, (box, label) in enumerate(zip(boxes, labels, strict=True)):
        colour = _COLOURS[int(label) % len(_COLOURS)]
        rows, columns = sorted((box[0] * height, box[2] * height)), sorted((box[1], box[3]))
        left, right = (float(column) * width for column in columns)
        top, bottom = float(rows[0]), float(rows[1])
        pen.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline="black")
        pen.rectangle(
            (left - 1, top - 1, max(left, right), max(top, bottom)), outline=colour, width=2
        )
        text = class_names[int(label)]
        if scores is not None:
            text += f" {float(scores[index]):.0%}"
        _tag(pen, text, (left, top, bottom), (width, height), font, colour)
    return np.array(canvas)


def draw_segments(
    image: np.ndarray, ids: np.ndarray, labels: np.ndarray, class_names: Sequence[str]
) -> np.ndarray:
    """Draws segments in the colours of their rows, with their borders and the names of classes.

    Args:
      image: [H, W, 3] float32 in [-1, 1].
      ids: [H, W] int32, rows of `labels`.
      labels: [N] int32; 0 is void and is left as it is.
      class_names: by label - 1.

    Returns:
      [H', W', 3] uint8, its longer side at least 288 pixels.
    """
    pixels = from_model(image)
    factor = max(1, -(-_LEAST_SIDE // max(ids.shape)))
    colours = np.array([ImageColor.getrgb(colour) for colour in _COLOURS])
    tint = colours[np.arange(len(labels)) % len(colours)]  # [N, 3]
    mixed = (pixels.astype(np.int64) + tint[ids]) // 2
    pixels = np.where((labels > 0)[ids][..., None], mixed, pixels).astype(np.uint8)
    large = pixels.repeat(factor, 0).repeat(factor, 1)
    shown = ids.repeat(factor, 0).repeat(factor, 1)
    large[1:][shown[1:] != shown[:-1]] = 0
    large[:, 1:][shown[:, 1:] != shown[:, :-1]] = 0
    canvas = Image.fromarray(large)
    pen = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=max(13, max(canvas.size) // 24))
    for row in np.flatnonzero(labels):
        ys, xs = np.nonzero(ids == row)
        if not len(ys):
            continue
        # The pixel of the segment that is nearest to its centre.
        at = int(((ys - ys.mean()) ** 2 + (xs - xs.mean()) ** 2).argmin())
        y, x = float(ys[at] * factor), float(xs[at] * factor)
        name, colour = class_names[int(labels[row]) - 1], _COLOURS[int(row) % len(_COLOURS)]
        _tag(pen, name, (x, y, y + factor), canvas.size, font, colour)
    return np.array(canvas)


def _tag(
    pen: ImageDraw.ImageDraw,
    text: str,
    place: tuple[float, float, float],
    size: tuple[int, int],
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
    colour: str,
) -> None:
    """The name of a box: above it, or below it where the image ends, and never cut off."""
    left, top, bottom = place
    x0, y0, x1, y1 = pen.textbbox((0, 0), text, font=font)
    wide, high = x1 - x0 + 4, y1 - y0 + 4
    above = top - high - 1
    y = above if above >= 0 else min(bottom + 1, size[1] - high)
    x = min(max(0.0, left - 1), size[0] - wide)
    pen.rectangle((x, y, x + wide, y + high), fill="black")
    pen.text((x + 2 - x0, y + 2 - y0), text, font=font, fill=colour)


def draw_caption(image: np.ndarray, captions: Sequence[str]) -> np.ndarray:
    """Writes captions under an image.

    Args:
      image: [H, W, 3] float32 in [-1, 1].
      captions: each begins a line.

    Returns:
      [H', W', 3] uint8: the image, its longer side at least 288 pixels, above black on white.
    """
    pixels = Image.fromarray(from_model(image))
    factor = max(1, -(-_LEAST_SIDE // max(pixels.size)))
    width, height = pixels.width * factor, pixels.height * factor
    font = ImageFont.load_default(size=max(13, width // 24))
    # Letters differ in width; n is a middle one.
    columns = max(8, int((width - 8) / max(1.0, font.getlength("n"))))
    lines = [
        line for caption in captions for line in textwrap.wrap(caption, columns) or ["(empty)"]
    ]
    text = "\n".join(lines)
    x0, y0, _, y1 = ImageDraw.Draw(pixels).multiline_textbbox((0, 0), text, font=font)
    canvas = Image.new("RGB", (width, height + int(y1 - y0) + 12), "white")
    canvas.paste(pixels.resize((width, height), Image.Resampling.NEAREST), (0, 0))
    ImageDraw.Draw(canvas).multiline_text((4 - x0, height + 6 - y0), text, font=font, fill="black")
    return np.array(canvas)
