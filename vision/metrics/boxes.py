"""Box matching for detection rewards: exact, batched, over all IoU thresholds at once.

Boxes are corners `y0 x0 y1 x1` in integer coordinate buckets, so that `IoU > k / 20` is decided
exactly: ties at a threshold really occur with quantised coordinates. A box with its corners the
wrong way round intersects nothing (so the sign of its area never matters).

The matching (Pinto et al. 2023, section 4.2): a prediction picks its best ground-truth box of the
same class, above the threshold; each ground-truth box keeps the best prediction that picked it,
the others that picked it are duplicates. Which box a prediction picks does not depend on the
threshold, only whether the pick counts does. So the matching is computed once, each prediction is
told how many thresholds it passes, and the reward over any weighting of the thresholds is a sum
over ground-truth boxes.

Ties: of two equally good ground-truth boxes the first is picked, of two equally good predictions
the first is kept.
"""

from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

# The thresholds 0.50, 0.55 .. 0.95 are k / 20 for these k.
_DENOMINATOR = 20
_FIRST = 10
N_THRESHOLDS = 10
THRESHOLDS = tuple(k / _DENOMINATOR for k in range(_FIRST, _FIRST + N_THRESHOLDS))

# IoUs are compared by products of an intersection and a union, together up to 2 · extent⁴.
MAX_COORDINATE = 30_000


class BoxScores(NamedTuple):
    """What the matching gives.

    Attributes:
      rewards: [G, K] float64.
      match_iou: [G, K, M] float32, the IoU with the picked box where it passes 0.5, otherwise 0.
        Duplicates have theirs too, as in the released code.
      kept: [G, K, M] bool, True for the one prediction that a ground-truth box keeps at 0.5. So a
        duplicate has a match IoU and is not kept.
    """

    rewards: NDArray[np.float64]
    match_iou: NDArray[np.float32]
    kept: NDArray[np.bool_]


def score_boxes(
    true_boxes: NDArray[np.int32],
    true_labels: NDArray[np.int32],
    boxes: NDArray[np.int32],
    labels: NDArray[np.int32],
    class_weights: NDArray[np.float64],
    threshold_weights: NDArray[np.float64],
    duplicate_penalty: float,
) -> BoxScores:
    """Rewards of G × K predictions of up to M boxes, each group against N ground-truth boxes.

    reward = Σ_t threshold_weights[t] · Σ_g class_weights[label(g)] · (1 - penalty · (n - 1)), over
    the ground-truth boxes g that n ≥ 1 predictions picked with IoU > THRESHOLDS[t].

    Args:
      true_boxes: [G, N, 4] int32 buckets.
      true_labels: [G, N] int32 classes; a negative label marks padding.
      boxes: [G, K, M, 4] int32 buckets.
      labels: [G, K, M] int32 classes; a negative label marks padding.
      class_weights: [n_classes] float64.
      threshold_weights: [N_THRESHOLDS] float64.
      duplicate_penalty: what each duplicate costs, as a fraction of its class's weight.

    Raises:
      ValueError: a shape does not fit, a label has no weight, a coordinate is out of range.
    """
    groups, n_true = true_labels.shape
    _check_shape("true_boxes", true_boxes, (groups, n_true, 4))
    if labels.ndim != 3 or labels.shape[0] != groups:
        raise ValueError(f"labels have shape {labels.shape}; expected [{groups}, K, M]")
    _check_shape("boxes", boxes, (*labels.shape, 4))
    _check_shape("threshold_weights", threshold_weights, (N_THRESHOLDS,))
    for name, given in (("true_labels", true_labels), ("labels", labels)):
        if given.size and given.max() >= len(class_weights):
            raise ValueError(
                f"{name} holds class {given.max()}, but class_weights has {len(class_weights)}"
            )
    for name, given in (("true_boxes", true_boxes), ("boxes", boxes)):
        for extreme in (given.min(), given.max()) if given.size else ():
            if not 0 <= extreme <= MAX_COORDINATE:
                raise ValueError(
                    f"{name} holds the coordinate {extreme}; expected buckets in "
                    f"0 .. {MAX_COORDINATE}, where IoUs are exact"
                )
    # value_of[c]: what passing the first c thresholds is worth.
    value_of = np.concatenate([[0.0], np.cumsum(threshold_weights, dtype=np.float64)])
    rewards = np.zeros(labels.shape[:2], np.float64)
    match_iou = np.zeros(labels.shape, np.float32)
    kept = np.zeros(labels.shape, np.bool_)
    _score(
        np.ascontiguousarray(true_boxes, np.int32),
        np.ascontiguousarray(true_labels, np.int32),
        np.ascontiguousarray(boxes, np.int32),
        np.ascontiguousarray(labels, np.int32),
        np.ascontiguousarray(class_weights, np.float64),
        value_of,
        float(duplicate_penalty),
        rewards,
        match_iou,
        kept,
    )
    return BoxScores(rewards, match_iou, kept)


