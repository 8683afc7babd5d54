"""The COCO metrics: pycocotools is the judge, these are thin and quiet calls of it."""

import contextlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


class CocoFormatError(ValueError):
    """Annotations or predictions that are not in COCO's formats, or do not fit each other."""


def coco_evaluate(
    annotations: Mapping[str, Any] | str | Path,
    predictions: Sequence[Mapping[str, Any]] | str | Path,
) -> dict[str, float]:
    """The 12 figures of COCOeval for boxes, by the names in `FIGURES`, as fractions.

    A figure without anything to measure (no object of that size) is -1, as in pycocotools. No
    predictions at all score 0.

    Args:
      annotations: an instances file or what is in it.
      predictions: a results file or what is in it: image_id, category_id, bbox (x, y, width,
        height in pixels), score.

    Raises:
      CocoFormatError: not JSON, not these formats, an unknown image or category.
      OSError: a file that cannot be read.
    """
    truth = load_annotations(annotations)
    results = load_predictions(predictions, truth)
    return _judge(truth, results)


def evaluate_boxes(
    true_boxes: Sequence[NDArray[Any]],
    true_labels: Sequence[NDArray[Any]],
    boxes: Sequence[NDArray[Any]],
    labels: Sequence[NDArray[Any]],
    scores: Sequence[NDArray[Any]],
    n_classes: int,
    crowd: Sequence[NDArray[np.bool_]] | None = None,
) -> dict[str, float]:
    """AP, AP50, AP75, AR1, AR10 and AR100 of boxes in memory, one array an image.

    The IoU has no unit, so boxes may be in any, truth and prediction of an image in the same one.
    The figures by size of object do depend on the unit and are left out. A box with its corners
    the wrong way round overlaps with nothing, as in the rewards.

    Args:
      true_boxes: [N_i, 4] y0 x0 y1 x1.
      true_labels: [N_i] integers in 0 .. n_classes - 1.
      boxes: [M_i, 4] y0 x0 y1 x1.
      labels: [M_i] integers in 0 .. n_classes - 1.
      scores: [M_i], ranks the predictions, over all images.
      n_classes: classes without ground truth are left out of the means.
      crowd: [N_i] bool, boxes that stand for many objects: matched by any, missed by none.
    """
    per_image = (true_boxes, true_labels, boxes, labels, scores)
    if len({len(arrays) for arrays in per_image}) != 1:
        raise ValueError(f"arrays of {[len(arrays) for arrays in per_image]} images")
    annotations: list[dict[str, Any]] = []
    predictions: list[dict[str, Any]] = []
    for image in range(len(true_boxes)):
        is_crowd = np.zeros(len(true_labels[image]), bool) if crowd is None else crowd[image]
        for box, label, many in zip(true_boxes[image], true_labels[image], is_crowd, strict=True):
            entry = _entry(image, label, box)
            area = entry["bbox"][2] * entry["bbox"][3]
            annotations.append(
                entry | {"id": len(annotations) + 1, "iscrowd": int(many), "area": area}
            )
        for box, label, score in zip(boxes[image], labels[image], scores[image], strict=True):
            predictions.append(_entry(image, label, box) | {"score": float(score)})
    dataset = {
        "images": [{"id": image} for image in range(len(true_boxes))],
        "categories": [{"id": label, "name": str(label)} for label in range(n_classes)],
        "annotations": annotations,
    }
    figures = _judge(dataset, predictions, areas=["all"])
    return {name: figures[name] for name in ("AP", "AP50", "AP75", "AR1", "AR10", "AR100")}


def _judge(
    truth: Mapping[str, Any],
    results: list[dict[str, Any]],
    areas: Sequence[str] = ("all", "small", "medium", "large"),
) -> dict[str, float]:
    # pycocotools prints as it goes, writes into what it is given, and cannot load an empty list.
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {"info": {}} | {key: _rows(value) for key, value in truth.items()}
        # To COCOeval, an annotation of id 0 is one that was not matched.
        for number, annotation in enumerate(coco.dataset["annotations"], start=1):
            annotation["id"] = number
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results) if results else _nothing(coco), "bbox")
        params = evaluation.params
        chosen = [params.areaRngLbl.index(area) for area in areas]
        params.areaRng = [params.areaRng[index] for index in chosen]
        params.areaRngLbl = list(areas)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {name: float(value) for name, value in zip(FIGURES, evaluation.stats, strict=True)}


