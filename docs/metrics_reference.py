"""The text of `docs/metrics.md`, from the catalogue and the rules."""

from pathlib import Path
from typing import Any

import yaml

from deploy.monitoring.catalogue import METRICS, Metric
from deploy.monitoring.generate import RULES

METRICS_PAGE = Path(__file__).resolve().parent / "metrics.md"

PREAMBLE = """\
# Metrics

<!-- Written by `python -m docs.generate_reference` from deploy/monitoring; edit there instead. -->

How to see them is in [observability](observability.md). All are exported by a run's controller
through Ray, which puts `ray_` before the names and adds labels of its own (such as `SessionName`).
Every series has the label `run`. No label names a worker, an example or an ordinal.

Counters count what the run's present controller has seen. They are there at 0 before anything has
happened, and do not fall when a worker dies: its successor adds to what it had done. What a process
did in its last second may be missing. A resumed run has a new controller, whose counters begin at
0: sum rates over the labels, as the dashboards do.
"""


def metrics_reference() -> str:
    """The page, as text."""
    lines = [PREAMBLE, "## Metrics of a run", ""]
    lines += [
        "| metric, kind | meaning (unit) | labels beside `run` |",
        "| --- | --- | --- |",
    ]
    lines += [_metric_row(metric) for metric in METRICS]
    groups: list[dict[str, Any]] = yaml.safe_load(RULES.read_text())["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    lines += ["", "## Recorded", "", "| series | computed by |", "| --- | --- |"]
    lines += [
        f"| `{rule['record']}` | `{_cell(rule['expr'])}` |" for rule in rules if "record" in rule
    ]
    lines += ["", "## Alerts", "", "| alert, severity | what to do | when |"]
    lines += ["| --- | --- | --- |"]
    lines += [_alert_row(rule) for rule in rules if "alert" in rule]
    return "\n".join(lines) + "\n"


def _metric_row(metric: Metric) -> str:
    labels = ", ".join(f"`{name}`: {', '.join(usual)}" for name, usual in metric.labels.items())
    name = f"`{metric.exported}`<br>{metric.kind}"
    return f"| {name} | {metric.help} ({metric.unit}) | {labels} |"


def _alert_row(rule: dict[str, Any]) -> str:
    lasting = f", for {rule['for']}" if "for" in rule else ""
    when = f"`{_cell(rule['expr'])}`{lasting}"
    what = _cell(rule["annotations"]["description"])
    return f"| {rule['alert']}<br>{rule['labels']['severity']} | {what} | {when} |"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
