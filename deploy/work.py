"""A sampler or a reward worker outside of Ray: the same roles, over a run's edges.

Nobody starts it again but what started it. It ends with 0 when the run is over or when it was asked
to stop, with 70 when its work exceeded its deadline, and with 1 when it cannot go on.
"""

import logging
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

from deploy import processes
from deploy.config import RunConfig, thread_environment
from deploy.config_file import ConfigError
from deploy.joining import check_task, joined_config
from deploy.logs import log_to_stderr
from deploy.queues import traced_queue
from deploy.runs import prepare_data
from learner.remote_weights import RemoteWeights
from learner.stop import StopRequest
from protos.edge_client import Peer
from replay.lease_keeper import LeaseKeeper
from replay.pulling import PullingWorker
from replay.queue import QueueClosed, QueueUnavailable, ReplayQueue
from replay.remote_queue import RemoteReplayQueue
from vision.tasks.registry import build_task
from vision.tasks.task import Task

logger = logging.getLogger(__name__)

Role = Literal["sampler", "reward"]
LOOK_SECONDS = 0.1


def work(
    role: Role,
    replay: Peer,
    weights: Peer | None,
    config: str | None,
    overrides: Sequence[str],
    name: str | None,
    grace: float,
) -> int:
    """Works until the run is over, or until it is asked to stop; returns the exit code.

    Args:
      role: what it does.
      replay: the run's queue.
      weights: its weight store; samplers need it.
      config: a file; None: the config that the queue's server has.
      overrides: changes to it, such as where the data is here.
      name: tells this worker from all others of its role; None: one of this machine.
      grace: seconds that the work at hand may take after the request to stop. What it holds then
        goes back untried.

    Raises:
      ConfigError: the queue is of another run than the config, or its data is another here.
      QueueUnavailable, WeightsUnavailable, ...: what ended it.
    """
    queue = RemoteReplayQueue(replay)
    with _ends_with_the_run(role), ExitStack() as connections, StopRequest() as stop:
        connections.callback(queue.disconnect)
        served = queue.run()
        run = joined_config(served, replay.address, config, overrides)
        if run.rewards is None:
            raise ConfigError(f"the run {run.name} that {replay.address} serves has no rewards")
        pool = run.rewards if role == "reward" else run.actors
        _use_threads(pool.resources.threads)
        prepare_data(run)
        task = build_task(run.task)
        check_task(task, served, replay.address)
        worker = f"{role}@{name or f'{socket.gethostname()}-{secrets.token_hex(3)}'}"
        log_to_stderr(run, worker)
        traced, send_spans = traced_queue(run, run.directory, worker, queue)
        connections.callback(send_spans)
        keeper = LeaseKeeper(
            traced, pool.lease_seconds, pool.deadline_seconds, processes.StuckWorkerExit(worker)
        )
        built = _build(role, run, task, traced, weights, keeper, worker)
        logger.info("%s works for the run %s at %s", worker, run.name, replay.address)
        # What killed it before would else not count: a worker that asks for more has survived.
        queue.release_worker(worker, f"{worker} was started anew")
        try:
            done = _run(built, stop, grace)
        except (QueueClosed, QueueUnavailable):
            raise
        except Exception as error:
            # Others need not wait for its leases to run out.
            queue.release_worker(worker, f"{type(error).__name__}: {error}")
            raise
        if done is None:
            released = keeper.give_back()
            logger.info("%s was asked to stop; %d groups go to others", worker, released)
        else:
            why = "was asked to stop" if stop.requested else "the run is over"
            logger.info("%s ends after %d groups: %s", worker, done["groups"], why)
    return 0


@contextmanager
def _ends_with_the_run(role: Role) -> Iterator[None]:
    """What hears at its beginning or end that the run is over has not failed."""
    try:
        yield
    except QueueClosed as error:
        logger.info("%s ends: %s", role, error)


def _build(
    role: Role,
    run: RunConfig,
    task: Task,
    queue: ReplayQueue,
    weights: Peer | None,
    keeper: LeaseKeeper,
    worker: str,
) -> PullingWorker:
    if role == "reward":
        return processes.build_reward_worker(run, task, queue, keeper, worker)
    assert weights is not None
    store = RemoteWeights(weights)
    return processes.build_sampler(run, task, queue, store, keeper, worker)


def _run(role: PullingWorker, stop: StopRequest, grace: float) -> dict[str, Any] | None:
    """What the role says at its end; None: it did not come to it within `grace` seconds.

    It works in a thread of its own, since nothing ends one that hangs in a reward or a device.
    """
    done: Future[dict[str, Any]] = Future()

    def life() -> None:
        try:
            done.set_result(role.run())
        except BaseException as error:  # noqa: BLE001  # raised where it is waited for
            done.set_exception(error)

    threading.Thread(target=life, name="role", daemon=True).start()
    give_up = float("inf")
    while not done.done() and time.monotonic() < give_up:
        if stop.requested and give_up == float("inf"):
            role.stop()
            give_up = time.monotonic() + grace
        time.sleep(LOOK_SECONDS)
    return done.result() if done.done() else None


def _use_threads(threads: int) -> None:
    """As many as the run's workers use: results depend on it, in the last bit.

    Libraries read their variables when they are loaded, so this process begins again with them.
    """
    wanted = thread_environment(threads)
    if os.environ.get("OMP_NUM_THREADS") != wanted["OMP_NUM_THREADS"]:
        os.environ.update(wanted)
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
