"""A reward worker outside of Ray ends as it should: asked to, or stuck."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from deploy.config import RunConfig
from deploy.config_file import ConfigError
from deploy.joining import check_task, joined_config
from deploy.processes import ticket_source
from protos.trajectory import Sampled
from replay.memory import MemoryReplayQueue
from replay.queue import Stage
from replay.remote_queue import ServedRun
from rewards.facts import task_facts
from tests.edges import serving_queue
from tests.queues import Loop, memory
from tests.remote_rewards import WAIT
from vision.tasks.registry import build_task

REPOSITORY = Path(__file__).resolve().parents[2]


@contextmanager
def working(tiny_values, directory, reward, held_before=0, over=False, **rewards):
    """A queue with four groups to score, and a worker of them, which has held some before."""
    terms = [{"path": f"tests.odd_rewards:{reward[0]}", "options": reward[1]}]
    changed = {
        "rewards": tiny_values["rewards"] | {"terms": terms, "groups_per_lease": 4} | rewards
    }
    config = RunConfig.model_validate(tiny_values | changed)
    task = build_task(config.task)
    source = ticket_source(config, task)
    with memory() as open_queue:
        loop = open_queue(config.queue_config())._loop
        queue = Loop(MemoryReplayQueue(config.queue_config(), source), loop)
        for lease in queue.lease("to_sample", 2, None, "s"):
            tokens = np.zeros((2, task.max_length), np.int32)
            ticket = source.ticket(lease.ordinal)
            logprobs = np.zeros(tokens.shape, np.float32)
            sampled = Sampled(ticket, tokens, logprobs, ticket.policy_version or 0, "jax")
            queue.complete([(lease.id, sampled.to_bytes())])
        if held_before:
            queue.lease("to_score", held_before, 3600.0, "reward@w")
        server, service = serving_queue(
            queue, config=config.model_dump_json(), task=task_facts(task)
        )
        if over:
            queue.close()
            service.look()
            assert service.end()
        with server:
            arguments = (
                "work",
                "reward",
                "--replay",
                server.address,
                "--name",
                "w",
                "--grace",
                "0",
            )
            worker = subprocess.Popen(
                [sys.executable, "-m", "deploy.cli", *arguments],
                cwd=directory,
                env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
                stderr=subprocess.PIPE,
                text=True,
            )
            try:
                yield queue, worker
            finally:
                worker.kill()
                worker.communicate()
        service.close()


def until(condition, worker):
    give_up = time.monotonic() + WAIT
    while not condition():
        assert worker.poll() is None, worker.communicate()
        assert time.monotonic() < give_up
        time.sleep(0.02)


def test_a_worker_that_is_asked_to_stop_gives_back_what_it_holds_untried(tiny_values, tmp_path):
    marks = tmp_path / "marks"
    marks.mkdir()
    hangs = ("FaultyReward", {"fault": "hangs", "every": 1, "marks": str(marks)})
    with working(tiny_values, tmp_path, hangs) as (queue, worker):
        until(lambda: list(marks.iterdir()), worker)  # it holds all four, and is at work on one
        assert queue.stats().stages[Stage.TO_SCORE].leased == 4
        worker.send_signal(signal.SIGTERM)
        _, said = worker.communicate(timeout=WAIT)
        assert worker.returncode == 0, said
        assert "reward@w was asked to stop; 4 groups go to others" in said
        again = queue.lease("to_score", 4, None, "r")
        assert [(lease.ordinal, lease.delivery) for lease in again] == [(n, 1) for n in range(4)]


def test_a_worker_that_comes_when_the_run_is_over_ends_well(tiny_values, tmp_path):
    with working(tiny_values, tmp_path, ("SmoothReward", {}), over=True) as (_, worker):
        _, said = worker.communicate(timeout=WAIT)
    assert worker.returncode == 0, said
    assert "reward ends: the run is over" in said
    assert "Traceback" not in said


def test_a_worker_that_is_started_anew_gives_back_what_killed_it_as_failed(tiny_values, tmp_path):
    slow = ("SlowReward", {"seconds": 3600})
    with working(tiny_values, tmp_path, slow, held_before=2) as (queue, worker):
        until(lambda: queue.stats().last_reasons, worker)
        reasons = queue.stats().last_reasons
        assert [reason.partition(":")[0] for reason in reasons] == [
            "ordinal 0, to_score",
            "ordinal 1, to_score",
        ]
        assert all("reward@w was started anew" in reason for reason in reasons)


def test_a_worker_whose_reward_hangs_ends_with_its_own_code_and_fails_that_group_alone(
    tiny_values, tmp_path
):
    hangs = ("SlowReward", {"seconds": 3600})
    with working(tiny_values, tmp_path, hangs, deadline_seconds=0.3) as (queue, worker):
        _, said = worker.communicate(timeout=WAIT)
        assert worker.returncode == 70, said
        assert "exceeded its deadline of 0.3 s" in said
        again = queue.lease("to_score", 4, 60.0, "r")
        assert [(lease.ordinal, lease.delivery) for lease in again] == [
            (0, 2), (1, 1), (2, 1), (3, 1)
        ]  # fmt: skip


def test_a_worker_of_a_run_that_is_over_ends_well(tiny_values, tmp_path):
    with working(tiny_values, tmp_path, ("SmoothReward", {})) as (queue, worker):
        until(lambda: queue.stats().stages[Stage.TO_TRAIN].ready == 4, worker)
        queue.close()
        _, said = worker.communicate(timeout=WAIT)
        assert worker.returncode == 0, said
        assert "reward@w ends after 4 groups: the run is over" in said


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("learner.samples_per_group=3", r"learner\.samples_per_group is 3, in the run 2"),
        ("task.data.train=65", r"task\.data\.train is 65, in the run 64"),
    ],
)
def test_a_worker_with_another_config_is_refused_by_the_setting(given, says, tiny_values):
    config = RunConfig.model_validate(tiny_values)
    served = ServedRun(config.name, config.model_dump_json(), {})
    assert joined_config(served, "h:1", None, ["rewards.groups_per_lease=1"]).name == config.name
    with pytest.raises(ConfigError, match=rf"the run tiny that h:1 serves: {says}"):
        joined_config(served, "h:1", None, [given])


def test_a_worker_with_other_data_is_refused_by_what_differs(tiny_values):
    task = build_task(RunConfig.model_validate(tiny_values).task)
    facts = task_facts(task)
    check_task(task, ServedRun("tiny", "{}", facts), "h:1")
    odd = facts | {"training examples": "9, another"}
    with pytest.raises(ConfigError, match=r"training examples: here 64, .*, there 9, another"):
        check_task(task, ServedRun("tiny", "{}", odd), "h:1")
