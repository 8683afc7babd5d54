"""An edge holds no more bytes of requests than it has room for, and loses none of its room."""

import asyncio
import threading
import time
from contextlib import contextmanager

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from protos import edge_receiving
from protos.edge import (
    MAX_MESSAGE_BYTES,
    REFLECTION,
    EdgeError,
    EdgeOptions,
    channel_options,
    is_busy,
)
from protos.edge_client import EdgeClient, Peer
from protos.edge_health import WATCH
from protos.edge_receiving import ByteBudget
from protos.reward import DESCRIBE, SCORE, SERVICE
from tests.remote_rewards import WAIT, Server

MIB = 2**20


def test_who_waits_for_bytes_is_served_in_turn_and_who_leaves_takes_none():
    async def body():
        budget = ByteBudget(10, WAIT)
        assert await budget.take(7, 0)
        assert not await budget.take(4, 0.001)
        large = asyncio.create_task(budget.take(9, WAIT))
        gone = asyncio.create_task(budget.take(1, WAIT))
        small = asyncio.create_task(budget.take(2, WAIT))
        await asyncio.sleep(0)
        assert not small.done()  # it would fit, and comes after the large one
        gone.cancel()
        await asyncio.sleep(0)
        budget.give_back(7)
        assert await large
        assert not small.done()
        budget.give_back(9)
        assert await small
        budget.give_back(2)
        assert budget.left == 10

    asyncio.run(body())


def test_whoever_leaves_before_those_behind_it_lets_them_through():
    async def body():
        budget = ByteBudget(10, WAIT)
        assert await budget.take(7, 0)
        large = asyncio.create_task(budget.take(9, WAIT))
        await asyncio.sleep(0)
        small = asyncio.create_task(budget.take(2, WAIT))
        await asyncio.sleep(0)
        large.cancel()
        assert await small
        budget.give_back(9)
        assert budget.left == 10

    asyncio.run(body())


def test_bytes_that_come_in_the_moment_in_which_who_waits_is_called_off_are_not_lost():
    async def body():
        budget = ByteBudget(10, WAIT)
        assert await budget.take(7, 0)
        gone, next_one = (asyncio.create_task(budget.take(9, WAIT)) for _ in range(2))
        await asyncio.sleep(0)
        budget.give_back(7)
        gone.cancel()
        assert await next_one
        assert gone.cancelled()
        budget.give_back(9)
        assert budget.left == 10

    asyncio.run(body())


@contextmanager
def serving(score, most):
    async def describe(data):
        return b""

    with Server(
        lambda: {SERVICE: {"Describe": describe, "Score": score}}, EdgeOptions(most_bytes=most)
    ) as server:
        yield server


def test_requests_at_work_hold_their_bytes_and_others_ask_again(monkeypatch):
    monkeypatch.setattr(edge_receiving, "WAIT_SECONDS", 0.05)
    at_work, most, lock, go_on = 0, 0, threading.Lock(), threading.Event()

    async def score(data):
        nonlocal at_work, most
        with lock:
            at_work += 1
            most = max(most, at_work)
        while not go_on.is_set():
            await asyncio.sleep(0.005)
        with lock:
            at_work -= 1
        return str(len(data)).encode()

    answers = []
    # Of 30 MiB: a fourth has no room to come in beside three, since it may have 64.
    with serving(score, most=128 * MIB) as server:
        client = EdgeClient(Peer(server.address, patience=WAIT), "test")
        senders = [
            threading.Thread(
                target=lambda: answers.append(client.call(SCORE, bytes(30 * MIB))), daemon=True
            )
            for _ in range(5)
        ]
        for sender in senders:
            sender.start()
        while at_work < 3:
            time.sleep(0.01)
        with grpc.insecure_channel(server.address) as channel:
            with pytest.raises(grpc.RpcError) as refused:
                channel.unary_unary(DESCRIBE)(b"", timeout=WAIT)
            assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert is_busy(refused.value)
            asked = health_pb2.HealthCheckRequest(service=SERVICE)
            health_pb2_grpc.HealthStub(channel).Check(asked, timeout=WAIT)
        go_on.set()
        for sender in senders:
            sender.join(WAIT)
        client.close()
    assert most == 3
    assert answers == [str(30 * MIB).encode()] * 5


