"""What an operator asks a cluster with token authentication: doctor, and the status of its runs."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.test_commands import write_config
from tests.odd_rewards import set_gate
from tests.ray_head import Head, ray_head


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with ray_head() as running:
        yield running


def findings(result: Any) -> dict[str, dict[str, str]]:
    return {finding["check"]: finding for finding in json.loads(result.stdout)}


def test_doctor_finds_a_cluster_well_and_says_what_a_run_would_lack(
    head: Head, tmp_path: Path, tiny_values: dict[str, Any]
) -> None:
    config = write_config(tmp_path, tiny_values, runs=str(tmp_path / "runs"))
    at_head = ("--address", head.address, "--dashboard", head.jobs, "--json")
    result = head.run("rewardtune", "doctor", str(config), *at_head, cwd=tmp_path)
    found = findings(result)
    assert result.returncode == 0, result.stdout + result.stderr
    checks = ("cluster port", "dashboard", "cluster", "cluster versions", "shared files", "room")
    assert {check: found[check]["level"] for check in checks} == dict.fromkeys(checks, "ok"), found
    assert not list((tmp_path / "runs").glob(".doctor*"))

    lacking = ("actors.resources.num_gpus=1", "initial=/gone.npz")
    result = head.run("rewardtune", "doctor", str(config), *lacking, *at_head, cwd=tmp_path)
    found = findings(result)
    assert result.returncode == 1
    assert "no node can hold sampler" in found["room"]["message"]
    assert found["room"]["level"] == "fail"  # Ray's monitor is there, and only looks on
    assert "/gone.npz" in found["data"]["message"]


def test_doctor_without_the_token_says_so(head: Head, tmp_path: Path) -> None:
    wrong = Head(head.address, head.jobs, head.environment | {"RAY_AUTH_TOKEN": "f" * 64})
    at_head = ("--address", head.address, "--dashboard", head.jobs, "--json")
    result = wrong.run("rewardtune", "doctor", *at_head, cwd=tmp_path)
    found = findings(result)
    assert result.returncode == 1
    for check in ("dashboard", "cluster"):
        assert found[check]["level"] == "fail"
        assert "RAY_AUTH_TOKEN" in found[check]["fix"]


def test_a_run_is_seen_from_another_machine_until_it_ends(
    head: Head, tmp_path: Path, tiny_values: dict[str, Any]
) -> None:
    gate = tmp_path / "gate"
    set_gate(gate, "shut")
    gated = [{"path": "tests.odd_rewards:GatedReward", "options": {"gate": str(gate)}}]
    changes = {"name": "seen", "runs": str(tmp_path / "runs")}
    values = tiny_values | {"rewards": tiny_values["rewards"] | {"terms": gated}}
    config = write_config(tmp_path, values, **changes)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    path = os.pathsep.join([str(Path(__file__).resolve().parents[2])])
    with_tests = Head(head.address, head.jobs, head.environment | {"PYTHONPATH": path})
    tuning = with_tests.start(
        "rewardtune", "tune", str(config), f"cluster.address={head.address}", cwd=tmp_path
    )
    try:
        deadline = time.monotonic() + 200
        status: dict[str, Any] = {}
        while not status.get("queue", {}).get("stages", {}).get("to_score", {}).get("leased"):
            assert time.monotonic() < deadline, tuning.stdout
            asked = head.run(
                "rewardtune", "status", "--address", head.address, "--json", cwd=elsewhere
            )
            assert asked.returncode == 0, asked.stderr
            status = next(iter(json.loads(asked.stdout)), {})
        assert {worker["role"] for worker in status["workers"]} == {"learner", "sampler", "reward"}
        assert all(w["address"] for w in status["workers"] if w["state"] == "running")
        text = head.run("rewardtune", "status", "seen", "--address", head.address, cwd=elsewhere)
        assert status["bottleneck"]["sentence"]
        assert "to_score" in text.stdout
        watching = head.start(
            "rewardtune", "status", "seen", "--address", head.address, "--watch", cwd=elsewhere
        )
        assert watching.stdout is not None
        assert any("seen:" in line for line in watching.stdout)  # while the run is at work
        set_gate(gate, "0")
        assert tuning.wait(200) == 0
        watching.communicate(timeout=60)
    finally:
        set_gate(gate, "0")
        tuning.kill()
        tuning.communicate()
    ended = json.loads((tmp_path / "runs" / "seen" / "status.json").read_text())
    assert (ended["state"], ended["bottleneck"]["sentence"]) == ("finished", "the run is finished")
    assert ended["throughput"]["groups"]["to_train"]["average"] > 0
    assert 0 <= ended["roles"]["learner"]["busy"] <= 1
