"""COCO's panoptic format: a JSON of segments and a PNG of their ids for each image.

A PNG's pixel holds the id R + 256 G + 65536 B of its segment, 0 for void; the JSON says for every
id its category and whether it is a crowd. Labels are 1 .. C in the order of the file's categories
(COCO: 80 things, then 53 stuff), 0 is void.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vision.data.coco import AnnotationError
from vision.data.images import ImageError, load_ids, load_rgb
from vision.data.segments import SegmentMap


@dataclass(frozen=True)
class Category:
    """A class of things, which are counted, or of stuff, which is not."""

    id: int
    name: str
    is_thing: bool


@dataclass(frozen=True)
class SegmentInfo:
    """What the JSON says of a segment; `area` in pixels, None where it says nothing."""

    id: int
    label: int
    crowd: bool
    area: int | None


@dataclass(frozen=True)
class PanopticImage:
    """What the JSON says of one image.

    Attributes:
      name: the image's file, relative to the folder of images.
      size: (height, width) in pixels.
      png: the file of its segments' ids.
      where: for messages, the JSON and the entry in it.
    """

    name: str
    size: tuple[int, int]
    png: Path
    segments: Sequence[SegmentInfo]
    where: str


class CocoPanoptic:
    """The images of a panoptic JSON, in its order.

    Attributes:
      categories: by label - 1.
      images: by image id as a string.
    """

    def __init__(
        self, categories: Sequence[Category], images: Mapping[str, PanopticImage], check_areas: bool
    ) -> None:
        self.categories = categories
        self.images = images
        self._check_areas = check_areas

    def read_segments(self, image_id: str) -> SegmentMap:
        """The segments of an image; row 0 is void, then the JSON's, in its order.

        Raises:
          AnnotationError: an id of the PNG is not in the JSON, a segment of the JSON has no pixel,
            or (where areas are checked) not as many as it says.
          ImageError: the PNG is missing, broken, not RGB, or not of the image's size.
        """
        entry = self.images[image_id]
        codes = load_ids(entry.png)
        _check_size(entry.png, codes.shape[:2], entry)
        known = np.array([0, *(segment.id for segment in entry.segments)], np.int64)
        order = np.argsort(known)
        place = np.minimum(np.searchsorted(known[order], codes), len(known) - 1)
        ids = order[place].astype(np.int32)
        strange = known[ids] != codes
        if strange.any():
            values, counts = np.unique(codes[strange], return_counts=True)
            raise AnnotationError(
                f"{entry.png}: the id {values[0]} of {counts[0]} pixels is not among the segments "
                f"of {entry.where}"
                + (f", nor are {len(values) - 1} more" if len(values) > 1 else "")
            )
        counts = np.bincount(ids.ravel(), minlength=len(known))
        for segment, pixels in zip(entry.segments, counts[1:], strict=True):
            if not pixels:
                raise AnnotationError(
                    f"{entry.where}: segment {segment.id} is empty: no pixel of {entry.png} has "
                    "its id"
                )
            if self._check_areas and segment.area not in (None, pixels):
                raise AnnotationError(
                    f"{entry.where}: segment {segment.id} has the area {segment.area}, but "
                    f"{entry.png} shows {pixels} pixels of it: do segments overlap?"
                )
        return SegmentMap(
            ids,
            np.array([0, *(segment.label for segment in entry.segments)], np.int32),
            np.array([False, *(segment.crowd for segment in entry.segments)]),
        )

    def read_image(self, image_id: str, folder: Path) -> np.ndarray:
        """[height, width, 3] uint8; `ImageError` when it is missing, broken, or of another size."""
        entry = self.images[image_id]
        image = load_rgb(folder / entry.name)
        _check_size(folder / entry.name, image.shape[:2], entry)
        return image

    def check_files(self, folder: Path | None = None) -> None:
        """Raises `ImageError` when a PNG, or an image of `folder`, is missing."""
        files = [entry.png for entry in self.images.values()]
        if folder is not None:
            files += [folder / entry.name for entry in self.images.values()]
        missing = [file for file in files if not file.is_file()]
        if missing:
            raise ImageError(
                f"{len(missing)} of {len(files)} files are missing, first {missing[0]}"
            )


def load_panoptic(annotations: Path | str, annotation_dir: Path | str) -> CocoPanoptic:
    """Reads a `panoptic_*.json` of ground truth; PNGs are opened when asked for.

    Raises:
      AnnotationError: the file is not in COCO's panoptic format, or an image has no annotation.
      OSError: the file cannot be read.
    """
    path = Path(annotations)
    content = _read(path, ("images", "annotations", "categories"))
    categories = _categories(path, content["categories"])
    label_of = {category.id: label for label, category in enumerate(categories, start=1)}
    sizes = {}
    for index, image in enumerate(content["images"]):
        where = f"{path}: images[{index}]"
        name, image_id = _field(image, "file_name", str, where), _field(image, "id", int, where)
        size = (_field(image, "height", int, where), _field(image, "width", int, where))
        if min(size) <= 0:
            raise AnnotationError(f"{where}: height and width {size} must be above 0")
        if image_id in sizes:
            raise AnnotationError(f"{where}: image id {image_id} occurs twice")
        sizes[image_id] = (name, size)
    images = _images(path, content["annotations"], Path(annotation_dir), sizes, label_of)
    return CocoPanoptic(categories, images, check_areas=True)


def load_predictions(
    predictions: Path | str, prediction_dir: Path | str, truth: CocoPanoptic
) -> CocoPanoptic:
    """Reads predictions for the images of `truth`, one for each; areas in them are not looked at.

    Raises:
      AnnotationError: not the format, an image is unknown or has no prediction.
      OSError: the file cannot be read.
    """
    path = Path(predictions)
    content = _read(path, ("annotations",))
    label_of = {category.id: label for label, category in enumerate(truth.categories, start=1)}
    sizes = {int(image_id): (e.name, e.size) for image_id, e in truth.images.items()}
    images = _images(path, content["annotations"], Path(prediction_dir), sizes, label_of)
    return CocoPanoptic(truth.categories, images, check_areas=False)


def write_panoptic(
    path: Path,
    folder: Path,
    categories: Sequence[Category],
    images: Iterable[tuple[int, str, SegmentMap]],
) -> None:
    """Writes a panoptic JSON and its PNGs; what `load_panoptic` reads is the same map.

    A segment's id is its row + 1, void rows have 0, rows without pixels are left out.

    Args:
      path: of the JSON.
      folder: of the PNGs; made if it is not there.
      images: (image id, file name of the image, segments).

    Raises:
      AnnotationError: two images differ in folder or suffix alone, so that both need one PNG.
    """
    folder.mkdir(parents=True, exist_ok=True)
    entries, annotations = [], []
    owners: dict[str, str] = {}
    for image_id, name, segments in images:
        ids = np.where(segments.labels > 0, np.arange(1, len(segments.labels) + 1), 0)[segments.ids]
        png = f"{Path(name).stem}.png"
        if png in owners:
            raise AnnotationError(
                f"{path}: the images {owners[png]!r} and {name!r} (image {image_id}) would both "
                f"have their segments in {folder / png}; give them names that differ"
            )
        owners[png] = name
        channels = np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)
        Image.fromarray(channels).save(folder / png)
        height, width = ids.shape
        entries.append({"id": image_id, "file_name": name, "height": height, "width": width})
        infos = []
        for row in np.flatnonzero(segments.labels):
            mask = segments.ids == row
            if not mask.any():
                continue
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            y, x = int(rows[0]), int(columns[0])
            infos.append(
                {
                    "id": int(row) + 1,
                    "category_id": categories[int(segments.labels[row]) - 1].id,
                    "iscrowd": int(segments.crowd[row]),
                    "area": int(mask.sum()),
                    "bbox": [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y],
                }
            )
        annotations.append({"image_id": image_id, "file_name": png, "segments_info": infos})
    classes = [{"id": c.id, "name": c.name, "isthing": int(c.is_thing)} for c in categories]
    content = {"images": entries, "annotations": annotations, "categories": classes}
    path.write_text(json.dumps(content), encoding="utf-8")


def _read(path: Path, needed: Sequence[str]) -> dict[str, list[Any]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise AnnotationError(f"{path} is not JSON: {error}") from error
    for key in needed:
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise AnnotationError(f"{path} has no list {key!r}: it is not a COCO panoptic file")
    return content


def _field(entry: Any, name: str, kind: type, where: str) -> Any:
    value = entry.get(name) if isinstance(entry, dict) else None
    if not isinstance(value, kind):
        raise AnnotationError(f"{where}: {name} is {value!r}; expected {kind.__name__}")
    return value


def _categories(path: Path, entries: Sequence[Any]) -> list[Category]:
    categories = []
    for index, entry in enumerate(entries):
        where = f"{path}: categories[{index}]"
        number, is_thing = _field(entry, "id", int, where), _field(entry, "isthing", int, where)
        categories.append(Category(number, str(entry.get("name", number)), bool(is_thing)))
    ids = [category.id for category in categories]
    if not ids or len(set(ids)) != len(ids):
        raise AnnotationError(f"{path}: category ids must be unique, and at least one: {ids}")
    return categories


def _images(
    path: Path,
    annotations: Sequence[Any],
    folder: Path,
    sizes: Mapping[int, tuple[str, tuple[int, int]]],
    label_of: Mapping[int, int],
) -> dict[str, PanopticImage]:
    found: dict[int, PanopticImage] = {}
    for index, annotation in enumerate(annotations):
        image_id = _field(annotation, "image_id", int, f"{path}: annotations[{index}]")
        where = f"{path}: annotation of image {image_id}"
        if image_id not in sizes:
            raise AnnotationError(f"{where}: there is no such image")
        if image_id in found:
            raise AnnotationError(f"{where}: it occurs twice")
        infos = _field(annotation, "segments_info", list, where)
        segments = [
            _segment(info, label_of, f"{where}: segments_info[{i}]") for i, info in enumerate(infos)
        ]
        ids = [segment.id for segment in segments]
        if len(set(ids)) != len(ids):
            twice = next(number for number in ids if ids.count(number) > 1)
            raise AnnotationError(
                f"{where}: segment {twice} is listed twice: segments must not overlap"
            )
        png = folder / _field(annotation, "file_name", str, where)
        name, size = sizes[image_id]
        found[image_id] = PanopticImage(name, size, png, segments, where)
    missing = [image_id for image_id in sizes if image_id not in found]
    if missing:
        raise AnnotationError(
            f"{path}: {len(missing)} of {len(sizes)} images have no entry in annotations, first "
            f"image {missing[0]}"
        )
    return {str(image_id): found[image_id] for image_id in sizes}


def _segment(info: Any, label_of: Mapping[int, int], where: str) -> SegmentInfo:
    number = _field(info, "id", int, where)
    if not 0 < number < 256**3:
        raise AnnotationError(f"{where}: id {number} is not in 1 .. 16777215 (0 is void)")
    category = _field(info, "category_id", int, where)
    if category not in label_of:
        raise AnnotationError(f"{where}: segment {number} has the unknown category {category}")
    area = info.get("area")
    if area is not None and not (isinstance(area, int | float) and math.isfinite(area)):
        raise AnnotationError(f"{where}: segment {number} has the area {area!r}; expected pixels")
    crowd = bool(info.get("iscrowd", 0))
    return SegmentInfo(number, label_of[category], crowd, None if area is None else int(area))


def _check_size(file: Path, size: tuple[int, ...], entry: PanopticImage) -> None:
    if size != entry.size:
        raise ImageError(
            f"{file} is {size[1]} x {size[0]} pixels, but {entry.where} says "
            f"{entry.size[1]} x {entry.size[0]}"
        )
