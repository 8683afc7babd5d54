"""The quick start's data for captioning: tinted digits on photos, with five template captions.

A scene is 48 x 48 pixels with one to three digits, big or small, each of a colour with a name, on
dark plates as in `vision.data.scenes`, whose digits, photos and splits these are. The language is
templated, not human: what it is good for is to show the tuning, not to learn English.

The five references of a scene differ in wording ("a photo of", "there are", "two digits :"), in the
order of the digits, and in how much they mention: size, colour, where, how many. Maximum likelihood
learns the mixture of these styles, and its greedy caption follows the commonest opening, which
leaves most colours out; CIDEr rewards what the references agree on. A model that knew the mixture
exactly would score 2.8 by greedy decoding, where the best caption of each scene scores 3.9.

Invariant: scene `i` of a split and its captions are a function of (seed, split, i) alone, the same
on every machine (see `vision.data.scenes`).
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vision.data.array_cache import broken_cache, cache_root, cached_arrays
from vision.data.scenes import (
    FINE,
    INK,
    POINTS,
    SIDE,
    SPLITS,
    background,
    digit_opacity,
    extent,
    find_place,
    integer,
    paint,
    random_of,
    read_digits,
    read_photos,
    take_picture,
)

# Part of the cache's key: to be raised by whoever changes a pixel or a word.
GENERATOR_VERSION = 1

REFERENCES = 5
MAX_DIGITS = 3
TINTS = {
    "red": (225, 45, 40),
    "green": (50, 190, 60),
    "blue": (70, 100, 245),
    "yellow": (240, 220, 50),
    "pink": (240, 110, 200),
    "white": (235, 235, 235),
}
NUMERALS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# Of the longer side, points; nothing lies between, so that the words mean something.
_SIDES = {"small": (11 * FINE, 14 * FINE), "big": (19 * FINE, 24 * FINE)}
_JITTER = 18  # of a tint, either way

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Thing:
    """A digit in a scene: its value, the names of tint and size, and its box in points."""

    digit: int
    tint: str
    size: str
    box: tuple[int, int, int, int]

    @property
    def middle(self) -> tuple[int, int]:
        """Twice the (y, x) of the box's centre, in points."""
        return self.box[0] + self.box[2], self.box[1] + self.box[3]


@dataclass(frozen=True)
class CaptionScenes:
    """The scenes of one split.

    Attributes:
      images: [N, 48, 48, 3] uint8; a memory map when it comes from the cache.
      captions: the five references of each.
    """

    images: np.ndarray
    captions: Sequence[tuple[str, ...]]

    def __len__(self) -> int:
        """The number of scenes."""
        return len(self.images)


def load_caption_scenes(
    seed: int,
    split: str,
    count: int,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
) -> CaptionScenes:
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
    name = f"caption-scenes-v{GENERATOR_VERSION}-seed{seed}-{split}-{count}"
    place = cache_root(cache_dir) / name

    def generate() -> _Stored:
        scenes = generate_caption_scenes(seed, split, count, progress)
        text = json.dumps([list(captions) for captions in scenes.captions])
        return _Stored(scenes.images, np.frombuffer(text.encode(), np.uint8))

    stored = _Stored(**cached_arrays(place, ("images", "captions"), ("images",), generate))
    try:
        captions = json.loads(stored.captions.tobytes())
    except ValueError as error:
        raise broken_cache(place, error) from error
    return CaptionScenes(stored.images, [tuple(five) for five in captions])


@dataclass(frozen=True)
class _Stored:
    """As they are cached: the captions as UTF-8 JSON, [N] uint8."""

    images: np.ndarray
    captions: np.ndarray


def generate_caption_scenes(
    seed: int, split: str, count: int, progress: Progress | None = None
) -> CaptionScenes:
    """As `load_caption_scenes`, without the cache."""
    photos, digits = read_photos(split), read_digits(split)
    images = np.empty((count, SIDE, SIDE, 3), np.uint8)
    captions: list[tuple[str, ...]] = []
    for index in range(count):
        random = random_of(f"captions/{seed}/{split}/{index}")
        images[index], things = draw_scene(random, photos, digits)
        captions.append(describe(random, things))
        if progress is not None and ((index + 1) % 250 == 0 or index + 1 == count):
            progress(index + 1, count)
    return CaptionScenes(images, captions)


