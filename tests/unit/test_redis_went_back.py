"""A Redis that has lost its last writes: with `appendfsync everysec`, or a replica in its place."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from learner import collect
from learner.ordinals import read_ordinals, surviving_steps
from learner.stop import StopRequest
from learner.tune import NothingToTrainError
from protos.trajectory import FailureKind
from replay.config import QueueConfig
from replay.queue import Frontier, MustResume
from replay.redis_queue import RedisReplayQueue
from tests.redis_server import MISSING, redis_server
from tests.unit.test_learner_queue import make, parts

pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))

__all__ = ["parts"]


class ForgetfulRedis:
    """Gives up every group, so that steps are quick; at the first `ack` its Redis goes back."""

    def __init__(self, queue, server, lost):
        self._queue, self._server, self._lost = queue, server, lost
        self._saved = None

    def __getattr__(self, method):
        return getattr(self._queue, method)

    def lease(self, *arguments, **named):
        if self._lost == "groups":
            self._save()
        for lease in self._queue.lease("to_sample", 2, None, "s"):
            self._queue.fail([(lease.id, "no", FailureKind.DATA)])
        return self._queue.lease(*arguments, **named)

    def ack(self, *arguments, **named):
        if self._lost == "ack":
            self._save()
            self._queue.ack(*arguments, **named)
            self._go_back()
        else:
            self._go_back()
            self._queue.ack(*arguments, **named)

    def restart(self, frontier, epoch):
        if self._lost == "restart":  # of which it has the first piece
            above = frontier.acked_above
            self._queue._call("restart", epoch, frontier.next_unacked, frontier.dropped, *above)
            self._save()
        self._queue.restart(frontier, epoch)
        if self._lost == "restart":
            self._go_back()

    def _save(self):
        if self._saved is None:
            self._saved = self._server.saved()

    def _go_back(self):
        if self._lost is not None:
            self._server.go_back(self._saved)
        self._lost = None


@pytest.mark.parametrize("mode", ["ordered", "async"])
@pytest.mark.parametrize("lost", ["ack", "groups"])
def test_what_redis_has_forgotten_is_neither_waited_for_nor_trained_twice(
    parts, tmp_path, monkeypatch, mode, lost
):
    monkeypatch.setattr(collect, "LOOK_SECONDS", 0.0)
    stale = None if mode == "ordered" else 9
    with redis_server() as server, ThreadPoolExecutor(1) as pool:
        queue = RedisReplayQueue(server.connect(), "run", lambda ordinal: b"ticket")
        queue.open(QueueConfig(groups_per_step=4, block=2, lag=0, mode=mode), "here", "a run")
        forgetful = ForgetfulRedis(queue, server, lost)
        stop = StopRequest()
        learner = make(parts, forgetful, tmp_path, max_staleness=stale)
        try:
            with pytest.raises(MustResume, match="gone back"):
                pool.submit(learner.run, stop).result(timeout=30)
        finally:
            stop.request()
        again = make(parts, forgetful, tmp_path, max_staleness=stale)
        with pytest.raises(NothingToTrainError):
            again.run(StopRequest())
        assert again.status["resumed"] == 1
    steps = surviving_steps(read_ordinals(tmp_path))
    assert [sorted(step.quarantined) for step in steps] == [
        [*range(4 * step, 4 * step + 4)] for step in range(len(steps))
    ]
    assert len(steps) > 2


def test_a_restart_of_which_redis_has_forgotten_the_end_is_ended_again(
    parts, tmp_path, monkeypatch
):
    monkeypatch.setattr(collect, "LOOK_SECONDS", 0.0)
    with redis_server() as server, ThreadPoolExecutor(1) as pool:
        queue = RedisReplayQueue(server.connect(), "run", lambda ordinal: b"ticket")
        queue.open(QueueConfig(groups_per_step=4, block=2, lag=0), "here", "a run")
        learner, stop = (
            make(parts, ForgetfulRedis(queue, server, "restart"), tmp_path),
            StopRequest(),
        )
        try:
            with pytest.raises(NothingToTrainError):  # all are given up
                pool.submit(learner.run, stop).result(timeout=30)
        finally:
            stop.request()
        assert queue.frontier() == Frontier(8)
