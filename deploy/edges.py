"""A run's queue and weight store, served to processes outside of Ray (`rewardtune serve`)."""

import asyncio
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import ray

from deploy import processes
from deploy.config import RunConfig
from deploy.config_file import ConfigError
from deploy.payloads import PayloadCheck
from deploy.queues import join_queue
from deploy.run_directory import RunDirectoryError, read_status
from deploy.runs import prepare_data
from learner.packed_weights import VersionNotHeld
from learner.weight_store import RayWeights
from learner.weights_service import WeightsService
from protos.edge import EdgeOptions, EdgeServer, Services, stop_on_signals
from replay.service import ReplayService
from vision.models.arrays import flatten
from vision.tasks.registry import build_task

logger = logging.getLogger(__name__)

LOOK_SECONDS, ANSWER_SECONDS = 2.0, 10.0


class _Service(Protocol):
    def services(self) -> Services: ...

    def stop(self) -> None: ...

    def close(self) -> None: ...


def serve_replay(config: RunConfig, options: EdgeOptions) -> int:
    """Serves the queue of a run that is at work; returns the exit code.

    Raises:
      ConfigError: no such run is at work.
      EdgeError: it cannot listen.
    """
    prepare_data(config)
    task = build_task(config.task)
    tickets = processes.ticket_source(config, task)
    in_ray = config.replay.url is None
    if in_ray:
        _join_ray(config, processes.QUEUE)
    actor = processes.actor_name(config, processes.QUEUE)
    service = ReplayService(
        join_queue(config, lambda: tickets, actor),
        config.name,
        config.model_dump_json(),
        PayloadCheck(config, task, tickets),
    )
    ended = (lambda: not _at_work(actor)) if in_ray else (lambda: False)
    return asyncio.run(_serve(service, options, f"the queue of {config.name}", ended))


def serve_weights(config: RunConfig, options: EdgeOptions) -> int:
    """Serves the weight store of a run that is at work; returns the exit code.

    Raises:
      ConfigError: no such run is at work.
      EdgeError: it cannot listen.
    """
    _join_ray(config, processes.WEIGHTS)
    actor = processes.actor_name(config, processes.WEIGHTS)
    store = RayWeights(ray.get_actor(actor), config.cluster.reply_seconds)
    service = WeightsService(store, _shapes(config, store))
    what = f"the weights of {config.name}"
    return asyncio.run(_serve(service, options, what, lambda: not _at_work(actor)))


def _shapes(config: RunConfig, store: RayWeights) -> Mapping[str, Sequence[int]]:
    """Of the run's parameters: those it has published, or until then those of its model."""
    try:
        return store.manifest(None).shapes
    except VersionNotHeld:
        from vision.models.sequence import abstract_params  # this edge needs JAX only here

        prepare_data(config)
        model = config.model.build(build_task(config.task))
        return {name: array.shape for name, array in flatten(abstract_params(model)).items()}


async def _serve(
    service: _Service, options: EdgeOptions, what: str, ended: Callable[[], bool]
) -> int:
    """Serves until a signal, or until the run has ended."""
    stop = stop_on_signals()
    server = EdgeServer(service.services(), options)
    address = await server.start()
    print(f"serving {what} at {address}", flush=True)
    logger.info("%s is served at %s", what, address)
    looking = ThreadPoolExecutor(1, "run")
    while not stop.is_set() and not await _has_ended(ended, looking):
        try:
            await asyncio.wait_for(stop.wait(), LOOK_SECONDS)
        except TimeoutError:
            continue
    logger.info("%s at %s stops%s", what, address, "" if stop.is_set() else ": the run has ended")
    service.stop()
    await server.stop()
    service.close()
    return 0


async def _has_ended(ended: Callable[[], bool], thread: ThreadPoolExecutor) -> bool:
    """Whether the run has ended; with it its Ray, if the run had started one, answers no more."""
    looked = asyncio.get_running_loop().run_in_executor(thread, ended)
    try:
        return await asyncio.wait_for(looked, ANSWER_SECONDS)
    except TimeoutError:
        return True


def _join_ray(config: RunConfig, role: str) -> None:
    """Joins the Ray of a run.

    Raises:
      ConfigError: it is not there, or the run is not in it.
    """
    address = config.cluster.address or os.environ.get("RAY_ADDRESS")
    if address is None:
        address = _address_of(config)
        _use_token_of_this_machine()
    namespace = f"rewardtune-{config.name}"
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        ray.init(address=address, namespace=namespace, **options)
    except (ConnectionError, RuntimeError) as error:
        raise ConfigError(f"no Ray cluster at {address!r}: {error}") from error
    if not _at_work(processes.actor_name(config, role)):
        raise ConfigError(
            f"no run {config.name} is at work in the Ray cluster at {address!r}: start it with "
            "`rewardtune tune` and the same config"
        )


def _use_token_of_this_machine() -> None:
    """A Ray that a run has started here wants the token of ~/.ray.

    Ray reads the variable that says so when it is imported, so this process begins again with it.
    """
    if "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


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
