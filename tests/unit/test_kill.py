"""A process is ended on its node, and nobody waits for a node that does not answer."""

import logging
import os
import signal
import subprocess
import threading
import types

import pytest
from ray.exceptions import GetTimeoutError

from deploy import kill

THERE = "ab" * 28


class LostNode:
    """Ray with a node that answers when the test lets it."""

    def __init__(self):
        self.asked = threading.Semaphore(0)
        self.answers = threading.Event()

    def get_runtime_context(self):
        return types.SimpleNamespace(get_node_id=lambda: "here")

    def remote(self, **options):
        task = types.SimpleNamespace(remote=lambda *arguments: arguments)
        return lambda function: types.SimpleNamespace(options=lambda **more: task)

    def get(self, call, timeout):
        self.asked.release()
        assert self.answers.wait(30)
        raise GetTimeoutError("no answer")


@pytest.fixture
def lost_node(monkeypatch):
    ray = LostNode()
    monkeypatch.setattr(kill, "ray", ray)
    yield ray
    ray.answers.set()
    kill.wait_for_kills()


def test_a_lost_node_holds_nobody_up_and_is_told(lost_node, caplog):
    for pid in (11, 12, 13):
        kill.kill_process({"node": THERE, "pid": pid, "begun": 1})
    for _ in range(3):
        assert lost_node.asked.acquire(timeout=10)  # all at once, and none has an answer yet
    kill.wait_for_kills(0.0)
    with caplog.at_level(logging.WARNING):
        lost_node.answers.set()
        kill.wait_for_kills()
    told = sorted(record.getMessage() for record in caplog.records)
    assert told == [
        f"could not end process {pid} on node {THERE}: no answer" for pid in (11, 12, 13)
    ]


def test_processes_of_one_node_are_ended_by_one_task(lost_node, caplog):
    where = [{"node": node * 28, "pid": pid, "begun": 1} for pid, node in enumerate(("ab", "cd"))]
    kill.kill_processes([*where, {**where[0], "pid": 7}])
    lost_node.answers.set()
    with caplog.at_level(logging.WARNING):
        kill.wait_for_kills()
    said = sorted(record.getMessage() for record in caplog.records)
    assert [text.partition(" on node")[0] for text in said] == [
        "could not end process 0, 7",
        "could not end process 1",
    ]


def test_a_process_that_is_being_ended_is_not_ended_a_second_time(lost_node):
    for _ in range(5):
        kill.kill_process({"node": THERE, "pid": 11, "begun": 1})
    lost_node.answers.set()
    kill.wait_for_kills()
    assert lost_node.asked.acquire(timeout=10)
    assert not lost_node.asked.acquire(blocking=False)


@pytest.fixture
def sleeper():
    process = subprocess.Popen(["sleep", "600"])
    yield process
    process.kill()
    process.wait()


def test_a_process_is_killed_and_none_that_has_its_number_after_it(lost_node, sleeper):
    own = kill.this_process()
    assert (own["pid"], own["node"]) == (os.getpid(), "here")
    begun = kill._begun(sleeper.pid)
    assert begun > own["begun"]
    kill.kill_process({"node": "here", "pid": sleeper.pid, "begun": begun - 1})
    assert sleeper.poll() is None
    os.kill(sleeper.pid, signal.SIGSTOP)  # Ray would not end it
    kill.kill_process({"node": "here", "pid": sleeper.pid, "begun": begun})
    assert sleeper.wait(30) == -signal.SIGKILL
    kill.kill_process({"node": "here", "pid": sleeper.pid, "begun": begun})  # it has ended


def test_a_machine_that_tells_no_beginnings_ends_a_process_by_its_number(
    lost_node, sleeper, monkeypatch, tmp_path
):
    monkeypatch.setattr(kill, "PROCESSES", tmp_path / "proc")
    assert kill.this_process()["begun"] == 0
    kill.kill_process({"node": "here", "pid": sleeper.pid, "begun": 0})
    assert sleeper.wait(30) == -signal.SIGKILL
