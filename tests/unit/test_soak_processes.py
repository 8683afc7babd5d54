"""Finding what a run left behind, and starting a service anew."""

import asyncio
import signal
import subprocess
import sys
import time

from deploy.soak.process_tree import descendants, is_alive, send
from learner.packed_weights import pack_weights
from learner.weight_store import WeightStore
from replay.config import QueueConfig
from replay.memory import MemoryReplayQueue
from replay.queue import Frontier, LearnerFenced, Stage
from replay.tickets import TicketSource


def test_descendants_are_found_however_far_down_and_whatever_state_they_are_in():
    code = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; " + (
        "time.sleep(60)']); import time; time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code]) as parent:
        deadline = time.monotonic() + 60
        while not (below := descendants(parent.pid)) and time.monotonic() < deadline:
            time.sleep(0.02)
        (child,) = below
        assert child.parent == parent.pid
        send(child.pid, signal.SIGSTOP)
        assert [process.pid for process in descendants(parent.pid)] == [child.pid]
        assert send(child.pid, signal.SIGKILL)
        parent.kill()
    assert not is_alive(parent.pid)


def queue(**changes) -> MemoryReplayQueue:
    config = QueueConfig(groups_per_step=2, block=2, mode="ordered", lag=1)
    return MemoryReplayQueue(config, TicketSource(0, ["a"], "ordered", 1, 2), **changes)


def test_a_queue_that_was_started_anew_hands_out_nothing_before_a_learner_has_begun_it():
    async def body():
        anew = queue(begun=False)
        assert await anew.lease("to_sample", 1, 5.0, "sampler", wait=0.01) == []
        waiting = asyncio.create_task(anew.lease("to_sample", 1, 5.0, "sampler", wait=30.0))
        await asyncio.sleep(0)
        epoch = await anew.fence()
        await anew.restart(Frontier(6), epoch)
        assert [lease.ordinal for lease in await waiting] == [6, 7]

    asyncio.run(body())


def test_a_learner_of_the_queue_before_is_told_to_go_back():
    async def body():
        before, anew = queue(), queue(begun=False)
        epoch = await before.fence()
        await anew.fence()
        try:
            await anew.lease(Stage.TO_TRAIN, 2, None, "learner", epoch=epoch)
        except LearnerFenced:
            return
        raise AssertionError("the new queue took the old learner for its own")

    asyncio.run(body())


def test_readers_of_an_empty_store_wait_for_its_first_version(monkeypatch):
    monkeypatch.setattr("learner.weight_store.ray.put", lambda arrays: arrays)

    async def body():
        store = WeightStore(keep=2)
        reading = asyncio.create_task(store.get(3, wait=30.0))
        await asyncio.sleep(0)
        manifest, arrays = pack_weights(3, {"w": {"b": [0.0]}}, "float32")
        await store.publish(manifest, arrays)
        assert (await reading)[0] == manifest

    asyncio.run(body())
