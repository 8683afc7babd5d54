"""Replay queues as tests open them: every backend, with real time, and small settings.

A backend is a function in `BACKENDS` that yields an opener of queues. A lease that must expire has
a ttl of a fraction of a second, and what follows waits for it, not beside it.
"""

import asyncio
import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from protos.edge_client import Peer
from replay.config import QueueConfig
from replay.direct import DirectAddress
from replay.direct_client import DirectConnection
from replay.direct_server import DirectServer
from replay.memory import MemoryReplayQueue
from replay.queue import Completion, ReplayQueue
from replay.redis_queue import RedisReplayQueue
from replay.remote_queue import RemoteReplayQueue
from replay.tickets import TicketSource
from tests.edges import serving_queue
from tests.redis_server import MISSING, redis_server

SHORT = 0.05
LONG = 20.0


class Loop:
    """The memory backend's asyncio loop in a thread, as Ray would run it; the client is sync."""

    def __init__(self, queue: MemoryReplayQueue, loop: asyncio.AbstractEventLoop) -> None:
        self._queue, self._loop = queue, loop

    def __getattr__(self, method: str) -> Callable[..., object]:
        def call(*arguments: object, **named: object) -> object:
            coroutine = getattr(self._queue, method)(*arguments, **named)
            return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(timeout=60)

        return call


@contextmanager
def in_a_loop(
    make: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop,
) -> Iterator[asyncio.AbstractEventLoop]:
    """A loop that runs in a thread, and whose tasks are ended with it."""
    loop = make()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    yield loop

    async def end() -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run_coroutine_threadsafe(end(), loop).result(timeout=LONG)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(timeout=LONG)
    loop.close()


@contextmanager
def memory() -> Iterator[Callable[[QueueConfig], ReplayQueue]]:
    with in_a_loop() as loop:
        yield lambda config: Loop(MemoryReplayQueue(config, tickets(config)), loop)


class Direct:
    """A queue in a loop, asked as workers ask the actor: over a connection of each thread."""

    def __init__(self, queue: Loop, address: DirectAddress) -> None:
        self._queue, self._address, self._connections = queue, address, threading.local()

    def __getattr__(self, method: str) -> Callable[..., object]:
        if method not in ("lease", "complete", "ack"):
            return getattr(self._queue, method)

        def call(*arguments: object, **named: object) -> object:
            if not hasattr(self._connections, "own"):
                self._connections.own = DirectConnection(self._address, LONG)
            return getattr(self._connections.own, method)(*arguments, **named)

        return call


@contextmanager
def directly() -> Iterator[Callable[[QueueConfig], ReplayQueue]]:
    with in_a_loop() as loop:

        def opener(config: QueueConfig) -> ReplayQueue:
            queue = MemoryReplayQueue(config, tickets(config))
            return Direct(Loop(queue, loop), Loop(DirectServer(queue), loop).start("127.0.0.1"))

        yield opener


@contextmanager
def on_redis() -> Iterator[Callable[[QueueConfig], ReplayQueue]]:
    numbers = itertools.count()
    with redis_server() as server:
        connection = server.connect()

        def opener(config: QueueConfig) -> ReplayQueue:
            source = tickets(config)
            queue = RedisReplayQueue(
                connection, f"run{next(numbers)}", lambda ordinal: source.ticket(ordinal).to_bytes()
            )
            queue.open(config, "the tests", "a run")
            return queue

        yield opener
        connection.close()


@contextmanager
def over_grpc() -> Iterator[Callable[[QueueConfig], ReplayQueue]]:
    with memory() as open_memory, ExitStack() as stack:

        def opener(config: QueueConfig) -> ReplayQueue:
            server, service = serving_queue(open_memory(config), least_ttl=SHORT)
            stack.callback(service.close)
            stack.enter_context(server)
            queue = RemoteReplayQueue(Peer(server.address, timeout=LONG, patience=LONG))
            stack.callback(queue.disconnect)
            return queue

        yield opener


BACKENDS = {
    "memory": memory,
    "direct": directly,
    "grpc": over_grpc,
    "redis": pytest.param(
        on_redis, marks=pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
    ),
}


def tickets(config: QueueConfig) -> TicketSource:
    ids = [f"image {i}" for i in range(10)]
    return TicketSource(0, ids, config.mode, config.lag, config.groups_per_step)


@pytest.fixture(params=BACKENDS.values(), ids=BACKENDS)
def open_queue(request):
    with request.param() as opener:
        yield opener


def config(**changes) -> QueueConfig:
    return QueueConfig(**{"groups_per_step": 4, "block": 2, "lag": 1, **changes})


def advance(queue, stage, n=1, payload=b"payload", worker="w"):
    """Leases and completes; returns the ordinals."""
    leases = queue.lease(stage, n, None, worker)
    assert all(c == Completion.DONE for c in queue.complete([(g.id, payload) for g in leases]))
    return [lease.ordinal for lease in leases]


def ordinals(leases):
    return [lease.ordinal for lease in leases]
