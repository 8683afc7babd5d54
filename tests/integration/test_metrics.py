"""What a real Prometheus scrapes of a real run, while a worker of it dies."""

import json
import re
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.monitoring.catalogue import METRICS
from deploy.monitoring.exporter import usual_labels
from deploy.monitoring.generate import RULES
from deploy.monitoring.grafana import DIRECTORY
from learner.stop import StopRequest
from tests.odd_rewards import set_gate
from tests.prometheus import MISSING, Prometheus, prometheus
from tests.runs import SIGKILL, Run, signal_worker

pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))

NAME = "scraped"
PATIENCE = 150.0


def dashboard_queries() -> Iterator[str]:
    for path in sorted(DIRECTORY.glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel["targets"]:
                yield target["expr"].replace("$run", NAME).replace("$__rate_interval", "30s")


def variable_queries() -> Iterator[tuple[str, str]]:
    """Series and label of each `label_values(SERIES, LABEL)` that a dashboard's variable asks."""
    for path in sorted(DIRECTORY.glob("*.json")):
        for variable in json.loads(path.read_text())["templating"]["list"]:
            if variable["type"] == "query":
                asked = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
                assert asked is not None, variable
                yield asked[1], asked[2]


def recorded() -> list[str]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule["record"] for group in groups for rule in group["rules"] if "record" in rule]


def series(metric: str, labels: Mapping[str, str]) -> str:
    pairs = ", ".join(f'{name}="{value}"' for name, value in {"run": NAME, **labels}.items())
    return f"{metric}{{{pairs}}}"


def seeded_queries() -> Iterator[str]:
    for metric in METRICS:
        for labels in usual_labels(metric):
            yield series(metric.exported, labels)


def until_all_have_data(
    server: Prometheus, queries: list[str], running: Callable[[], bool]
) -> None:
    deadline = time.monotonic() + PATIENCE
    missing = queries
    while missing := [query for query in missing if not server.query(query)]:
        assert running(), "the run ended"
        assert time.monotonic() < deadline, missing
        time.sleep(1.0)


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.5)


def test_prometheus_sees_a_run_through_the_death_of_a_worker(
    tune: Callable[..., Run], tmp_path: Path
) -> None:
    import ray

    node = ray.nodes()[0]
    target = f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}"
    # Other tests of this Ray have had runs, whose series may be there still.
    with urllib.request.urlopen(f"http://{target}/metrics", timeout=30) as scraped:
        earlier = set(re.findall(r'[{,]run="([^"]+)"', scraped.read().decode()))
    assert NAME not in earlier
    gate, last, scored = tmp_path / "gate", dict[str, Any](), list[list[int]]()
    set_gate(gate, "0")
    done = False

    def observe(status: Mapping[str, Any], stop: StopRequest) -> None:
        last.update(status)
        scored.append([w.get("groups", 0) for w in status["workers"] if w["role"] == "reward"])
        if done:
            stop.request()

    gated = [{"path": "tests.odd_rewards:GatedReward", "options": {"gate": str(gate)}}]
    changes = {
        "learner.steps": 100_000,
        "learner.checkpoint_every": 1000,
        "rewards.count": 2,
        "rewards.terms": gated,
    }
    with prometheus(tmp_path, [target], RULES) as server, ThreadPoolExecutor(1) as pool:
        run = pool.submit(tune, NAME, changes, observe)
        try:
            until_all_have_data(server, list(seeded_queries()), run.running)
            until_all_have_data(server, list(dashboard_queries()), run.running)
            until_all_have_data(server, recorded(), run.running)
            variables = list(variable_queries())
            assert len(variables) == len(list(DIRECTORY.glob("*.json")))
            for asked, label in variables:
                assert set(server.label_values(label, asked)) - earlier == {NAME}

            # What a worker has done since it was last asked dies with it, and is not counted: so
            # nothing is done before both have told all.
            set_gate(gate, "shut")
            shut = len(scored)
            until(lambda: len(scored) > shut + 3 and scored[-1] == scored[-3], "all is told")
            assert signal_worker(last, "reward-0", SIGKILL)
            set_gate(gate, "0")
            restarts = series("ray_rewardtune_worker_restarts_total", {"role": "reward"})
            until(lambda: server.value(restarts) == 1, "the restart is counted")
        finally:
            set_gate(gate, "0")
            done = True
        result = run.result(timeout=PATIENCE)

        assert result.result["state"] == "stopped"
        groups = series("ray_rewardtune_worker_groups_total", {"role": "reward"})
        trained = series("ray_rewardtune_groups_total", {"outcome": "trained"})
        until(
            lambda: server.value(trained) == 4 * result.result["step"],
            "what was trained is counted to the end, once",
        )
        ended = series("run:rewardtune_ended:last", {})
        until(lambda: server.value(ended) == 1, "the end is known")
        # One series for two workers, one of which had a successor; it never fell.
        assert server.value(f"resets({groups}[1h])") == 0
        assert server.value(groups) == pytest.approx(4 * result.result["step"], abs=40)
        assert server.value(f'count({{__name__=~"ray_rewardtune_.+", run="{NAME}"}})') < 150
