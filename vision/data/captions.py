"""Images with captions: COCO's format, Karpathy's split file, and one face for all."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vision.data.caption_scenes import CaptionScenes, load_caption_scenes
from vision.data.coco import AnnotationError
from vision.data.config import (
    BadCaptions,
    CaptionDataOptions,
    CaptionScenesOptions,
    CocoCaptionsOptions,
    KarpathyOptions,
)
from vision.data.example_ids import no_example
from vision.data.images import ImageError, load_rgb
from vision.data.scenes import SPLITS


class CaptionSource(Protocol):
    """A split of images with captions.

    Attributes:
      example_ids: in a fixed order.
    """

    example_ids: Sequence[str]

    def captions(self, example_id: str) -> tuple[str, ...]:
        """The references of an image as they were written, one at least; its file stays shut."""
        ...

    def image(self, example_id: str) -> np.ndarray:
        """[h, w, 3] uint8; `ImageError`: its file is missing or broken."""
        ...


@dataclass(frozen=True)
class _Entry:
    file: Path
    captions: tuple[str, ...]


class FilesSource:
    """Captions of image files."""

    def __init__(self, entries: Mapping[str, _Entry]) -> None:
        self._entries = entries
        self.example_ids: Sequence[str] = list(entries)

    def captions(self, example_id: str) -> tuple[str, ...]:
        """See `CaptionSource`."""
        return self._entry(example_id).captions

    def image(self, example_id: str) -> np.ndarray:
        """See `CaptionSource`."""
        return load_rgb(self._entry(example_id).file)

    def check_images(self) -> None:
        """Raises `ImageError` when a file is missing, before hours of training find out."""
        missing = [entry.file for entry in self._entries.values() if not entry.file.is_file()]
        if missing:
            raise ImageError(
                f"{len(missing)} of {len(self._entries)} image files are missing, first "
                f"{missing[0]}"
            )

    def _entry(self, example_id: str) -> _Entry:
        if example_id not in self._entries:
            raise KeyError(no_example(example_id, self.example_ids))
        return self._entries[example_id]


class ScenesSource:
    """The quick start's scenes."""

    def __init__(self, scenes: CaptionScenes) -> None:
        self._scenes = scenes
        self.example_ids: Sequence[str] = [f"scene-{index:06d}" for index in range(len(scenes))]
        self._index = {example_id: index for index, example_id in enumerate(self.example_ids)}

    def captions(self, example_id: str) -> tuple[str, ...]:
        """See `CaptionSource`."""
        return self._scenes.captions[self._of(example_id)]

    def image(self, example_id: str) -> np.ndarray:
        """See `CaptionSource`."""
        return np.asarray(self._scenes.images[self._of(example_id)])

    def _of(self, example_id: str) -> int:
        if example_id not in self._index:
            raise KeyError(no_example(example_id, self.example_ids))
        return self._index[example_id]


