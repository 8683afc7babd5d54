"""The workers of a run, of every role: started, checked, replaced where they fail, and ended.

Invariant: a name is given to one worker only; the queue and Ray know workers by name.
Invariant: of every role as many workers stay as its target says; those beyond it drain: they take
no new work, give or release what they hold, and are ended.
"""

import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError

from deploy import processes
from deploy.cluster import PlacementError, Request, actor_options, describe_nodes
from deploy.coming_nodes import nodes_coming
from deploy.config import RunConfig
from deploy.kill import kill_processes, wait_for_kills
from deploy.learner_group import LearnerGroup, LearnerHost, resources_of_host
from deploy.workers import Worker
from replay.queue import ReplayQueue

logger = logging.getLogger(__name__)

ROLES = {
    "learner": processes.LearnerProcess,
    "sampler": processes.SamplerProcess,
    "reward": processes.RewardProcess,
    "evaluator": processes.EvaluatorProcess,
}
LAST_WORDS_SECONDS = 5.0


def run_requests(config: RunConfig) -> list[Request]:
    """What a run asks of the cluster, a role each; the learner first where it is in Ray."""
    assert config.rewards is not None
    hosts = config.learner.hosts
    learner = Request("learner", hosts, config.learner.resources, least=hosts)
    requests = [
        *([] if config.learner.outside else [learner]),
        Request("sampler", config.actors.count, config.actors.resources),
        Request("reward", config.rewards.initial_count, config.rewards.resources),
    ]
    if config.evaluation.every:
        requests.append(Request("evaluator", 1, config.evaluation.resources))
    return requests


class Pool:
    """The workers; the first is the learner, or its first host."""

    def __init__(self, config: RunConfig):
        self.workers: list[Worker] = []
        self._config = config
        self._requests = {request.role: request for request in run_requests(config)}
        self._expired: dict[str, int] = {}
        self._names: Counter[str] = Counter()
        self._begun = False
        self._learner_group = LearnerGroup()

    @property
    def learner(self) -> Worker:
        """The learner; of several hosts the first one, which speaks for all."""
        return self.workers[0]

    @property
    def others(self) -> Sequence[Worker]:
        """All but the learner."""
        return [worker for worker in self.workers if worker.role != "learner"]

    def fill(self) -> None:
        """Adds a worker for each that was asked for; none begins yet."""
        for request in self._requests.values():
            for _ in range(request.count):
                self._add(request)

    def begin_learner(self) -> None:
        """Begins the learner, on all hosts."""
        for worker in self.workers:
            if worker.role == "learner":
                worker.begin()

    def begin_others(self) -> None:
        """Begins all but the learner."""
        self._begun = True
        for worker in self.others:
            worker.begin()

    def of_role(self, role: str) -> list[Worker]:
        """The workers of a role that stay, oldest first."""
        return [w for w in self.workers if w.role == role and not w.draining]

    def scale(self, role: str, count: int) -> None:
        """Sets a role's target: begins workers, or drains some; the newest, of those first that do
        not run yet.
        """
        staying = self.of_role(role)
        for _ in range(count - len(staying)):
            worker = self._add(self._requests[role])
            if self._begun:
                worker.begin()
        leaving = sorted(staying, key=lambda worker: worker.running is None)  # oldest first
        for worker in leaving[count:]:
            worker.drain()

    def _add(self, request: Request) -> Worker:
        index = self._names[request.role]
        self._names[request.role] += 1
        alone = request.count == 1 and index == 0
        name = request.role if alone else f"{request.role}-{index}"
        config_json = self._config.model_dump_json()
        resources = request.resources
        if request.role == "learner":
            resources = resources_of_host(resources, index, request.count)

        def start(worker: str) -> Any:
            actor_name = processes.actor_name(self._config, worker)
            options = actor_options(resources, actor_name)
            actor_class: Any = ray.remote(ROLES[request.role])
            return actor_class.options(**options).remote(config_json, name)

        allowed = self._config.cluster.failures_allowed
        if request.role == "learner":
            worker: Worker = LearnerHost(name, start, self._learner_group, allowed)
        else:
            worker = Worker(name, request.role, start, failures_allowed=allowed)
        self.workers.append(worker)
        return worker

    def check(self, queue: ReplayQueue) -> None:
        """Moves on from what has happened to each since the last check.

        Raises:
          WorkerError: one failed too often.
          PlacementError: no worker of a role has started in time.
          Exception: what stopped the learner.
        """

        def on_death(worker: Worker, reason: str) -> None:
            released = queue.release_worker(worker.name, reason)
            if released:
                about = {"subject": worker.name}
                logger.info(
                    "%d groups of %s are given to others", released, worker.name, extra=about
                )

        for worker in self.workers:
            worker.check(on_death)
        drained = [w for w in self.workers if w.draining and w.running is None]
        _remove(drained)
        for worker in drained:
            self.workers.remove(worker)
            logger.info("%s has drained and is ended", worker.name, extra={"subject": worker.name})
        self._check_placed()

    def _check_placed(self) -> None:
        limit = self._config.cluster.start_seconds
        for role in {worker.role for worker in self.workers}:
            workers = [worker for worker in self.workers if worker.role == role]
            waiting = [worker for worker in workers if worker.asked_where]
            # The learner trains when all its hosts are there, the others one by one.
            if not waiting or (role != "learner" and len(waiting) < len(workers)):
                continue
            oldest = min(worker.since for worker in waiting)
            if time.monotonic() - oldest > limit and not nodes_coming():
                nodes = [node for node in ray.nodes() if node["Alive"]]
                raise PlacementError(
                    f"no {role} started within {limit:g} s: {self._requests[role]}. "
                    f"{describe_nodes(nodes)}; free now: {ray.available_resources()}"
                )

    def replace_silent(self, expired_by_worker: Mapping[str, int], queue_was_there: bool) -> None:
        """A worker whose leases ran out, or that does not answer, is stopped or stuck.

        Ray does not notice: to it, the process lives. While the queue itself was out of reach,
        nobody could renew, and nobody was asked: that says nothing of the workers.
        """
        for worker in self.workers:
            expired = expired_by_worker.get(worker.name, 0)
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

    def stop_others(self) -> None:
        """Asks all but the learner to end after the work at hand, and waits a little for it."""
        for worker in self.others:
            worker.ask_to_stop()
        calls = [worker.running for worker in self.workers if worker.running is not None]
        try:
            if calls:
                ray.wait(calls, num_returns=len(calls), timeout=LAST_WORDS_SECONDS)
        except (GetTimeoutError, RayActorError) as error:
            logger.info("workers are ended without waiting any longer: %s", error)

    def remove(self) -> None:
        """Ends every worker for good."""
        _remove(self.workers)
        wait_for_kills()


def _remove(workers: Sequence[Worker]) -> None:
    kill_processes([where for worker in workers if (where := worker.remove())])
