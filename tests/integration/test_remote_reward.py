"""Tuning with rewards computed elsewhere: the same weights, and nothing lost or held up."""

import asyncio
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import aiohttp

from deploy.config import RunConfig
from learner.metrics import read_metrics
from learner.stop import StopRequest
from protos.trajectory import FailureKind
from rewards.judge import group_failure, start
from rewards.remote import RemoteReward
from rewards.service import EXIT_STUCK
from tests.integration.test_commands import environment, rewardtune, write_config
from tests.integration.test_human_page_browser import groups, people
from tests.integration.test_tune import assert_same_weights
from tests.last_step import LastStep
from tests.ports import free_port
from tests.runs import STEPS, Run, changed
from vision.tasks.registry import build_task

WAIT = 120.0
Tune = Callable[..., Run]


class RewardServer:
    """`rewardtune serve reward` as a process that can be killed and started again."""

    def __init__(self, directory: Path, values: dict[str, Any], token: str):
        self._directory = directory
        self._config = write_config(directory, values, runs=str(directory))
        (directory / "token").write_text(token)
        self.port = str(free_port())  # nobody else is given it between two servers
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "deploy.cli", "serve", "reward", str(self._config)]
        self.process = subprocess.Popen(
            [*command, "--port", self.port, "--token-file", str(self._directory / "token")],
            cwd=self._directory,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        said = self.process.stdout.readline()
        if f"at 127.0.0.1:{self.port}" not in said:
            raise AssertionError(said + self.process.communicate(timeout=WAIT)[1])

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=WAIT)


def test_weights_are_those_of_the_local_reward_though_the_server_is_killed(
    tune: Tune, undisturbed: Run, tiny_values: dict[str, Any], tmp_path: Path
) -> None:
    last = LastStep(tiny_values, tmp_path)
    server = RewardServer(tmp_path, changed(tiny_values, last.changes), "a-token")
    killed: list[int] = []

    def kill_at_two(status: Mapping[str, Any], stop: StopRequest) -> None:
        if status["step"] >= 2 and not killed:
            killed.append(status["step"])
            server.kill()
            last.begin()
            server.start()

    remote = {
        "path": "rewards.remote:RemoteReward",
        "options": {
            "address": f"127.0.0.1:{server.port}",
            "token_file": str(tmp_path / "token"),
            "in_flight": 3,
        },
    }
    try:
        run = tune("remote", {"rewards.terms": [remote]}, kill_at_two)
        server.process.send_signal(signal.SIGTERM)
        _, errors = server.process.communicate(timeout=WAIT)
    finally:
        server.process.kill()
    assert 2 <= killed[0] < STEPS
    assert_same_weights(run, undisturbed)
    queue = run.statuses[-1]["queue"]
    assert (queue["quarantined"], queue["dropped"]) == (0, 0)
    assert server.process.returncode == 0, errors
    assert "GatedReward at 127.0.0.1" in errors
    assert "stops" in errors
    assert "a-token" not in errors


def test_a_server_that_is_away_for_longer_than_all_tries_costs_no_group(
    tune: Tune, undisturbed: Run, tiny_values: dict[str, Any], tmp_path: Path
) -> None:
    last = LastStep(tiny_values, tmp_path)
    server = RewardServer(tmp_path, changed(tiny_values, last.changes), "a-token")
    away: list[str] = []

    def come_back_late(status: Mapping[str, Any], stop: StopRequest) -> None:
        (worker,) = (one for one in status["workers"] if one["name"] == "reward")
        if server.process.poll() is None and status["step"] >= 2 and not away:
            server.kill()
            last.begin()
        if worker["restarts"] >= 4 and not away:  # more often than a group may be tried
            away.append(worker["last_failure"])
            server.start()

    options = {
        "address": f"127.0.0.1:{server.port}",
        "token_file": str(tmp_path / "token"),
        "retries": 1,
        "connect_seconds": 3,
    }
    terms = [{"path": "rewards.remote:RemoteReward", "options": options}]
    changes = {"rewards.terms": terms, "cluster.failures_allowed": 1000}
    try:
        run = tune("remote-away", changes, come_back_late)
    finally:
        server.process.kill()
    assert f"no reward answers at 127.0.0.1:{server.port}" in away[0]
    assert_same_weights(run, undisturbed)
    queue = run.statuses[-1]["queue"]
    assert (queue["quarantined"], queue["dropped"]) == (0, 0)


