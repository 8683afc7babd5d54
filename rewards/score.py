"""Judges COCO files without a model: the 12 COCO figures and the detection rewards an image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from protos.trajectory import Scored
from rewards.detection import MATCH_IOU, MeanAveragePrecisionReward, RecallReward
from rewards.judge import judge
from rewards.reward import Reward
from vision.metrics.boxes import MAX_COORDINATE
from vision.metrics.coco import (
    CocoFormatError,
    coco_evaluate,
    load_annotations,
    load_predictions,
)
from vision.tasks.boxes import Boxes, Detections
from vision.tasks.task import Example

# Annotators' boxes may end a rounding error beyond the last pixel.
_TOLERANCE_PIXELS = 0.5


@dataclass(frozen=True)
class _FileTask:
    """What the rewards need to know, from the annotations at hand."""

    counts: np.ndarray
    max_boxes: int

    @property
    def auxiliary_arrays(self) -> Mapping[str, tuple[int, ...]]:
        return {MATCH_IOU: (self.max_boxes,)}

    def class_counts(self) -> np.ndarray:
        return self.counts


def score_detection(
    annotations_path: str | Path, predictions_path: str | Path, levels: int = 1000
) -> dict[str, float]:
    """The figures of `vision.metrics.coco.FIGURES` and the mean rewards an image.

    `reward_map` is the mAP reward in paper mode, its class weights from these annotations (there
    is no training set here); `reward_recall` the recall reward. Both are means over all images,
    those without predictions included, of boxes quantised to `levels` steps a side, as the models
    write them. Every prediction counts as a box, whatever its score. `images`, `boxes` and
    `predictions` are counts, crowds left out.

    Raises:
      CocoFormatError: a file is not JSON or not of its format, a prediction names an unknown
        image or category, a box lies outside its image; the message names file and entry.
      OSError: a file cannot be read.
      ValueError: `levels` out of range.
    """
    if not 1 <= levels <= MAX_COORDINATE:
        raise ValueError(f"levels is {levels}; it must be in 1 .. {MAX_COORDINATE}")
    truth = load_annotations(annotations_path)
    found = load_predictions(predictions_path, truth)
    figures = coco_evaluate(truth, found)

    sizes = {image["id"]: _size(image, annotations_path) for image in truth["images"]}
    label_of = {category["id"]: i for i, category in enumerate(truth["categories"])}
    boxes_of: dict[Any, list[tuple[np.ndarray, int, bool]]] = {image: [] for image in sizes}
    for entry in truth["annotations"]:
        at = f"{annotations_path}: annotation {entry['id']}"
        box = _buckets(entry["bbox"], sizes[entry["image_id"]], levels, at)
        label = label_of[entry["category_id"]]
        boxes_of[entry["image_id"]].append((box, label, bool(entry["iscrowd"])))
    found_of: dict[Any, list[tuple[np.ndarray, int, float]]] = {image: [] for image in sizes}
    for index, entry in enumerate(found):
        at = f"{predictions_path}: prediction {index}"
        box = _buckets(entry["bbox"], sizes[entry["image_id"]], levels, at)
        found_of[entry["image_id"]].append((box, label_of[entry["category_id"]], entry["score"]))

    labels = [label for rows in boxes_of.values() for _, label, crowd in rows if not crowd]
    if not labels:
        raise CocoFormatError(f"{annotations_path}: no box that is not a crowd to judge against")
    task = _FileTask(
        np.bincount(labels, minlength=len(label_of)), max(len(rows) for rows in found_of.values())
    )
    examples = [
        Example(str(image), np.zeros((0, 0, 3), np.float32), _boxes(rows))
        for image, rows in boxes_of.items()
    ]
    predictions = [_detections(rows) for rows in found_of.values()]
    return figures | {
        "reward_map": _mean_reward(MeanAveragePrecisionReward(task), examples, predictions),
        "reward_recall": _mean_reward(RecallReward(task), examples, predictions),
        "images": len(examples),
        "boxes": len(labels),
        "predictions": len(found),
    }


def _size(image: Mapping[str, Any], path: str | Path) -> tuple[float, float]:
    height, width = image.get("height"), image.get("width")
    for name, value in (("height", height), ("width", width)):
        if not isinstance(value, int | float) or not value > 0:
            raise CocoFormatError(
                f"{path}: image {image['id']}: {name} is {value!r}; expected its pixels"
            )
    return float(height or 0), float(width or 0)


def _buckets(bbox: Sequence[float], size: tuple[float, float], levels: int, at: str) -> np.ndarray:
    """[4] int32 y0 x0 y1 x1 in 0 .. levels, of x, y, width, height in pixels."""
    x, y, box_width, box_height = bbox
    height, width = size
    if box_width < 0 or box_height < 0:
        raise CocoFormatError(f"{at}: bbox {bbox} has a negative size; expected x, y, w, h ≥ 0")
    corners = np.array([y, x, y + box_height, x + box_width])
    extent = np.array([height, width, height, width])
    if (corners < -_TOLERANCE_PIXELS).any() or (corners > extent + _TOLERANCE_PIXELS).any():
        raise CocoFormatError(
            f"{at}: bbox {bbox} (x, y, width, height) lies outside its image of "
            f"{width:g} × {height:g} pixels"
        )
    buckets = np.rint(np.clip(corners / extent, 0.0, 1.0) * levels)
    return np.asarray(buckets, np.int32)


def _boxes(rows: Sequence[tuple[np.ndarray, int, bool]]) -> Boxes:
    boxes, labels, crowd = zip(*rows, strict=True) if rows else ((), (), ())
    return Boxes(
        np.array(boxes, np.int32).reshape(-1, 4), np.array(labels, np.int32), np.array(crowd, bool)
    )


def _detections(rows: Sequence[tuple[np.ndarray, int, float]]) -> Detections:
    boxes, labels, scores = zip(*rows, strict=True) if rows else ((), (), ())
    score = np.array(scores, np.float32)
    return Detections(
        np.array(boxes, np.int32).reshape(-1, 4), np.array(labels, np.int32), score, score
    )


def _mean_reward(
    reward: Reward, examples: Sequence[Example], predictions: Sequence[Detections]
) -> float:
    outcomes = judge(reward, examples, predictions)
    values = [outcome.reward for outcome in outcomes if isinstance(outcome, Scored)]
    if len(values) != len(outcomes):
        raise RuntimeError(f"{len(outcomes) - len(values)} of {len(outcomes)} images unscored")
    return float(np.mean(values))
