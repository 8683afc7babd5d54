"""The queue over real gRPC: what is repeated happens once, and nothing hostile has an effect."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import grpc
import pytest

from protos import edge, edge_client
from protos.edge import EdgeError, EdgeOptions
from protos.edge_client import Peer
from protos.trajectory import FailureKind, WireError
from replay import remote_queue
from replay import service as service_module
from replay.answers import Answers
from replay.config import QueueConfig
from replay.queue import Completion, Frontier, QueueClosed, QueueUnavailable, Stage
from replay.remote_queue import RemoteReplayQueue
from replay.wire import SERVICE
from tests.edges import serving_queue
from tests.ports import free_port
from tests.queues import advance, memory, ordinals
from tests.remote_rewards import WAIT

CONFIG = QueueConfig(groups_per_step=4, block=2, lag=1)
QUICK = {"timeout": WAIT, "patience": 5.0}


@contextmanager
def serving(options=None, inner=None, peer=QUICK, **settings):
    """The queue itself, its server's address, and a client."""
    with memory() as open_memory, ExitStack() as stack:
        queue = open_memory(CONFIG)
        server, service = serving_queue((inner or (lambda q: q))(queue), options, **settings)
        stack.callback(service.close)
        stack.enter_context(server)
        client = RemoteReplayQueue(Peer(server.address, **peer))
        stack.callback(client.disconnect)
        yield queue, server.address, client


def raw(address, method, request, metadata=None, channel=None):
    """The status of a call."""
    data = request if isinstance(request, bytes) else request.SerializeToString()
    with channel or grpc.insecure_channel(address) as opened:
        try:
            opened.unary_unary(f"/{SERVICE}/{method}")(data, timeout=WAIT, metadata=metadata)
        except grpc.RpcError as error:
            return error.code(), error.details()
    return grpc.StatusCode.OK, ""


# -- once -----------------------------------------------------------------------------------------


def test_a_call_whose_answer_is_lost_is_sent_again_and_has_its_effect_once(monkeypatch):
    lost = []
    whole = service_module.ReplayService._once

    async def losing(self, call, data, answer):
        said = await whole(self, call, data, answer)
        if call.number not in lost:
            lost.append(call.number)
            raise edge.Refused(grpc.StatusCode.UNAVAILABLE, "the connection is cut")
        return said

    monkeypatch.setattr(service_module.ReplayService, "_once", losing)
    with serving() as (queue, _, client):
        leases = client.lease("to_sample", 1, None, "s")
        assert ordinals(leases) == [0, 1]
        assert queue.stats().stages[Stage.TO_SAMPLE].leased == 2
        done = client.complete([(lease.id, b"sampled") for lease in leases])
        assert done == [Completion.DONE] * 2
        (one, _) = client.lease("to_score", 2, None, "r")
        assert client.fail([(one.id, "no", FailureKind.INFRASTRUCTURE)]) == [Completion.DONE]
        assert client.release_worker("r", "dead") == 1
        assert len(lost) == 5
        assert client.fence().endswith(".1")
        assert queue.stats().too_late == 0


def test_a_repetition_joins_the_call_that_is_still_at_work():
    async def body():
        answers, release, calls = Answers(), asyncio.Event(), []

        async def compute():
            calls.append(1)
            await release.wait()
            return b"answer"

        first = asyncio.create_task(answers.once("a", 1, b"q", compute))
        await asyncio.sleep(0)
        first.cancel()  # its connection broke
        second = asyncio.create_task(answers.once("a", 1, b"q", compute))
        await asyncio.sleep(0)
        release.set()
        assert await second == b"answer"
        assert await answers.once("a", 1, b"q", compute) == b"answer"
        assert len(calls) == 1
        for number, request in ((1, b"other"), (0, b"q")):
            with pytest.raises(WireError):
                await answers.once("a", number, request, compute)
        assert await answers.once("a", 2, b"q", compute) == b"answer"
        with pytest.raises(WireError, match="its last was 2"):
            await answers.once("a", 1, b"q", compute)
        with pytest.raises(WireError, match="no caller"):
            await answers.once("", 1, b"q", compute)

    asyncio.run(body())


def test_a_call_that_failed_can_be_tried_again():
    async def body():
        answers, outcomes = Answers(), [RuntimeError("no"), b"yes"]

        async def compute():
            outcome = outcomes.pop(0)
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        with pytest.raises(RuntimeError):
            await answers.once("a", 1, b"q", compute)
        await asyncio.sleep(0)
        assert await answers.once("a", 1, b"q", compute) == b"yes"

    asyncio.run(body())


def test_what_is_remembered_is_bounded(monkeypatch):
    monkeypatch.setattr("replay.answers.MAX_CALLERS", 3)
    monkeypatch.setattr("replay.answers.MAX_BYTES", 25)

    async def body():
        answers = Answers()

        async def compute():
            return b"0123456789"

        for caller in "abcdefg":
            await answers.once(caller, 1, b"q", compute)
            await asyncio.sleep(0)
        assert (len(answers._by_caller), answers._size) == (2, 20)

    asyncio.run(body())


def test_a_call_at_work_is_not_forgotten_however_many_others_come(monkeypatch):
    monkeypatch.setattr("replay.answers.MAX_CALLERS", 2)

    async def body():
        answers, go, computed = Answers(), asyncio.Event(), []

        async def slow():
            computed.append("slow")
            await go.wait()
            return b"slow"

        async def quick():
            return b"quick"

        first = asyncio.ensure_future(answers.once("slow", 1, b"q", slow))
        await asyncio.sleep(0)
        for caller in "abcdefg":
            await answers.once(caller, 1, b"q", quick)
            await asyncio.sleep(0)
        assert sorted(answers._by_caller) == ["g", "slow"]
        again = asyncio.ensure_future(answers.once("slow", 1, b"q", slow))
        await asyncio.sleep(0)
        go.set()
        assert (await first, await again, computed) == (b"slow", b"slow", ["slow"])

    asyncio.run(body())


