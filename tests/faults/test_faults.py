"""What real faults cost: a killed or stopped process costs nothing, a bad reward its own group."""

import os
import random
import re
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.evaluator import read_evaluations
from deploy.cluster import PlacementError
from deploy.run_directory import read_status
from deploy.workers import WorkerError
from learner.metrics import read_metrics
from learner.ordinals import read_ordinals, surviving_steps
from learner.stop import StopRequest
from learner.tune import NothingToTrainError
from tests.integration.test_tune import assert_same_weights
from tests.last_step import LastStep
from tests.runs import SIGCONT, SIGKILL, SIGSTOP, STEPS, Run, signal_worker

Tune = Callable[..., Run]
SLOW = [{"path": "tests.odd_rewards:SlowReward", "options": {"seconds": 0.2}}]


@pytest.fixture
def last(tiny_values: dict[str, Any], tmp_path: Path) -> LastStep:
    """The last step of a slow run, which waits until the fault has been done."""
    return LastStep(tiny_values, tmp_path)


def strike_once(
    signals: Mapping[str, int], at_step: int, last: LastStep | None = None
) -> Callable[..., None]:
    """Signals each named worker once, from the given step on; then the last step may begin."""
    left = dict(signals)

    def strike(status: Mapping[str, Any], stop: StopRequest) -> None:
        for name, number in list(left.items()):
            if status["step"] >= at_step and signal_worker(status, name, number):
                del left[name]
        if last is not None and not left:
            last.begin()

    return strike


def restarts(run: Run, name: str) -> int:
    """How often a worker was replaced."""
    return next(w["restarts"] for w in run.statuses[-1]["workers"] if w["name"] == name)


def test_killed_sampler_and_reward_worker_change_no_bit(
    tune: Tune, undisturbed: Run, last: LastStep
) -> None:
    strike = strike_once({"sampler": SIGKILL, "reward": SIGKILL}, 1, last)
    run = tune("killed-workers", last.changes, strike)
    assert restarts(run, "sampler") == restarts(run, "reward") == 1
    assert_same_weights(run, undisturbed)


@pytest.mark.parametrize("checkpoint_every", [1, 100])
def test_a_killed_learner_resumes_to_the_same_bits(
    tune: Tune, undisturbed: Run, last: LastStep, checkpoint_every: int
) -> None:
    # With 100 it goes back to the start, further than the weight store keeps versions.
    changes = last.changes | {"learner.checkpoint_every": checkpoint_every}
    name = f"killed-learner-{checkpoint_every}"
    run = tune(name, changes, strike_once({"learner": SIGKILL}, 4, last))
    assert restarts(run, "learner") == 1
    assert_same_weights(run, undisturbed)
    assert [line["step"] for line in read_metrics(run.directory)] == list(range(1, STEPS + 1))


class FiveKills:
    """Kills the learner at five moments of a seed: some while it starts, some while it trains.

    Then the last of the steps may begin.
    """

    def __init__(self, seed: int, steps: int, last: LastStep) -> None:
        self._random, self._steps, self._last = random.Random(seed), steps, last
        self._aimed_at: set[int] = set()
        self.kills = 0
        self._plan(step=0)

    def _plan(self, step: int) -> None:
        self._starting = self._random.random() < 0.4
        self._from_step = min(step + self._random.randint(1, 3), self._steps - 1)

    def __call__(self, status: Mapping[str, Any], stop: StopRequest) -> None:
        (learner,) = (worker for worker in status["workers"] if worker["name"] == "learner")
        pid, aimed_at = learner["pid"], self._aimed_at
        if len(aimed_at) == 5 or learner["state"] != "running" or pid in {None, *aimed_at}:
            return
        if not self._starting and status["step"] < self._from_step:
            return
        aimed_at.add(pid)
        seconds = self._random.uniform(0, 6 if self._starting else 1)
        threading.Timer(seconds, self._kill, (pid,)).start()
        self._plan(status["step"])

    def _kill(self, pid: int) -> None:
        os.kill(pid, SIGKILL)
        self.kills += 1
        if self.kills == 5:
            self._last.begin()


def test_a_learner_killed_five_times_in_a_run_ends_with_the_same_bits(
    tune: Tune, tiny_values: dict[str, Any], tmp_path: Path
) -> None:
    changes = {
        "task.data.train": 4 * 20,
        "learner.steps": 20,
        "learner.checkpoint_every": 2,
    }
    undisturbed = tune("not-killed", changes)
    last = LastStep(tiny_values, tmp_path, changes)
    kills = FiveKills(4, 20, last)
    run = tune("killed-five-times", last.changes, kills)
    assert kills.kills == restarts(run, "learner") == 5
    assert_same_weights(run, undisturbed)
    assert [line["step"] for line in read_metrics(run.directory)] == list(range(1, 21))
    assert run.statuses[-1]["queue"]["quarantined"] == 0
    steps = surviving_steps(read_ordinals(run.directory))
    assert [o for step in steps for o in step.trained] == list(range(4 * 20))


