"""Reward hacking: the training reward rises while the held-out metric falls.

The rule compares the newest stretch of a run with the one in which its metric was best:

- Each training step belongs to its nearest evaluation. A stretch is W evaluations that follow each
  other, W = max(3, a quarter of all), with their training steps.
- *The metric falls*: mean and median of the last stretch lie below the mean of the best earlier
  one, which shares no evaluation with it, by more than 5 standard errors of such a difference, and
  by more than 1 % of the best. (The median: one bad evaluation is not a fall.) The metric's noise
  is estimated from its second differences, so that a trend does not count as noise, by their
  median, so that a few jumps do not count either.
- *The reward rises*: its mean over the last stretch lies above its mean over the best one by more
  than 2 standard errors.

Why 5: a run is looked at after every evaluation, against the best of many stretches, and with few
evaluations the noise is a rough guess. Of 300 simulated runs of 7, 12, 40 and 100 evaluations,
each looked at after every one, the rule warned of 1 to 4 % where the metric was pure noise and the
reward rose, of less than 1 % where the metric rose and levelled off, and of none where both were
noise.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from actors.evaluator import EVALUATIONS_FILE, read_evaluations
from learner.metrics import METRICS_FILE, read_metrics

logger = logging.getLogger(__name__)

TRAINING_REWARD = "reward/mean"  # what metrics.jsonl calls it
SHORTEST_STRETCH = 3  # evaluations
STRETCHES = 4  # the run is at least so many long, beyond the shortest
METRIC_ERRORS, REWARD_ERRORS = 5.0, 2.0  # standard errors of a difference
SMALLEST_FALL = 0.01  # of the best
FEWEST_STEPS = 10  # of training in each stretch
# |x| of a normal variable has its median at 0.6745 standard deviations; m[i] less the mean of its
# neighbours has 1.5 times the variance of m.
DEVIATION_OF_MEDIAN = 1 / (0.6745 * math.sqrt(1.5))


@dataclass(frozen=True)
class RewardHacking:
    """What rose and what fell; means over the two stretches.

    Attributes:
      metric: the held-out metric's name.
      best_steps, last_steps: (first, last) step of the evaluations of each stretch.
      noise: standard deviation of one evaluation.
    """

    metric: str
    best_steps: tuple[int, int]
    last_steps: tuple[int, int]
    metric_best: float
    metric_last: float
    noise: float
    reward_best: float
    reward_last: float

    def __str__(self) -> str:
        best, last = (f"{first}..{end}" for first, end in (self.best_steps, self.last_steps))
        return (
            f"the reward rises while the held-out metric falls: {self.metric} "
            f"{self.metric_best:.4g} at steps {best}, {self.metric_last:.4g} at steps {last} "
            f"(noise {self.noise:.2g}); training reward {self.reward_best:.4g}, then "
            f"{self.reward_last:.4g}. The policy may exploit the reward (reward hacking)"
        )

    def to_json(self) -> dict[str, Any]:
        """As plain values, with the sentence."""
        return asdict(self) | {"message": str(self)}


def find_reward_hacking(
    metric: str,
    reward_steps: Sequence[int],
    rewards: Sequence[float],
    metric_steps: Sequence[int],
    values: Sequence[float],
) -> RewardHacking | None:
    """Applies the rule of this module; None: no sign of it, or too little to tell.

    Args:
      metric: its name; higher is better.
      reward_steps, rewards: the mean training reward by step, ascending.
      metric_steps, values: held-out evaluations by step, ascending.
    """
    count = len(values)
    length = max(SHORTEST_STRETCH, count // STRETCHES)
    if count < 2 * length:
        return None
    series = np.asarray(values, np.float64)
    means = np.convolve(series, np.full(length, 1 / length), "valid")
    best, last = int(means[:-length].argmax()), count - length
    noise = DEVIATION_OF_MEDIAN * float(
        np.median(np.abs(series[1:-1] - (series[:-2] + series[2:]) / 2))
    )
    fall = means[best] - max(means[last], np.median(series[last:]))
    if fall <= max(METRIC_ERRORS * noise * math.sqrt(2 / length), SMALLEST_FALL * abs(means[best])):
        return None
    nearest = nearest_evaluation(reward_steps, metric_steps)
    trained = np.asarray(rewards, np.float64)
    then, now = (trained[(nearest >= i) & (nearest < i + length)] for i in (best, last))
    if min(len(then), len(now)) < FEWEST_STEPS:
        return None
    error = math.sqrt(then.var(ddof=1) / len(then) + now.var(ddof=1) / len(now))
    if now.mean() - then.mean() <= REWARD_ERRORS * error:
        return None
    return RewardHacking(
        metric=metric,
        best_steps=(int(metric_steps[best]), int(metric_steps[best + length - 1])),
        last_steps=(int(metric_steps[last]), int(metric_steps[-1])),
        metric_best=float(means[best]),
        metric_last=float(means[last]),
        noise=noise,
        reward_best=float(then.mean()),
        reward_last=float(now.mean()),
    )


def nearest_evaluation(steps: Sequence[int], evaluated: Sequence[int]) -> np.ndarray:
    """[len(steps)] int: the index of the evaluation that each training step is nearest to.

    Args:
      steps: finished training steps.
      evaluated: the steps of the evaluations, ascending, at least one.
    """
    at = np.asarray(evaluated, np.float64)
    return np.searchsorted((at[:-1] + at[1:]) / 2, np.asarray(steps, np.float64))


def reward_by_evaluation(
    reward_steps: Sequence[int], rewards: Sequence[float], evaluated: Sequence[int]
) -> list[float]:
    """The mean training reward of the steps that are nearest to each evaluation; NaN: none are."""
    if not len(evaluated):
        return []
    nearest = nearest_evaluation(reward_steps, evaluated)
    sums = np.bincount(nearest, rewards, len(evaluated))
    counts = np.bincount(nearest, minlength=len(evaluated))
    means: list[float] = np.where(counts, sums / np.maximum(counts, 1), np.nan).tolist()
    return means


def reward_hacking_in(
    metric: str,
    training: Sequence[Mapping[str, Any]],
    evaluations: Sequence[Mapping[str, Any]],
) -> RewardHacking | None:
    """`find_reward_hacking` on lines of metrics.jsonl and of evaluations.jsonl.

    A resumed run may be evaluated on other examples than before: what is not comparable with the
    last evaluation is left out, and so is an evaluation whose metric is not finite.
    """
    trained = [line for line in training if TRAINING_REWARD in line]
    judged = [line for line in comparable(evaluations) if math.isfinite(line.get(metric, math.nan))]
    return find_reward_hacking(
        metric,
        [int(line["step"]) for line in trained],
        [float(line[TRAINING_REWARD]) for line in trained],
        [int(line["step"]) for line in judged],
        [float(line[metric]) for line in judged],
    )


def comparable(evaluations: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The evaluations on the same examples as the last one."""
    return [line for line in evaluations if _examples_of(line) == _examples_of(evaluations[-1])]


