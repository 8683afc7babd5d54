"""An analysis as a picture: analysis.png."""

import os
from pathlib import Path
from typing import Any

from deploy.report.analyze import Analysis
from deploy.report.drawing import (
    CHOICES,
    draw_agreement,
    draw_by_samples,
    draw_quantiles,
    draw_reward_and_metric,
    quantile_range,
)
from deploy.report.figure import PAPER, styled, write_png
from deploy.report.measured import sampled_policies

# A legend under its axes hides no curve.
BELOW: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.16), "fontsize": 8}


def write_figure(analysis: Analysis, path: Path) -> None:
    """Quantile functions above; below rewards by n, both curves over steps, one over the other.

    What the run has not left stays empty, and says so. The file is replaced whole.

    Raises:
      OSError: it cannot be written.
    """
    shown = sampled_policies(analysis.policies)
    with styled(13, 8, PAPER) as figure:
        above, below = figure.subplots(2, 3)
        for axes, choice in zip(above, CHOICES, strict=True):
            if quantile_range(shown) is None:
                _say(axes, "no sample was scored")
            else:
                draw_quantiles(axes, shown, choice, PAPER)
        by_samples, over_steps, against = below
        draw_by_samples(by_samples, shown, PAPER)
        by_samples.legend(**BELOW, ncols=max(1, len(shown)))
        by_samples.set_title("Mean reward by how many samples there are")
        if analysis.training is None:
            _say(over_steps, "no training curve")
        else:
            handles = draw_reward_and_metric(
                over_steps,
                analysis.training,
                analysis.held_out,
                analysis.held_out_split,
                percent=False,
                palette=PAPER,
            )
            over_steps.legend(handles=handles, **BELOW)
            over_steps.set_title("Reward and metric")
        if analysis.agreement is None:
            _say(against, "no evaluations during the run")
        else:
            draw_agreement(against, analysis.agreement, percent=False, palette=PAPER)
        warning = "" if analysis.reward_hacking is None else " — warning: reward hacking"
        figure.suptitle(
            f"{analysis.run} · {analysis.task} · {analysis.examples:,} examples of the "
            f"{analysis.split} split{warning}",
            fontsize=11,
        )
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        write_png(figure, beside)
    beside.replace(path)


def _say(axes: Any, text: str) -> None:
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes)
