"""A run on Redis is killed as a whole, and the same command resumes it."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.run_directory import read_status
from replay.queue import Stage
from replay.redis_queue import RedisReplayQueue
from tests.integration.test_commands import environment, processes_of, write_config
from tests.last_step import LastStep
from tests.redis_server import MISSING, redis_server
from tests.runs import STEPS, Run, changed, wait_until_gone

WAIT = 240.0


def survivors_of(queue: RedisReplayQueue) -> int:
    """Groups that have been sampled and not trained."""
    stages = queue.stats().stages
    return sum(stages[s].ready + stages[s].leased for s in (Stage.TO_SCORE, Stage.TO_TRAIN))


def start(directory: Path, config: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "deploy.cli", "tune", str(config)],
        cwd=directory,
        env={name: value for name, value in environment().items() if name != "RAY_AUTH_MODE"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
@pytest.mark.skipif("RAY_ADDRESS" in os.environ, reason="the run starts a Ray of its own")
def test_a_run_that_is_killed_as_a_whole_samples_nothing_again_that_survived_in_redis(
    undisturbed: Run, tiny_values: dict[str, Any], tmp_path: Path
) -> None:
    directory = tmp_path / "killed"
    with redis_server("--maxmemory-policy", "noeviction") as server:
        last = LastStep(tiny_values, tmp_path, {"learner.checkpoint_every": 1})
        changes = {"runs": str(tmp_path), "replay.url": server.url}
        values = changed(tiny_values, last.changes | changes)
        config = write_config(tmp_path, values, name="killed")
        connection = server.connect()
        queue = RedisReplayQueue(connection, "killed")
        first = start(tmp_path, config)
        give_up = time.monotonic() + WAIT
        while not ((directory / "checkpoints" / "2").is_dir() and survivors_of(queue)):
            assert first.poll() is None, first.communicate()[0]
            assert time.monotonic() < give_up
            time.sleep(0.05)
        workers = processes_of(directory)
        # Ray ends its own when the command is gone; all that knows of the run dies here at once.
        for process in {first.pid, *workers}:
            with suppress(ProcessLookupError):  # Ray was quicker
                os.kill(process, signal.SIGKILL)
        first.communicate()
        assert wait_until_gone(workers) == []
        survivors = survivors_of(queue)
        last.begin()
        names = [entry.name for entry in (directory / "checkpoints").iterdir()]
        saved = max(int(name) for name in names if name.isdigit())
        second = start(tmp_path, config)
        said, _ = second.communicate(timeout=WAIT)
        assert second.returncode == 0, said
        connection.close()
    status = read_status(directory)
    assert (status["state"], status["step"]) == ("finished", STEPS)
    (sampled,) = (w["groups"] for w in status["workers"] if w["name"] == "sampler")
    assert survivors > 0
    assert sampled == (STEPS - saved) * values["learner"]["groups_per_step"] - survivors
    with np.load(directory / "final.npz") as file:
        for name, expected in undisturbed.weights().items():
            np.testing.assert_array_equal(file[name], expected, err_msg=name)
