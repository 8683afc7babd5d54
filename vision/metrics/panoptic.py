"""Panoptic matching and quality: exact, one pass over the pixels, without materialised masks.

A map of segments is given as `ids [H, W]`, which index the rows of a table: `labels [N]` (0 is
void, 1 .. C the categories) and, in ground truth, `crowd [N]`. All void rows are one void; all rows
of a stuff class are one segment, in ground truth and prediction; a row without pixels is no
segment.

The matching (Kirillov et al. 2019, section 4, as COCO's evaluation completes it): a predicted and a
true segment of one class match when IoU > 1/2, strictly, which makes the match unique. Pixels that
are void in the ground truth do not count in the union. A crowd is never matched nor missed. A
prediction that matches nothing is ignored when more than half of it lies on void or on crowds of
its class. Pixels that are void in the prediction are forgiven nothing.

Thresholds are decided in integers.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

# Pixels that are compared at a time; most blocks lie inside one pair of segments.
_BLOCK = 16
# Two neighbouring int32 pixels of the id n, read as one int64, are n * _TWICE.
_TWICE = (1 << 32) + 1
# What is wrong with the maps, where it is not the index of a pixel.
_GOOD, _BAD_LABEL = -1, -2


class Matches(NamedTuple):
    """What the matching of one image gives.

    Attributes:
      labels: [M] int32, the class of each match.
      ious: [M] float64.
      unmatched: [U] int32, the classes of predicted segments that match nothing and count.
      missed: [F] int32, the classes of true segments that nothing matches.
    """

    labels: NDArray[np.int32]
    ious: NDArray[np.float64]
    unmatched: NDArray[np.int32]
    missed: NDArray[np.int32]


def match_segments(
    true_ids: NDArray[np.int32],
    true_labels: NDArray[np.int32],
    true_crowd: NDArray[np.bool_],
    ids: NDArray[np.int32],
    labels: NDArray[np.int32],
    is_stuff: NDArray[np.bool_],
) -> Matches:
    """Matches the segments of a prediction with those of the ground truth.

    Args:
      true_ids: [H, W] int32, rows of the true table.
      true_labels: [N] int32, 0 for void.
      true_crowd: [N] bool.
      ids: [H, W] int32, rows of the predicted table.
      labels: [M] int32, 0 for void.
      is_stuff: [C + 1] bool by label; its entry for void is not read.

    Raises:
      ValueError: shapes differ, a pixel's id is no row of its table, a label has no class.
    """
    if true_ids.ndim != 2 or ids.shape != true_ids.shape:
        raise ValueError(
            f"the prediction has the shape {ids.shape}, the ground truth {true_ids.shape}: both "
            "must be [height, width] of one size"
        )
    if true_crowd.shape != true_labels.shape:
        raise ValueError(f"true_crowd has shape {true_crowd.shape}; expected {true_labels.shape}")
    bad, counts, classes, ious = _match(
        np.ascontiguousarray(true_ids, np.int32).reshape(-1),
        np.ascontiguousarray(true_labels, np.int32),
        np.ascontiguousarray(true_crowd, np.bool_),
        np.ascontiguousarray(ids, np.int32).reshape(-1),
        np.ascontiguousarray(labels, np.int32),
        np.ascontiguousarray(is_stuff, np.bool_),
    )
    if bad == _BAD_LABEL:
        raise ValueError(
            f"labels must be in 0 (void) .. {len(is_stuff) - 1}; those of the ground truth are "
            f"{true_labels}, those of the prediction {labels}"
        )
    if bad >= 0:
        y, x = divmod(int(bad), ids.shape[1])
        raise ValueError(
            f"pixel (y {y}, x {x}) has the id {true_ids[y, x]} in the ground truth, of "
            f"{len(true_labels)} rows, and {ids[y, x]} in the prediction, of {len(labels)} rows"
        )
    matched, unmatched, missed = counts
    return Matches(
        classes[0, :matched], ious[:matched], classes[1, :unmatched], classes[2, :missed]
    )


def panoptic_reward(matches: Matches, unmatched_penalty: float) -> float:
    """Σ IoU of matches - penalty · unmatched predicted segments (Pinto et al. 2023, 4.1)."""
    return float(matches.ious.sum() - unmatched_penalty * len(matches.unmatched))


class Quality(NamedTuple):
    """Panoptic quality of some classes.

    Attributes:
      pq: the mean over classes of Σ IoU / (matches + unmatched / 2 + missed / 2).
      sq: the mean over classes of the mean IoU of matches (0 for a class without matches).
      rq: the mean over classes of matches / (matches + unmatched / 2 + missed / 2).
      n: the number of classes that occur on either side; only they are in the means.
    """

    pq: float
    sq: float
    rq: float
    n: int


class PanopticStatistics:
    """Sums matches over images and gives their quality by class, and for things and stuff."""

    def __init__(self, is_stuff: NDArray[np.bool_]) -> None:
        """`is_stuff` as for `match_segments`."""
        self._is_stuff = np.asarray(is_stuff, bool)
        self._iou = np.zeros(len(is_stuff), np.float64)
        self._matched = np.zeros(len(is_stuff), np.int64)
        self._unmatched = np.zeros(len(is_stuff), np.int64)
        self._missed = np.zeros(len(is_stuff), np.int64)

    def add(self, matches: Matches) -> None:
        """Adds an image."""
        np.add.at(self._iou, matches.labels, matches.ious)
        np.add.at(self._matched, matches.labels, 1)
        np.add.at(self._unmatched, matches.unmatched, 1)
        np.add.at(self._missed, matches.missed, 1)

    def of(self, labels: Sequence[int]) -> Quality | None:
        """The quality over the classes of these labels; None when none of them occurs."""
        rows = np.asarray(labels, np.int64)
        matched = self._matched[rows]
        # Twice the denominator, an integer: 0 only for a class that is on neither side.
        twice = 2 * matched + self._unmatched[rows] + self._missed[rows]
        occurs = twice > 0
        if not occurs.any():
            return None
        matched, iou, half = matched[occurs], self._iou[rows][occurs], twice[occurs] / 2
        return Quality(
            float(np.mean(iou / half)),
            float(np.mean(iou / np.maximum(matched, 1))),
            float(np.mean(matched / half)),
            int(occurs.sum()),
        )

    def counts(self, label: int) -> dict[str, int]:
        """The segments of a class by what became of them: matched, unmatched, missed."""
        of = {"matched": self._matched, "unmatched": self._unmatched, "missed": self._missed}
        return {name: int(counts[label]) for name, counts in of.items()}

    def all(self) -> Quality | None:
        """Over all classes."""
        return self.of(range(1, len(self._is_stuff)))

    def things(self) -> Quality | None:
        """Over the classes of things; None when none occurs."""
        return self.of([c for c in range(1, len(self._is_stuff)) if not self._is_stuff[c]])

    def stuff(self) -> Quality | None:
        """Over the classes of stuff; None when none occurs."""
        return self.of([c for c in range(1, len(self._is_stuff)) if self._is_stuff[c]])


@numba.njit(nogil=True, cache=True)
def _count_pairs(true_ids, ids, joint):  # type: ignore[no-untyped-def]
    """Adds the pixels of each pair of rows to `joint`; the first bad pixel's index, or _GOOD.

    Goes from one run of equal pairs to the next, and looks for its end two pixels at a time, a
    block at a time: most blocks hold none.
    """
    n_true, n_ids = joint.shape
    size = len(ids)
    even = size - size % 2
    true_pairs, id_pairs = true_ids[:even].view(np.int64), ids[:even].view(np.int64)
    in_blocks = size - size % _BLOCK
    start, t, p = 0, true_ids[0], ids[0]
    if t < 0 or t >= n_true or p < 0 or p >= n_ids:
        return 0
    twice_t, twice_p = t * _TWICE, p * _TWICE
    for block in range(size // _BLOCK):
        differs = np.int64(0)
        pair = block * (_BLOCK // 2)
        for k in range(_BLOCK // 2):
            differs |= (true_pairs[pair + k] ^ twice_t) | (id_pairs[pair + k] ^ twice_p)
        if differs != 0:
            for i in range(block * _BLOCK, (block + 1) * _BLOCK):
                if true_ids[i] != t or ids[i] != p:
                    joint[t, p] += i - start
                    start, t, p = i, true_ids[i], ids[i]
                    if t < 0 or t >= n_true or p < 0 or p >= n_ids:
                        return i
            twice_t, twice_p = t * _TWICE, p * _TWICE
    joint[t, p] += in_blocks - start if in_blocks > 0 else 0
    for i in range(in_blocks, size):
        t, p = true_ids[i], ids[i]
        if t < 0 or t >= n_true or p < 0 or p >= n_ids:
            return i
        joint[t, p] += 1
    return _GOOD


@numba.njit(nogil=True, cache=True)
def _group(labels, crowd, is_stuff):  # type: ignore[no-untyped-def]
    """The segment of each row [N], 0 for void, and label and crowd of each segment."""
    n = len(labels)
    group = np.zeros(n, np.int64)
    of_class = np.zeros((len(is_stuff), 2), np.int64)  # the segment of a stuff class, of its crowd
    group_label = np.zeros(n + 1, np.int32)
    group_crowd = np.zeros(n + 1, np.bool_)
    groups = 1
    for row in range(n):
        label, in_crowd = labels[row], crowd[row]
        if label == 0:
            continue
        known = of_class[label, int(in_crowd)] if is_stuff[label] else 0
        if known == 0:
            known = groups
            groups += 1
            group_label[known] = label
            group_crowd[known] = in_crowd
            of_class[label, int(in_crowd)] = known
        group[row] = known
    return group, group_label[:groups], group_crowd[:groups]


@numba.njit(nogil=True, cache=True)
def _match(true_ids, true_labels, true_crowd, ids, labels, is_stuff):  # type: ignore[no-untyped-def]
    """What is bad (or _GOOD), counts (matches, unmatched, missed), their classes, and IoUs."""
    classes = np.empty((3, len(true_labels) + len(labels) + 1), np.int32)
    ious = np.empty(len(true_labels) + 1, np.float64)
    for given in (true_labels, labels):
        for label in given:
            if label < 0 or label >= len(is_stuff):
                return _BAD_LABEL, (0, 0, 0), classes, ious
    joint = np.zeros((len(true_labels), len(labels)), np.int64)
    bad = _count_pairs(true_ids, ids, joint) if len(ids) else _GOOD
    if bad != _GOOD:
        return bad, (0, 0, 0), classes, ious

    true_group, true_label, crowd = _group(true_labels, true_crowd, is_stuff)
    group, label, _ = _group(labels, np.zeros(len(labels), np.bool_), is_stuff)
    n_true, n = len(true_label), len(label)
    inter = np.zeros((n_true, n), np.int64)
    true_area, area = np.zeros(n_true, np.int64), np.zeros(n, np.int64)
    for row in range(len(true_labels)):
        for column in range(len(labels)):
            pixels = joint[row, column]
            inter[true_group[row], group[column]] += pixels
            true_area[true_group[row]] += pixels
            area[group[column]] += pixels

    found = np.zeros(n_true, np.bool_)
    matched = unmatched = missed = 0
    for p in range(1, n):
        if area[p] == 0:
            continue
        forgiven = inter[0, p]  # pixels on void and on crowds of the class
        match = 0
        for t in range(1, n_true):
            if true_label[t] != label[p]:
                continue
            if crowd[t]:
                forgiven += inter[t, p]
                continue
            union = area[p] + true_area[t] - inter[t, p] - inter[0, p]
            if 2 * inter[t, p] > union:
                match = t
                ious[matched] = inter[t, p] / union
        if match > 0:
            found[match] = True
            classes[0, matched] = label[p]
            matched += 1
        elif 2 * forgiven <= area[p]:
            classes[1, unmatched] = label[p]
            unmatched += 1
    for t in range(1, n_true):
        if true_area[t] > 0 and not crowd[t] and not found[t]:
            classes[2, missed] = true_label[t]
            missed += 1
    return _GOOD, (matched, unmatched, missed), classes, ious