def draw_scene(
    random: np.random.RandomState,
    photos: Sequence[np.ndarray],
    digits: Sequence[Sequence[np.ndarray]],
) -> tuple[np.ndarray, list[Thing]]:
    """An image [48, 48, 3] uint8, and the one to three digits in it."""
    canvas = background(random, photos)
    owner = np.full((POINTS, POINTS), -1, np.int8)  # whose ink is seen where
    ink: list[int] = []
    seen: list[tuple[int, str, str]] = []
    tints, sizes = list(TINTS), list(_SIDES)
    for _ in range(integer(random, 1, MAX_DIGITS)):
        digit = integer(random, 0, 9)
        tint = tints[integer(random, 0, len(tints) - 1)]
        size = sizes[integer(random, 0, 1)]
        opacity = digit_opacity(random, digits[digit], _SIDES[size])
        placed = find_place(random, opacity, owner, ink)
        if placed is None:
            continue
        top, left, plate, owner = placed
        dark = random.randint(0, 45, 3, np.int32)
        jitter = random.randint(-_JITTER, _JITTER + 1, 3, np.int32)
        bright = np.clip(np.array(TINTS[tint], np.int32) + jitter, 0, 255)
        paint(random, canvas, plate, opacity, (top, left), dark, bright)
        ink.append(int((opacity >= INK).sum()))
        seen.append((digit, tint, size))
    image = take_picture(random, canvas)
    return image, [
        Thing(digit, tint, size, extent(owner == index))
        for index, (digit, tint, size) in enumerate(seen)
    ]


def describe(random: np.random.RandomState, things: Sequence[Thing]) -> tuple[str, ...]:
    """Five captions of a scene, of five different styles.

    Big digits are named first, then those further left, as people begin with what stands out; one
    style in five names them the other way round.
    """
    order = sorted(things, key=lambda thing: (thing.size == "small", thing.middle[1]))
    chosen = random.permutation(len(_STYLES))[:REFERENCES]
    captions = []
    for style in chosen:
        shown = order[::-1] if _chance(random, 20) else order
        captions.append(_STYLES[int(style)](random, shown))
    return tuple(captions)


def relation(first: Thing, second: Thing) -> str:
    """Where the first is, seen from the second: the axis on which they are further apart."""
    (y, x), (other_y, other_x) = first.middle, second.middle
    if abs(x - other_x) >= abs(y - other_y):
        return "to the left of" if x < other_x else "to the right of"
    return "above" if y < other_y else "below"


def _chance(random: np.random.RandomState, percent: int) -> bool:
    return integer(random, 1, 100) <= percent


def _named(random: np.random.RandomState, thing: Thing, size: int, tint: int) -> str:
    """A digit with article, its size and its tint each mentioned with so many per cent."""
    words = [thing.size] if _chance(random, size) else []
    words += [thing.tint] if _chance(random, tint) else []
    words.append(NUMERALS[thing.digit])
    article = "an" if words[0][0] in "aeiou" and words[0] != "one" else "a"
    return " ".join([article, *words])


def _joined(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else " , ".join(parts[:-1]) + " and " + parts[-1]


def _related(random: np.random.RandomState, things: Sequence[Thing], size: int, tint: int) -> str:
    """The first digit and where it is from the second; a third only joins."""
    names = [_named(random, thing, size, tint) for thing in things]
    if len(names) == 1:
        return names[0]
    text = f"{names[0]} {relation(things[0], things[1])} {names[1]}"
    return f"{text} and {names[2]}" if len(names) > 2 else text


def _count(things: Sequence[Thing]) -> str:
    return "one digit" if len(things) == 1 else f"{NUMERALS[len(things)]} digits"


def _tints(things: Sequence[Thing]) -> str:
    return _joined(list(dict.fromkeys(thing.tint for thing in things)))


def _photo_of(random: np.random.RandomState, things: Sequence[Thing]) -> str:
    return "a photo of " + _joined([_named(random, thing, 15, 45) for thing in things])


def _photo_with(random: np.random.RandomState, things: Sequence[Thing]) -> str:
    if _chance(random, 50):
        return f"a photo of {_count(things)} in {_tints(things)}"
    return f"a photo with {_count(things)} on it"


def _there(random: np.random.RandomState, things: Sequence[Thing]) -> str:
    return ("there is " if len(things) == 1 else "there are ") + _related(random, things, 10, 70)


def _counted(random: np.random.RandomState, things: Sequence[Thing]) -> str:
    return f"{_count(things)} : " + _joined([_named(random, t, 10, 55) for t in things])


def _numbers(random: np.random.RandomState, things: Sequence[Thing]) -> str:
    return f"the number {_joined([NUMERALS[thing.digit] for thing in things])} on a photo"


def _where(random: np.random.RandomState, things: Sequence[Thing]) -> str:
    return _related(random, things, 20, 90)


def _sized(random: np.random.RandomState, things: Sequence[Thing]) -> str:
    return _joined([_named(random, thing, 75, 85) for thing in things]) + " on a photo"


_STYLES: Sequence[Callable[[np.random.RandomState, Sequence[Thing]], str]] = (
    _photo_of,
    _photo_with,
    _there,
    _counted,
    _numbers,
    _where,
    _sized,
)