def _examples_of(evaluation: Mapping[str, Any]) -> tuple[Any, Any]:
    return evaluation.get("split"), evaluation.get("examples")


class RewardHackingWatch:
    """Looks at a run's files after each evaluation; warns once."""

    def __init__(self, run_directory: Path, metric: str):
        self._run_directory, self._metric = run_directory, metric
        self._seen: tuple[int, int] | None = None
        self._warned = False
        self._found: RewardHacking | None = None

    def look(self) -> RewardHacking | None:
        """What the evaluations so far say; reads them only when there are new ones.

        Where the file system does not let it, it says what it said last, and tries again.
        """
        try:
            return self._look()
        except OSError as error:
            logger.warning("the evaluations so far cannot be read: %s", error)
            return self._found

    def _look(self) -> RewardHacking | None:
        evaluations = self._run_directory / EVALUATIONS_FILE
        if not evaluations.exists() or not (self._run_directory / METRICS_FILE).exists():
            return None
        written = evaluations.stat()
        now = (written.st_mtime_ns, written.st_size)
        if now == self._seen:
            return self._found
        self._found = reward_hacking_in(
            self._metric,
            list(read_metrics(self._run_directory)),
            read_evaluations(self._run_directory),
        )
        self._seen = now
        if self._found is not None and not self._warned:
            logger.warning("%s", self._found)
            self._warned = True
        return self._found
