"""Services that fall silent are ended, whatever befalls the thread that looks after them."""

import threading
from types import SimpleNamespace

import pytest

from deploy import services
from tests.remote_rewards import WAIT


class Silent:
    """A service that does not answer."""

    def __init__(self, name, pid):
        self.name, self.where = name, {"node": "n", "pid": pid}
        self.handle = SimpleNamespace(describe=SimpleNamespace(remote=lambda: (name, object())))


@pytest.fixture
def looking(monkeypatch):
    monkeypatch.setattr(services, "LOOK_SECONDS", 0.001)
    monkeypatch.setattr(services.ray, "wait", lambda calls, num_returns, timeout: ([], calls))


def test_a_process_that_cannot_be_ended_costs_neither_the_thread_nor_the_others(
    looking, monkeypatch, caplog
):
    killed, again, tries = [], threading.Event(), []

    def kill(where):
        tries.append(where["pid"])
        if where["pid"] == 1:
            raise RuntimeError(f"node {where['node']} is gone")
        killed.append(where["pid"])
        if len(killed) == 3:
            again.set()

    monkeypatch.setattr(services, "kill_process", kill)
    with services.silent_ones_ended([Silent("queue", 1), Silent("weights", 2)], WAIT):
        assert again.wait(WAIT)
    assert tries.count(1) >= 3
    (record,) = [r for r in caplog.records if "'silent services' failed" in r.message]
    assert "RuntimeError: node n is gone" in record.exc_text


def test_a_cluster_that_does_not_answer_is_asked_again(looking, monkeypatch, caplog):
    answers, over = [ConnectionError("a"), ConnectionError("b")], threading.Event()

    def wait(calls, num_returns, timeout):
        if answers:
            raise answers.pop(0)
        over.set()
        return calls, []

    monkeypatch.setattr(services.ray, "wait", wait)
    with services.silent_ones_ended([Silent("weights", 2)], WAIT):
        assert over.wait(WAIT)
    assert [m for m in caplog.messages if "failed, and goes on" in m] != []
    assert len(caplog.records) == 2