def _check_shape(name: str, array: NDArray[np.generic], expected: tuple[int, ...]) -> None:
    if array.shape != expected:
        raise ValueError(f"{name} has shape {array.shape}; expected {expected}")


@numba.njit(nogil=True, cache=True)
def _score(  # type: ignore[no-untyped-def]
    true_boxes,
    true_labels,
    boxes,
    labels,
    class_weights,
    value_of,
    penalty,
    rewards,
    match_iou,
    kept,
):
    groups, n_true = true_labels.shape
    samples, n_boxes = labels.shape[1], labels.shape[2]
    true_area = np.empty(n_true, np.int64)
    # The ground-truth boxes of each class as linked lists, lowest index first; -1 ends one.
    first_of = np.empty(len(class_weights), np.int64)
    next_of = np.empty(n_true, np.int64)
    # Of each ground-truth box: the prediction it keeps with its IoU as a fraction, how many
    # thresholds that passes, and what all the predictions that picked it would be worth.
    keeps = np.empty(n_true, np.int64)
    kept_inter = np.empty(n_true, np.int64)
    kept_union = np.empty(n_true, np.int64)
    kept_passes = np.empty(n_true, np.int64)
    worth = np.empty(n_true, np.float64)
    for g in range(groups):
        first_of[:] = -1
        for j in range(n_true - 1, -1, -1):
            if true_labels[g, j] < 0:
                continue
            next_of[j] = first_of[true_labels[g, j]]
            first_of[true_labels[g, j]] = j
            height = np.int64(true_boxes[g, j, 2]) - true_boxes[g, j, 0]
            width = np.int64(true_boxes[g, j, 3]) - true_boxes[g, j, 1]
            true_area[j] = height * width
        for k in range(samples):
            keeps[:] = -1
            worth[:] = 0.0
            for i in range(n_boxes):
                label = labels[g, k, i]
                if label < 0:
                    continue
                y0 = np.int64(boxes[g, k, i, 0])
                x0 = np.int64(boxes[g, k, i, 1])
                y1 = np.int64(boxes[g, k, i, 2])
                x1 = np.int64(boxes[g, k, i, 3])
                area = (y1 - y0) * (x1 - x0)
                pick = -1
                inter = np.int64(0)
                union = np.int64(1)
                j = first_of[label]
                while j >= 0:
                    height = min(y1, true_boxes[g, j, 2]) - max(y0, true_boxes[g, j, 0])
                    width = min(x1, true_boxes[g, j, 3]) - max(x0, true_boxes[g, j, 1])
                    if height > 0 and width > 0:
                        this_inter = height * width
                        this_union = area + true_area[j] - this_inter
                        if this_inter * union > inter * this_union:
                            pick, inter, union = j, this_inter, this_union
                    j = next_of[j]
                if 2 * inter <= union:  # passes no threshold: a plain false positive costs nothing
                    continue
                # The largest k with IoU > k / 20 (strict), as a count of thresholds.
                passes = min((_DENOMINATOR * inter - 1) // union - _FIRST + 1, N_THRESHOLDS)
                worth[pick] += value_of[passes]
                match_iou[g, k, i] = inter / union
                if keeps[pick] < 0 or inter * kept_union[pick] > kept_inter[pick] * union:
                    keeps[pick] = i
                    kept_inter[pick] = inter
                    kept_union[pick] = union
                    kept_passes[pick] = passes
            total = 0.0
            for j in range(n_true):
                if keeps[j] < 0:
                    continue
                value = value_of[kept_passes[j]]
                weight = class_weights[true_labels[g, j]]
                total += weight * (value - penalty * (worth[j] - value))
                kept[g, k, keeps[j]] = True
            rewards[g, k] = total