def test_calls_that_bring_no_message_have_a_turn_of_some_seconds(monkeypatch):
    monkeypatch.setattr("protos.edge.RECEIVE_SECONDS", 0.2)

    async def score(data):
        return data

    over = threading.Event()

    def silent():
        over.wait(WAIT)
        yield b""

    with (
        serving(score, most=MAX_MESSAGE_BYTES) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        waiting = [channel.stream_unary(SCORE).future(silent(), timeout=WAIT) for _ in range(3)]
        assert {one.code() for one in waiting} == {grpc.StatusCode.DEADLINE_EXCEEDED}
        assert "did not come within 0.2 s" in waiting[0].details()
        client = EdgeClient(Peer(server.address, patience=WAIT), "test")
        assert client.call(SCORE, b"x") == b"x"
        client.close()
        over.set()


def test_who_watches_health_without_a_token_holds_next_to_nothing():
    async def score(data):
        return data

    large = health_pb2.HealthCheckRequest(service="x" * (32 * MIB))
    with (
        serving(score, most=MAX_MESSAGE_BYTES) as server,
        grpc.insecure_channel(server.address, options=channel_options()) as channel,
    ):
        stub = health_pb2_grpc.HealthStub(channel)
        refused = stub.Watch(large, timeout=WAIT)
        assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "at most 4096 are taken" in refused.details()


def until(over, *messages):
    """Requests that bring these messages, and no end."""
    yield from messages
    over.wait(WAIT)


@pytest.mark.parametrize("method", [WATCH, REFLECTION])
def test_calls_that_stay_open_are_bounded_and_health_is_checked_beside_them(monkeypatch, method):
    monkeypatch.setattr("protos.edge.MOST_WATCHES", 3)
    monkeypatch.setattr("protos.edge.MOST_REFLECTIONS", 3)

    async def score(data):
        return data

    over = threading.Event()
    with (
        serving(score, most=8 * MAX_MESSAGE_BYTES) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        ask, asked = channel.stream_stream(method), health_pb2.HealthCheckRequest(service=SERVICE)
        message = b"" if method == WATCH else b"\x3a\x00"  # list_services
        held = [ask(until(over, message), timeout=WAIT) for _ in range(3)]
        for one in held:
            next(one)
        refused = ask(iter([message]), timeout=WAIT)
        assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        what = "watches of health" if method == WATCH else "calls of reflection"
        assert refused.details() == f"3 {what} are open here already: ask again later"
        assert is_busy(refused)
        health_pb2_grpc.HealthStub(channel).Check(asked, timeout=WAIT)
        for one in held:
            one.cancel()
        while not has_room(ask(iter([message]), timeout=WAIT)):
            time.sleep(0.01)
        over.set()


def has_room(call):
    """Whether a call is answered, or refused since too many are open."""
    try:
        next(call)
    except grpc.RpcError:
        return not is_busy(call)
    return True


def test_those_who_watch_and_send_nothing_keep_nobody_from_checking_health():
    async def score(data):
        return data

    over = threading.Event()
    with (
        serving(score, most=MAX_MESSAGE_BYTES) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        silent = [channel.stream_stream(WATCH)(until(over), timeout=WAIT) for _ in range(200)]
        for _ in range(20):
            asked = health_pb2.HealthCheckRequest(service=SERVICE)
            health_pb2_grpc.HealthStub(channel).Check(asked, timeout=WAIT)
        for one in silent:
            one.cancel()
        over.set()


def test_a_call_without_a_message_is_refused_and_so_is_a_budget_below_one():
    async def score(data):
        return data

    with (
        serving(score, most=MAX_MESSAGE_BYTES) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        asked = health_pb2.HealthCheckRequest(service=SERVICE)
        watching = health_pb2_grpc.HealthStub(channel).Watch(asked, timeout=WAIT)
        assert next(watching).status == health_pb2.HealthCheckResponse.SERVING
        watching.cancel()
        empty = channel.stream_unary(SCORE).future(iter([]), timeout=WAIT)
        assert empty.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert channel.unary_unary(SCORE)(b"x", timeout=WAIT) == b"x"
    with pytest.raises(EdgeError, match="most_bytes is 1: a message of 67108864 must fit"):
        EdgeOptions(most_bytes=1)
