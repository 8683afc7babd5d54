"""The tables of a report's page."""

import math
from collections.abc import Sequence
from html import escape

from deploy.report.distribution import summary
from deploy.report.measured import PolicyFigures, Report, fractions
from deploy.report.timings import ProcessTime, kinds_of_time

REWARD = "reward"
DASH = "–"


def table(caption: str, head: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    """A table; the first cell of each row names it. Cells are HTML, a row's class may precede it.

    Args:
      rows: (the row's class, or '', and its cells).
    """
    heads = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    lines = "".join(
        (f'<tr class="{kind}">' if kind else "<tr>")
        + f'<th scope="row">{cells[0]}</th>'
        + "".join(cell if cell.startswith("<td") else f"<td>{cell}</td>" for cell in cells[1:])
        + "</tr>"
        for kind, cells in rows
    )
    return (
        f"<table><caption>{caption}</caption><thead><tr>{heads}</tr></thead>"
        f"<tbody>{lines}</tbody></table>"
    )


def before_after_table(report: Report) -> str:
    """All metrics of each policy, and differences from before; the headline first."""
    percents = fractions(report.policies)
    before, *others = report.policies
    names = list(dict.fromkeys(name for policy in report.policies for name in policy.metrics))
    names.sort(key=lambda name: name != report.headline)
    rows = []
    for name in names:
        factor, digits = (100.0, 1) if name in percents else (1.0, 2)
        values = [policy.metrics.get(name, math.nan) * factor for policy in report.policies]
        label = escape(name) + (" (%)" if name in percents else "")
        kind = "headline" if name == report.headline else ""
        rows.append((kind, [label, *_cells(values, digits, colour=name in percents)]))
    if any(policy.reward is not None for policy in report.policies):
        values = [math.nan if p.reward is None else p.reward for p in report.policies]
        rows.append(("", [REWARD, *_cells(values, 3, colour=True)]))
    head = ["metric", escape(before.label)]
    for policy in others:
        step = f", step {policy.step:,}" if policy.key == "best" and policy.step else ""
        head += [escape(policy.label) + step, "difference"]
    caption = (
        f"{report.examples:,} images of the {escape(report.split)} split, greedy decoding. "
        "Differences of per cents are points."
    )
    unscored = [f"{escape(p.label)} {p.unscored}" for p in report.policies if p.unscored]
    if unscored:
        caption += f" Not scored by the reward, and left out of its mean: {', '.join(unscored)}."
    return table(caption, head, rows)


def _cells(values: Sequence[float], digits: int, colour: bool) -> list[str]:
    before, *others = values
    cells = [number(before, digits)]
    for value in others:
        cells += [number(value, digits), _difference(value - before, digits, colour)]
    return cells


def _difference(value: float, digits: int, colour: bool) -> str:
    if not math.isfinite(value):
        return DASH
    text = f"{value:+.{digits}f}".replace("-", "−")
    if not colour or float(text.replace("−", "-")) == 0:
        return text
    return f'<td class="{"up" if value > 0 else "down"}">{text}</td>'


def number(value: float | None, digits: int) -> str:
    """A number for a cell; a dash for what is not there."""
    if value is None or not math.isfinite(value):
        return DASH
    return f"{value:.{digits}f}".replace("-", "−")


def reward_table(policies: Sequence[PolicyFigures]) -> str:
    """Mean rewards by how a sample is chosen."""
    rows = []
    figures: list[str] = []
    for policy in policies:
        assert policy.distribution is not None
        values = summary(policy.distribution)
        figures = list(values)
        cells = [number(value, 3) for value in values.values()]
        rows.append(("", [escape(policy.label), *cells, f"{policy.distribution.unscored:,}"]))
    head = ["policy", *figures, "not scored"]
    return table("Rewards of the sampled images; means unless said otherwise.", head, rows)


def time_table(timings: Sequence[ProcessTime]) -> str:
    """Seconds and shares by process."""
    kinds = kinds_of_time(timings)
    rows = []
    for time in timings:
        total = sum(time.seconds.values())
        cells = [
            f"{time.seconds[kind]:,.1f} ({time.seconds[kind] / total:.0%})"
            if kind in time.seconds and total
            else DASH
            for kind in kinds
        ]
        rows.append(("", [escape(time.process), *cells, f"{total:,.1f}", str(time.restarts)]))
    head = ["process", *map(escape, kinds), "total", "restarts"]
    return table("Seconds, and the share of the process's time.", head, rows)
