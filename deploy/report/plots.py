"""The figures of a report, each an inline SVG."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from deploy.report.agreement import Agreement
from deploy.report.drawing import (
    CHOICES,
    draw_agreement,
    draw_by_samples,
    draw_quantiles,
    draw_reward_and_metric,
    quantile_range,
    running_mean,
)
from deploy.report.figure import HUES, PAGE, inline_svg, styled
from deploy.report.measured import Curve, PolicyFigures, sampled_policies
from deploy.report.timings import WAITING, ProcessTime, kinds_of_time


def reward_and_metric(training: Curve, held_out: Curve | None, split: str, percent: bool) -> str:
    """What is trained on and what is wanted, over steps (the paper's Figure 6)."""
    with styled(7.6, 3.5) as figure:
        handles = draw_reward_and_metric(
            figure.subplots(), training, held_out, split, percent, PAGE
        )
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


def reward_against_metric(agreement: Agreement, percent: bool) -> str:
    """A point for each evaluation of a run."""
    with styled(3.8, 3.2) as figure:
        draw_agreement(figure.subplots(), agreement, percent, PAGE)
        return inline_svg(figure, "agreement", alt=str(agreement))


def quantile_curves(policies: Sequence[PolicyFigures]) -> list[str]:
    """One figure each for one sample, the best and the most likely of N (the paper's Figure 5)."""
    shown = sampled_policies(policies)
    if quantile_range(shown) is None:
        return []
    figures = []
    for choice, title in CHOICES.items():
        with styled(3.4, 2.9) as figure:
            draw_quantiles(figure.subplots(), shown, choice, PAGE)
            alt = f"{title.format(n=shown[0][1].samples)}: median reward " + ", ".join(
                f"{policy.label} {d.quantiles[choice][50]:.3f}"
                for policy, d in shown
                if d.quantiles[choice]
            )
            figures.append(inline_svg(figure, f"quantiles-{choice}", alt))
    return figures


def rewards_by_samples(policies: Sequence[PolicyFigures]) -> str:
    """Mean reward of the best and of the most likely of n samples, over n."""
    shown = sampled_policies(policies)
    with styled(7.6, 3.4) as figure:
        draw_by_samples(figure.subplots(), shown, PAGE)
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
        colour = PAGE.hues[0]
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
    colours = {kind: PAGE.hues[i % HUES] for i, kind in enumerate(busy)} | {WAITING: PAGE.line}
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
        axes.tick_params(axis="y", length=0, labelcolor=PAGE.muted)
        figure.legend(loc="outside upper left", ncols=min(6, len(kinds)))
        return inline_svg(figure, "times", "; ".join(_spoken(time) for time in timings))


def _spoken(time: ProcessTime) -> str:
    parts: Any = ", ".join(f"{kind} {seconds:.0f} s" for kind, seconds in time.seconds.items())
    return f"{time.process}: {parts}"