def open_captions(options: CaptionDataOptions, split: str) -> CaptionSource:
    """The data of a split ('train', 'validation', 'test').

    Raises:
      ValueError: an unknown split, or one that the options do not give.
      AnnotationError, ImageError, OSError: the data cannot be used; the message says why.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: one of {', '.join(SPLITS)}")
    if isinstance(options, CaptionScenesOptions):
        return ScenesSource(_scenes(options, split, None))
    if isinstance(options, KarpathyOptions):
        entries = read_karpathy(
            options.annotations, options.images, split, options.restval, options.on_bad_captions
        )
    else:
        entries = _coco_split(options, split)
    source = FilesSource(entries)
    if options.check_images:
        source.check_images()
    return source


def prepare_captions(
    options: CaptionDataOptions, progress: Callable[[str, int, int], None]
) -> None:
    """Generates what is generated at first use, so that the workers find it done.

    Args:
      progress: called with (split, examples done, examples in all).
    """
    if isinstance(options, CaptionScenesOptions):
        for split in SPLITS:
            _scenes(options, split, progress)


def read_coco_captions(
    annotations: Path | str, images: Path | str, on_bad: BadCaptions = "error"
) -> dict[str, _Entry]:
    """The entries of a `captions_*.json` by image id, in its order; image files stay shut.

    Raises:
      AnnotationError: the file is not in COCO's format, a caption is bad, or an image has none.
      OSError: the file cannot be read.
    """
    path = Path(annotations)
    content = read_object(path)
    rows: dict[str, list[str]] = {}
    files: dict[str, Path] = {}
    for index, image in enumerate(_list(path, content, "images")):
        if not isinstance(image, dict) or "id" not in image or "file_name" not in image:
            raise AnnotationError(
                f"{path}: images[{index}] has no id or file_name: {_short(image)}"
            )
        name = str(image["id"])
        if name in rows:
            raise AnnotationError(f"{path}: image id {name} occurs twice")
        rows[name], files[name] = [], Path(images) / str(image["file_name"])
    for index, annotation in enumerate(_list(path, content, "annotations")):
        if not isinstance(annotation, dict):
            raise AnnotationError(
                f"{path}: annotations[{index}] is no object: {_short(annotation)}"
            )
        where = f"{path}: annotation {annotation.get('id', f'at index {index}')}"
        name = str(annotation.get("image_id"))
        if name not in rows:
            raise AnnotationError(f"{where}: no image {annotation.get('image_id')!r} in the file")
        caption = _caption(where, annotation.get("caption"), on_bad)
        if caption is not None:
            rows[name].append(caption)
    return _entries(path, rows, files, on_bad)


def read_karpathy(
    annotations: Path | str,
    images: Path | str,
    split: str,
    restval: bool = True,
    on_bad: BadCaptions = "error",
) -> dict[str, _Entry]:
    """The entries of one split of a Karpathy file by image id; image files stay shut.

    Our 'train' is its train and, when asked for, restval; our 'validation' its val.

    Raises:
      AnnotationError, OSError: as `read_coco_captions`; a split without images, too.
    """
    path = Path(annotations)
    theirs = {"train": ("train", "restval") if restval else ("train",), "validation": ("val",)}
    wanted = theirs.get(split, (split,))
    rows: dict[str, list[str]] = {}
    files: dict[str, Path] = {}
    for index, image in enumerate(_list(path, read_object(path), "images")):
        where = f"{path}: images[{index}]"
        if not isinstance(image, dict) or "filename" not in image or "split" not in image:
            raise AnnotationError(f"{where} has no filename or split: {_short(image)}")
        if image["split"] not in wanted:
            continue
        name = str(image.get("cocoid", image.get("imgid", image["filename"])))
        if name in rows:
            raise AnnotationError(f"{where}: image id {name} occurs twice")
        files[name] = Path(images) / str(image.get("filepath", "")) / str(image["filename"])
        sentences = image.get("sentences")
        if not isinstance(sentences, list):
            raise AnnotationError(f"{where} has no list 'sentences': {_short(image)}")
        found = (
            _caption(f"{where}: sentences[{at}]", _sentence(sentence), on_bad)
            for at, sentence in enumerate(sentences)
        )
        rows[name] = [caption for caption in found if caption is not None]
    if not rows:
        raise AnnotationError(f"{path}: no image is of split {' or '.join(wanted)}")
    return _entries(path, rows, files, on_bad)


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object; raises `AnnotationError` or `OSError`."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise AnnotationError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise AnnotationError(f"{path}: an object is expected, not a {type(content).__name__}")
    return content


def has_words(caption: str) -> bool:
    """Whether a caption holds a letter or a digit of any script."""
    return any(character.isalnum() for character in caption)


def _coco_split(options: CocoCaptionsOptions, split: str) -> dict[str, _Entry]:
    places = {"train": options.train, "validation": options.validation, "test": options.test}
    place = places[split]
    if place is None:
        given = ", ".join(name for name, value in places.items() if value is not None)
        raise ValueError(
            f"no data for split {split!r}: set data.{split}.annotations and data.{split}.images "
            f"(given: {given})"
        )
    return read_coco_captions(place.annotations, place.images, options.on_bad_captions)


def _scenes(
    options: CaptionScenesOptions, split: str, progress: Callable[[str, int, int], None] | None
) -> CaptionScenes:
    count = {"train": options.train, "validation": options.validation, "test": options.test}[split]

    def report(done: int, total: int) -> None:
        if progress is not None:
            progress(split, done, total)

    return load_caption_scenes(options.seed, split, count, options.cache_dir, report)


def _list(path: Path, content: Mapping[str, Any], key: str) -> list[Any]:
    entries = content.get(key)
    if not isinstance(entries, list):
        raise AnnotationError(f"{path} has no list {key!r}: it is no file of captions")
    return entries


def _sentence(sentence: Any) -> Any:
    """The text of a Karpathy sentence: `raw`, or its `tokens` joined."""
    if not isinstance(sentence, dict):
        return None
    tokens = sentence.get("tokens")
    joined = " ".join(map(str, tokens)) if isinstance(tokens, list) else None
    return sentence.get("raw", joined)


def _caption(where: str, caption: Any, on_bad: BadCaptions) -> str | None:
    """The caption; None: left out."""
    if not isinstance(caption, str):
        raise AnnotationError(f"{where}: caption {caption!r} is no text")
    if has_words(caption):
        return caption
    if on_bad == "skip":
        return None
    raise AnnotationError(
        f"{where}: caption {caption!r} has no letter and no digit; mend it, or set "
        "on_bad_captions to skip"
    )


def _entries(
    path: Path, rows: Mapping[str, list[str]], files: Mapping[str, Path], on_bad: BadCaptions
) -> dict[str, _Entry]:
    without = [name for name, captions in rows.items() if not captions]
    if without and on_bad == "error":
        raise AnnotationError(
            f"{path}: image {without[0]} has no caption ({len(without)} of {len(rows)} have "
            "none); set on_bad_captions to skip to leave them out"
        )
    entries = {
        name: _Entry(files[name], tuple(captions)) for name, captions in rows.items() if captions
    }
    if not entries:
        raise AnnotationError(f"{path}: no image has a caption")
    return entries


def _short(entry: Any) -> str:
    return str(entry)[:80]
