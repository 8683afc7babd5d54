"""The controller: starts a run's processes on Ray, replaces what fails, and ends them all.

It holds targets only; what it knows of the work it asks the queue. Nothing it starts outlives it:
no actor is detached.
"""

import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray

from deploy import processes
from deploy.bottleneck import find_bottleneck
from deploy.cluster import (
    actor_options,
    beside_the_driver,
    check_name_is_free,
    check_placement,
    connect,
)
from deploy.config import RunConfig
from deploy.logs import log_of_run
from deploy.monitoring.exporter import RunMetrics
from deploy.outside import OutsideLearner, publish_initial
from deploy.pool import Pool, run_requests
from deploy.queues import RunQueue, start_queue
from deploy.recent import Recent
from deploy.reward_hacking import RewardHackingWatch
from deploy.run_directory import run_id, with_run_id, write_status
from deploy.run_status import OUTSIDE, run_status
from deploy.run_watch import LOOK_SECONDS
from deploy.scaling import Scaling
from deploy.services import Service, WeightsProcess, silent_ones_ended
from deploy.targets import TARGETS, TargetsBoard, TargetsReader
from learner.stop import StopRequest
from learner.weight_store import RayWeights
from replay.queue import ReplayQueue, Stats
from replay.resources import Resources
from vision.tasks.task import Task

logger = logging.getLogger(__name__)

TICK_SECONDS = 0.2
STATUS_SECONDS = 1.0
SERVICE = Resources(num_cpus=0)
# Beside those that samples are made with: the one that is being read while the next arrives.
SPARE_VERSIONS = 2

OnStatus = Callable[[Mapping[str, Any]], None]


