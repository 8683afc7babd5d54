"""Image files as RGB arrays, whatever the file holds; and resizing."""

import errno
from pathlib import Path

import numpy as np
from PIL import Image

# Pillow reports broken files by all of these.
_BROKEN = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
# Pillow's own have no number; another number tells of the disk, the mount, or this process.
_OF_THE_FILE = (None, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)


class ImageError(ValueError):
    """An image file that is missing or cannot be decoded; the message names the file."""


def load_rgb(path: Path | str) -> np.ndarray:
    """Reads an image file as [height, width, 3] uint8.

    Gray becomes three equal channels, 16-bit samples keep their high byte, CMYK and palettes are
    converted, and what is transparent shows black. A rotation noted in EXIF is not applied: COCO's
    boxes refer to the pixels as stored.

    Raises:
      ImageError: the file is missing, truncated, or not an image.
      OSError: it cannot be reached now; its folder may be away.
    """
    try:
        with Image.open(path) as image:
            image.load()
            return _to_rgb(image)
    except _BROKEN as error:
        raise _image_error(error, "image file", path) from error


def load_ids(path: Path | str) -> np.ndarray:
    """Reads a PNG of segment ids, R + 256 G + 65536 B, as [height, width] int32.

    An alpha channel must be opaque: under a transparent pixel an encoder may have changed colours.

    Raises:
      ImageError: the file is missing, truncated, or not a PNG of 8-bit RGB: with one channel, a
        palette or 16 bits its ids would be guessed.
      OSError: as of `load_rgb`.
    """
    try:
        with Path(path).open("rb") as file:
            header = file.read(26)
        with Image.open(path) as image:
            image.load()
            pixels = np.asarray(image)
    except _BROKEN as error:
        raise _image_error(error, "file of segment ids", path) from error
    if image.format != "PNG" or image.mode not in ("RGB", "RGBA") or header[24] != 8:
        kind = f"{header[24]}-bit {image.mode}" if image.format == "PNG" else f"{image.format}"
        raise ImageError(
            f"{path} is a {kind} image: ids are R + 256 G + 65536 B of an 8-bit RGB PNG"
        )
    if image.mode == "RGBA" and (pixels[..., 3] != 255).any():
        raise ImageError(f"{path} has transparent pixels: the ids under them may not be what was")
    return pixels[..., :3].astype(np.int32) @ np.array([1, 256, 65536], np.int32)


def _image_error(error: Exception, what: str, path: Path | str) -> Exception:
    """What is wrong: the file, or where it lies."""
    if isinstance(error, FileNotFoundError) and not Path(path).parent.is_dir():
        # Below a mount point whose file system is away there is nothing at all.
        away = f"the folder of {what} {path} is not there: is its file system mounted?"
        return OSError(errno.ENODEV, away)
    if isinstance(error, FileNotFoundError):
        return ImageError(f"no {what} {path}")
    if isinstance(error, OSError) and error.errno not in _OF_THE_FILE:
        return error
    return ImageError(f"cannot read {what} {path}: {error}")


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I") or image.mode == "F":
        # Pillow's own conversion would clip these to white. In mode I the range is not stated.
        gray = np.asarray(image).astype(np.float64)
        if image.mode.startswith("I;16") or (image.mode == "I" and gray.max(initial=0) > 255):
            gray = gray // 256
        gray8 = np.clip(gray, 0, 255).astype(np.uint8)
        return np.repeat(gray8[:, :, None], 3, axis=2)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        black = Image.new("RGBA", rgba.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, rgba)
    return np.array(image.convert("RGB"))


def resize_rgb(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear with antialiasing, [h, w, 3] uint8 to [height, width, 3] uint8."""
    if image.shape[:2] == (height, width):
        return image
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    return np.array(resized)


def to_model(image: np.ndarray) -> np.ndarray:
    """uint8 0..255 to float32 -1..1."""
    return image.astype(np.float32) / np.float32(127.5) - np.float32(1)


def from_model(image: np.ndarray) -> np.ndarray:
    """float32 -1..1 back to uint8 0..255."""
    return np.clip(np.rint((image + 1) * 127.5), 0, 255).astype(np.uint8)
