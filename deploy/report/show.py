"""An analysis as tables on a terminal."""

import math

from rich.console import Console
from rich.table import Table

from deploy.report.analyze import Analysis
from deploy.report.distribution import summary
from deploy.report.drawing import CHOICES
from deploy.report.measured import SampledPolicy, sampled_policies
from deploy.report.tables import number

PERCENTILES = (5, 25, 50, 75, 95)
DIGITS = 3


def show_analysis(console: Console, analysis: Analysis) -> None:
    """Prints the figures that say most; analysis.json has all."""
    shown = sampled_policies(analysis.policies)
    samples = shown[0][1].samples
    console.print(
        f"{analysis.run}: {samples} samples for each of {analysis.examples:,} of the "
        f"{analysis.of_examples:,} examples of the {analysis.split} split",
        highlight=False,
    )
    table = _table("mean reward", shown)
    for name in summary(shown[0][1]):
        _add(table, name, [summary(d)[name] for _, d in shown])
    table.add_row("not scored", *(str(d.unscored) for _, d in shown))
    console.print(table)
    table = _table("quantile of the reward", shown)
    for choice, title in CHOICES.items():
        for percent in PERCENTILES:
            values = [d.quantiles[choice][percent] if d.quantiles[choice] else None
                      for _, d in shown]  # fmt: skip
            _add(table, f"{title.format(n=samples).lower()}, {percent} %", values)
        table.add_section()
    console.print(table)
    if analysis.agreement is not None:
        console.print(str(analysis.agreement), highlight=False)
    if analysis.reward_hacking is not None:
        console.print(f"warning: {analysis.reward_hacking}", style="yellow", highlight=False)
    for sentence in analysis.missing:
        console.print(sentence, highlight=False)


def _table(first: str, shown: list[SampledPolicy]) -> Table:
    table = Table(first)
    for policy, _ in shown:
        table.add_column(policy.label, justify="right")
    if len(shown) > 1:
        table.add_column(f"{shown[1][0].label} − {shown[0][0].label}", justify="right")
    return table


def _add(table: Table, name: str, values: list[float | None]) -> None:
    cells = [number(value, DIGITS) for value in values]
    if len(values) > 1:
        before, after = (math.nan if value is None else value for value in values[:2])
        difference = number(after - before, DIGITS)
        cells.append(difference if after <= before else f"+{difference}")
    table.add_row(name, *cells)