class Controller:
    """Runs one tuning run to its end."""

    def __init__(self, config: RunConfig, task: Task, on_status: OnStatus = lambda status: None):
        config = with_run_id(config)
        self._config = config
        self._task = task
        self._on_status = on_status
        self._pool = Pool(config)
        self._last_status = 0.0
        self._step = 0
        self._stats: Stats | None = None
        self._queue: RunQueue | None = None
        self._services_watched: list[Service] = []
        self._interruptions = 0
        self._scaling: Scaling | None = None
        self._weights: RayWeights | None = None
        self._hacking = RewardHackingWatch(config.directory, task.headline)
        self._recent = Recent()
        self._metrics = RunMetrics(config)

    def run(self, stop: StopRequest) -> dict[str, Any]:
        """Tunes until the last step or a request to stop; returns the learner's final status.

        Raises:
          PlacementError: the cluster cannot hold the processes.
          WorkerError: a worker fails again and again.
          QueueFull: there was no room in it for `replay.patience_seconds`.
          NonFiniteError, CheckpointError, ...: what stopped the learner.
        """
        with log_of_run(self._config, "controller", lambda: self._step):
            started_here = connect(self._config.cluster, f"rewardtune-{self._config.name}")
            logger.info("the run begins: process %d on %s", os.getpid(), socket.gethostname())
            try:
                names = (processes.QUEUE, processes.WEIGHTS, TARGETS)
                check_name_is_free(
                    self._config.name, [processes.actor_name(self._config, n) for n in names]
                )
                check_placement(run_requests(self._config), self._config.cluster, stop)
                with self._services() as (run_queue, store_handle):
                    self._queue = run_queue
                    return self._tune(run_queue.queue, store_handle, stop)
            finally:
                if started_here:
                    ray.shutdown()

    @contextmanager
    def _services(self) -> Iterator[tuple[RunQueue, Any]]:
        """The queue and the weight store; those that are actors take no CPU."""
        config = self._config
        versions = config.lag + 1 if config.replay.mode == "ordered" else 1
        tickets = processes.ticket_source(config, self._task)
        options = self._service_options(processes.QUEUE)
        identity = f"{processes.identity_digest(config)} {run_id(config.directory)}"
        with start_queue(config, identity, tickets, options, self._report_last) as run_queue:
            store = (
                ray.remote(WeightsProcess)
                .options(**self._service_options(processes.WEIGHTS))
                .remote(
                    versions + SPARE_VERSIONS, config.evaluation.every, config.model_dump_json()
                )
            )
            options = actor_options(SERVICE, processes.actor_name(config, TARGETS))
            board = (
                ray.remote(TargetsBoard)
                .options(**options | beside_the_driver())
                .remote(config.name)
            )
            self._scaling = Scaling(config, self._pool, TargetsReader(board))
            allowed = config.cluster.failures_allowed
            in_memory = [] if run_queue.service is None else [run_queue.service]
            self._services_watched = [*in_memory, Service("weights", store, allowed)]
            # Before those that wait for an answer give up.
            patience = config.cluster.reply_seconds / 3
            try:
                with silent_ones_ended(self._services_watched, patience):
                    yield run_queue, store
            finally:
                self._pool.remove()
                ray.kill(board)
                ray.kill(store)
                self._report_end()

    def _service_options(self, name: str) -> dict[str, Any]:
        options = actor_options(SERVICE, processes.actor_name(self._config, name))
        return options | beside_the_driver() | {"max_concurrency": 1000}

    def _tune(self, queue: ReplayQueue, store_handle: Any, stop: StopRequest) -> dict[str, Any]:
        weights = RayWeights(store_handle, self._config.cluster.reply_seconds)
        self._weights = weights
        if self._config.learner.outside:
            self._await_outside_learner(weights)
        self._pool.fill()
        learner = self._pool.learner
        self._pool.begin_learner()
        # Samplers ask for weights at once: the learner publishes the first before they start.
        self._watch(queue, lambda: weights.newest_version() is not None or stop.requested)
        self._pool.begin_others()
        give_up = float("inf")
        while learner.finished is None:
            self._check(queue)
            if self._queue is not None and self._stats is not None:
                self._queue.check_room(self._stats, self._config.learner.groups_per_step)
            if stop.requested:
                give_up = min(give_up, time.monotonic() + self._config.cluster.stop_seconds)
                learner.ask_to_stop()  # each time: it may have been started anew
            if time.monotonic() > give_up:
                raise TimeoutError(
                    f"the learner did not stop within {self._config.cluster.stop_seconds:g} s; "
                    "the run resumes from its last checkpoint"
                )
            time.sleep(TICK_SECONDS)
        if learner.finished["state"] == "finished":
            self._keep_final(weights)
            self._finish_evaluations(queue, weights, stop)
        self._report(queue)
        queue.close()
        self._pool.stop_others()
        self._let_edges_hear()
        logger.info("the run is %s", learner.finished["state"])
        return learner.finished

    def _let_edges_hear(self) -> None:
        """Keeps a closed queue for as long as its edges may take to see that: they tell workers."""
        config, stats = self._config, self._stats
        outside = stats is not None and any(OUTSIDE in name for name in stats.held_by_worker)
        if config.replay.url is None and (config.learner.outside or outside):
            time.sleep(2 * LOOK_SECONDS)

    def _await_outside_learner(self, weights: RayWeights) -> None:
        self._publish_initial(weights)
        steps = self._config.learner.steps
        closed = lambda: self._stats is not None and self._stats.closed  # noqa: E731
        self._pool.workers.append(OutsideLearner(weights, steps, closed))

    def _publish_initial(self, weights: RayWeights) -> None:
        config = self._config
        initial = processes.load_initial(config, config.model.build(self._task), self._task)
        publish_initial(weights, initial)

    def _keep_final(self, weights: RayWeights) -> None:
        """The last policy of a learner outside, which wrote it where it is."""
        if not self._config.learner.outside:
            return
        from learner.tune import FINAL_FILE
        from vision.models.checkpoint import save_npz
        from vision.tasks.task import token_names

        _, params = weights.load(None)
        save_npz(self._config.directory / FINAL_FILE, params, token_names=token_names(self._task))

    def _watch(self, queue: ReplayQueue, condition: Callable[[], bool]) -> None:
        """Checks the workers until the condition holds."""
        while not condition():
            self._check(queue)
            time.sleep(TICK_SECONDS)

    def _check(self, queue: ReplayQueue) -> None:
        for service in self._services_watched:
            if service.check():
                self._learner_starts_over(queue)
        self._pool.check(queue)
        if self._scaling is not None:
            self._scaling.obey()
        if time.monotonic() - self._last_status > STATUS_SECONDS:
            self._report(queue)

    def _learner_starts_over(self, queue: ReplayQueue) -> None:
        """After a service was started anew: its place in the queue is taken from the learner.

        It then goes on from its last checkpoint, which fills queue and store again.
        """
        queue.fence()
        weights, done = self._weights, self._pool.learner.finished is not None
        if weights is not None and self._config.learner.outside and not done:
            self._publish_initial(weights)

    def _report(self, queue: ReplayQueue) -> None:
        self._last_status = time.monotonic()
        self._stats = queue.stats()
        interruptions = 0 if self._queue is None else self._queue.interruptions
        self._pool.replace_silent(
            self._stats.expired_by_worker, queue_was_there=interruptions == self._interruptions
        )
        self._interruptions = interruptions
        if self._scaling is not None:
            self._scaling.adjust(self._stats, self._last_status)
        self._report_last()

    def _report_last(self) -> None:
        """Writes the status from the last figures of the queue, which may be waited for now."""
        if self._stats is None:
            return
        status = self._status(self._stats)
        self._write(status)
        if self._scaling is not None:
            self._scaling.tell_status(status)
        self._metrics.update(status)
        self._on_status(status)

    def _write(self, status: Mapping[str, Any]) -> None:
        """To its file. A run does not end because it cannot tell: what it needs of the file system
        says so itself.
        """
        try:
            write_status(self._config.directory, status)
        except OSError as error:  # such as a full disk
            logger.warning("the status cannot be written: %s", error)

    def _status(self, stats: Stats) -> dict[str, Any]:
        status = run_status(self._config, self._pool.workers, stats, self._hacking.look())
        self._step = status["step"]
        status["services"] = [service.status() for service in self._services_watched]
        status["cluster"] = ray.get_runtime_context().gcs_address  # for `rewardtune serve`
        if self._queue is not None:
            status["queue"] |= self._queue.status()
        if self._scaling is not None:
            status["pools"] = self._scaling.describe()
        status |= self._recent.observe(status, time.monotonic())
        status["bottleneck"] = find_bottleneck(status).to_json()
        return status

    def _report_end(self) -> None:
        """The last status, when no worker is left: what the queue held then, and how it ended.

        Raises nothing: what ended the run is more important, and may be the cause.
        """
        if self._stats is None:
            return
        try:
            status = self._status(self._stats)
            if self._pool.learner.finished is None:
                status["state"] = "failed"
            self._write(status)
            self._metrics.update(status)
            self._on_status(status)
        except Exception:
            logger.exception("the last status cannot be told")

    def _finish_evaluations(
        self, queue: ReplayQueue, weights: RayWeights, stop: StopRequest
    ) -> None:
        if not self._config.evaluation.every:
            return

        def done() -> bool:
            left = weights.to_evaluate()
            if weights.newest_version() is None:  # it was started anew, and no learner fills it
                self._publish_final(weights)
                return stop.requested
            return not left or stop.requested

        self._watch(queue, done)

    def _publish_final(self, weights: RayWeights) -> None:
        """The last policy once more, to be evaluated; others that waited for that are lost."""
        from learner.tune import FINAL_FILE
        from vision.models.checkpoint import load_npz
        from vision.tasks.task import token_names

        config = self._config
        model, names = config.model.build(self._task), token_names(self._task)
        params = load_npz(config.directory / FINAL_FILE, model, names)
        weights.publish(config.learner.steps, params, "float32", last=True)
        logger.warning("the weight store is empty: of what waited the last policy is evaluated")
