"""COCO's instances: an annotation file and a folder of images, checked as they are read."""

import json
import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vision.data.images import ImageError, load_rgb

BadBoxes = Literal["error", "clip", "skip"]

# Pixels that a box may stand out of its image without being an error: annotation tools round.
_ROUNDING = 0.1

# What is read before an entry can be named; an annotation's own fields are checked one by one.
_NEEDED: Mapping[str, Sequence[str]] = {
    "images": ("id", "file_name", "height", "width"),
    "categories": ("id",),
    "annotations": (),
}

_log = logging.getLogger(__name__)


class AnnotationError(ValueError):
    """An annotation file that is not what it should be; names the file, the entry, the value."""


@dataclass(frozen=True)
class ImageBoxes:
    """What the annotations say of one image.

    Attributes:
      file: path of the image.
      size: (height, width) in pixels.
      boxes: [N, 4] float64 y0 x0 y1 x1 as fractions of the image, 0 to 1.
      labels: [N] int32, contiguous from 0, in the order of category ids.
      crowd: [N] bool.
    """

    file: Path
    size: tuple[int, int]
    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray


class CocoInstances:
    """The images of an annotation file, in its order, those without boxes among them.

    Attributes:
      class_names: by label.
      category_ids: COCO's category id of each label.
      images: by image id as a string.
    """

    def __init__(
        self,
        class_names: Sequence[str],
        category_ids: Sequence[int],
        images: Mapping[str, ImageBoxes],
    ) -> None:
        self.class_names = class_names
        self.category_ids = category_ids
        self.images = images

    def read_image(self, image_id: str) -> np.ndarray:
        """[height, width, 3] uint8.

        Raises:
          ImageError: the file is missing, broken, or not of the size that the annotations say.
        """
        entry = self.images[image_id]
        image = load_rgb(entry.file)
        if image.shape[:2] != entry.size:
            height, width = image.shape[:2]
            raise ImageError(
                f"image file {entry.file} is {width} x {height} pixels, but the annotations of "
                f"image {image_id} say {entry.size[1]} x {entry.size[0]}: its boxes would not fit"
            )
        return image

    def check_images(self) -> None:
        """Raises `ImageError` when a file is missing, before hours of training find out."""
        missing = [entry.file for entry in self.images.values() if not entry.file.is_file()]
        if missing:
            raise ImageError(
                f"{len(missing)} of {len(self.images)} image files are missing, first {missing[0]}"
            )


def load_instances(
    annotations: Path | str, images: Path | str, on_bad_boxes: BadBoxes = "error"
) -> CocoInstances:
    """Reads an `instances_*.json`; image files are not opened.

    Args:
      annotations: the JSON file.
      images: the folder that its `file_name`s are relative to.
      on_bad_boxes: what to do with a box that stands out of its image or has no extent.
        `clip` cuts it to its image, and leaves it out when nothing remains; `skip` leaves it out,
        and those of unknown categories too. What was done is logged.

    Raises:
      AnnotationError: the file is not in COCO's format, or a box is bad and `error` is asked for.
      OSError: the file cannot be read.
    """
    path = Path(annotations)
    content = _read(path)
    for category in content["categories"]:
        if not isinstance(category["id"], int):
            raise AnnotationError(f"{path}: category id {category['id']!r} is no whole number")
    categories = sorted(content["categories"], key=lambda category: category["id"])
    category_ids: list[Any] = [category["id"] for category in categories]
    if len(set(category_ids)) != len(category_ids) or not category_ids:
        raise AnnotationError(
            f"{path}: category ids must be unique, and at least one: they are {category_ids}"
        )
    label_of: dict[Any, int] = {
        category_id: label for label, category_id in enumerate(category_ids)
    }
    sizes = _sizes(path, content["images"])
    rows: dict[int, list[tuple[list[float], int, bool]]] = {image_id: [] for image_id in sizes}
    repaired: Counter[str] = Counter()
    for index, annotation in enumerate(content["annotations"]):
        where = f"{path}: annotation {annotation.get('id', f'at index {index}')}"
        image_id = annotation.get("image_id")
        if image_id not in sizes:
            raise AnnotationError(f"{where}: no image {image_id!r} in the file")
        label = label_of.get(annotation.get("category_id"))
        if label is None:
            if on_bad_boxes != "skip":
                raise AnnotationError(
                    f"{where}: unknown category {annotation.get('category_id')!r}; the file's "
                    f"categories are {_some(category_ids)}"
                )
            repaired["left out"] += 1
            continue
        box = _box(where, annotation.get("bbox"), sizes[image_id], on_bad_boxes, repaired)
        if box is not None:
            rows[image_id].append((box, label, bool(annotation.get("iscrowd", 0))))
    if repaired:
        done = ", ".join(f"{count} {what}" for what, count in sorted(repaired.items()))
        _log.warning("%s: bad boxes: %s (on_bad_boxes: %s)", path, done, on_bad_boxes)
    entries = {
        str(image["id"]): _entry(
            Path(images) / image["file_name"], sizes[image["id"]], rows[image["id"]]
        )
        for image in content["images"]
    }
    names = [str(category.get("name", category["id"])) for category in categories]
    return CocoInstances(names, category_ids, entries)


