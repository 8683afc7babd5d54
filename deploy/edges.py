"""A run's queue and weight store, served to processes outside of Ray (`rewardtune serve`)."""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, Protocol

import ray
from ray.exceptions import AuthenticationError

from deploy import processes
from deploy.config import RunConfig
from deploy.config_file import ConfigError
from deploy.environment import use_token_of_this_machine
from deploy.payloads import PayloadCheck
from deploy.queues import join_queue
from deploy.run_directory import RunDirectoryError, read_status
from deploy.run_watch import LOOK_SECONDS, RunWatch, reach
from deploy.runs import prepare_data
from deploy.same_run import check_same_run
from deploy.serve import leave
from learner.packed_weights import VersionNotHeld
from learner.weight_store import RayWeights
from learner.weights_service import WeightsService
from protos.edge import EdgeOptions, EdgeServer, Services, stop_on_signals
from replay.queue import QueueUnavailable, ReplayQueue
from replay.service import ReplayService
from rewards.facts import task_facts
from vision.models.arrays import flatten
from vision.tasks.registry import build_task

logger = logging.getLogger(__name__)

FAREWELL_SECONDS = 10.0
"""More than the pauses of a worker that asks again: it ends well where it hears of the end."""


class EdgeService(Protocol):
    """What an edge serves: `ReplayService` or `WeightsService`."""

    def services(self) -> Services:
        """The methods, from bytes to bytes."""
        ...

    def stop(self) -> None:
        """Ends waits; called before the server stops."""
        ...

    def close(self) -> None:
        """Ends the threads; called when the server has stopped."""
        ...


def serve_replay(config: RunConfig, options: EdgeOptions, wait: float = 0.0) -> NoReturn:
    """Serves the queue of a run that is at work, and ends the process.

    Args:
      config: of the run.
      options: where, and for whom.
      wait: seconds for a run to make its queue on Redis.

    Raises:
      ConfigError: no such run is at work, or it has another config.
      EdgeError: it cannot listen.
      RunLost: its Ray was out of reach for too long.
    """
    prepare_data(config)
    task = build_task(config.task)
    tickets = processes.ticket_source(config, task)
    in_ray = config.replay.url is None
    store = _join_ray(config) if in_ray else None
    queue = join_queue(config, lambda: tickets, processes.actor_name(config, processes.QUEUE))
    told = store.run_config() if store else join_run(queue, wait)
    run = _check_run(config, told)
    service = ReplayService(
        queue,
        config.name,
        run.model_dump_json(),
        PayloadCheck(run, task, tickets, lambda: _trained(queue)),
        task_facts(task),
    )
    watch = _watch(config, service.look) if in_ray else _config_watch(queue, told)
    # On Redis the same run may go on with another config: its workers ask the next server.
    farewell = service.end if in_ray else None
    serve_and_leave(service, options, f"the queue of {config.name}", watch, farewell)


def serve_weights(config: RunConfig, options: EdgeOptions) -> NoReturn:
    """Serves the weight store of a run that is at work, and ends the process.

    Raises:
      ConfigError: no such run is at work, or it has another config.
      EdgeError: it cannot listen.
      RunLost: its Ray was out of reach for too long.
    """
    store = _join_ray(config)
    _check_run(config, store.run_config())
    service = WeightsService(store, _shapes(config, store))
    serve_and_leave(service, options, f"the weights of {config.name}", _watch(config))


def join_run(queue: ReplayQueue, wait: float) -> str:
    """`RedisReplayQueue.join`; waits for the run to make its queue.

    Raises:
      QueueUnavailable: it was not made within `wait` seconds.
    """
    from replay.redis_queue import RedisReplayQueue

    assert isinstance(queue, RedisReplayQueue)
    give_up = time.monotonic() + wait
    while True:
        try:
            return queue.join()
        except QueueUnavailable:
            if time.monotonic() > give_up:
                raise
            time.sleep(LOOK_SECONDS)


def _check_run(config: RunConfig, told: str) -> RunConfig:
    """The run's own config, as it told it."""
    run = RunConfig.model_validate_json(told)
    check_same_run(config, run, f"the run {run.name} that is at work")
    return run


def _trained(queue: ReplayQueue) -> int:
    stats = queue.stats()
    return stats.acked - stats.dropped


