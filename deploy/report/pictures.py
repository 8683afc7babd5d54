"""Drawn images as data URIs, small enough to travel inside a page."""

import base64
import io

import numpy as np
from PIL import Image

LONGEST_SIDE = 640
LARGEST_PNG = 100_000  # bytes; a photo is then smaller as JPEG, and no less clear


def data_uri(pixels: np.ndarray) -> str:
    """An image [H, W, 3] uint8 for the `src` of an `img` element."""
    image = Image.fromarray(pixels)
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    kind, data = "png", _encoded(image, "PNG", optimize=True)
    if len(data) > LARGEST_PNG:
        kind, data = "jpeg", _encoded(image, "JPEG", quality=88)
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _encoded(image: Image.Image, kind: str, **options: int | bool) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def evenly_spaced(count: int, total: int) -> list[int]:
    """`count` of the indices 0 .. total - 1, at equal distances; all when there are fewer."""
    count = min(count, total)
    return [(2 * i + 1) * total // (2 * count) for i in range(count)]