def _read(path: Path) -> dict[str, list[dict[str, Any]]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise AnnotationError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise AnnotationError(f"{path}: an object is expected, not a {type(content).__name__}")
    for key, needed in _NEEDED.items():
        entries = content.get(key)
        if not isinstance(entries, list):
            raise AnnotationError(f"{path} has no list {key!r}: it is not a COCO instances file")
        for index, entry in enumerate(entries):
            if not isinstance(entry, dict):
                raise AnnotationError(f"{path}: {key}[{index}] is no object: {str(entry)[:80]}")
            lacking = [field for field in needed if field not in entry]
            if lacking:
                raise AnnotationError(
                    f"{path}: {key}[{index}] has no {', '.join(lacking)}: {str(entry)[:80]}"
                )
    return content


def _sizes(path: Path, images: Sequence[Mapping[str, Any]]) -> dict[int, tuple[int, int]]:
    sizes: dict[int, tuple[int, int]] = {}
    for image in images:
        height, width = image["height"], image["width"]
        if not all(isinstance(side, int) and side > 0 for side in (height, width)):
            raise AnnotationError(
                f"{path}: image {image['id']} has height {height!r} and width {width!r}: whole "
                "numbers of pixels above 0 are expected"
            )
        if image["id"] in sizes:
            raise AnnotationError(f"{path}: image id {image['id']} occurs twice")
        sizes[image["id"]] = (height, width)
    return sizes


def _box(
    where: str, bbox: Any, size: tuple[int, int], on_bad: BadBoxes, repaired: Counter[str]
) -> list[float] | None:
    """The box as pixels y0 x0 y1 x1 inside its image; None: left out."""
    numbers = isinstance(bbox, list) and len(bbox) == 4
    if not numbers or not all(isinstance(v, int | float) and math.isfinite(v) for v in bbox):
        raise AnnotationError(f"{where}: bbox {bbox!r} is not four finite numbers x, y, w, h")
    x, y, wide, high = (float(v) for v in bbox)
    height, width = size
    clipped = [max(y, 0.0), max(x, 0.0), min(y + high, height), min(x + wide, width)]
    nothing_left = clipped[2] <= clipped[0] or clipped[3] <= clipped[1]
    fault = ""
    if wide <= 0 or high <= 0:
        fault = "has no extent"
    elif nothing_left or min(x, y, width - x - wide, height - y - high) < -_ROUNDING:
        fault = f"stands out of its image of {width} x {height} pixels"
    if fault and on_bad == "error":
        raise AnnotationError(
            f"{where}: bbox {bbox} (x, y, width, height) {fault}; mend it, or set "
            "on_bad_boxes to clip or skip"
        )
    if fault and (on_bad == "skip" or nothing_left):
        repaired["left out"] += 1
        return None
    if fault:
        repaired["clipped"] += 1
    return clipped


def _entry(
    file: Path, size: tuple[int, int], rows: Sequence[tuple[list[float], int, bool]]
) -> ImageBoxes:
    pixels = np.array([box for box, _, _ in rows], np.float64).reshape(-1, 4)
    return ImageBoxes(
        file=file,
        size=size,
        boxes=pixels / np.array(size + size),
        labels=np.array([label for _, label, _ in rows], np.int32),
        crowd=np.array([crowd for _, _, crowd in rows], bool),
    )


def _some(ids: Sequence[int]) -> str:
    return str(list(ids)) if len(ids) <= 12 else f"{ids[0]} .. {ids[-1]} ({len(ids)} of them)"