def _watch(config: RunConfig, look: Callable[[], None] = lambda: None) -> RunWatch:
    """Until the run's actors are gone; looks at them by `look`, too, as long as they are there."""
    actor = processes.actor_name(config, processes.WEIGHTS)
    address = ray.get_runtime_context().gcs_address

    def at_work() -> bool:
        if not _at_work(actor):
            return False
        look()
        return True

    return RunWatch(at_work, lambda: reach(address))


def _config_watch(queue: ReplayQueue, told: str) -> RunWatch:
    """Until the run, or the next one of its name, has another config than was told to workers.

    While Redis is away, or the run is removed, nothing says so.
    """
    from replay.redis_queue import RedisReplayQueue

    assert isinstance(queue, RedisReplayQueue)
    same = lambda: queue.run_config() == told  # noqa: E731
    return RunWatch(same, lambda: None, LOOK_SECONDS, "the run has another config now")


def _shapes(config: RunConfig, store: RayWeights) -> Mapping[str, Sequence[int]]:
    """Of the run's parameters: those it has published, or until then those of its model."""
    try:
        return store.manifest(None).shapes
    except VersionNotHeld:
        from vision.models.sequence import abstract_params  # this edge needs JAX only here

        prepare_data(config)
        model = config.model.build(build_task(config.task))
        return {name: array.shape for name, array in flatten(abstract_params(model)).items()}


def serve_and_leave(
    service: EdgeService,
    options: EdgeOptions,
    what: str,
    watch: RunWatch | None,
    farewell: Callable[[], bool] | None = None,
) -> NoReturn:
    """Serves until a signal, or until the run has ended; then ends the process, with code 0.

    The service is not freed before: it holds arrays in the memory of the run's Ray, and where that
    has gone, Ray ends the process that frees one, with code 1.

    Args:
      service: what is served.
      options: where, and for whom.
      what: it is, for the log.
      watch: of the run; None where nothing tells its end.
      farewell: has those who ask be told that the run has ended, for `FAREWELL_SECONDS`, unless it
        says that this is not known; None: nobody is told.

    Raises:
      EdgeError: it cannot listen.
      RunLost: the run's Ray was out of reach for too long.
    """
    asyncio.run(_serve(service, options, what, watch, farewell))
    leave(0)


async def _serve(
    service: EdgeService,
    options: EdgeOptions,
    what: str,
    watch: RunWatch | None,
    farewell: Callable[[], bool] | None,
) -> None:
    stop = stop_on_signals()
    server = EdgeServer(service.services(), options)
    address = await server.start()
    print(f"serving {what} at {address}", flush=True)
    logger.info("%s is served at %s", what, address)
    while not stop.is_set() and not (watch is not None and await watch.has_ended()):
        try:
            await asyncio.wait_for(stop.wait(), LOOK_SECONDS)
        except TimeoutError:
            continue
    why = f": {watch.over}" if watch is not None and not stop.is_set() else ""
    logger.info("%s at %s stops%s", what, address, why)
    if farewell is not None and not stop.is_set() and farewell():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), FAREWELL_SECONDS)
    service.stop()
    await server.stop()
    service.close()


def _join_ray(config: RunConfig) -> RayWeights:
    """Joins the Ray of a run; returns its weight store.

    Raises:
      ConfigError: it is not there, or the run is not in it.
    """
    address = config.cluster.address or os.environ.get("RAY_ADDRESS")
    if address is None:
        address = _address_of(config)
        use_token_of_this_machine()
    namespace = f"rewardtune-{config.name}"
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        ray.init(address=address, namespace=namespace, **options)
    except (AuthenticationError, ConnectionError, RuntimeError) as error:
        raise ConfigError(f"no Ray cluster at {address!r}: {error}") from error
    actor = processes.actor_name(config, processes.WEIGHTS)  # the last that a run starts
    if not _at_work(actor):
        raise ConfigError(
            f"no run {config.name} is at work in the Ray cluster at {address!r}: start it with "
            "`rewardtune tune` and the same config"
        )
    return RayWeights(ray.get_actor(actor), config.cluster.reply_seconds)


def _address_of(config: RunConfig) -> str:
    """Where the run says that its Ray is."""
    try:
        status = read_status(config.directory)
    except RunDirectoryError as error:
        raise ConfigError(
            f"no run {config.name} is known here ({error}): name its Ray with "
            "cluster.address=HOST:PORT, or RAY_ADDRESS"
        ) from error
    return str(status.get("cluster") or "auto")


def _at_work(actor: str) -> bool:
    try:
        ray.get_actor(actor)
    except ValueError:
        return False
    return True
