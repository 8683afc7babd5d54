"""A learner in a process outside of Ray trains a run with nothing but addresses and a token."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.config import RunConfig
from deploy.run_directory import read_status
from learner.metrics import read_metrics
from learner.ordinals import read_ordinals, surviving_steps
from protos.edge_client import Peer
from protos.trajectory import Ticket
from replay.queue import QueueUnavailable
from replay.redis_queue import RedisReplayQueue
from replay.remote_queue import RemoteReplayQueue
from tests.integration.test_commands import environment, write_config
from tests.last_step import LastStep
from tests.ports import free_port
from tests.redis_server import MISSING, redis_server
from tests.runs import STEPS, Run, assert_ends_near, changed

WAIT = 240.0


def own_environment() -> dict[str, str]:
    """As of a new shell: the Ray of these tests leaves its mode behind."""
    return {name: value for name, value in environment().items() if name != "RAY_AUTH_MODE"}


class Command:
    """`rewardtune …` as a process of its own."""

    def __init__(self, directory: Path, *arguments: str, env: dict[str, str] | None = None):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "deploy.cli", *arguments],
            cwd=directory,
            env=own_environment() | (env or {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def address(self) -> str:
        assert self.process.stdout is not None
        said = self.process.stdout.readline()
        found = re.search(r"at (127\.0\.0\.1:\d+)", said)
        if found is None:
            raise AssertionError(said + self.process.communicate(timeout=WAIT)[1])
        return found[1]

    def finish(self) -> tuple[int, str]:
        out, errors = self.process.communicate(timeout=WAIT)
        return self.process.returncode, out + errors


class Outside:
    """A run that lacks some of its roles, its two edges, and processes that come and go."""

    def __init__(self, directory: Path, values: dict[str, Any]) -> None:
        self.directory = directory
        self.commands: list[Command] = []
        (directory / "token").write_text("a-token")
        self.config = str(write_config(directory, values, name="outside", runs=str(directory)))

    def start(self, *arguments: str, env: dict[str, str] | None = None) -> Command:
        self.commands.append(Command(self.directory, *arguments, env=env))
        return self.commands[-1]

    def start_run(self, state: str) -> Command:
        run = self.start("tune", self.config)
        self.until(lambda status: status["state"] == state, run)
        return run

    def until(self, condition: Any, run: Command) -> None:
        give_up = time.monotonic() + WAIT
        path = self.directory / "outside"
        while not (path / "status.json").exists() or not condition(read_status(path)):
            assert run.process.poll() is None, run.finish()
            assert time.monotonic() < give_up, "the run did not get there"
            time.sleep(0.1)

    def serve(self, what: str) -> Command:
        return self.start("serve", what, self.config, "--port", "0", "--token-file", "token")

    def learn(
        self,
        replay: str,
        weights: str,
        token: str = "a-token",
        place: str = "elsewhere",
        *also: str,
    ) -> Command:
        (self.directory / place).mkdir(exist_ok=True)
        addresses = ("--replay", replay, "--weights", weights, "--patience", "20")
        options = (*addresses, "--token-env", "T", *also)
        command = Command(self.directory / place, "learn", *options, env={"T": token})
        self.commands.append(command)
        return command

    def learn_on_two_hosts(self, replay: str, weights: str) -> list[Command]:
        """Each in a directory of its own, as on two machines."""
        coordinator = f"127.0.0.1:{free_port()}"
        return [
            self.learn(
                replay, weights, "a-token", place, "--host", host, "--coordinator", coordinator
            )
            for host, place in (("0", "elsewhere"), ("1", "elsewhere-1"))
        ]

    def work(self, role: str, *addresses: str, name: str) -> Command:
        place = self.directory / name
        place.mkdir()
        options = ("--token-env", "T", "--patience", "20", "--name", name)
        command = Command(place, "work", role, *addresses, *options, env={"T": "a-token"})
        self.commands.append(command)
        return command

    def until_trained(self, steps: int, learner: Command) -> None:
        path = self.directory / "elsewhere" / "runs" / "learner"
        give_up = time.monotonic() + WAIT
        while not (path / "metrics.jsonl").exists() or len(list(read_metrics(path))) < steps:
            assert learner.process.poll() is None, learner.finish()
            assert time.monotonic() < give_up, "the learner did not get there"
            time.sleep(0.05)


@contextmanager
def outside(directory: Path, values: dict[str, Any]) -> Iterator[Outside]:
    run = Outside(directory, values)
    try:
        yield run
    finally:
        for command in reversed(run.commands):
            if command.process.poll() is None:
                command.process.send_signal(signal.SIGCONT)
                command.process.terminate()
                try:
                    command.process.communicate(timeout=60)
                except subprocess.TimeoutExpired:
                    command.process.kill()


@pytest.mark.skipif("RAY_ADDRESS" in os.environ, reason="the run starts a Ray of its own")
def test_a_learner_with_an_address_and_a_token_trains_as_one_in_ray_though_it_is_killed(
    undisturbed: Run, tiny_values: dict[str, Any], tmp_path: Path
) -> None:
    last = LastStep(tiny_values, tmp_path, {"learner.outside": True})
    with outside(tmp_path, changed(tiny_values, last.changes)) as run:
        tuning = run.start_run("waiting for a learner")
        replay, weights = run.serve("replay"), run.serve("weights")
        addresses = replay.address(), weights.address()
        code, said = run.learn(*addresses, token="a-guess").finish()
        assert code == 1
        assert "UNAUTHENTICATED" in said
        assert "a-guess" not in said
        first = run.learn(*addresses)
        # A checkpoint is written after three of six: killed while or after it is, another goes on.
        run.until_trained(3, first)
        first.process.kill()
        last.begin()
        second = run.learn(*addresses)
        code, said = second.finish()
        assert code == 0, said
        code, said = tuning.finish()
        assert code == 0, said
        for server in (replay, weights):  # they end with the run
            code, said = server.finish()
            assert code == 0, said
            assert "a-token" not in said
    status = read_status(tmp_path / "outside")
    assert (status["state"], status["step"]) == ("finished", STEPS)
    assert (status["queue"]["quarantined"], status["queue"]["dropped"]) == (0, 0)
    for final in (tmp_path / "outside", tmp_path / "elsewhere" / "runs" / "learner"):
        with np.load(final / "final.npz") as file:
            for name, expected in undisturbed.weights().items():
                np.testing.assert_array_equal(file[name], expected, err_msg=name)


@pytest.mark.skipif("RAY_ADDRESS" in os.environ, reason="the run starts a Ray of its own")
def test_two_hosts_with_an_address_and_a_token_end_near_where_one_does_though_one_is_killed(
    undisturbed: Run, tiny_values: dict[str, Any], tmp_path: Path
) -> None:
    last = LastStep(tiny_values, tmp_path, {"learner.outside": True, "learner.hosts": 2})
    with outside(tmp_path, changed(tiny_values, last.changes)) as run:
        tuning = run.start_run("waiting for a learner")
        replay, weights = run.serve("replay"), run.serve("weights")
        addresses = replay.address(), weights.address()
        first, second = run.learn_on_two_hosts(*addresses)
        run.until_trained(3, first)
        second.process.kill()
        last.begin()
        code, said = first.finish()
        assert code == 1, said
        assert "HostLost: host 0 of 2 cannot go on without the others" in said
        assert "the same command on every host resumes from the last checkpoint" in said
        for command in (*run.learn_on_two_hosts(*addresses), tuning, replay, weights):
            code, said = command.finish()
            assert code == 0, said
            assert "a-token" not in said
    status = read_status(tmp_path / "outside")
    assert (status["state"], status["step"]) == ("finished", STEPS)
    assert (status["queue"]["quarantined"], status["queue"]["dropped"]) == (0, 0)
    learner = tmp_path / "elsewhere" / "runs" / "learner"
    steps = surviving_steps(read_ordinals(learner))
    assert [o for step in steps for o in step.trained] == list(range(4 * STEPS))
    for final in (tmp_path / "outside", learner):
        with np.load(final / "final.npz") as file:
            assert_ends_near(dict(file), undisturbed.weights(), tiny_values)


@pytest.mark.skipif("RAY_ADDRESS" in os.environ, reason="the run starts a Ray of its own")
def test_workers_with_an_address_and_a_token_do_all_the_work_of_a_run_that_has_none(
    undisturbed: Run, tiny_values: dict[str, Any], tmp_path: Path
) -> None:
    last = LastStep(tiny_values, tmp_path, {"actors.count": 0, "rewards.count": 0})
    with outside(tmp_path, changed(tiny_values, last.changes)) as run:
        tuning = run.start_run("waiting")
        replay, weights = run.serve("replay"), run.serve("weights")
        to_replay, to_weights = ("--replay", replay.address()), ("--weights", weights.address())
        first = run.work("reward", *to_replay, name="first")
        names = lambda status: [worker["name"] for worker in status["outside"]]  # noqa: E731
        run.until(lambda status: names(status) == ["reward@first"], tuning)
        sampler = run.work("sampler", *to_replay, *to_weights, name="sampler")
        run.until(lambda status: status["step"] >= 1, tuning)
        first.process.terminate()
        code, said = first.finish()
        assert code == 0, said
        last.begin()
        second = run.work("reward", *to_replay, name="second")
        for command in (tuning, sampler, second, replay, weights):
            code, said = command.finish()
            assert code == 0, said
            assert "a-token" not in said
    status = read_status(tmp_path / "outside")
    assert (status["state"], status["step"]) == ("finished", STEPS)
    queue = status["queue"]
    assert (queue["quarantined"], queue["dropped"], queue["redelivered"]) == (0, 0, 0)
    with np.load(tmp_path / "outside" / "final.npz") as file:
        for name, expected in undisturbed.weights().items():
            np.testing.assert_array_equal(file[name], expected, err_msg=name)


@pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
def test_a_queue_on_redis_is_served_without_ray(
    tiny_values: dict[str, Any], tmp_path: Path
) -> None:
    config = RunConfig.model_validate(tiny_values)
    path = write_config(tmp_path, tiny_values)
    (tmp_path / "token").write_text("a-token")
    with redis_server() as redis:
        connection = redis.connect()
        where = ("--redis", redis.url, "--port", "0", "--token-file", "token", "--wait", str(WAIT))
        server = Command(tmp_path, "serve", "replay", str(path), *where)
        made = RedisReplayQueue(connection, config.name)  # the server waits for it
        made.open(config.queue_config(), "the tests", "a run", config.model_dump_json())
        try:
            queue = RemoteReplayQueue(
                Peer(server.address(), token_file=tmp_path / "token", patience=10)
            )
            run = queue.run()
            assert run.name == config.name
            assert RunConfig.model_validate_json(run.config).identity() == config.identity()
            leases = queue.lease("to_sample", 1, None, "s")
            assert [Ticket.from_bytes(lease.payload).ordinal for lease in leases] == [0, 1]
            with pytest.raises(ValueError, match="not a Sampled"):
                queue.complete([(leases[0].id, b"\xff")])
            queue.disconnect()
            server.process.send_signal(signal.SIGTERM)
            code, said = server.finish()
        finally:
            server.process.kill()
            connection.close()
    assert code == 0, said
    assert "a-token" not in said


@pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
def test_a_server_on_redis_ends_when_another_run_has_taken_the_name(
    tiny_values: dict[str, Any], tmp_path: Path
) -> None:
    config = RunConfig.model_validate(tiny_values)
    path = write_config(tmp_path, tiny_values)
    with redis_server() as redis:
        connection = redis.connect()
        made = RedisReplayQueue(connection, config.name)
        made.open(config.queue_config(), "the tests", "a run", config.model_dump_json())
        server = Command(tmp_path, "serve", "replay", str(path), "--redis", redis.url, "--port=0")
        try:
            queue = RemoteReplayQueue(Peer(server.address(), patience=1))
            assert len(queue.lease("to_sample", 1, None, "s")) == 2
            other = config.model_copy(update={"seed": config.seed + 1})
            made.open(other.queue_config(), "the tests", "another", other.model_dump_json())
            while server.process.poll() is None:
                with suppress(QueueUnavailable):  # not that the run is over: it may go on
                    queue.frontier()
            queue.disconnect()
            code, said = server.finish()
        finally:
            server.process.kill()
            connection.close()
    assert code == 0, said
    assert "stops: the run has another config now" in said
