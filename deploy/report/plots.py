"""The figures of a report, each an inline SVG."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from deploy.report.distribution import LEVELS, RewardDistribution
from deploy.report.figure import AFTER, BEFORE, BEST, HUES, LINE, MUTED, inline_svg, styled
from deploy.report.measured import Curve, PolicyFigures
from deploy.report.timings import WAITING, ProcessTime, kinds_of_time

COLOURS = {"before": BEFORE, "after": AFTER, "best": BEST}
CHOICES = (
    ("sample", "One sample"),
    ("best", "Best of {n} samples"),
    ("likeliest", "Most likely of {n} samples"),
)
SMOOTHED_STEPS = 25  # a running mean over this many lines, at most a tenth of them


def reward_and_metric(training: Curve, held_out: Curve | None, split: str, percent: bool) -> str:
    """What is trained on and what is wanted, over steps (the paper's Figure 6)."""
    with styled(7.6, 3.5) as figure:
        axes = figure.subplots()
        axes.plot(training.steps, training.values, color=AFTER, alpha=0.28, linewidth=1)
        smooth = running_mean(training.values)
        axes.plot(training.steps, smooth, color=AFTER, label=f"{training.name}, training samples")
        axes.set_xlabel("learner's step")
        axes.set_ylabel(training.name, color=AFTER)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.margins(x=0.02)
        handles = list(axes.get_lines()[1:])
        if held_out is not None:
            factor = 100 if percent else 1
            right = axes.twinx()
            right.grid(False)
            handles += right.plot(
                held_out.steps,
                [value * factor for value in held_out.values],
                color=BEST,
                marker="o",
                markersize=4.5,
                label=f"{held_out.name}, {split} split, greedy decoding",
            )
            right.set_ylabel(held_out.name + (" (%)" if percent else ""), color=BEST)
        figure.legend(handles=handles, loc="outside upper left", ncols=2)
        return inline_svg(
            figure, "curves", alt=_over_steps(training) + (_over_steps(held_out, ". ") or "")
        )


def _over_steps(curve: Curve | None, before: str = "") -> str:
    if curve is None or not curve.values:
        return ""
    return (
        f"{before}{curve.name} from {curve.values[0]:.4g} at step {curve.steps[0]} to "
        f"{curve.values[-1]:.4g} at step {curve.steps[-1]}"
    )


def running_mean(values: Sequence[float]) -> list[float]:
    """Centred means, over what there is of the window at both ends."""
    half = min(SMOOTHED_STEPS, len(values) // 10) // 2
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    first, last = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    means: list[float] = ((sums[last] - sums[first]) / (last - first)).tolist()
    return means


def quantile_curves(policies: Sequence[PolicyFigures]) -> list[str]:
    """One figure each for one sample, the best and the most likely of N (the paper's Figure 5)."""
    shown = [(p, p.distribution) for p in policies if p.distribution is not None]
    values = [v for _, d in shown for curve in d.quantiles.values() for v in curve]
    if not values:
        return []
    margin = 0.04 * (max(values) - min(values)) or 0.5
    figures = []
    for choice, title in CHOICES:
        with styled(3.4, 2.9) as figure:
            axes = figure.subplots()
            for policy, distribution in shown:
                curve = distribution.quantiles[choice]
                if curve:
                    axes.plot(100 * LEVELS, curve, color=COLOURS[policy.key], label=policy.label)
            axes.set_ylim(min(values) - margin, max(values) + margin)
            axes.set_xlim(0, 100)
            axes.set_title(title.format(n=shown[0][1].samples))
            axes.set_xlabel("quantile (% of rewards below)")
            axes.set_ylabel("reward")
            axes.legend(loc="upper left")
            alt = f"{title.format(n=shown[0][1].samples)}: median reward " + ", ".join(
                f"{policy.label} {d.quantiles[choice][50]:.3f}"
                for policy, d in shown
                if d.quantiles[choice]
            )
            figures.append(inline_svg(figure, f"quantiles-{choice}", alt))
    return figures


def rewards_by_samples(policies: Sequence[PolicyFigures]) -> str:
    """Mean reward of the best and of the most likely of n samples, over n."""
    shown: list[tuple[PolicyFigures, RewardDistribution]] = [
        (p, p.distribution) for p in policies if p.distribution is not None
    ]
    with styled(7.6, 3.4) as figure:
        axes = figure.subplots()
        for policy, distribution in shown:
            n = np.arange(1, distribution.samples + 1)
            colour = COLOURS[policy.key]
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
        figure.legend(loc="outside upper left", ncols=len(shown))
        alt = "Mean reward of the best of n samples: " + ", ".join(
            f"{p.label} {d.best[0]:.3f} at n = 1 and {d.best[-1]:.3f} at n = {d.samples}"
            for p, d in shown
        )
        return inline_svg(figure, "by-samples", alt)


def training_curve(curve: Curve, index: int) -> str:
    """A small figure of one training metric."""
    with styled(3.4, 2.1) as figure:
        axes = figure.subplots()
        colour = HUES[0]
        axes.plot(curve.steps, curve.values, color=colour, alpha=0.3, linewidth=0.9)
        axes.plot(curve.steps, running_mean(curve.values), color=colour, linewidth=1.6)
        axes.set_title(curve.name)
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.margins(x=0.02)
        return inline_svg(figure, f"training-{index}", _over_steps(curve))


def time_bars(timings: Sequence[ProcessTime]) -> str:
    """A stacked bar for each process, by what it did."""
    longest = max(sum(time.seconds.values()) for time in timings)
    unit, divisor = ("minutes", 60.0) if longest > 300 else ("seconds", 1.0)
    kinds = kinds_of_time(timings)
    busy = [kind for kind in kinds if kind != WAITING]
    colours = {kind: HUES[i % len(HUES)] for i, kind in enumerate(busy)} | {WAITING: LINE}
    with styled(7.6, 1.15 + 0.36 * len(timings)) as figure:
        axes = figure.subplots()
        axes.grid(axis="y", visible=False)
        names = [time.process for time in timings]
        left = np.zeros(len(timings))
        for kind in kinds:
            widths = np.array([time.seconds.get(kind, 0.0) / divisor for time in timings])
            axes.barh(names, widths, left=left, height=0.62, color=colours[kind], label=kind)
            left += widths
        axes.invert_yaxis()
        axes.set_xlabel(unit)
        axes.tick_params(axis="y", length=0, labelcolor=MUTED)
        figure.legend(loc="outside upper left", ncols=min(6, len(kinds)))
        return inline_svg(figure, "times", "; ".join(_spoken(time) for time in timings))


def _spoken(time: ProcessTime) -> str:
    parts: Any = ", ".join(f"{kind} {seconds:.0f} s" for kind, seconds in time.seconds.items())
    return f"{time.process}: {parts}"
