"""The queues that `tests/hostile.py` serves, and what one sees inside of them."""

import asyncio
import hashlib
import threading
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from replay.config import QueueConfig
from replay.memory import MemoryReplayQueue
from replay.queue import ReplayQueue, Stage
from replay.redis_connection import RedisConnection, RedisSettings
from replay.redis_queue import RedisReplayQueue, key_prefix
from replay.tickets import TicketSource
from tests.queues import Loop

RUN = "hostile"
_GROUPS = """
local groups, found = redis.call('HGETALL', KEYS[1]), {}
for i = 1, #groups, 2 do found[#found + 1] = {groups[i], cmsgpack.unpack(groups[i + 1])[1]} end
return found
"""
_HOLDERS = """
local found = {}
for _, lease in ipairs(redis.call('HVALS', KEYS[1])) do
  found[#found + 1] = string.format('%.0f', cmsgpack.unpack(lease)[1])
end
return found
"""


class Group(NamedTuple):
    """A group that is out."""

    ordinal: int
    stage: Stage
    payload: bytes | None


class Inside(Protocol):
    """A queue, and what one sees inside of it. Its time stands still: nothing expires."""

    queue: ReplayQueue

    def digest(self) -> str:
        """Of all that a call may change."""
        ...

    def groups(self) -> list[Group]:
        """All that are out."""
        ...

    def places(self) -> list[int]:
        """The ordinals that are ready in a stage, and those that are leased."""
        ...

    def memory(self) -> float:
        """MB that the queue takes beside this process."""
        ...


class InMemory:
    """See `Inside`."""

    def __init__(self, settings: QueueConfig, tickets: TicketSource) -> None:
        loop = asyncio.new_event_loop()
        threading.Thread(target=loop.run_forever, daemon=True).start()
        self._queue = MemoryReplayQueue(settings, tickets, clock=lambda: 0.0)
        self.queue: Any = Loop(self._queue, loop)

    def digest(self) -> str:
        state = self._queue._state
        held = [(o, i.stage, i.payload, i.tombstone, i.failed, i.reasons, i.lease_id) for o, i in
                sorted(state._items.items())]  # fmt: skip
        leases = [(lease.id, lease.worker, lease.ttl) for lease in state._leases.values()]
        ready = [sorted(part.since) for part in state._ready.values()]
        return _hashed((held, leases, ready, state.frontier(), self._queue._fence._learners))

    def groups(self) -> list[Group]:
        return [Group(o, i.stage, i.payload) for o, i in self._queue._state._items.items()]

    def places(self) -> list[int]:
        state = self._queue._state
        ready = [ordinal for part in state._ready.values() for ordinal in part.since]
        return ready + [lease.ordinal for lease in state._leases.values()]

    def memory(self) -> float:
        return 0.0


class OnRedis:
    """See `Inside`."""

    def __init__(self, settings: QueueConfig, tickets: TicketSource, url: str) -> None:
        mint: Callable[[int], bytes] = lambda ordinal: tickets.ticket(ordinal).to_bytes()  # noqa: E731
        connection = RedisConnection(RedisSettings(url))
        RedisReplayQueue(connection, RUN, clock=lambda: 0.0).open(settings, "the tests", "a run")
        self.queue: Any = RedisReplayQueue(connection, RUN, mint, clock=lambda: 0.0)
        self._client: Any = connection._client

    def digest(self) -> str:
        pipe = self._client.pipeline(transaction=False)
        for name in ("meta", "items", "parked", "payloads", "leases", "newest"):
            pipe.hgetall(self._key(name))
        for stage in Stage:
            pipe.zrange(self._key(f"{stage}:ready"), 0, -1)
            pipe.zrange(self._key(f"{stage}:deadlines"), 0, -1, withscores=True)
        pipe.zrange(self._key("acked"), 0, -1)
        pipe.lrange(self._key("quarantine"), 0, -1)
        found = pipe.execute()
        return _hashed([sorted(of.items()) if isinstance(of, dict) else of for of in found])

    def groups(self) -> list[Group]:
        payloads = self._client.hgetall(self._key("payloads"))
        found = self._client.eval(_GROUPS, 1, self._key("items"))
        return [Group(int(o), [*Stage][stage - 1], payloads.get(o)) for o, stage in found]

    def places(self) -> list[int]:
        found = [*self._client.eval(_HOLDERS, 1, self._key("leases"))]
        for stage in Stage:
            found += self._client.zrange(self._key(f"{stage}:ready"), 0, -1)
        return [int(ordinal) for ordinal in found]

    def memory(self) -> float:
        return float(self._client.info("memory")["used_memory"]) / 2**20

    def _key(self, name: str) -> str:
        return key_prefix(RUN) + name


def _hashed(told: object) -> str:
    return hashlib.blake2b(repr(told).encode(), digest_size=16).hexdigest()
