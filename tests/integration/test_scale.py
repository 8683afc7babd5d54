"""Pools that change while a run goes on: live, without loss, by hand and by their load."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from deploy.targets import running_runs
from learner.metrics import read_metrics
from learner.stop import StopRequest
from tests.integration.test_tune import assert_same_weights
from tests.odd_rewards import set_gate
from tests.runs import STEPS, Run

Tune = Callable[..., Run]
LONG_SECONDS = 240.0


def want(run: str, **targets: int | str) -> None:
    """As `rewardtune scale` does it."""
    (board,) = [found for found in running_runs() if found.name == run]
    board.want(targets)  # type: ignore[arg-type]


def states(status: Mapping[str, Any], role: str) -> Counter[str]:
    return Counter(
        worker["state"] for worker in status["workers"] if worker["name"].partition("-")[0] == role
    )


Story = Callable[[dict[str, Any], StopRequest], Iterator[None]]


def follow(story: Story) -> Callable[[Mapping[str, Any], StopRequest], None]:
    """Moves a story on with each status, of which it sees the latest."""
    latest: dict[str, Any] = {}
    telling: list[Iterator[None]] = []
    began = time.monotonic()

    def on_status(status: Mapping[str, Any], stop: StopRequest) -> None:
        latest.update(status)
        if not telling:
            telling.append(story(latest, stop))
        next(telling[0], None)
        if time.monotonic() - began > LONG_SECONDS:
            stop.request()

    return on_status


def test_workers_join_and_drain_while_they_hold_work_and_no_bit_changes(
    tune: Tune, undisturbed: Run, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    set_gate(gate, "shut")

    def story(latest: dict[str, Any], stop: StopRequest) -> Iterator[None]:
        while states(latest, "reward")["running"] < 1:
            yield
        want("scaled", rewards=3, actors=2)
        while states(latest, "reward")["running"] < 3 or states(latest, "sampler")["running"] < 2:
            yield
        # Each has taken groups, and the gate is shut: they drain with work in their hands.
        while latest["queue"]["stages"]["to_score"]["leased"] < 5:
            yield
        want("scaled", rewards=1, actors=1)
        while states(latest, "reward")["draining"] < 2:
            yield
        set_gate(gate, "0")

    gated = [{"path": "tests.odd_rewards:GatedReward", "options": {"gate": str(gate)}}]
    run = tune("scaled", {"rewards.terms": gated}, follow(story))
    queue = run.statuses[-1]["queue"]
    assert gate.read_text() == "0"  # the story came so far
    assert (queue["redelivered"], queue["expired"], queue["quarantined"]) == (0, 0, 0)
    assert_same_weights(run, undisturbed)
    assert [line["step"] for line in read_metrics(run.directory)] == list(range(1, STEPS + 1))
    assert {worker["restarts"] for worker in run.statuses[-1]["workers"]} == {0}


def test_autoscaled_reward_workers_follow_a_load_that_rises_and_falls(
    tune: Tune, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    # One worker scores half a group a second: more are sampled and trained on any machine.
    set_gate(gate, "2")
    told: list[str] = []

    def story(latest: dict[str, Any], stop: StopRequest) -> Iterator[None]:
        while states(latest, "reward") != {"running": 3}:
            yield
        told.append("grown")
        set_gate(gate, "0.0")
        while states(latest, "reward") != {"running": 1}:
            yield
        told.append("shrunk")
        stop.request()

    changes = {
        "rewards.terms": [
            {"path": "tests.odd_rewards:GatedReward", "options": {"gate": str(gate)}}
        ],
        "rewards.autoscale": {"min": 1, "max": 3, "target_wait": 1.0, "settle_seconds": 5},
        "learner.steps": 100_000,
        "learner.checkpoint_every": 100_000,
    }
    run = tune("autoscaled", changes, follow(story))
    assert told == ["grown", "shrunk"]
    assert run.result["state"] == "stopped"
    queue = run.statuses[-1]["queue"]
    assert (queue["redelivered"], queue["expired"], queue["quarantined"]) == (0, 0, 0)
    assert run.statuses[-1]["pools"]["rewards"]["by"] == "autoscale"
