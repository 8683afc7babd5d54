"""The distribution of a policy's rewards (the paper's Figure 5): its samples, the best and the most
likely of N of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb

import numpy as np

LEVELS = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class RewardDistribution:
    """Rewards of one policy on the same examples.

    Attributes:
      samples: N, drawn for each example.
      examples: how many examples were sampled.
      unscored: samples that failed or were abstained from; left out.
      quantiles: `sample`, `best` (the highest reward of N) and `likeliest` (the highest
        probability of N) -> the reward at the levels 0, 0.01 .. 1; empty when nothing was scored.
      best: [N] mean reward of the best of n = 1..N samples.
      likeliest: [N] mean reward of the most likely of n = 1..N samples.
      greedy: mean reward of greedy decoding on the same examples; None: nothing was scored.
    """

    samples: int
    examples: int
    unscored: int
    quantiles: Mapping[str, Sequence[float]]
    best: Sequence[float]
    likeliest: Sequence[float]
    greedy: float | None


def summary(distribution: RewardDistribution) -> dict[str, float | None]:
    """The figures that say most, by what they are called; means unless said otherwise."""
    d = distribution
    return {
        "mean sample": d.best[0],
        "median sample": d.quantiles["sample"][50] if d.quantiles["sample"] else None,
        f"best of {d.samples}": d.best[-1],
        f"most likely of {d.samples}": d.likeliest[-1],
        "greedy": d.greedy,
    }


def describe_rewards(
    rewards: np.ndarray, logprobs: np.ndarray, greedy: np.ndarray
) -> RewardDistribution:
    """Sums up the rewards of samples.

    Args:
      rewards: [E, N] float; NaN where a sample was not scored.
      logprobs: [E, N] float, of whole sequences.
      greedy: [E] float, rewards of greedy decoding; NaN where not scored.
    """
    if rewards.shape != logprobs.shape or rewards.shape[:1] != greedy.shape:
        raise ValueError(
            f"rewards {rewards.shape}, logprobs {logprobs.shape} and greedy {greedy.shape} do not "
            "belong together; expected [E, N], [E, N] and [E]"
        )
    scored = np.isfinite(rewards)
    some = scored.any(axis=1)
    best = np.where(scored, rewards, -np.inf).max(axis=1, initial=-np.inf)[some]
    order = np.where(scored, logprobs, -np.inf)
    likeliest = rewards[np.arange(len(rewards)), order.argmax(axis=1)][some]
    values = {"sample": rewards[scored], "best": best, "likeliest": likeliest}
    count = rewards.shape[1]
    return RewardDistribution(
        samples=count,
        examples=len(rewards),
        unscored=int((~scored).sum()),
        quantiles={
            name: np.quantile(value, LEVELS).tolist() if value.size else []
            for name, value in values.items()
        },
        best=[chosen_of(rewards, rewards, n) for n in range(1, count + 1)],
        likeliest=[chosen_of(rewards, logprobs, n) for n in range(1, count + 1)],
        greedy=float(np.nanmean(greedy)) if np.isfinite(greedy).any() else None,
    )


def chosen_of(rewards: np.ndarray, order: np.ndarray, n: int) -> float:
    """Mean reward of the sample that is first in `order` among n, over all choices of n samples.

    Of an example's S scored samples in ascending order, the i-th (from 1) is the highest in
    C(i-1, n-1) of the C(S, n) choices. Examples with fewer than n scored samples are left out; NaN
    when that is all of them.

    Args:
      rewards: [E, N]; NaN where not scored.
      order: [E, N], what the highest is chosen by.
    """
    means = []
    for row, keys in zip(rewards, order, strict=True):
        scored = np.isfinite(row)
        size = int(scored.sum())
        if size < n:
            continue
        ascending = row[scored][np.argsort(keys[scored], kind="stable")]
        chances = [comb(i, n - 1) / comb(size, n) for i in range(size)]
        means.append(float(np.dot(chances, ascending)))
    return float(np.mean(means)) if means else float("nan")
