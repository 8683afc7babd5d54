"""The quick start's data for panoptic segmentation: real digits on real textures, with masks.

A scene is 48 x 48 pixels, drawn as those of `vision.data.scenes`, whose digits these are: two or
three textures meet in curved borders, and on them lie one to five bright digits, each on a dark
card that hides what was drawn before. Every pixel has a segment. Things are the digits, each with
the card that it lies on; stuff are the textures. A pixel belongs to the segment that holds most of
its 16 points.

Digits and areas of the textures (scikit-image's) of one split are never used in another.

Invariant: scene `i` of a split is a function of (seed, split, i) alone, and the same on every
machine (see `vision.data.scenes`).
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vision.data.array_cache import cache_root, cached_arrays
from vision.data.coco_panoptic import Category
from vision.data.images import load_rgb
from vision.data.scenes import (
    DIGIT_SIDE,
    FINE,
    INK,
    MAX_DIGITS,
    POINTS,
    SIDE,
    SPLITS,
    background,
    digit_opacity,
    find_place,
    integer,
    paint,
    random_of,
    read_digits,
    take_picture,
)
from vision.data.segments import SegmentMap

# Part of the cache's key: to be raised by whoever changes a pixel of what is generated.
GENERATOR_VERSION = 2

# Textures, by the name of scikit-image's lossless file.
TEXTURES = {"grass": "grass", "gravel": "gravel", "brick": "brick", "tissue": "ihc"}
CATEGORIES = tuple(
    Category(number, name, is_thing=number <= 10)
    for number, name in enumerate([*(str(digit) for digit in range(10)), *TEXTURES], 1)
)
_FIRST_TEXTURE = 11
# y0 x0 y1 x1 in a texture of 512 x 512 pixels.
_AREAS = {
    "train": (0, 0, 512, 320),
    "validation": (0, 320, 256, 512),
    "test": (256, 320, 512, 512),
}
_LONGEST_CROP = 2 * SIDE
_LEAST_TEXTURE = 12  # per cent of the scene, before digits
_ATTEMPTS = 10

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class PanopticScenes:
    """The scenes of one split.

    Attributes:
      images: [N, 48, 48, 3] uint8, and ids: [N, 48, 48] uint8, rows of each scene's table; memory
        maps when they come from the cache.
      labels: [M] int32, the rows of all scenes in order; each scene's first row is void.
      offsets: [N + 1] int64: scene i owns the rows offsets[i]:offsets[i + 1].
    """

    images: np.ndarray
    ids: np.ndarray
    labels: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        """The number of scenes."""
        return len(self.images)

    def segments(self, index: int) -> SegmentMap:
        """The segments of a scene; none is a crowd."""
        labels = self.labels[int(self.offsets[index]) : int(self.offsets[index + 1])]
        return SegmentMap(self.ids[index].astype(np.int32), labels, np.zeros(len(labels), bool))


def load_panoptic_scenes(
    seed: int,
    split: str,
    count: int,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
) -> PanopticScenes:
    """The first `count` scenes of a split, generated at first use and cached.

    Args:
      cache_dir: default ~/.cache/rewardtune.
      progress: called with (scenes done, count) while generating.

    Raises:
      ValueError: an unknown split, or a broken cache.
      OSError: the cache directory cannot be written.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r} of the scenes: one of {', '.join(SPLITS)}")
    name = f"panoptic-scenes-v{GENERATOR_VERSION}-seed{seed}-{split}-{count}"
    place = cache_root(cache_dir) / name
    return PanopticScenes(
        **cached_arrays(
            place,
            ("images", "ids", "labels", "offsets"),
            ("images", "ids"),
            lambda: generate_panoptic_scenes(seed, split, count, progress),
        )
    )


def drop_annotations(scenes: PanopticScenes, share: float, seed: int) -> PanopticScenes:
    """The scenes with `share` of their segments left out: their pixels are void; images stay.

    Raises:
      ValueError: `share` is not in [0, 1).
    """
    if not 0 <= share < 1:
        raise ValueError(f"share {share} of the annotations is not in [0, 1)")
    # One draw a row of the tables, so that a smaller share drops a part of the same segments.
    kept = random_of(f"panoptic annotations/{seed}").random_sample(len(scenes.labels)) >= share
    first = scenes.offsets[:-1]
    kept[first] = True  # void stays
    # What each row of a scene's table is afterwards; void where it was dropped.
    before = np.concatenate([[0], np.cumsum(kept)])
    ids = np.empty_like(scenes.ids)
    for index, (start, end) in enumerate(itertools.pairwise(scenes.offsets)):
        rows = np.where(kept[start:end], before[start:end] - before[start], 0).astype(np.uint8)
        ids[index] = rows[scenes.ids[index]]
    return PanopticScenes(scenes.images, ids, scenes.labels[kept], before[scenes.offsets])


