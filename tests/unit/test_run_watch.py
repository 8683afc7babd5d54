"""A Ray that is slow is no run that has ended."""

import asyncio
import threading

import pytest
from ray.exceptions import RayError

from deploy import run_watch
from deploy.run_watch import RunLost, RunWatch, reach


def looks(watch, count):
    async def body():
        return [await watch.has_ended() for _ in range(count)]

    return asyncio.run(body())


def test_a_run_has_ended_when_its_actor_is_gone():
    answers = [True, True, False]
    assert looks(RunWatch(lambda: answers.pop(0), lambda: None), 3) == [False, False, True]


def test_a_ray_that_does_not_answer_but_listens_is_waited_for():
    answer = threading.Event()

    def slow():
        answer.wait()
        return True

    watch = RunWatch(slow, lambda: None, answer_seconds=0.01)
    try:
        assert looks(watch, 5) == [False] * 5
    finally:
        answer.set()


def test_a_ray_that_is_gone_has_taken_its_run_along():
    def gone():
        raise RayError("the GCS does not answer")

    def refused():
        reach("127.0.0.1:1")

    assert looks(RunWatch(gone, refused), 2) == [False, True]


def test_a_head_that_listens_again_has_not_ended():
    refusals = [True, False, True, True]

    def reached():
        if refusals.pop(0):
            raise ConnectionRefusedError

    def unknown():
        raise RayError("the GCS does not answer")

    assert looks(RunWatch(unknown, reached), 4) == [False, False, False, True]


def test_a_ray_out_of_reach_is_given_up_with_its_reason(monkeypatch):
    monkeypatch.setattr(run_watch, "PATIENCE_SECONDS", -1.0)

    def unknown():
        raise RayError("the GCS does not answer")

    def out_of_reach():
        raise TimeoutError("timed out")

    with pytest.raises(RunLost, match="out of reach since 0 s: timed out"):
        looks(RunWatch(unknown, out_of_reach), 1)
