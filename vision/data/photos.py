"""Colour images without annotations: crops of a few real photos, or a folder of your own.

The quick start's photos are those that scikit-image, scikit-learn and matplotlib bundle: nothing is
downloaded. A whole photo belongs to one split. A crop is a function of (seed, split, index) alone,
cut when it is asked for: that takes less than reading it from a cache would save.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

import numpy as np

from vision.data.config import ImageOptions, PhotosOptions
from vision.data.example_ids import no_example
from vision.data.images import ImageError, load_rgb
from vision.data.scenes import SPLITS

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")

# (package, file in it). Astronaut, coffee, motorcycle, rocket and stained tissue: scikit-image;
# a dahlia and a Chinese temple: scikit-learn (CC BY 2.0); Grace Hopper (public domain): matplotlib.
_PHOTOS = {
    "train": (
        ("skimage", "data/astronaut.png"),
        ("skimage", "data/coffee.png"),
        ("skimage", "data/motorcycle_left.png"),
        ("skimage", "data/rocket.jpg"),
        ("skimage", "data/ihc.png"),
        ("sklearn", "datasets/images/flower.jpg"),
    ),
    "validation": (("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),),
    "test": (("skimage", "data/chelsea.png"), ("sklearn", "datasets/images/china.jpg")),
}
_DISTRIBUTIONS = {"skimage": "scikit-image", "sklearn": "scikit-learn", "matplotlib": "matplotlib"}


class ImageSource(Protocol):
    """A split of images.

    Attributes:
      example_ids: in a fixed order.
    """

    example_ids: Sequence[str]

    def load(self, example_id: str) -> np.ndarray:
        """[h, w, 3] uint8, of any size; `KeyError`: no such id, `ImageError`: cannot be read."""
        ...


class PhotoCrops:
    """Square crops of the quick start's photos, from `least_side` pixels to all that fits."""

    def __init__(self, options: PhotosOptions, split: str) -> None:
        counts = {"train": options.train, "validation": options.validation, "test": options.test}
        self._seed, self._split, self._least = options.seed, split, options.least_side
        self.example_ids: Sequence[str] = [f"crop-{i:06d}" for i in range(counts[split])]
        self._index = {example_id: i for i, example_id in enumerate(self.example_ids)}

    def load(self, example_id: str) -> np.ndarray:
        """See `ImageSource`; half of the training crops are mirrored."""
        if example_id not in self._index:
            raise KeyError(no_example(example_id, self.example_ids))
        photo, window, mirrored = self.place(self._index[example_id])
        top, left, side = window
        crop = photo_pixels(self._split)[photo][top : top + side, left : left + side]
        return np.ascontiguousarray(crop[:, ::-1] if mirrored else crop)

    def place(self, index: int) -> tuple[int, tuple[int, int, int], bool]:
        """Which photo, (top, left, side) in it, and whether mirrored.

        Photos take turns, so that each has the same share; sides are even by their logarithm.
        """
        photos = photo_pixels(self._split)
        key = hashlib.blake2b(f"{self._seed}/{self._split}/{index}".encode(), digest_size=8)
        random = np.random.default_rng(int.from_bytes(key.digest(), "big"))
        height, width = photos[index % len(photos)].shape[:2]
        whole = min(height, width)
        least = min(self._least, whole)
        side = int(least * (whole / least) ** random.uniform())
        top, left = random.integers((height - side + 1, width - side + 1))
        mirrored = bool(random.uniform() < 0.5) and self._split == "train"
        return index % len(photos), (int(top), int(left), side), mirrored


class ImageFolder:
    """The image files below a folder, by their path in it.

    Ids travel as UTF-8: what of a name is none stands in its id as escapes, such as `\\udcff`.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise ImageError(f"no folder of images {folder}")
        paths = sorted(_image_files(folder))
        if not paths:
            raise ImageError(f"the folder {folder} holds no image file ({', '.join(SUFFIXES)})")
        self._files: dict[str, Path] = {}
        for path in paths:
            name = path.relative_to(folder).as_posix().encode(errors="backslashreplace").decode()
            if name in self._files:
                raise ImageError(
                    f"{folder}: two files have the id {name!r}, one by a name that is not UTF-8; "
                    "rename one"
                )
            self._files[name] = path
        self.example_ids: Sequence[str] = list(self._files)

    def load(self, example_id: str) -> np.ndarray:
        """See `ImageSource`; whatever the file holds, see `load_rgb`."""
        if example_id not in self._files:
            raise KeyError(no_example(example_id, self.example_ids))
        return load_rgb(self._files[example_id])


def open_images(options: ImageOptions, split: str) -> ImageSource:
    """The images of a split ('train', 'validation', 'test').

    Raises:
      ValueError: an unknown split, one that the options do not give, or a missing package.
      ImageError: a folder that is missing or holds no image.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: one of {', '.join(SPLITS)}")
    if isinstance(options, PhotosOptions):
        return PhotoCrops(options, split)
    folders = {"train": options.train, "validation": options.validation, "test": options.test}
    folder = folders[split]
    if folder is None:
        given = ", ".join(name for name, value in folders.items() if value is not None)
        raise ValueError(f"no images for split {split!r}: set data.{split} (given: {given})")
    return ImageFolder(folder.expanduser())


def prepare_images(options: ImageOptions) -> None:
    """Reads the quick start's photos once, so that a missing package is known at the start."""
    if isinstance(options, PhotosOptions):
        for split in SPLITS:
            photo_pixels(split)


@lru_cache(maxsize=len(SPLITS))
def photo_pixels(split: str) -> tuple[np.ndarray, ...]:
    """The photos of a split, [H, W, 3] uint8 each, not to be written to.

    Raises:
      ValueError: a package that bundles one is not installed.
    """
    photos = tuple(load_rgb(_path(package, file)) for package, file in _PHOTOS[split])
    for photo in photos:
        photo.setflags(write=False)
    return photos


def _image_files(folder: Path) -> Iterator[Path]:
    """The image files below a folder; links are followed, but not back to where they stand."""
    # `os.walk` asks nothing of the single files, of which there may be a million.
    for place, folders, names in os.walk(folder, followlinks=True):
        here = Path(place).resolve()
        folders[:] = [name for name in folders if not here.is_relative_to((here / name).resolve())]
        yield from (Path(place) / name for name in names if name.lower().endswith(SUFFIXES))


def _path(package: str, file: str) -> Path:
    spec = find_spec(package)  # importing the packages would take seconds
    if spec is None or spec.origin is None:
        raise ValueError(
            f"the quick start's photos come with {_DISTRIBUTIONS[package]}, which is not installed "
            "here: pip install 'rewardtune[quickstart]'"
        )
    return Path(spec.origin).parent / file
