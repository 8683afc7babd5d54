"""Whether a Redis may hold a queue: it must not drop what it was given, whatever happens."""

import logging
import re

import redis
from redis.exceptions import ResponseError

from replay.redis_connection import RedisConnection

logger = logging.getLogger(__name__)

OLDEST = (6, 2)


class RedisUnfit(ValueError):
    """A setting of Redis with which groups could be lost, and what to set."""


def check_fitness(connection: RedisConnection) -> None:
    """Raises `RedisUnfit` where settings could lose groups; warns of what is slower or weaker."""
    for doubt in look_at(connection):
        logger.warning("%s", doubt)


def look_at(connection: RedisConnection) -> list[str]:
    """What is slower or weaker than it could be; raises `RedisUnfit` where groups could be lost.

    It reads INFO, which managed services answer too; CONFIG, which many forbid, only for the rest.
    """
    info = connection.run("info", lambda client, again: client.info())
    where = f"Redis at {connection.name}"
    version = str(info.get("redis_version", "0"))
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < OLDEST:
        raise RedisUnfit(f"{where} is version {version}; the queue needs 6.2 or newer")
    if info.get("redis_mode") == "cluster":
        raise RedisUnfit(
            f"{where} is a cluster; the queue needs one server (replicas and a proxy are fine)"
        )
    policy = info.get("maxmemory_policy")
    if policy != "noeviction":
        raise RedisUnfit(
            f"{where} has maxmemory-policy {policy}: when its memory is full it would drop groups. "
            "Set `maxmemory-policy noeviction` in redis.conf, or now: "
            "redis-cli CONFIG SET maxmemory-policy noeviction"
        )
    if not info.get("aof_enabled"):
        raise RedisUnfit(
            f"{where} keeps no append-only file: a restart would lose the queue. Set `appendonly "
            "yes` and `appendfsync always` in redis.conf, or now: redis-cli CONFIG SET appendonly "
            "yes"
        )
    doubts = []
    if not info.get("maxmemory"):
        doubts.append(
            f"{where} has no maxmemory: when the machine's memory is full, the system ends it. Set "
            "`maxmemory` in redis.conf to what it may use"
        )
    sync = connection.run("config get", _appendfsync)
    if sync not in (None, "always"):
        doubts.append(
            f"{where} has appendfsync {sync}: a crash of its machine can lose the last second, and "
            "what was sampled and scored in it is made again. Set `appendfsync always` in "
            "redis.conf to lose nothing"
        )
    return doubts


def _appendfsync(client: redis.Redis, again: bool) -> str | None:
    try:
        values = client.config_get("appendfsync")
    except ResponseError:  # forbidden or renamed, as managed services do
        return None
    return next((_text(value) for value in values.values()), None)


def _text(value: str | bytes | None) -> str | None:
    return value.decode() if isinstance(value, bytes) else value