def test_a_server_whose_reward_hangs_says_so_and_exits(
    tmp_path: Path, tiny_values: dict[str, Any]
) -> None:
    hanging = {"path": "tests.odd_rewards:FaultyReward", "options": {"fault": "hangs", "every": 1}}
    values = tiny_values | {"rewards": {"terms": [hanging], "deadline_seconds": 0.5}}
    server = RewardServer(tmp_path, values, "a-token")
    task = build_task(RunConfig.model_validate(tiny_values).task)
    away = RemoteReward(
        task, f"127.0.0.1:{server.port}", token_file=str(tmp_path / "token"), deadline_seconds=WAIT
    )
    (group,) = groups(task, 2, 1)
    failure = group_failure(start(away, group).exception(WAIT))
    assert failure.kind is FailureKind.INFRASTRUCTURE
    assert "exceeded its deadline of 0.5 s" in failure.reason
    _, errors = server.process.communicate(timeout=WAIT)
    assert server.process.returncode == EXIT_STUCK
    assert "the server ends" in errors
    away.close()


def test_a_config_whose_reward_is_elsewhere_itself_is_not_served(
    tmp_path: Path, tiny_values: dict[str, Any]
) -> None:
    remote = {"path": "rewards.remote:RemoteReward", "options": {"address": "127.0.0.1:1"}}
    config = write_config(tmp_path, tiny_values | {"rewards": {"terms": [remote]}})
    result = rewardtune("serve", "reward", str(config), cwd=tmp_path)
    assert result.returncode == 1
    assert "is computed elsewhere itself" in result.stderr
    assert "Traceback" not in result.stderr


class Person(threading.Thread):
    """Answers what the page offers, but leaves the first group lying until `steps` are trained."""

    def __init__(self, url: str, steps: int):
        super().__init__(daemon=True)
        self.trained = 0
        self.answers = 0
        self._base, _, self._token = url.partition("?token=")
        self._steps = steps
        self._over = threading.Event()

    def run(self) -> None:
        asyncio.run(self._judge())

    def leave(self) -> None:
        self._over.set()
        self.join(WAIT)

    async def _judge(self) -> None:
        async with aiohttp.ClientSession(self._base, headers={"X-Token": self._token}) as session:
            first: str | None = None
            while not self._over.is_set():
                # A new pair of eyes each time: nobody else is offered what one looks at.
                viewer = "first" if first is None else str(self.answers)
                async with session.get("/next", params={"viewer": viewer}) as response:
                    group = (await response.json())["group"]
                if first is None and group is not None:
                    first = group["key"]
                    continue
                if first and self.trained >= self._steps:
                    group, first = {"key": first}, ""
                if group is None:
                    await asyncio.sleep(0.02)
                    continue
                body = {"key": group["key"], "ranks": [1, 2]}
                async with session.post("/answer", json=body) as response:
                    assert response.status == 200, await response.text()
                self.answers += 1


def test_a_group_that_waits_for_a_person_holds_up_nobody(
    tune: Tune, tiny_values: dict[str, Any], tmp_path: Path
) -> None:
    with people(tmp_path, tiny_values) as (address, url):
        person = Person(url, steps=3)
        person.start()

        def tell(status: Mapping[str, Any], stop: StopRequest) -> None:
            person.trained = status["step"]

        reward = {
            "path": "rewards.remote:RemoteReward",
            "options": {"address": address, "deadline_seconds": WAIT, "in_flight": 64},
        }
        changes = {
            "replay.mode": "async",
            "replay.max_policy_lag": 8,
            "rewards.terms": [reward],
            "learner.reinforce": {"auxiliary_weight": 0.0},
        }
        run = tune("person", changes, tell)
        person.leave()
    lines = list(read_metrics(run.directory))
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    # One reward worker held it with the others; three steps were trained before its answer came.
    assert max(line["staleness/max"] for line in lines) >= 3
    queue = run.statuses[-1]["queue"]
    assert (queue["quarantined"], queue["redelivered"]) == (0, 0)
    assert person.answers >= STEPS * run.config.learner.groups_per_step
