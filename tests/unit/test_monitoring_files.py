"""Dashboards, rules and their reference name only metrics that there are, and are fresh."""

import json
import re
from pathlib import Path

import pytest
import yaml

from deploy.monitoring.catalogue import METRICS
from deploy.monitoring.generate import PROMETHEUS_RULE, RULES, generated
from deploy.monitoring.grafana import DIRECTORY
from docs.metrics_reference import METRICS_PAGE, metrics_reference
from tests.prometheus import MISSING, promtool

TESTS = RULES.with_name("rules_test.yaml")
EXPORTED = {metric.exported for metric in METRICS}
NAMES = re.compile(r"ray_rewardtune_\w+")


def rules() -> list[dict[str, str]]:
    return [
        rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]
    ]


def test_what_is_generated_is_fresh():
    there = [*DIRECTORY.glob("*.json"), PROMETHEUS_RULE]
    written = {path: path.read_text() for path in there}
    assert written == generated(), "run python -m deploy.monitoring.generate"


def test_the_reference_is_fresh():
    text = metrics_reference()
    assert METRICS_PAGE.read_text() == text, "run python -m docs.generate_reference"
    assert all(f"`{name}`" in text for name in EXPORTED)


def test_dashboards_and_rules_know_every_metric_that_they_name():
    for path in (RULES, TESTS, *DIRECTORY.glob("*.json")):
        assert set(NAMES.findall(path.read_text())) <= EXPORTED, path


def test_every_metric_is_shown_on_a_dashboard():
    shown = {name for path in DIRECTORY.glob("*.json") for name in NAMES.findall(path.read_text())}
    assert shown == EXPORTED


@pytest.mark.parametrize("path", sorted(DIRECTORY.glob("*.json")), ids=lambda path: path.stem)
def test_panels_have_a_place_of_their_own_and_follow_the_variables(path: Path):
    dashboard = json.loads(path.read_text())
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    assert variables == {"datasource", "run"}
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        assert place["x"] + place["w"] <= 24
        taken |= cells
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == "${datasource}"
            selectors = re.findall(r"ray_rewardtune_\w+(\{[^}]*\})?", target["expr"])
            assert selectors
            assert all('run=~"$run"' in selector for selector in selectors)


def test_every_alert_is_tested_to_fire_and_to_stay_silent():
    cases = [
        (check["alertname"], bool(check["exp_alerts"]))
        for test in yaml.safe_load(TESTS.read_text())["tests"]
        for check in test["alert_rule_test"]
    ]
    alerts = {rule["alert"] for rule in rules() if "alert" in rule}
    assert {name for name, fires in cases if fires} == alerts
    assert {name for name, fires in cases if not fires} == alerts


@pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
def test_prometheus_can_parse_every_query_of_the_dashboards(tmp_path):
    queries = [
        target["expr"].replace("$run", "a").replace("$__rate_interval", "1m")
        for path in DIRECTORY.glob("*.json")
        for panel in json.loads(path.read_text())["panels"]
        for target in panel["targets"]
    ]
    file = tmp_path / "queries.yaml"
    rules = [{"record": f"q{n}", "expr": query} for n, query in enumerate(queries)]
    file.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    promtool("check", "rules", str(file))


@pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
def test_promtool_accepts_the_rules_and_their_unit_tests_pass():
    promtool("check", "config", str(RULES.with_name("prometheus.yaml")))
    promtool("check", "rules", str(RULES))
    promtool("test", "rules", str(TESTS))
