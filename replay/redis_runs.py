"""The runs whose queues a Redis holds, and their removal."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import redis

from replay.config import QueueConfig
from replay.redis_connection import RedisConnection
from replay.redis_queue import OWNER_SECONDS, PREFIX, RedisReplayQueue, RunTaken, key_prefix

logger = logging.getLogger(__name__)

LOOK_SECONDS = 1.0


@dataclass(frozen=True)
class StoredRun:
    """What Redis holds of a run.

    Attributes:
      name: of the run.
      owner: the machine and directory of its controller.
      groups: out: handed out and not yet trained.
      acked: every ordinal below is trained or dropped.
      memory: bytes.
      at_work: its controller asked for the queue's stats within the last seconds.
    """

    name: str
    owner: str
    groups: int
    acked: int
    memory: int
    at_work: bool


class RunAtWork(ValueError):
    """A run that would lose its queue while it uses it."""


def open_when_free(
    queue: RedisReplayQueue,
    config: QueueConfig,
    owner: str,
    identity: str,
    run_config: str = "",
    sleep: Callable[[float], None] = time.sleep,
) -> bool:
    """`RedisReplayQueue.open`; a run whose owner was killed is waited for until it is free.

    One that lives is seen again within a second or two: only after a dead one all of it is waited.

    Raises:
      RunTaken: its owner is at work.
    """
    first: RunTaken | None = None
    while True:
        try:
            return queue.open(config, owner, identity, run_config)
        except RunTaken as taken:
            if first is not None and taken.seen != first.seen:
                raise
            if first is None:
                logger.warning("waits up to %.0f s for it: %s", taken.free_in, taken)
            first = taken
        sleep(LOOK_SECONDS)


def stored_runs(connection: RedisConnection) -> list[StoredRun]:
    """All runs, by name."""

    def look(client: redis.Redis, again: bool) -> list[StoredRun]:
        metas = client.scan_iter(match=f"{PREFIX}:{{*}}:meta", count=1000)
        return [_describe(client, bytes(meta).decode()) for meta in set(metas)]

    return sorted(connection.run("scan", look), key=lambda run: run.name)


def remove_run(connection: RedisConnection, name: str, force: bool = False) -> int:
    """Removes every key of a run; returns how many.

    Raises:
      KeyError: there is no such run.
      RunAtWork: its controller is at work, and `force` is not set.
    """
    run = next((run for run in stored_runs(connection) if run.name == name), None)
    if run is None:
        raise KeyError(name)
    if run.at_work and not force:
        raise RunAtWork(
            f"the run {name} is at work in {run.owner}; stop it first, wait {OWNER_SECONDS:g} s "
            "after it was killed, or use --force"
        )

    def remove(client: redis.Redis, again: bool) -> int:
        keys = set(client.scan_iter(match=f"{key_prefix(name)}*", count=1000))
        # `meta` goes first: from then on a worker that is left over is told there is no queue.
        meta = f"{key_prefix(name)}meta".encode()
        for key in sorted(keys, key=lambda key: key != meta):
            client.unlink(key)
        return len(keys)

    return connection.run("unlink", remove)


def _describe(client: redis.Redis, meta: str) -> StoredRun:
    base = meta.removesuffix("meta")
    found: list[Any] = list(client.hmget(meta, ["owner", "seen", "next_unacked"]))
    owner, seen, acked = found
    seconds, microseconds = client.time()
    keys = list(client.scan_iter(match=f"{base}*", count=1000))
    return StoredRun(
        name=base.removeprefix(f"{PREFIX}:{{").removesuffix("}:"),
        owner=(owner or b"?").decode(),
        groups=int(client.hlen(f"{base}items")),
        acked=int(acked or 0),
        memory=sum(int(client.memory_usage(key) or 0) for key in keys),
        at_work=seconds + microseconds / 1e6 - float(seen or 0) < OWNER_SECONDS,
    )
