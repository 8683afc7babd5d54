"""The colorization reward: colorfulness (Pinto et al. 2023, section 4.3).

The share of vivid pixels times the entropy of the hues, of the prediction alone: the ground truth
plays no part, for there is more than one right colour.
"""

from collections.abc import Sequence

import numpy as np

from protos.trajectory import Outcome, Scored
from vision.metrics.colorfulness import Hue, check_hue, colorfulness
from vision.tasks.task import Example, Task

VIVID = "vivid"
HUE_ENTROPY = "hue_entropy"


class ColorfulnessReward:
    """Vivid fraction · hue entropy, of an image; from 0 to ln 7.

    Each outcome carries both factors as arrays of no dimensions, `vivid` and `hue_entropy`.

    Options:
      hue: `atan2` tells all hues apart; `arctan`, as the paper writes it, takes opposite hues for
        one.
    """

    provides: Sequence[str] = (VIVID, HUE_ENTROPY)

    def __init__(self, task: Task, hue: Hue = "atan2"):
        self._hue = check_hue(hue)

    def score(
        self, examples: Sequence[Example], predictions: Sequence[np.ndarray]
    ) -> list[Outcome]:
        """One `Scored` for each prediction [height, width, 3] float32 in [-1, 1].

        Raises:
          ValueError: a prediction of another shape, or with a value that is not finite.
        """
        outcomes: list[Outcome] = []
        for prediction in predictions:
            figures = colorfulness(prediction, self._hue)
            parts = {VIVID: np.float32(figures.vivid), HUE_ENTROPY: np.float32(figures.entropy)}
            auxiliary = {name: np.asarray(value) for name, value in parts.items()}
            outcomes.append(Scored(figures.product, auxiliary))
        return outcomes
