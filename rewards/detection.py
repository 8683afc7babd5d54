"""Detection rewards: recall and mean average precision (Pinto et al. 2023, section 4.2).

Both match boxes as `vision.metrics.boxes` says. A ground-truth box that is found earns its weight
w, each further prediction that picked it (a duplicate) costs `duplicate_penalty` · w, of the same
class by construction. A plain false positive costs nothing: only the confidence punishes it.
Crowd boxes are unknown to the reward. A sample without boxes scores 0.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from protos.trajectory import Outcome, Scored
from vision.metrics.boxes import N_THRESHOLDS, THRESHOLDS, score_boxes
from vision.tasks.boxes import Boxes, Detections
from vision.tasks.task import Example

MATCH_IOU = "match_iou"


class CountedTask(Protocol):
    """What these rewards need to know of a detection task.

    Attributes:
      auxiliary_arrays: holds `match_iou: (max_boxes,)`.
    """

    @property
    def auxiliary_arrays(self) -> Mapping[str, tuple[int, ...]]: ...  # noqa: D102

    def class_counts(self) -> NDArray[np.int64]:
        """[n_classes] boxes of each class in the training set."""
        ...


def balanced_class_weights(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """[n_classes] weights: w ∝ 1 / (count + 0.05 · total), with mean 1 over the classes."""
    counts = np.asarray(counts)
    total = counts.sum()
    if counts.ndim != 1 or total <= 0 or counts.min() < 0:
        raise ValueError(
            f"class counts must be one number a class, of at least one box in all: {counts}"
        )
    weights = 1.0 / (counts + 0.05 * total)
    return np.asarray(weights / weights.mean())


class _MatchingReward:
    """What both rewards share: weights in, one batched matching, outcomes out."""

    provides: Sequence[str] = (MATCH_IOU,)

    def __init__(
        self,
        task: CountedTask,
        weights: NDArray[np.float64],
        threshold_weights: NDArray[np.float64],
        duplicate_penalty: float,
        duplicates_match: bool,
    ):
        if not 0.0 <= duplicate_penalty < float("inf"):
            raise ValueError(f"duplicate_penalty is {duplicate_penalty}; it must be ≥ 0")
        self._max_boxes = task.auxiliary_arrays[MATCH_IOU][0]
        self._weights = weights
        self._threshold_weights = threshold_weights
        self._penalty = duplicate_penalty
        self._duplicates_match = duplicates_match

    def score(
        self, examples: Sequence[Example], predictions: Sequence[Detections]
    ) -> list[Outcome]:
        """One `Scored` a pair of `Boxes` target and `Detections`, with match_iou [max_boxes].

        Raises:
          ValueError: a prediction of more than `max_boxes` boxes, or of an unknown class.
        """
        targets: list[Boxes] = [example.target.without_crowds() for example in examples]
        for index, prediction in enumerate(predictions):
            if len(prediction) > self._max_boxes:
                raise ValueError(
                    f"prediction {index} has {len(prediction)} boxes; the task allows "
                    f"{self._max_boxes}"
                )
        true_boxes, true_labels = _padded(
            [target.boxes for target in targets],
            [target.labels for target in targets],
            max((len(target) for target in targets), default=0),
        )
        boxes, labels = _padded(
            [prediction.boxes for prediction in predictions],
            [prediction.labels for prediction in predictions],
            self._max_boxes,
        )
        scores = score_boxes(
            true_boxes,
            true_labels,
            boxes[:, None],
            labels[:, None],
            self._weights,
            self._threshold_weights,
            self._penalty,
        )
        match_iou = scores.match_iou[:, 0]
        if not self._duplicates_match:
            match_iou = match_iou * scores.kept[:, 0]
        return [
            Scored(float(reward), {MATCH_IOU: iou})
            for reward, iou in zip(scores.rewards[:, 0], match_iou, strict=True)
        ]


class RecallReward(_MatchingReward):
    """Matched boxes - 0.3 · duplicates, of an image; all classes weigh the same.

    Options:
      duplicate_penalty: the 0.3.
      iou_threshold: one of 0.5, 0.55 .. 0.95; None takes the mean over these ten.
      duplicates_match: whether a duplicate's `match_iou` is its own IoU, as in the released code,
        or 0, as the mAP metric would see it. It changes the confidence loss, not the reward.
    """

    def __init__(
        self,
        task: CountedTask,
        duplicate_penalty: float = 0.3,
        iou_threshold: float | None = 0.5,
        duplicates_match: bool = True,
    ):
        at = np.isclose(THRESHOLDS, np.nan if iou_threshold is None else iou_threshold)
        if iou_threshold is None:
            at = np.ones(N_THRESHOLDS, bool)
        elif not at.any():
            raise ValueError(f"iou_threshold is {iou_threshold}; it must be one of {THRESHOLDS}")
        weights = np.ones(len(task.class_counts()))
        super().__init__(task, weights, at / at.sum(), duplicate_penalty, duplicates_match)


# The released code keeps the result of each threshold under its value rounded to one decimal, so
# later thresholds overwrite earlier ones, and then takes the mean over all ten.
_OFFICIAL_THRESHOLDS = {0.50: 1, 0.60: 2, 0.70: 2, 0.85: 3, 0.95: 2}


class MeanAveragePrecisionReward(_MatchingReward):
    """Class-weighted matched boxes - 0.3 · duplicates, mean over the thresholds 0.5 .. 0.95.

    Options:
      mode: `paper`, the mean over the ten thresholds; `official`, what the released code returns:
        (r.50 + 2 r.60 + 2 r.70 + 3 r.85 + 2 r.95) / 10.
      duplicate_penalty: the 0.3.
      class_weights: weigh classes by `balanced_class_weights(task.class_counts())`, rare ones up.
      duplicates_match: as for `RecallReward`.
    """

    def __init__(
        self,
        task: CountedTask,
        mode: Literal["paper", "official"] = "paper",
        duplicate_penalty: float = 0.3,
        class_weights: bool = True,
        duplicates_match: bool = True,
    ):
        if mode == "paper":
            threshold_weights = np.ones(N_THRESHOLDS) / N_THRESHOLDS
        elif mode == "official":
            threshold_weights = np.array([_OFFICIAL_THRESHOLDS.get(t, 0) for t in THRESHOLDS]) / 10
        else:
            raise ValueError(f"mode is {mode!r}; it must be 'paper' or 'official'")
        counts = task.class_counts()
        weights = balanced_class_weights(counts) if class_weights else np.ones(len(counts))
        super().__init__(task, weights, threshold_weights, duplicate_penalty, duplicates_match)


def _padded(
    boxes: Sequence[NDArray[np.int32]], labels: Sequence[NDArray[np.int32]], size: int
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Ragged boxes as [P, size, 4] and their labels as [P, size], padded with label -1."""
    all_boxes = np.zeros((len(boxes), size, 4), np.int32)
    all_labels = np.full((len(boxes), size), -1, np.int32)
    for index, (some_boxes, some_labels) in enumerate(zip(boxes, labels, strict=True)):
        all_boxes[index, : len(some_boxes)] = some_boxes
        all_labels[index, : len(some_labels)] = some_labels
    return all_boxes, all_labels
