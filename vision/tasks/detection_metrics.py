"""COCO's detection metrics on boxes in memory; pycocotools is the judge."""

import contextlib
import io
from collections.abc import Sequence

import numpy as np

from vision.tasks.boxes import Boxes, Detections


def evaluate_detections(
    targets: Sequence[Boxes],
    predictions: Sequence[Detections],
    scores: Sequence[np.ndarray],
    *,
    classes: int,
    levels: int,
) -> dict[str, float]:
    """Metrics as fractions 0..1 (-1: no ground truth), and boxes an image.

    Boxes are judged in coordinate buckets, each axis by its own: an intersection over union does
    not change when an axis is stretched.
    """
    if not len(targets) == len(predictions) == len(scores):
        raise ValueError(
            f"{len(targets)} targets, {len(predictions)} predictions, {len(scores)} lists of scores"
        )
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    annotations = [
        {"image_id": image, "category_id": int(label), "iscrowd": int(crowd)} | _extent(box)
        for image, target in enumerate(targets, start=1)
        for box, label, crowd in zip(target.boxes, target.labels, target.crowd, strict=True)
    ]
    results = [
        {"image_id": image, "category_id": int(label), "score": float(score)} | _extent(box)
        for image, (found, ranks) in enumerate(zip(predictions, scores, strict=True), start=1)
        for box, label, score in zip(found.boxes, found.labels, ranks, strict=True)
    ]
    for number, annotation in enumerate(annotations, start=1):
        annotation["id"] = number
    for number, result in enumerate(results, start=1):
        result |= {"id": number, "iscrowd": 0}
    images = [
        {"id": image, "height": levels, "width": levels} for image in range(1, len(targets) + 1)
    ]
    categories = [{"id": label, "name": str(label)} for label in range(classes)]
    with contextlib.redirect_stdout(io.StringIO()):
        truth, found_boxes = COCO(), COCO()
        for dataset, entries in ((truth, annotations), (found_boxes, results)):
            dataset.dataset = {"images": images, "categories": categories, "annotations": entries}
            dataset.createIndex()
        judge = COCOeval(truth, found_boxes, "bbox")
        judge.params.areaRng, judge.params.areaRngLbl = [[0, 1e10]], ["all"]
        judge.evaluate()
        judge.accumulate()
    # precision [thresholds, recalls, classes, areas, max detections], recall without `recalls`.
    precision, recall = judge.eval["precision"][..., 0, -1], judge.eval["recall"][..., 0, :]
    return {
        "mAP": _mean(precision),
        "AP50": _mean(precision[0]),
        "AP75": _mean(precision[5]),
        "AR1": _mean(recall[..., 0]),
        "AR10": _mean(recall[..., 1]),
        "AR100": _mean(recall[..., 2]),
        "boxes_per_image": len(results) / max(1, len(targets)),
        "true_boxes_per_image": len(annotations) / max(1, len(targets)),
    }


def _extent(box: np.ndarray) -> dict[str, object]:
    """COCO's x, y, width, height; an inverted box has no extent and overlaps with nothing."""
    y0, x0, y1, x1 = (int(v) for v in box)
    height, width = y1 - y0, x1 - x0
    if height < 0 or width < 0:
        height = width = 0
    return {"bbox": [x0, y0, width, height], "area": height * width}


def _mean(values: np.ndarray) -> float:
    """COCO's mean: over what is defined (not -1); -1 when nothing is."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else -1.0