@pytest.mark.parametrize(
    ("service", "number", "checkpoint_every"),
    [
        ("queue", SIGKILL, 100),
        ("weights", SIGKILL, 1),
        ("queue", SIGSTOP, 1),
        ("weights", SIGSTOP, 100),
    ],
)
def test_a_killed_or_stopped_service_is_started_anew_and_the_learner_goes_back(
    tune: Tune,
    undisturbed: Run,
    last: LastStep,
    service: str,
    number: int,
    checkpoint_every: int,
) -> None:
    changes = last.changes | {
        "learner.checkpoint_every": checkpoint_every,
        "cluster.reply_seconds": 30,
    }
    name = f"struck-{service}-{number}"
    run = tune(name, changes, strike_once({service: number}, 3, last))
    services = {each["name"]: each for each in run.statuses[-1]["services"]}
    assert services[service]["restarts"] == 1
    assert restarts(run, "learner") >= 1  # in the same process
    assert_same_weights(run, undisturbed)
    assert run.statuses[-1]["queue"]["quarantined"] == 0
    steps = surviving_steps(read_ordinals(run.directory))
    assert [o for step in steps for o in step.trained] == list(range(4 * STEPS))


def test_the_last_policy_is_evaluated_though_the_weight_store_dies_after_the_learner(
    tune: Tune,
) -> None:
    stop_evaluator = strike_once({"evaluator": SIGSTOP}, at_step=0)
    kill_store = strike_once({"weights": SIGKILL}, at_step=STEPS)
    go_on = strike_once({"evaluator": SIGCONT}, at_step=STEPS)

    def strike(status: Mapping[str, Any], stop: StopRequest) -> None:
        stop_evaluator(status, stop)
        states = {worker["name"]: worker["state"] for worker in status["workers"]}
        if states["learner"] == "ended":
            kill_store(status, stop)
        if any(service["restarts"] for service in status["services"]):
            go_on(status, stop)

    run = tune("store-dies-last", {"evaluation.every": STEPS, "rewards.terms": SLOW}, strike)
    assert run.result["state"] == "finished"
    assert [line["step"] for line in read_evaluations(run.directory)][-1:] == [STEPS]


def test_a_killed_host_ends_the_others_and_the_group_resumes_to_the_same_bits(
    tune: Tune, two_hosts: Run, last: LastStep
) -> None:
    left = [("learner-1", 2), ("learner-0", 4)]

    def strike(status: Mapping[str, Any], stop: StopRequest) -> None:
        struck = 2 - len(left)
        if left and all(
            w["restarts"] == struck for w in status["workers"] if w["role"] == "learner"
        ):
            name, at_step = left[0]
            if status["step"] >= at_step and signal_worker(status, name, SIGKILL):
                del left[0]
        if not left:
            last.begin()

    changes = last.changes | {"learner.hosts": 2, "learner.checkpoint_every": 1}
    run = tune("killed-hosts", changes, strike)
    assert restarts(run, "learner-0") == restarts(run, "learner-1") == 2
    assert_same_weights(run, two_hosts)
    assert [line["step"] for line in read_metrics(run.directory)] == list(range(1, STEPS + 1))


@pytest.mark.parametrize("host", ["learner-0", "learner-1"])
def test_a_stopped_host_ends_the_others_and_the_group_resumes_to_the_same_bits(
    tune: Tune, two_hosts: Run, last: LastStep, host: str
) -> None:
    changes = last.changes | {
        "learner.hosts": 2,
        "learner.checkpoint_every": 1,
        "learner.lease_seconds": 20,  # a step, its compilation included, takes less
    }
    run = tune(f"stopped-{host}", changes, strike_once({host: SIGSTOP}, 3, last))
    # The others wait for it in what all of them compute, and cannot tell why.
    assert restarts(run, "learner-0") == restarts(run, "learner-1") >= 1
    assert_same_weights(run, two_hosts)
    assert [line["step"] for line in read_metrics(run.directory)] == list(range(1, STEPS + 1))
    assert run.statuses[-1]["queue"]["quarantined"] == 0
    steps = surviving_steps(read_ordinals(run.directory))
    assert [o for step in steps for o in step.trained] == list(range(4 * STEPS))


