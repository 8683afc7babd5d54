"""A worker's process is found again after it has died, and never run twice."""

from types import SimpleNamespace

import pytest
from ray.exceptions import ActorUnavailableError, RayTaskError

from deploy import workers
from deploy.workers import ASK_SECONDS, MOST_ASKED, Worker
from replay.queue import MustResume

OLD = {"pid": 1, "begun": 10, "node": "node"}
NEW = {"pid": 2, "begun": 20, "node": "node"}
DEAD = ActorUnavailableError("it is gone", None)


class Actor:
    """Answers when told to: a call is a list, empty or with its answer."""

    def __init__(self):
        self.calls = {"describe": [], "run": [], "status": []}

    def __getattr__(self, method):
        def remote():
            self.calls[method].append([])
            return self.calls[method][-1]

        return SimpleNamespace(remote=remote)


def wait(calls, num_returns=1, timeout=None):
    return [call for call in calls if call][:num_returns], [call for call in calls if not call]


def get(call, timeout):
    if isinstance(call[0], Exception):
        raise call[0]
    return call[0]


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(seconds=100.0)
    fake = SimpleNamespace(monotonic=lambda: now.seconds, time=lambda: now.seconds)
    monkeypatch.setattr(workers, "time", fake)
    return now


@pytest.fixture
def killed(monkeypatch):
    wheres = []
    monkeypatch.setattr(workers, "kill_process", wheres.append)
    return wheres


@pytest.fixture
def worker(monkeypatch, clock, killed):
    """One that runs, as OLD."""
    monkeypatch.setattr(workers, "ray", SimpleNamespace(get=get, wait=wait))
    actor = Actor()
    worker = Worker("sampler-0", "sampler", lambda name: actor)
    worker.begin()
    actor.calls["describe"][0].append(OLD)
    check(worker)
    assert (worker.state, worker.where) == ("running", OLD)
    actor.calls["describe"].clear()
    return worker


def check(worker, deaths=None):
    worker.check(lambda worker, reason: deaths.append(reason) if deaths is not None else None)


def test_a_successor_is_found_while_a_call_to_the_dead_process_waits_for_its_failure(worker, clock):
    calls, deaths = worker.handle.calls, []
    calls["run"][0].append(DEAD)
    check(worker, deaths)
    assert (worker.state, len(deaths), len(calls["describe"])) == ("pending", 1, 1)
    clock.seconds += ASK_SECONDS
    check(worker, deaths)
    assert len(calls["describe"]) == 2  # the first has not failed yet
    calls["describe"][1].append(NEW)
    check(worker, deaths)
    assert (worker.state, worker.where, len(calls["run"])) == ("running", NEW, 2)
    calls["describe"][0].append(DEAD)  # is of no interest any more
    check(worker, deaths)
    assert (worker.state, worker.restarts, len(deaths), len(calls["run"])) == ("running", 1, 1, 2)


def test_a_process_that_cannot_be_placed_is_asked_for_a_few_times_only(worker, clock):
    worker.handle.calls["run"][0].append(DEAD)
    for _ in range(10 * MOST_ASKED):
        check(worker)
        clock.seconds += ASK_SECONDS
    assert len(worker.handle.calls["describe"]) == MOST_ASKED


def test_one_that_was_to_be_killed_and_answers_still_is_killed_again_and_not_run(worker, killed):
    calls = worker.handle.calls
    worker.replace("has not answered")
    calls["run"][0].append(DEAD)
    check(worker)
    calls["describe"][0].append(OLD)
    check(worker)
    assert (worker.state, killed, len(calls["run"])) == ("pending", [OLD, OLD], 1)
    calls["describe"][1].append(NEW)
    check(worker)
    assert (worker.state, worker.where, worker.failed_at) == ("running", NEW, 100.0)


def test_a_process_that_was_out_of_reach_only_is_killed_and_not_run_beside_itself(worker, killed):
    calls = worker.handle.calls
    calls["run"][0].append(DEAD)
    check(worker)
    calls["describe"][0].append(OLD)
    check(worker)
    assert (worker.state, killed, len(calls["run"])) == ("pending", [OLD], 1)
    calls["describe"][1].append(NEW)
    check(worker)
    assert (worker.state, worker.where, len(calls["run"])) == ("running", NEW, 2)


def test_a_learner_that_must_resume_does_so_in_its_process(worker, killed):
    calls = worker.handle.calls
    calls["run"][0].append(RayTaskError("run", "", MustResume("its place was taken")))
    check(worker)
    calls["describe"][0].append(OLD)
    check(worker)
    assert (worker.state, worker.where, killed, len(calls["run"])) == ("running", OLD, [], 2)


def test_one_that_has_answered_is_not_silent_however_late_that_is_looked_at(worker, clock):
    (asked,) = worker.handle.calls["status"]
    clock.seconds += 60.0
    assert worker.silent_seconds == 60.0
    asked.append({"groups": 1})
    assert worker.silent_seconds == 0.0
