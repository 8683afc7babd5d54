"""Many who wait share few threads, and keep nobody from quick answers."""

import asyncio
import threading

import pytest

from protos.edge_client import Peer
from replay import waits
from replay.config import QueueConfig
from replay.remote_queue import RemoteReplayQueue
from replay.waits import Waits
from tests.edges import serving_queue
from tests.queues import advance, memory
from tests.remote_rewards import WAIT


async def ask(call, threads):
    return await asyncio.get_running_loop().run_in_executor(threads, call)


def test_those_who_wait_take_turns_whatever_their_number(monkeypatch):
    monkeypatch.setattr(waits, "THREADS", 2)

    async def body():
        waiting, pieces, open_ = Waits("test"), [], threading.Event()

        def look(seconds):
            pieces.append(seconds)
            return open_.wait(seconds) or None

        asked = [asyncio.create_task(waiting.until_found(WAIT, look, ask, bool)) for _ in range(20)]
        while len(pieces) < 60:  # all have had turns, though none has found anything
            await asyncio.sleep(0.01)
        assert max(pieces) <= waits.SLICE_SECONDS
        assert min(pieces) == pytest.approx(waits.SLICE_SECONDS * 2 / 20)
        open_.set()
        assert await asyncio.gather(*asked) == [True] * 20
        assert await waiting.until_found(0.0, lambda seconds: None, ask, bool) is None
        waiting.close()

    asyncio.run(body())


def test_more_clients_than_threads_may_wait_for_work_and_each_gets_it(monkeypatch):
    monkeypatch.setattr(waits, "THREADS", 2)
    config = QueueConfig(groups_per_step=16, block=16, lag=0)
    with memory() as open_memory:
        queue = open_memory(config)
        server, service = serving_queue(queue)
        with server:
            client = RemoteReplayQueue(Peer(server.address, timeout=WAIT, patience=5))
            found: list[int] = []

            def wait(number):
                for lease in client.lease("to_score", 1, None, f"r{number}", WAIT):
                    found.append(lease.ordinal)

            threads = [threading.Thread(target=wait, args=(number,)) for number in range(16)]
            for thread in threads:
                thread.start()
            while len(queue.stats().held_by_worker) < 16:  # each has had a turn
                pass
            client.frontier()  # is answered while all of them wait
            advance(queue, "to_sample", 1)
            for thread in threads:
                thread.join(WAIT)
            client.disconnect()
        service.close()
    assert sorted(found) == list(range(16))
