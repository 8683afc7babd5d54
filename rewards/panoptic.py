"""The panoptic reward (Pinto et al. 2023, section 4.1).

Σ IoU of matched segments - w · unmatched predicted segments, over all classes of an image, at the
model's size: an estimate of panoptic quality that is a sum over segments. Matching is that of
`vision.metrics.panoptic`: crowds are unknown, void is forgiven, a stuff class is one segment.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from protos.trajectory import Outcome, Scored
from vision.metrics.panoptic import match_segments, panoptic_reward
from vision.tasks.segments import SegmentMap
from vision.tasks.task import Example


def check_penalty(unmatched_penalty: float) -> None:
    """Raises `ValueError` when it is not a number of at least 0."""
    if not 0.0 <= unmatched_penalty < float("inf"):
        raise ValueError(f"unmatched_penalty is {unmatched_penalty}; it must be ≥ 0")


class SegmentedTask(Protocol):
    """What this reward needs to know of a panoptic task."""

    @property
    def is_stuff(self) -> np.ndarray:
        """[C + 1] bool: which labels are stuff; label 0 is void."""
        ...


class PanopticQualityReward:
    """Matched IoU less unmatched predictions.

    Options:
      unmatched_penalty: w, what a predicted segment costs that matches nothing (the paper: 0.3).
    """

    provides: Sequence[str] = ()

    def __init__(self, task: SegmentedTask, unmatched_penalty: float = 0.3) -> None:
        check_penalty(unmatched_penalty)
        self._is_stuff = np.asarray(task.is_stuff, bool)
        self._penalty = unmatched_penalty

    def score(
        self, examples: Sequence[Example], predictions: Sequence[SegmentMap]
    ) -> list[Outcome]:
        """One `Scored` a pair of `PanopticTarget` and `SegmentMap`.

        Raises:
          ValueError: a prediction is not of its target's size, or of an unknown class.
        """
        outcomes: list[Outcome] = []
        for example, found in zip(examples, predictions, strict=True):
            true: SegmentMap = example.target.segments
            matches = match_segments(
                true.ids, true.labels, true.crowd, found.ids, found.labels, self._is_stuff
            )
            outcomes.append(Scored(panoptic_reward(matches, self._penalty)))
        return outcomes