# -- limits ---------------------------------------------------------------------------------------


def small_messages(monkeypatch, size=4096):
    for module in (edge, edge_client, remote_queue, service_module):
        monkeypatch.setattr(module, "MAX_MESSAGE_BYTES", size)


def test_many_large_groups_travel_in_as_many_messages_as_it_takes(monkeypatch):
    small_messages(monkeypatch)
    with serving() as (queue, _, client):
        leases = client.lease("to_sample", 4, None, "s")
        assert len(leases) == 8
        done = client.complete([(lease.id, bytes(1500)) for lease in leases])
        assert done == [Completion.DONE] * 8
        first = client.lease("to_score", 8, None, "r")
        assert ordinals(first) == [0, 1]
        assert ordinals(client.lease("to_score", 8, None, "r")) == [2, 3]
        assert queue.stats().stages[Stage.TO_SCORE].ready == 4
        assert all(lease.delivery == 1 for lease in client.lease("to_score", 8, None, "r"))


def test_a_group_above_the_limit_is_named_and_nothing_is_held(monkeypatch):
    small_messages(monkeypatch)
    with serving() as (queue, address, client):
        (one, _) = client.lease("to_sample", 1, None, "s")
        with pytest.raises(WireError, match=r"has 5000 bytes; at most 4096 may travel: fewer"):
            client.complete([(one.id, bytes(5000))])
        code, reason = raw(address, "Complete", bytes(5000))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "larger than max" in reason
        queue.complete([(one.id, bytes(5000))])
        with pytest.raises(QueueUnavailable, match="ordinal 0 does not fit a message of 4096"):
            client.lease("to_score", 1, None, "r")
        assert queue.stats().stages[Stage.TO_SCORE].leased == 0


def test_a_server_that_stops_takes_no_group_with_it_and_clients_wait_for_the_next():
    with memory() as open_memory, ExitStack() as stack:
        queue = open_memory(CONFIG)
        options = EdgeOptions(port=free_port())
        server, service = serving_queue(queue, options)
        stack.callback(service.close)
        with server:
            client = RemoteReplayQueue(Peer(server.address, timeout=WAIT, patience=WAIT))
            stack.callback(client.disconnect)
            found = []
            asking = threading.Thread(
                target=lambda: found.extend(client.lease("to_score", 2, None, "r", WAIT))
            )
            asking.start()
            while not queue._queue._waiters[Stage.TO_SCORE]:
                time.sleep(0.01)
            service.stop()
        advance(queue, "to_sample")
        again, second = serving_queue(queue, options)
        stack.callback(second.close)
        stack.enter_context(again)
        asking.join(WAIT)
    assert ordinals(found) == [0, 1]
    assert [lease.delivery for lease in found] == [1, 1]


def test_a_server_that_is_not_there_is_named_when_patience_ends():
    client = RemoteReplayQueue(Peer("127.0.0.1:1", timeout=1, patience=0.3))
    with pytest.raises(QueueUnavailable, match=r"replay queue at 127.0.0.1:1 could not do `Lease`"):
        client.lease("to_sample", 1, None, "s")
    client.disconnect()
    for address in ("nowhere", "host:port", ":1"):
        with pytest.raises(EdgeError, match="must be HOST:PORT"):
            Peer(address)


def test_a_queue_that_does_not_answer_is_asked_again(monkeypatch):
    class Flaky:
        def __init__(self, queue):
            self._queue, self.asked = queue, 0

        def __getattr__(self, method):
            return getattr(self._queue, method)

        def frontier(self):
            self.asked += 1
            if self.asked < 3:
                raise QueueUnavailable("its actor is being placed")
            return self._queue.frontier()

    with serving(inner=Flaky) as (_, _, client):
        assert client.frontier() == Frontier()


def test_who_comes_when_the_queue_of_a_closed_run_is_gone_is_told_that_the_run_is_over():
    class Gone:
        def __init__(self, queue):
            self._queue, self.gone = queue, False

        def __getattr__(self, method):
            if self.gone:
                raise QueueUnavailable("its actor was killed")
            return getattr(self._queue, method)

    wrapped = []
    inner = lambda queue: wrapped.append(Gone(queue)) or wrapped[0]  # noqa: E731
    with serving(inner=inner) as (queue, _, client):
        queue.close()
        with pytest.raises(QueueClosed, match="the run is over"):
            client.lease("to_score", 1, None, "r")
        wrapped[0].gone = True
        with pytest.raises(QueueClosed, match="its queue is gone"):
            client.lease("to_score", 1, None, "late")


def test_once_the_run_has_ended_its_queue_is_not_asked_any_more():
    with memory() as open_memory, ExitStack() as stack:
        queue = open_memory(CONFIG)
        server, service = serving_queue(queue)
        stack.callback(service.close)
        stack.enter_context(server)
        client = RemoteReplayQueue(Peer(server.address, **QUICK))
        stack.callback(client.disconnect)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(client.lease, "to_score", 1, None, "waits", WAIT)
            while not queue._queue._waiters[Stage.TO_SCORE]:
                time.sleep(0.01)
            service.look()
            assert not service.end()  # nobody has closed it: its run was killed
            queue.close()
            with pytest.raises(QueueClosed, match="the run is over"):
                waiting.result(WAIT)
        service.look()
        assert service.end()
        with pytest.raises(QueueClosed, match="the run is over"):
            client.release_worker("late", "it is not asked")
