"""Dashboards as Grafana imports them.

A panel is a title, its queries and its width; what else Grafana wants is the same for all.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.monitoring.catalogue import BY_NAME

DIRECTORY = Path(__file__).resolve().parent / "dashboards"
WIDTH = 24


@dataclass(frozen=True)
class Query:
    """One query of a panel; `legend` is Grafana's, with labels in braces."""

    expression: str
    legend: str


@dataclass(frozen=True)
class Panel:
    """One panel.

    Attributes:
      unit: as Grafana names it.
      kind: Grafana's type.
      width: of 24.
      stacked: areas on each other.
      signed: whether values may be below 0.
      top: where a share ends, as 1.
    """

    title: str
    queries: Sequence[Query]
    unit: str = "short"
    kind: str = "timeseries"
    width: int = 12
    stacked: bool = False
    signed: bool = False
    top: float | None = None
    help: str = ""


@dataclass(frozen=True)
class Dashboard:
    """One dashboard; `name` is its file and the end of its uid."""

    name: str
    title: str
    panels: Sequence[Panel]


def to_json(dashboard: Dashboard) -> dict[str, Any]:
    """The dashboard as Grafana imports it."""
    return {
        "uid": f"rewardtune-{dashboard.name}",
        "title": dashboard.title,
        "tags": ["rewardtune"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "timezone": "browser",
        "annotations": {"list": []},
        "links": [
            {
                "type": "dashboards",
                "tags": ["rewardtune"],
                "title": "RewardTune",
                "asDropdown": True,
                "includeVars": True,
                "keepTime": True,
            }
        ],
        "templating": {"list": [_DATASOURCE, _RUN]},
        "panels": list(_placed(dashboard.panels)),
    }


_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_DATASOURCE = {
    "name": "datasource",
    "label": "Prometheus",
    "type": "datasource",
    "query": "prometheus",
    "refresh": 1,
}
_RUN = {
    "name": "run",
    "label": "Run",
    "type": "query",
    "datasource": _SOURCE,
    "query": {
        "query": f"label_values({BY_NAME['step'].exported}, run)",
        "refId": "runs",
    },
    "refresh": 2,
    "sort": 1,
    "multi": True,
    "includeAll": True,
    "allValue": ".*",
    "current": {"text": "All", "value": "$__all"},
}


def _placed(panels: Sequence[Panel]) -> Iterator[dict[str, Any]]:
    x = y = height = 0
    for number, panel in enumerate(panels, start=1):
        if x + panel.width > WIDTH:
            x, y = 0, y + height
        height = 4 if panel.kind == "stat" else 8
        yield _panel(panel, number, {"x": x, "y": y, "w": panel.width, "h": height})
        x += panel.width


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit}
    if not panel.signed:
        defaults["min"] = 0
    if panel.top is not None:
        defaults["max"] = panel.top
    if panel.kind == "timeseries":
        defaults["custom"] = {
            "fillOpacity": 25 if panel.stacked else 5,
            "stacking": {"mode": "normal" if panel.stacked else "none"},
        }
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.help,
        "datasource": _SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": {"legend": {"showLegend": True, "displayMode": "list", "placement": "bottom"}}
        if panel.kind == "timeseries"
        else {},
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": _SOURCE,
                "expr": query.expression,
                "legendFormat": query.legend,
            }
            for index, query in enumerate(panel.queries)
        ],
    }


def rendered(dashboards: Sequence[Dashboard]) -> dict[Path, str]:
    """Each dashboard's file and what it must hold."""
    return {
        DIRECTORY / f"{dashboard.name}.json": json.dumps(to_json(dashboard), indent=1) + "\n"
        for dashboard in dashboards
    }
