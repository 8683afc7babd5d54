"""The dashboards by Grafana's published models, which refuse what is wrong. No Grafana is here."""

import json
from pathlib import Path
from typing import Any

import pytest

from deploy.monitoring.grafana import DIRECTORY
from tests.grafana_models import faults


@pytest.mark.parametrize("path", sorted(DIRECTORY.glob("*.json")), ids=lambda path: path.stem)
def test_grafanas_models_know_all_of_a_dashboard(path: Path):
    assert faults(json.loads(path.read_text())) == []


MUTANTS = [
    ("titel", "x"),
    ("refresh", 10),
    ("schemaVersion", "39"),
    ("timezone", 1),
    ("time.till", "now"),
    ("tags", "rewardtune"),
    ("links.0.type", "board"),
    ("links.0.asDropdown", "yes"),
    ("templating.list.0.type", "source"),
    ("templating.list.1.multi", "true"),
    ("templating.list.1.datasource.id", "x"),
    ("templating.list.1.sort", 12),
    ("panels.0.type", "number"),
    ("panels.0.gridPos.width", 4),
    ("panels.0.gridPos.w", "4"),
    ("panels.0.targets.0.expression", "up"),
    ("panels.0.targets.0.expr", ["up"]),
    ("panels.0.fieldConfig.defaults.minimum", 0),
    ("panels.0.fieldConfig.defaults.unit", 1),
    ("panels.6.fieldConfig.defaults.custom.opacity", 25),
    ("panels.6.fieldConfig.defaults.custom.stacking.mode", "stacked"),
    ("panels.6.options.legend.displayMode", "row"),
    ("panels.6.options.legend.show", True),
]


@pytest.mark.parametrize(("place", "value"), MUTANTS)
def test_grafanas_models_refuse_mutants(place: str, value: Any):
    dashboard = json.loads((DIRECTORY / "pipeline.json").read_text())
    *parents, last = place.split(".")
    inner: Any = dashboard
    for step in parents:
        inner = inner[int(step) if isinstance(inner, list) else step]
    inner[last] = value
    try:
        found = faults(dashboard)
    except (TypeError, ValueError, AttributeError) as error:  # an enumeration's, say
        found = [str(error)]
    assert found
