"""The controller: starts a run's processes on Ray, replaces what fails, and ends them all.

It holds targets only; what it knows of the work it asks the queue. Nothing it starts outlives it:
no actor is detached.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError

from deploy import processes
from deploy.cluster import (
    PlacementError,
    Request,
    actor_options,
    check_placement,
    connect,
    describe_nodes,
)
from deploy.config import RunConfig
from deploy.logs import warnings_to_file
from deploy.outside import OutsideLearner, publish_initial
from deploy.queues import RunQueue, start_queue
from deploy.reward_hacking import RewardHacking, RewardHackingWatch
from deploy.run_directory import write_status
from deploy.workers import Worker
from learner.stop import StopRequest
from learner.weight_store import RayWeights, WeightStore
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
        self._config = config
        self._task = task
        self._on_status = on_status
        self._workers: list[Worker] = []
        self._expired: dict[str, int] = {}
        self._last_status = 0.0
        self._stats: Stats | None = None
        self._queue: RunQueue | None = None
        self._interruptions = 0
        self._hacking = RewardHackingWatch(config.directory, task.headline)

    def run(self, stop: StopRequest) -> dict[str, Any]:
        """Tunes until the last step or a request to stop; returns the learner's final status.

        Raises:
          PlacementError: the cluster cannot hold the processes.
          WorkerError: a worker fails again and again.
          NonFiniteError, CheckpointError, ...: what stopped the learner.
        """
        started_here = connect(self._config.cluster, f"rewardtune-{self._config.name}")
        try:
            check_placement(self._requests(), self._config.cluster)
            with (
                warnings_to_file(self._config.directory, "controller"),
                self._services() as (run_queue, store_handle),
            ):
                self._queue = run_queue
                return self._tune(run_queue.queue, store_handle, stop)
        finally:
            if started_here:
                ray.shutdown()

    def _requests(self) -> list[Request]:
        config = self._config
        assert config.rewards is not None
        learner = Request("learner", 1, config.learner.resources)
        requests = [
            *([] if config.learner.outside else [learner]),
            Request("sampler", config.actors.count, config.actors.resources),
            Request("reward", config.rewards.count, config.rewards.resources),
        ]
        if config.evaluation.every:
            requests.append(Request("evaluator", 1, config.evaluation.resources))
        return requests

    @contextmanager
    def _services(self) -> Iterator[tuple[RunQueue, Any]]:
        """The queue and the weight store; those that are actors take no CPU."""
        config = self._config
        versions = config.lag + 1 if config.replay.mode == "ordered" else 1
        tickets = processes.ticket_source(config, self._task)
        options = self._service_options(processes.QUEUE)
        with start_queue(config, tickets, options, self._report_last) as run_queue:
            store = (
                ray.remote(WeightStore)
                .options(**self._service_options(processes.WEIGHTS))
                .remote(versions + SPARE_VERSIONS, config.evaluation.every)
            )
            try:
                yield run_queue, store
            finally:
                for worker in self._workers:
                    worker.remove()
                ray.kill(store)
                self._report_end()

    def _service_options(self, name: str) -> dict[str, Any]:
        options = actor_options(SERVICE, processes.actor_name(self._config, name))
        # Their state dies with them: a fresh one would answer wrongly instead of not at all.
        return options | {"max_restarts": 0, "max_concurrency": 1000}

    def _tune(self, queue: ReplayQueue, store_handle: Any, stop: StopRequest) -> dict[str, Any]:
        weights = RayWeights(store_handle, self._config.cluster.reply_seconds)
        if self._config.learner.outside:
            self._await_outside_learner(weights)
        for request in self._requests():
            for index in range(request.count):
                self._add_worker(request, index)
        learner = self._workers[0]
        others = self._workers[1:]
        learner.begin()
        # Samplers ask for weights at once: the learner publishes the first before they start.
        self._watch(queue, lambda: weights.newest_version() is not None or stop.requested)
        for worker in others:
            worker.begin()
        give_up = float("inf")
        while learner.finished is None:
            self._check(queue)
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
        self._stop_workers(queue)
        return learner.finished

    def _await_outside_learner(self, weights: RayWeights) -> None:
        config = self._config
        initial = processes.load_initial(config, config.model.build(self._task), self._task)
        publish_initial(weights, initial)
        steps = config.learner.steps
        closed = lambda: self._stats is not None and self._stats.closed  # noqa: E731
        self._workers.append(OutsideLearner(weights, steps, closed))

    def _keep_final(self, weights: RayWeights) -> None:
        """The last policy of a learner outside, which wrote it where it is."""
        if not self._config.learner.outside:
            return
        from learner.tune import FINAL_FILE
        from vision.models.checkpoint import save_npz
        from vision.tasks.task import token_names

        _, params = weights.load(None)
        save_npz(self._config.directory / FINAL_FILE, params, token_names=token_names(self._task))

    def _add_worker(self, request: Request, index: int) -> None:
        role_class = {
            "learner": processes.LearnerProcess,
            "sampler": processes.SamplerProcess,
            "reward": processes.RewardProcess,
            "evaluator": processes.EvaluatorProcess,
        }[request.role]
        name = request.role if request.count == 1 else f"{request.role}-{index}"
        config_json = self._config.model_dump_json()

        def start(worker: str) -> Any:
            actor_name = processes.actor_name(self._config, worker)
            options = actor_options(request.resources, actor_name)
            actor_class: Any = ray.remote(role_class)
            return actor_class.options(**options).remote(config_json, name)

        self._workers.append(Worker(name, request.role, start))

    def _watch(self, queue: ReplayQueue, condition: Callable[[], bool]) -> None:
        """Checks the workers until the condition holds."""
        while not condition():
            self._check(queue)
            time.sleep(TICK_SECONDS)

    def _check(self, queue: ReplayQueue) -> None:
        for worker in self._workers:
            worker.check(partial(self._on_death, queue))
        self._check_placed()
        if time.monotonic() - self._last_status > STATUS_SECONDS:
            self._report(queue)

    def _on_death(self, queue: ReplayQueue, worker: Worker, reason: str) -> None:
        released = queue.release_worker(worker.name, reason)
        if released:
            logger.info("%d groups of %s are given to others", released, worker.name)

    def _check_placed(self) -> None:
        limit = self._config.cluster.start_seconds
        for role in {worker.role for worker in self._workers}:
            workers = [worker for worker in self._workers if worker.role == role]
            waiting = [worker for worker in workers if worker.started is not None]
            if len(waiting) < len(workers):
                continue
            oldest = min(worker.since for worker in waiting)
            if time.monotonic() - oldest > limit:
                request = next(r for r in self._requests() if r.role == role)
                nodes = [node for node in ray.nodes() if node["Alive"]]
                raise PlacementError(
                    f"no {role} started within {limit:g} s: {request}. {describe_nodes(nodes)}; "
                    f"free now: {ray.available_resources()}"
                )

    def _report(self, queue: ReplayQueue) -> None:
        self._last_status = time.monotonic()
        self._stats = queue.stats()
        self._replace_silent(self._stats)
        self._report_last()

    def _report_last(self) -> None:
        """Writes the status from the last figures of the queue, which may be waited for now."""
        if self._stats is None:
            return
        status = self._status(self._stats)
        write_status(Path(self._config.directory), status)
        self._on_status(status)

    def _status(self, stats: Stats) -> dict[str, Any]:
        status = run_status(self._config, self._workers, stats, self._hacking.look())
        status["cluster"] = ray.get_runtime_context().gcs_address  # for `rewardtune serve`
        if self._queue is not None:
            status["queue"] |= self._queue.status()
        return status

    def _report_end(self) -> None:
        """The last status, when no worker is left: what the queue held then, and how it ended.

        Raises nothing: what ended the run is more important, and may be the cause.
        """
        if self._stats is None:
            return
        try:
            status = self._status(self._stats)
            if self._workers[0].finished is None:
                status["state"] = "failed"
            try:
                write_status(Path(self._config.directory), status)
            except OSError as error:  # such as a full disk
                logger.warning("the last status cannot be written: %s", error)
            self._on_status(status)
        except Exception:
            logger.exception("the last status cannot be told")

    def _replace_silent(self, stats: Stats) -> None:
        """A worker whose leases ran out, or that does not answer, is stopped or stuck.

        Ray does not notice: to it, the process lives. After the queue itself was out of reach,
        nobody could renew, and nobody was asked: that says nothing of the workers.
        """
        interruptions = 0 if self._queue is None else self._queue.interruptions
        queue_was_there = interruptions == self._interruptions
        self._interruptions = interruptions
        for worker in self._workers:
            expired = stats.expired_by_worker.get(worker.name, 0)
            if worker.running is not None and queue_was_there:
                if expired > self._expired.get(worker.name, 0):
                    worker.replace("showed no sign of life while it held work")
                elif worker.silent_seconds > self._patience(worker.role):
                    worker.replace(f"has not answered for {worker.silent_seconds:.0f} s")
            self._expired[worker.name] = expired

    def _patience(self, role: str) -> float:
        """Seconds after which a worker that does not answer is replaced."""
        config = self._config
        assert config.rewards is not None
        return {
            "learner": config.learner.lease_seconds,
            "sampler": config.actors.lease_seconds,
            "reward": config.rewards.lease_seconds,
            "evaluator": config.actors.deadline_seconds,
        }[role]

    def _finish_evaluations(
        self, queue: ReplayQueue, weights: RayWeights, stop: StopRequest
    ) -> None:
        if self._config.evaluation.every:
            self._watch(queue, lambda: not weights.to_evaluate() or stop.requested)

    def _stop_workers(self, queue: ReplayQueue) -> None:
        queue.close()
        for worker in self._workers[1:]:
            worker.ask_to_stop()
        calls = [worker.running for worker in self._workers if worker.running is not None]
        try:
            if calls:
                ray.wait(calls, num_returns=len(calls), timeout=5)
        except (GetTimeoutError, RayActorError) as error:
            logger.info("workers are ended without waiting any longer: %s", error)


def run_status(
    config: RunConfig, workers: list[Worker], stats: Stats, hacking: RewardHacking | None
) -> dict[str, Any]:
    """What `rewardtune status` shows."""
    learner = workers[0]
    learned = learner.finished or learner.status
    return {
        "run": config.name,
        "time": time.time(),
        "state": learned.get("state", "starting"),
        "step": learned.get("step", 0),
        "steps": config.learner.steps,
        "metrics": learned.get("metrics", {}),
        "reward_hacking": None if hacking is None else hacking.to_json(),
        "queue": {
            "stages": {
                str(stage): {
                    "ready": of_stage.ready,
                    "leased": of_stage.leased,
                    "wait_p50": of_stage.wait_p50,
                    "wait_p95": of_stage.wait_p95,
                }
                for stage, of_stage in stats.stages.items()
            },
            "out": stats.out,
            "window": stats.window,
            "trained": stats.acked - stats.dropped,
            "dropped": stats.dropped,
            "quarantined": stats.quarantined,
            "redelivered": stats.redelivered,
            "expired": stats.expired,
            "last_reasons": list(stats.last_reasons),
        },
        "workers": [
            {
                "name": worker.name,
                "state": worker.state,
                "pid": worker.where.get("pid"),
                "node": worker.where.get("node"),
                "restarts": worker.restarts,
                **{
                    k: v
                    for k, v in worker.status.items()
                    if k not in ("worker", "state", "metrics")
                },
            }
            for worker in workers
        ],
    }
