"""What the figures of a report and of an analysis show, drawn on axes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from deploy.report.agreement import Agreement
from deploy.report.distribution import LEVELS
from deploy.report.figure import Palette
from deploy.report.measured import Curve, SampledPolicy

CHOICES = {
    "sample": "One sample",
    "best": "Best of {n} samples",
    "likeliest": "Most likely of {n} samples",
}
SMOOTHED_STEPS = 25  # a running mean over this many lines, at most a tenth of them


def draw_reward_and_metric(
    axes: Any,
    training: Curve,
    held_out: Curve | None,
    split: str,
    percent: bool,
    palette: Palette,
) -> list[Any]:
    """Both over steps, each on its own scale; returns what a legend names."""
    axes.plot(training.steps, training.values, color=palette.after, alpha=0.28, linewidth=1)
    smooth = running_mean(training.values)
    handles = list(
        axes.plot(
            training.steps,
            smooth,
            color=palette.after,
            label=f"{training.name}, training samples",
        )
    )
    axes.set_xlabel("learner's step")
    axes.set_ylabel(training.name, color=palette.after)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(x=0.02)
    if held_out is not None:
        right = axes.twinx()
        right.grid(False)
        handles += right.plot(
            held_out.steps,
            _scaled(held_out.values, percent),
            color=palette.best,
            marker="o",
            markersize=4.5,
            label=f"{held_out.name}, {split} split, greedy decoding",
        )
        right.set_ylabel(_with_unit(held_out.name, percent), color=palette.best)
    return handles


def draw_agreement(axes: Any, agreement: Agreement, percent: bool, palette: Palette) -> None:
    """The metric over the reward, joined in the order of the steps; first and last are named."""
    xs, ys = agreement.rewards, _scaled(agreement.values, percent)
    axes.plot(xs, ys, color=palette.muted, linewidth=0.9)
    axes.plot(xs, ys, color=palette.best, marker="o", markersize=4.5, linestyle="none")
    for index in {0, len(xs) - 1}:
        axes.annotate(
            f"step {agreement.steps[index]:,}",
            (xs[index], ys[index]),
            textcoords="offset points",
            xytext=(6, -10),
            fontsize=8.5,
            color=palette.muted,
        )
    axes.margins(0.14)
    axes.set_xlabel(f"{agreement.reward}, around each evaluation")
    axes.set_ylabel(_with_unit(agreement.metric, percent))
    correlation = agreement.rank_correlation
    axes.set_title("" if correlation is None else f"Rank correlation {correlation:.2f}")


def _scaled(values: Sequence[float], percent: bool) -> list[float]:
    return [value * (100 if percent else 1) for value in values]


def _with_unit(name: str, percent: bool) -> str:
    return name + (" (%)" if percent else "")


def running_mean(values: Sequence[float]) -> list[float]:
    """Centred means, over what there is of the window at both ends."""
    half = min(SMOOTHED_STEPS, len(values) // 10) // 2
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    first, last = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    means: list[float] = ((sums[last] - sums[first]) / (last - first)).tolist()
    return means


def quantile_range(shown: Sequence[SampledPolicy]) -> tuple[float, float] | None:
    """What the axes of all quantile figures span, so that they compare; None: nothing scored."""
    values = [v for _, d in shown for curve in d.quantiles.values() for v in curve]
    if not values:
        return None
    margin = 0.04 * (max(values) - min(values)) or 0.5
    return min(values) - margin, max(values) + margin


def draw_quantiles(
    axes: Any, shown: Sequence[SampledPolicy], choice: str, palette: Palette
) -> None:
    """The reward over its quantiles, by one of `CHOICES`; something must have been scored."""
    for policy, distribution in shown:
        curve = distribution.quantiles[choice]
        if curve:
            colour = palette.of_policy(policy.key)
            axes.plot(100 * LEVELS, curve, color=colour, label=policy.label)
    axes.set_ylim(quantile_range(shown))
    axes.set_xlim(0, 100)
    axes.set_title(CHOICES[choice].format(n=shown[0][1].samples))
    axes.set_xlabel("quantile (% of rewards below)")
    axes.set_ylabel("reward")
    axes.legend(loc="upper left")


def draw_by_samples(axes: Any, shown: Sequence[SampledPolicy], palette: Palette) -> None:
    """Mean rewards of the best and of the most likely of n samples over n, and of greedy."""
    for policy, distribution in shown:
        n = np.arange(1, distribution.samples + 1)
        colour = palette.of_policy(policy.key)
        axes.plot(n, distribution.best, color=colour, marker="o", markersize=4,
                  label=f"{policy.label}: best of n")  # fmt: skip
        axes.plot(n, distribution.likeliest, color=colour, marker="s", markersize=3.5,
                  linestyle="--", label=f"{policy.label}: most likely of n")  # fmt: skip
        if distribution.greedy is not None:
            axes.axhline(distribution.greedy, color=colour, linestyle=":", linewidth=1.3,
                         label=f"{policy.label}: greedy")  # fmt: skip
    axes.set_xlabel("n, samples of an image")
    axes.set_ylabel("mean reward")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
