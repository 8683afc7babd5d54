"""The queue inside a real Ray actor, with workers that are real processes and really die."""

import os
import signal
import time

import pytest
import ray

from protos.trajectory import (
    FailureKind,
    Sampled,
    Scored,
    ScoredGroup,
    Ticket,
)
from replay.config import QueueConfig
from replay.queue import Completion, Frontier, QueueClosed, QueueUnavailable
from replay.queue_actor import QueueActor
from replay.ray_client import RayReplayQueue
from replay.tickets import TicketSource

TIMEOUT = 240.0


pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture
def open_actor():
    actors = []

    def open_one(**changes):
        config = QueueConfig(**{"groups_per_step": 8, "block": 4, "lag": 1, **changes})
        source = TicketSource(5, ["a", "b", "c"], config.mode, config.lag, config.groups_per_step)
        actors.append(ray.remote(QueueActor).options(num_cpus=0).remote(config, source))
        return actors[-1]

    yield open_one
    for actor in actors:
        ray.kill(actor)


@ray.remote(num_cpus=0.1)
class Worker:
    """Samples and scores what it can; `freeze` leases and then stops as if it hung."""

    def __init__(self, handle, name):
        self.queue, self.name = RayReplayQueue(handle, TIMEOUT), name

    def pid(self):
        return os.getpid()

    def lease_and_keep(self, stage, ttl):
        return [lease.ordinal for lease in self.queue.lease(stage, 1, ttl, self.name)]

    def run(self):
        import numpy as np  # arrays are made where the work is done

        done = 0
        while True:
            try:
                for lease in self.queue.lease("to_sample", 1, None, self.name):
                    ticket = Ticket.from_bytes(lease.payload)
                    tokens = np.full((2, 3), ticket.ordinal, np.int32)
                    logprobs = np.zeros((2, 3), np.float32)
                    sampled = Sampled(ticket, tokens, logprobs, 0, self.name)
                    self.queue.complete([(lease.id, sampled.to_bytes())])
                leases = self.queue.lease("to_score", 4, None, self.name, wait=0.05)
            except QueueClosed:
                return done
            for lease in leases:
                sampled = Sampled.from_bytes(lease.payload)
                rewards = tuple(Scored(float(row.sum())) for row in sampled.tokens)
                scored = ScoredGroup(sampled, rewards)
                done += self.queue.complete([(lease.id, scored.to_bytes())]) == [Completion.DONE]


def train(queue, steps, groups_per_step=8):
    """The learner's side; returns what it was given, in order."""
    trained = []
    deadline = time.monotonic() + TIMEOUT
    while len(trained) < steps * groups_per_step:
        leases = queue.lease("to_train", groups_per_step, None, "learner", wait=1.0)
        assert leases or time.monotonic() < deadline, queue.stats()
        groups = [ScoredGroup.from_bytes(lease.payload) for lease in leases]
        trained += [(g.sampled.ticket.ordinal, g.outcomes[0].reward) for g in groups]
        queue.ack([lease.ordinal for lease in leases])
    return trained


def expected(groups):
    return [(ordinal, 3.0 * ordinal) for ordinal in range(groups)]


def test_every_group_is_trained_once_and_in_order_whoever_is_killed(open_actor):
    handle = open_actor(total_groups=40)
    queue = RayReplayQueue(handle, TIMEOUT)
    victim, *workers = [Worker.remote(handle, f"worker {i}") for i in range(3)]
    pid = ray.get(victim.pid.remote(), timeout=TIMEOUT)
    held = ray.get(victim.lease_and_keep.remote("to_sample", None), timeout=TIMEOUT)
    assert held == [0, 1, 2, 3]
    runs = [worker.run.remote() for worker in workers]
    os.kill(pid, signal.SIGKILL)
    assert queue.release_worker("worker 0", "killed by SIGKILL") == 4
    assert train(queue, 5) == expected(40)
    stats = queue.stats()
    assert stats.finished
    assert stats.redelivered == 4
    assert "SIGKILL" in stats.last_reasons[0]
    queue.close()
    assert sum(ray.get(runs, timeout=TIMEOUT)) == 40


def test_a_stopped_process_loses_its_lease_and_its_late_outcome_counts_for_nothing(open_actor):
    handle = open_actor(total_groups=16)
    queue = RayReplayQueue(handle, TIMEOUT)
    stopped, worker = (Worker.remote(handle, name) for name in ("stopped", "worker"))
    pid = ray.get(stopped.pid.remote(), timeout=TIMEOUT)
    assert ray.get(stopped.lease_and_keep.remote("to_sample", 0.5), timeout=TIMEOUT)
    os.kill(pid, signal.SIGSTOP)  # Ray does not see it: only the lease tells
    try:
        run = worker.run.remote()
        assert train(queue, 2) == expected(16)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert queue.stats().expired == 4
    queue.close()
    assert ray.get(run, timeout=TIMEOUT) == 16


def test_a_new_actor_goes_on_from_the_frontier(open_actor):
    first = open_actor(total_groups=16)
    queue = RayReplayQueue(first, TIMEOUT)
    worker = Worker.remote(first, "one")
    run = worker.run.remote()
    assert train(queue, 1) == expected(8)
    frontier = Frontier.from_json(queue.frontier().to_json())
    queue.close()
    ray.get(run, timeout=TIMEOUT)
    second = open_actor(total_groups=16)
    queue = RayReplayQueue(second, TIMEOUT)
    queue.restart(frontier)
    run = Worker.remote(second, "two").run.remote()
    assert train(queue, 1) == expected(16)[8:]
    assert queue.stats().finished
    queue.close()
    ray.get(run, timeout=TIMEOUT)


def test_errors_keep_their_type_across_ray(open_actor):
    queue = RayReplayQueue(open_actor(), TIMEOUT)
    with pytest.raises(ValueError, match="ordinal 3: it is not handed out"):
        queue.ack([3])
    (lease, *_) = queue.lease("to_sample", 1, None, "s")
    assert queue.fail([(lease.id, "broken", FailureKind.DATA)]) == [Completion.DONE]
    assert queue.quarantine()[0].reasons == ("broken",)
    queue.close()
    with pytest.raises(QueueClosed):
        queue.lease("to_sample", 1, None, "s")


def test_a_dead_or_unplaced_queue_is_diagnosed(open_actor):
    handle = open_actor()
    queue = RayReplayQueue(handle, TIMEOUT)
    queue.stats()
    ray.kill(handle)
    with pytest.raises(QueueUnavailable, match=r"could not do `stats`.*died"):
        queue.stats()
    source = TicketSource(0, ["a"], "async", 0, 16)
    placeless = ray.remote(QueueActor).options(num_cpus=64)
    queue = RayReplayQueue(placeless.remote(QueueConfig(), source), timeout=1.0)
    with pytest.raises(QueueUnavailable, match=r"`frontier` within 1 s.*CPU"):
        queue.frontier()


def test_the_wire_contract_runs_beside_ray():
    import google.protobuf
    from google.protobuf.internal import api_implementation

    ticket = Ticket(1, "a", 2, 3, None)
    assert ray.get(ray.put(ticket.to_bytes()), timeout=TIMEOUT) == ticket.to_bytes()
    assert Ticket.from_bytes(ticket.to_bytes()) == ticket
    assert google.protobuf.__version__
    assert api_implementation.Type() in ("upb", "cpp"), "the slow pure-Python protobuf is in use"
