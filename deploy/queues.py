"""A run's replay queue, wherever it is: in a Ray actor, or in Redis with `replay.url`."""

import logging
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from deploy.config import RunConfig
from deploy.services import QueueProcess, Service
from replay.pacing import PacingConfig
from replay.queue import QueueFull, ReplayQueue, Stage, Stats
from replay.ray_client import RayReplayQueue
from replay.tickets import TicketSource

if TYPE_CHECKING:
    from replay.redis_connection import RedisConnection

logger = logging.getLogger(__name__)


@dataclass
class RunQueue:
    """The queue as the controller sees it.

    Attributes:
      queue: a client.
      connection: to Redis; None for the queue in memory.
      service: the process of the queue in memory; None for one in Redis.
    """

    queue: ReplayQueue
    connection: "RedisConnection | None" = None
    service: Service | None = None
    _full_since: float | None = None
    _acked_then: int = -1

    @property
    def interruptions(self) -> int:
        """How often it had to be waited for."""
        return 0 if self.connection is None else self.connection.interruptions

    def check_room(self, stats: Stats, groups_per_step: int) -> None:
        """Raises `QueueFull` where memory has been full, and nothing trained, for the patience.

        Nobody else may notice: while there is no room, no work is begun that would need it. As long
        as groups are trained, they make room, and it is their pace that the others keep. A learner
        that holds a whole step is training, which may take longer than the patience.

        Args:
          stats: the last ones.
          groups_per_step: of the run.
        """
        training = stats.stages[Stage.TO_TRAIN].leased >= groups_per_step
        if self.connection is None or not self.connection.full or training:
            self._full_since = None
            return
        now, patience = time.monotonic(), self.connection.settings.patience
        if self._full_since is None or stats.acked != self._acked_then:
            self._full_since, self._acked_then = now, stats.acked
        elif now - self._full_since > patience:
            raise QueueFull(
                f"Redis at {self.connection.name} has had no room for {patience:g} s, in which "
                "no group was trained: its memory is full. Raise maxmemory; the same command then "
                "resumes the run"
            )

    def status(self) -> dict[str, Any]:
        """Where it is, and why it is being waited for, by whomever."""
        if self.connection is None:
            return {"backend": "memory"}
        return {
            "backend": "redis",
            "url": self.connection.name,
            "waiting": self.connection.waited_for,
            "interruptions": self.connection.interruptions,
        }


@contextmanager
def start_queue(
    config: RunConfig,
    identity: str,
    tickets: TicketSource,
    actor_options: dict[str, Any],
    on_waiting: Callable[[], None],
) -> Iterator[RunQueue]:
    """Makes the run's queue, or takes it up in Redis; the learner says from where it goes on.

    Args:
      config: of the run.
      identity: tells the run from all others, and from itself with other numbers.
      tickets: of the run.
      actor_options: of the Ray actor that holds the queue in memory.
      on_waiting: called while a lost Redis is waited for.
    """
    if config.replay.url is None:
        actor: Any = ray.remote(QueueProcess)
        handle = actor.options(**actor_options).remote(config.queue_config(), None, begun=False)
        # Not by the constructor: with large arguments of it Ray may fail to start an actor anew.
        supply = lambda: handle.supply.remote(tickets)  # noqa: E731
        service = Service("queue", handle, config.cluster.failures_allowed, supply)
        try:
            yield RunQueue(RayReplayQueue(handle, config.cluster.reply_seconds), service=service)
        finally:
            ray.kill(handle)
        return
    from replay.redis_queue import RedisReplayQueue
    from replay.redis_runs import open_when_free

    connection = redis_connection(config.replay)
    connection.on_waiting = on_waiting
    try:
        queue = RedisReplayQueue(connection, config.name)
        owner = f"{socket.gethostname()}:{config.directory}"
        told = config.model_dump_json()
        if open_when_free(queue, config.queue_config(), owner, identity, told):
            logger.info("the queue in Redis is taken up again")
        yield RunQueue(queue, connection)
    finally:
        connection.close()


def join_queue(config: RunConfig, tickets: Callable[[], TicketSource], actor: str) -> ReplayQueue:
    """A worker's client of the run's queue.

    Args:
      config: of the run.
      tickets: makes the run's source of tickets, for a queue that does not store them.
      actor: the name of the Ray actor that holds the queue in memory.
    """
    if config.replay.url is None:
        # By name: an actor that Ray may restart must not hold references to what could be gone.
        return RayReplayQueue(ray.get_actor(actor), config.cluster.reply_seconds)
    from replay.redis_queue import RedisReplayQueue

    source = tickets()
    return RedisReplayQueue(
        redis_connection(config.replay),
        config.name,
        lambda ordinal: source.ticket(ordinal).to_bytes(),
    )


def traced_queue(
    config: RunConfig, directory: Path, worker: str, queue: ReplayQueue
) -> tuple[ReplayQueue, Callable[[], None]]:
    """The queue, its groups traced where the config says so, and what sends the last spans.

    Args:
      config: of the run.
      directory: of the run, as this process has it.
      worker: this process.
      queue: its client.
    """
    if config.tracing.endpoint is None:
        return queue, lambda: None
    from deploy.tracing import TracedQueue, Tracer

    tracer = Tracer(config, directory, worker)
    return TracedQueue(queue, tracer), tracer.flush


def redis_connection(pacing: PacingConfig) -> "RedisConnection":
    """The connection of a config with `replay.url`.

    Raises:
      ValueError: the password or certificate it names is not there, or redis-py is not.
    """
    assert pacing.url is not None
    try:
        from replay.redis_connection import RedisConnection, RedisSettings
    except ModuleNotFoundError as error:
        raise ValueError("replay.url needs redis-py: pip install 'rewardtune[redis]'") from error
    return RedisConnection(
        RedisSettings(
            url=pacing.url,
            password_env=pacing.password_env,
            password_file=pacing.password_file,
            ca_file=pacing.ca_file,
            patience=pacing.patience_seconds,
        )
    )


def stored_queues(where: PacingConfig) -> list[dict[str, Any]]:
    """The runs whose queues are in a Redis, with what `StoredRun` knows of each."""
    connection = redis_connection(where)
    from replay.redis_runs import stored_runs

    with closing(connection):
        return [asdict(run) for run in stored_runs(connection)]


def remove_queue(where: PacingConfig, run: str, force: bool = False) -> int:
    """Removes a run's queue from Redis; returns how many keys it had.

    Raises:
      ValueError: there is no such run, or it is at work and `force` is not set.
    """
    connection = redis_connection(where)
    from replay.redis_runs import remove_run, stored_runs

    with closing(connection):
        try:
            return remove_run(connection, run, force)
        except KeyError as error:
            known = ", ".join(stored.name for stored in stored_runs(connection)) or "none"
            raise ValueError(
                f"Redis at {connection.name} has no run {run!r}; it has: {known}"
            ) from error
