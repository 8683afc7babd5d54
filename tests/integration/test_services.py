"""A service whose process dies is started anew by Ray, also one that much was given to."""

import os
import signal
import time

import pytest
import ray

from deploy.services import QueueProcess, Service
from replay.config import QueueConfig
from replay.queue import Frontier, LearnerFenced
from replay.ray_client import RayReplayQueue
from replay.tickets import TicketSource

TIMEOUT = 120.0

pytestmark = pytest.mark.usefixtures("ray_cluster")


def watch(service: Service, condition) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not condition(service.check()):
        assert time.monotonic() < deadline, service.status()
        time.sleep(0.1)


def test_a_queue_of_many_examples_is_started_anew_and_waits_for_the_learner():
    # As large as this, Ray would keep the tickets in its object store, and lose them.
    source = TicketSource(5, [f"example-{i}" for i in range(50_000)], "ordered", 0, 8)
    config = QueueConfig(groups_per_step=8, block=4, mode="ordered", lag=0)
    actor = ray.remote(QueueProcess).options(num_cpus=0, max_restarts=-1, max_concurrency=100)
    handle = actor.remote(config, None, begun=False)
    service = Service("queue", handle, 5, lambda: handle.supply.remote(source))
    queue = RayReplayQueue(handle, TIMEOUT)
    try:
        watch(service, lambda anew: service.where)
        epoch = queue.fence()
        assert queue.lease("to_sample", 1, None, "sampler") == []
        queue.restart(Frontier(8), epoch)
        assert [lease.ordinal for lease in queue.lease("to_sample", 1, None, "s", wait=TIMEOUT)]
        os.kill(service.where["pid"], signal.SIGKILL)
        watch(service, lambda anew: anew)
        assert service.restarts == 1
        assert queue.lease("to_sample", 1, None, "sampler") == []
        with pytest.raises(LearnerFenced):
            queue.restart(Frontier(8), epoch)
        queue.restart(Frontier(16), queue.fence())
        leases = queue.lease("to_sample", 1, None, "sampler", wait=TIMEOUT)
        assert [lease.ordinal for lease in leases] == [16, 17, 18, 19]
    finally:
        ray.kill(handle)