def generate_panoptic_scenes(
    seed: int, split: str, count: int, progress: Progress | None = None
) -> PanopticScenes:
    """As `load_panoptic_scenes`, without the cache."""
    textures, digits = read_textures(split), read_digits(split)
    images = np.empty((count, SIDE, SIDE, 3), np.uint8)
    ids = np.empty((count, SIDE, SIDE), np.uint8)
    tables: list[np.ndarray] = []
    for index in range(count):
        random = random_of(f"panoptic/{seed}/{split}/{index}")
        images[index], ids[index], labels = draw_scene(random, textures, digits)
        tables.append(labels)
        if progress is not None and ((index + 1) % 250 == 0 or index + 1 == count):
            progress(index + 1, count)
    offsets = np.zeros(count + 1, np.int64)
    np.cumsum([len(labels) for labels in tables], out=offsets[1:])
    return PanopticScenes(images, ids, np.concatenate([np.zeros(0, np.int32), *tables]), offsets)


def read_textures(split: str) -> list[np.ndarray]:
    """The split's area of each texture, [h, w, 3] uint8. Importing skimage.data takes a second."""
    import skimage

    folder = Path(skimage.__file__).parent / "data"
    y0, x0, y1, x1 = _AREAS[split]
    return [load_rgb(folder / f"{name}.png")[y0:y1, x0:x1] for name in TEXTURES.values()]


def draw_scene(
    random: np.random.RandomState,
    textures: Sequence[np.ndarray],
    digits: Sequence[Sequence[np.ndarray]],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One scene: image [48, 48, 3] uint8, ids [48, 48] uint8, labels [n] int32."""
    chosen = random.permutation(len(textures))[: integer(random, 2, 3)]
    region = _regions(random, len(chosen))
    canvas = np.zeros((POINTS, POINTS, 3), np.int32)
    for index, texture in enumerate(chosen):
        crop = background(random, [textures[texture]], _LONGEST_CROP)
        np.copyto(canvas, crop, where=(region == index)[..., None])
    owner = np.full((POINTS, POINTS), -1, np.int8)  # whose ink is seen where
    thing = owner.copy()  # whose ink or card
    ink: list[int] = []
    labels: list[int] = []
    for _ in range(integer(random, 1, MAX_DIGITS)):
        digit = integer(random, 0, 9)
        opacity = digit_opacity(random, digits[digit], DIGIT_SIDE)
        placed = find_place(random, opacity, owner, ink)
        if placed is None:
            continue
        top, left, plate, owner = placed
        dark = random.randint(0, 70, 3, np.int32)
        bright = random.randint(160, 256, 3, np.int32)
        paint(random, canvas, plate, opacity, (top, left), dark, bright)
        # Ink may stand out of its card, where an ellipse is cut.
        thing[plate | (owner == len(ink))] = len(ink)
        ink.append(int((opacity >= INK).sum()))
        labels.append(digit + 1)
    masks = [thing == digit for digit in range(len(labels))]
    masks += [(region == index) & (thing < 0) for index in range(len(chosen))]
    table = [*labels, *(_FIRST_TEXTURE + int(texture) for texture in chosen)]
    ids, rows = _pixels(masks)
    return take_picture(random, canvas), ids, np.array([0, *(table[row] for row in rows)], np.int32)


def _pixels(masks: Sequence[np.ndarray]) -> tuple[np.ndarray, list[int]]:
    """Of masks [192, 192] that cover all, the one with most points in each pixel.

    Returns:
      ids [48, 48] uint8 from 1, and which mask each id is; masks that hold no pixel are left out.
    """
    points = np.stack(masks).reshape(-1, SIDE, FINE, SIDE, FINE).sum((2, 4))
    winner = points.argmax(0)
    rows, ids = np.unique(winner, return_inverse=True)
    return (ids.reshape(SIDE, SIDE) + 1).astype(np.uint8), rows.tolist()


def _regions(random: np.random.RandomState, count: int) -> np.ndarray:
    """[192, 192] int64 in 0 .. count - 1: where the highest of `count` smooth hills is.

    Borders are curves, from nearly straight to winding, and every region has its least share.
    """
    for _ in range(_ATTEMPTS):
        cells = integer(random, 1, 4)
        region = np.stack([_hills(random, cells) for _ in range(count)]).argmax(0)
        shares = np.bincount(region.ravel(), minlength=count) * 100 // POINTS**2
        if shares.min() >= _LEAST_TEXTURE:
            return region
    # Stripes, side by side.
    return np.tile(np.arange(POINTS) * count // POINTS, (POINTS, 1))


def _hills(random: np.random.RandomState, cells: int) -> np.ndarray:
    """[192, 192] int64: random heights on a grid of cells, linear in between; exact."""
    heights = random.randint(0, 256, (cells + 1, cells + 1), np.int64)
    cell, rest = np.divmod(np.arange(POINTS) * cells, POINTS)
    rows = heights[cell] * (POINTS - rest)[:, None] + heights[cell + 1] * rest[:, None]
    return rows[:, cell] * (POINTS - rest) + rows[:, cell + 1] * rest