@pytest.mark.parametrize("worker", ["reward", "sampler"])
def test_stopped_workers_are_found_and_replaced(
    tune: Tune, undisturbed: Run, last: LastStep, worker: str
) -> None:
    changes = last.changes | {
        "rewards.lease_seconds": 3,
        "actors.lease_seconds": 3,
    }
    run = tune(f"stopped-{worker}", changes, strike_once({worker: SIGSTOP}, 1, last))
    assert restarts(run, worker) >= 1
    assert_same_weights(run, undisturbed)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("raises", "ValueError: this example is cursed"),
        ("wrong length", "returned 1 outcomes for 2 predictions"),
        ("infrastructure", "InfrastructureError: the scoring service did not answer"),
    ],
)
def test_a_faulty_reward_costs_its_own_group_only(tune: Tune, fault: str, reason: str) -> None:
    faulty = {"path": "tests.odd_rewards:FaultyReward", "options": {"fault": fault}}
    run = tune(f"reward-{fault.replace(' ', '-')}", {"rewards.terms": [faulty]})
    queue = run.statuses[-1]["queue"]
    assert run.result["state"] == "finished"
    lines = list(read_metrics(run.directory))
    quarantined = sum(line["groups/quarantined"] for line in lines)
    # Of the 24 groups, those of the examples 18, 36, 42 and 54: every sixth of the data is bad.
    assert quarantined == queue["quarantined"] == 4
    assert any(reason in line for line in queue["last_reasons"])
    log = (run.directory / "logs" / "reward.log").read_text()
    assert reason in log
    assert re.search(r"ordinal \d+, example scene-\d+", log)


def test_a_reward_that_never_works_ends_the_run_with_its_reason(
    tune: Tune, tiny_values: dict[str, Any]
) -> None:
    faulty = {"path": "tests.odd_rewards:FaultyReward", "options": {"fault": "raises", "every": 1}}
    with pytest.raises(NothingToTrainError, match="this example is cursed"):
        tune("reward-never-works", {"rewards.terms": [faulty]})
    status = read_status(Path(tiny_values["runs"]) / "reward-never-works")
    assert status["state"] == "failed"
    assert {worker["state"] for worker in status["workers"]} == {"ended"}


@pytest.mark.parametrize(
    ("fault", "reason"), [("nan", "nan"), ("huge", r"3e\+38; at most 1,000,000")]
)
def test_what_cannot_be_trained_on_fails_its_sample_and_its_group_has_too_few_left(
    tune: Tune, fault: str, reason: str
) -> None:
    faulty = {"path": "tests.odd_rewards:FaultyReward", "options": {"fault": fault}}
    run = tune(f"reward-{fault}", {"rewards.terms": [faulty]})
    assert run.result["state"] == "finished"
    lines = list(read_metrics(run.directory))
    assert sum(line["groups/quarantined"] for line in lines) == 0
    # One of two samples is left, which is too few for a baseline: 4 of 24 groups, 8 of 48 samples.
    assert np.isclose(np.mean([line["reward/unscored_share"] for line in lines]), 4 / 48)
    assert np.isclose(np.mean([line["groups/dropped_share"] for line in lines]), 4 / 24)
    log = (run.directory / "logs" / "reward.log").read_text()
    assert re.search(f"gave the reward {reason}", log)


def test_a_hanging_reward_is_ended_and_its_group_scored_by_the_next_process(
    tune: Tune, undisturbed: Run, tmp_path: Path
) -> None:
    options = {"fault": "hangs", "marks": str(tmp_path), "once": True, "every": 17}
    changes = {
        "rewards.terms": [{"path": "tests.odd_rewards:FaultyReward", "options": options}],
        "rewards.deadline_seconds": 3,
        "rewards.lease_seconds": 3,
    }
    run = tune("reward-hangs", changes)
    fell_ill = len(list(tmp_path.iterdir()))
    assert fell_ill >= 1
    assert restarts(run, "reward") >= 1
    assert any(
        "exceeded its deadline of 3 s" in r for r in run.statuses[-1]["queue"]["last_reasons"]
    )
    assert_same_weights(run, undisturbed)


def test_what_no_node_can_hold_is_reported_with_what_there_is(tune: Tune) -> None:
    changes = {"actors.resources": {"num_gpus": 2}, "cluster.placement_seconds": 1}
    with pytest.raises(PlacementError, match=r"no node can hold sampler .*GPU 2.*has CPU 8"):
        tune("infeasible", changes)


def test_a_label_that_no_node_carries_is_reported(tune: Tune) -> None:
    changes = {
        "rewards.resources": {"labels": {"pool": "reward"}},
        "cluster.placement_seconds": 1,
    }
    with pytest.raises(PlacementError, match="label pool=reward"):
        tune("no-such-label", changes)


def test_a_worker_that_dies_again_and_again_ends_the_run_with_its_reason(tune: Tune) -> None:
    stopping = threading.Event()

    def kill_always(status: Mapping[str, Any], stop: StopRequest) -> None:
        if not stopping.is_set():
            signal_worker(status, "reward", SIGKILL)

    # Few are enough, and come within the time in which they are counted, however slow each is.
    few = {"cluster.failures_allowed": 2}
    changes = {"learner.steps": 1000, "rewards.terms": SLOW} | few
    with pytest.raises(WorkerError, match=r"reward failed \d times within .* died"):
        tune("always-killed", changes, kill_always)
    stopping.set()
