"""How well the training reward tells what is wanted: reward against held-out metric (Figure 6)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import spearmanr

from deploy.reward_hacking import reward_by_evaluation

FEWEST_EVALUATIONS = 3


@dataclass(frozen=True)
class Agreement:
    """Pairs of reward and metric, one for each evaluation of a run.

    Attributes:
      reward, metric: their names.
      steps: of the evaluations.
      rewards: the mean training reward of the steps nearest to each evaluation.
      values: the held-out metric.
      rank_correlation: Spearman's; None: fewer than three pairs, or one of both never changes.
    """

    reward: str
    metric: str
    steps: Sequence[int]
    rewards: Sequence[float]
    values: Sequence[float]
    rank_correlation: float | None

    def __str__(self) -> str:
        count = len(self.values)
        if self.rank_correlation is None:
            return f"no rank correlation: {count} evaluations are too few, or nothing changes"
        return (
            f"rank correlation of {self.reward} with {self.metric} over {count} evaluations: "
            f"{self.rank_correlation:.2f}"
        )


def measure_agreement(
    reward: str,
    reward_steps: Sequence[int],
    rewards: Sequence[float],
    metric: str,
    metric_steps: Sequence[int],
    values: Sequence[float],
) -> Agreement | None:
    """Pairs up both series; None when there is no pair.

    An evaluation that no training step is nearest to, or that gave no number, is left out.
    """
    paired = reward_by_evaluation(reward_steps, rewards, metric_steps)
    kept = [i for i, value in enumerate(paired) if np.isfinite([value, values[i]]).all()]
    if not kept:
        return None
    xs, ys = [paired[i] for i in kept], [float(values[i]) for i in kept]
    correlation = None
    if len(kept) >= FEWEST_EVALUATIONS and len(set(xs)) > 1 and len(set(ys)) > 1:
        correlation = float(spearmanr(xs, ys).statistic)
    return Agreement(reward, metric, [int(metric_steps[i]) for i in kept], xs, ys, correlation)
