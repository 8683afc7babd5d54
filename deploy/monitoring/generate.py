"""Writes what is made from the descriptions here: `python -m deploy.monitoring.generate`.

Dashboards as JSON for Grafana, and the rules as an object for Kubernetes. A test holds that they
are fresh.
"""

from pathlib import Path

import yaml

from deploy.monitoring.dashboards import DASHBOARDS
from deploy.monitoring.grafana import rendered

RULES = Path(__file__).resolve().parent / "rules.yaml"
PROMETHEUS_RULE = RULES.parents[1] / "k8s/components/monitoring/prometheus-rule.yaml"
HEAD = "# Written by `python -m deploy.monitoring.generate` from deploy/monitoring/rules.yaml.\n"


def generated() -> dict[Path, str]:
    """Each file and what it must hold."""
    rule = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "rewardtune"},
        "spec": yaml.safe_load(RULES.read_text()),
    }
    text = HEAD + yaml.safe_dump(rule, sort_keys=False, width=100)
    return rendered(DASHBOARDS) | {PROMETHEUS_RULE: text}


if __name__ == "__main__":
    for path, text in generated().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        print(f"wrote {path}")
