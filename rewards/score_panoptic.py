"""Judges COCO panoptic files without a model: PQ, SQ, RQ, and the panoptic reward an image."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from rewards.panoptic import check_penalty
from vision.data.coco_panoptic import load_panoptic, load_predictions
from vision.metrics.panoptic import PanopticStatistics, Quality, match_segments, panoptic_reward

_PENALTY = 0.3


def score_panoptic(
    annotations: str | Path,
    annotation_dir: str | Path,
    predictions: str | Path,
    prediction_dir: str | Path,
    unmatched_penalty: float = _PENALTY,
) -> dict[str, Any]:
    """Panoptic quality at the images' own size, as fractions, and the mean reward.

    Returns:
      `all`, `things`, `stuff`: each PQ, SQ, RQ and N (the number of classes that occur), or None
      where no class of it occurs; `classes`: by name, those that occur, PQ, SQ, RQ and the counts
      matched, unmatched, missed; `reward`, the mean over images; `reward_by_image`, by id;
      `images`, their number.

    Raises:
      AnnotationError, ImageError: a file is not of its format, or JSON and PNG disagree; the
        message names file and segment.
      OSError: a JSON cannot be read.
      ValueError: the penalty is below 0, or there is no image.
    """
    check_penalty(unmatched_penalty)
    truth = load_panoptic(annotations, annotation_dir)
    found = load_predictions(predictions, prediction_dir, truth)
    if not truth.images:
        raise ValueError(f"{annotations} has no images")
    for files in (truth, found):
        files.check_files()
    is_stuff = np.array([False, *(not category.is_thing for category in truth.categories)])
    statistics = PanopticStatistics(is_stuff)
    rewards = {}
    for image_id in truth.images:
        true, given = truth.read_segments(image_id), found.read_segments(image_id)
        matches = match_segments(
            true.ids, true.labels, true.crowd, given.ids, given.labels, is_stuff
        )
        statistics.add(matches)
        rewards[image_id] = panoptic_reward(matches, unmatched_penalty)
    names = [category.name for category in truth.categories]
    shared = {name for name, count in Counter(names).items() if count > 1}
    classes = {}
    for label, category in enumerate(truth.categories, start=1):
        quality = statistics.of([label])
        if quality is not None:
            name = f"{category.name} ({category.id})" if category.name in shared else category.name
            classes[name] = _figures(quality) | statistics.counts(label)
            del classes[name]["N"]
    things, stuff = statistics.things(), statistics.stuff()
    splits = {"all": statistics.all(), "things": things, "stuff": stuff}
    return {
        **{split: _figures(quality) if quality else None for split, quality in splits.items()},
        "classes": classes,
        "reward": float(np.mean(list(rewards.values()))),
        "reward_by_image": rewards,
        "images": len(rewards),
    }


def _figures(quality: Quality) -> dict[str, Any]:
    return {"PQ": quality.pq, "SQ": quality.sq, "RQ": quality.rq, "N": quality.n}