def load_annotations(source: Mapping[str, Any] | str | Path) -> Mapping[str, Any]:
    """The content of an instances file, with its lists checked."""
    content = _read(source) if isinstance(source, str | Path) else source
    where = _where(source, "the annotations")
    if not isinstance(content, Mapping):
        raise CocoFormatError(f"{where}: expected a JSON object, not {type(content).__name__}")
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), Sequence):
            raise CocoFormatError(
                f"{where}: no list {key!r}; COCO instances have images, annotations and categories"
            )
    images = {_field(image, "id", f"{where}: image {i}") for i, image in _each(content, "images")}
    categories = {
        _field(category, "id", f"{where}: category {i}")
        for i, category in _each(content, "categories")
    }
    for index, annotation in _each(content, "annotations"):
        at = f"{where}: annotation {_field(annotation, 'id', f'{where}: annotation at {index}')}"
        _check_entry(annotation, at, images, categories)
        for key in ("area", "iscrowd"):
            _field(annotation, key, at)
    return content


def load_predictions(
    source: Sequence[Mapping[str, Any]] | str | Path, annotations: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The content of a results file, checked against the annotations it belongs to."""
    content = _read(source) if isinstance(source, str | Path) else source
    where = _where(source, "the predictions")
    if not isinstance(content, Sequence):
        raise CocoFormatError(f"{where}: expected a JSON list, not {type(content).__name__}")
    images = {image["id"] for image in annotations["images"]}
    categories = {category["id"] for category in annotations["categories"]}
    for index, prediction in enumerate(content):
        at = f"{where}: prediction {index}"
        _check_entry(prediction, at, images, categories)
        score = _field(prediction, "score", at)
        if not isinstance(score, int | float) or not np.isfinite(score):
            raise CocoFormatError(f"{at}: score is {score!r}; expected a finite number")
    return [dict(prediction) for prediction in content]


def _check_entry(entry: Any, at: str, images: set[Any], categories: set[Any]) -> None:
    image = _field(entry, "image_id", at)
    if not isinstance(image, int | str) or image not in images:
        raise CocoFormatError(f"{at}: image_id {image!r} is not among the annotations' images")
    category = _field(entry, "category_id", at)
    if not isinstance(category, int | str) or category not in categories:
        raise CocoFormatError(
            f"{at}: category_id {category!r} is not among the annotations' categories "
            f"{sorted(categories, key=str)}"
        )
    box = _field(entry, "bbox", at)
    numbers = isinstance(box, Sequence) and all(isinstance(value, int | float) for value in box)
    if not numbers or len(box) != 4 or not np.all(np.isfinite(box)):
        raise CocoFormatError(f"{at}: bbox is {box!r}; expected 4 numbers x, y, width, height")


def _field(entry: Any, key: str, at: str) -> Any:
    if not isinstance(entry, Mapping) or key not in entry:
        raise CocoFormatError(f"{at}: has no {key!r}")
    return entry[key]


def _each(content: Mapping[str, Any], key: str) -> list[tuple[int, Any]]:
    return list(enumerate(content[key]))


def _entry(image: int, label: Any, box: NDArray[Any]) -> dict[str, Any]:
    y0, x0, y1, x1 = (float(value) for value in box)
    extent = [x1 - x0, y1 - y0] if x1 >= x0 and y1 >= y0 else [0.0, 0.0]
    return {"image_id": image, "category_id": int(label), "bbox": [x0, y0, *extent]}


def _read(path: str | Path) -> Any:
    with open(path, encoding="utf-8") as file:
        try:
            return json.load(file)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise CocoFormatError(f"{path} is not JSON: {error}") from error


def _where(source: object, otherwise: str) -> str:
    return str(source) if isinstance(source, str | Path) else otherwise


def _rows(value: Any) -> Any:
    """Copies of the rows: COCOeval marks the annotations it is given."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [dict(row) if isinstance(row, Mapping) else row for row in value]
    return value


def _nothing(coco: COCO) -> COCO:
    empty = COCO()
    empty.dataset = {**coco.dataset, "annotations": []}
    empty.createIndex()
    return empty
