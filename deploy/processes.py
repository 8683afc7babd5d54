"""The Ray actors: each builds its role from the run's config and runs it in a thread.

They hold no logic of their own. A config travels as JSON; queue and weights are actor handles. The
heavy imports happen inside, so that a reward worker never loads JAX.
"""

import hashlib
import json
import logging
import os
import socket
from pathlib import Path
from typing import Any, NoReturn

import ray

from actors import engines
from actors.engine import Engine
from deploy.config import RunConfig
from deploy.kill import this_process
from deploy.logs import configure_logging, flush_logs
from deploy.policies import Policies, to_device
from deploy.queues import join_queue, traced_queue
from deploy.uploaded import as_uploaded
from replay.lease_keeper import LeaseKeeper
from replay.pulling import PullingWorker
from replay.queue import MustResume, ReplayQueue
from replay.tickets import TicketSource
from vision.tasks.registry import build_task
from vision.tasks.task import Task, token_names

logger = logging.getLogger(__name__)


QUEUE, WEIGHTS = "queue", "weights"


def actor_name(config: RunConfig, worker: str) -> str:
    """The name of a run's actor in Ray."""
    return f"{config.name}/{worker}"


class StuckWorkerExit:
    """Ends this process; Ray starts it anew."""

    def __init__(self, worker: str):
        self._worker = worker

    def __call__(self, reason: str) -> NoReturn:
        """A thread that hangs in a reward or a device cannot be ended in another way."""
        logger.error("%s: %s; this process ends and is replaced", self._worker, reason)
        logging.shutdown()
        os._exit(70)


class _Process:
    """What all role processes have in common."""

    _role: Any = None

    def __repr__(self) -> str:
        """What it does, in Ray's dashboard and before its lines in Ray's logs."""
        return f"{self.worker}: {self._does()}"

    def _does(self) -> str:
        raise NotImplementedError

    def __init__(self, config_json: str, worker: str):
        self.config = RunConfig.model_validate_json(config_json)
        self.worker = worker
        configure_logging(self.config, worker)
        self.task = build_task(self.config.task)
        queue = join_queue(
            self.config,
            lambda: ticket_source(self.config, self.task),
            actor_name(self.config, QUEUE),
        )
        directory = self.config.directory
        self.queue, self._send_spans = traced_queue(self.config, directory, worker, queue)

    def run(self) -> dict[str, Any]:
        """The role's life; returns its final status."""
        logger.info("%s begins: process %d on %s", self.worker, os.getpid(), socket.gethostname())
        try:
            return self._run()
        except MemoryError as error:
            # What fills the memory would still be there for the next group.
            StuckWorkerExit(self.worker)(f"out of memory: {error}")
            raise
        finally:  # what comes after this is a signal that leaves no time
            logger.info("%s has ended", self.worker)
            self._send_spans()
            flush_logs()

    def _run(self) -> dict[str, Any]:
        result: dict[str, Any] = self._role.run()
        return result

    def stop(self) -> None:
        """Asks the role to end after the work at hand."""
        self._role.stop()

    def status(self) -> dict[str, Any]:
        """The role's counters, times and last failures."""
        result: dict[str, Any] = self._role.status.to_dict()
        return result

    def describe(self) -> dict[str, Any]:
        """Where this process is; answers once it is ready to run."""
        where = {"worker": self.worker, "address": ray.util.get_node_ip_address()}
        return where | this_process()

    def weights(self) -> Any:
        """The weight store's client."""
        from learner.weight_store import RayWeights

        store = ray.get_actor(actor_name(self.config, WEIGHTS))
        return RayWeights(store, self.config.cluster.reply_seconds)

    def keeper(self, lease_seconds: float, deadline_seconds: float) -> LeaseKeeper:
        """Renews this worker's leases, and ends the process when it is stuck."""
        return LeaseKeeper(
            self.queue, lease_seconds, deadline_seconds, StuckWorkerExit(self.worker)
        )


class SamplerProcess(_Process):
    """A sampler."""

    def _does(self) -> str:
        samples = self.config.learner.samples_per_group
        block = self.config.actors.groups_per_block
        return f"{block} × {samples} samples at once by {self.config.actors.chosen_engine}"

    def __init__(self, config_json: str, worker: str):
        super().__init__(config_json, worker)
        actors = self.config.actors
        keeper = self.keeper(actors.lease_seconds, actors.deadline_seconds)
        self._role = build_sampler(
            self.config, self.task, self.queue, self.weights(), keeper, worker
        )


class RewardProcess(_Process):
    """A reward worker."""

    def _does(self) -> str:
        assert self.config.rewards is not None
        return " + ".join(term.path.partition(":")[2] for term in self.config.rewards.terms)

    def __init__(self, config_json: str, worker: str):
        super().__init__(config_json, worker)
        rewards = self.config.rewards
        assert rewards is not None
        keeper = self.keeper(rewards.lease_seconds, rewards.deadline_seconds)
        self._role = build_reward_worker(self.config, self.task, self.queue, keeper, worker)


class LearnerProcess(_Process):
    """The learner, or one host of it."""

    def _does(self) -> str:
        learner = self.config.learner
        return f"{learner.groups_per_step} × {learner.samples_per_group} samples a step"

    def __init__(self, config_json: str, worker: str):
        super().__init__(config_json, worker)
        from learner.stop import StopRequest

        self._stop = StopRequest()
        self._host, self._coordinator = 0, ""

    def coordinator(self) -> str:
        """HOST:PORT at which the others can find this host; the port is free now."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return f"{ray.util.get_node_ip_address()}:{probe.getsockname()[1]}"

    def run(self, host: int = 0, coordinator: str | None = None) -> dict[str, Any]:
        """Trains to the last step.

        Args:
          host: which of the learner's hosts this is.
          coordinator: of several hosts, where the first one is.
        """
        self._host, self._coordinator = host, coordinator or ""
        return super().run()

    def _run(self) -> dict[str, Any]:
        from learner.hosts import HostLost, join, leave

        config = self.config
        try:
            # Before anything is computed: JAX learns of the others' devices only then.
            hosts = join(self._host, config.learner.hosts, self._coordinator)
            initial = load_initial(config, config.model.build(self.task), self.task)
            self._role = build_learner(
                config, self.task, self.queue, self.weights(), config.directory, initial, hosts
            )
            result: dict[str, Any] = self._role.run(self._stop)
            leave(hosts)
        except HostLost as error:
            # Ray starts a new process: this one cannot find the others again.
            StuckWorkerExit(self.worker)(str(error))
        except MustResume as error:
            if config.learner.hosts > 1:
                StuckWorkerExit(self.worker)(str(error))
            raise  # alone it resumes in this process
        return result

    def stop(self) -> None:
        """Asks to end after the step at hand, with a checkpoint."""
        self._stop.request()

    def status(self) -> dict[str, Any]:
        """Step, state and the last metrics."""
        status: dict[str, Any] = {} if self._role is None else self._role.status
        return status


class EvaluatorProcess(_Process):
    """Scores published policies on the held-out split."""

    def _does(self) -> str:
        evaluation = self.config.evaluation
        return f"every {evaluation.every} steps on {evaluation.split}"

    def __init__(self, config_json: str, worker: str):
        super().__init__(config_json, worker)
        from actors.evaluator import Evaluator

        self._role = Evaluator(
            task=self.task,
            engine=build_engine(self.config, self.task),
            weights=self.weights(),
            config=self.config.evaluation,
            run_directory=self.config.directory,
        )

    def status(self) -> dict[str, Any]:
        """The last evaluations."""
        return self._role.status


def build_engine(
    config: RunConfig, task: Any, end_token_bias: float = 0.0, gpu_expected: bool = False
) -> Engine:
    """The sampling engine of a config; see `actors.engines.build_engine`."""
    return engines.build_engine(
        config.actors,
        config.model.build(task),
        task.allowed_tokens(),
        task.end_token,
        end_token_bias,
        gpu_expected,
    )


def build_sampler(
    config: RunConfig,
    task: Task,
    queue: ReplayQueue,
    weights: Any,
    keeper: LeaseKeeper,
    worker: str,
) -> PullingWorker:
    """A sampler of a config, wherever its queue and weight store are."""
    from actors.sampler import Sampler

    # Torch copies a version to its device itself, and JAX stays unloaded.
    torch = config.actors.chosen_engine == "torch"
    return Sampler(
        task=task,
        engine=build_engine(config, task, gpu_expected=config.actors.resources.num_gpus > 0),
        engine_name=config.actors.chosen_engine,
        queue=queue,
        keeper=keeper,
        load_weights=(Policies(weights) if torch else Policies(weights, to_device)).load,
        ticket=ticket_source(config, task).ticket,
        worker=worker,
        block=config.actors.groups_per_block,
        samples_per_group=config.learner.samples_per_group,
    )


def build_reward_worker(
    config: RunConfig, task: Task, queue: ReplayQueue, keeper: LeaseKeeper, worker: str
) -> PullingWorker:
    """A reward worker of a config, wherever its queue is."""
    from rewards.combine import build_reward
    from rewards.worker import RewardWorker

    assert config.rewards is not None
    return RewardWorker(
        task=task,
        reward=build_reward(config.rewards, task),
        queue=queue,
        keeper=keeper,
        worker=worker,
        groups_per_lease=config.rewards.groups_per_lease,
    )


def build_learner(
    config: RunConfig,
    task: Any,
    queue: ReplayQueue,
    weights: Any,
    directory: Path,
    initial: Any,
    hosts: Any = None,
) -> Any:
    """The learner of a config, or this host's part of it, wherever queue and weight store are."""
    from learner.tune import Learner

    ordered = config.replay.mode == "ordered"
    return Learner(
        task=task,
        model_config=config.model.build(task),
        config=config.learner,
        queue=queue,
        weights=weights,
        run_directory=directory,
        initial=initial,
        identity=identity_digest(config),
        max_staleness=None if ordered else config.replay.max_policy_lag,
        kept_policies=config.replay.policy_lag if ordered else 0,
        hosts=hosts,
    )


def ticket_source(config: RunConfig, task: Any) -> TicketSource:
    """Which example and seeds belong to an ordinal."""
    return TicketSource(
        run_seed=config.seed,
        example_ids=task.example_ids("train"),
        mode=config.replay.mode,
        lag=config.lag,
        groups_per_step=config.learner.groups_per_step,
    )


def load_initial(config: RunConfig, model: Any, task: Task) -> Any:
    """The parameters that a run starts from: `initial`, or fresh ones of the seed."""
    from vision.models.checkpoint import load_npz
    from vision.models.sequence import init_params
    from vision.models.transfer import transfer_npz

    if config.initial is None:
        return init_params(model, config.seed)
    path = resolve_checkpoint(config.initial)
    if config.initial_transfer:
        return transfer_npz(path, model, config.seed, token_names(task))
    return load_npz(path, model, token_names(task))


def resolve_checkpoint(path: Path) -> Path:
    """A checkpoint's path: as given, or relative to the repository.

    That of a job which is over may be gone with its working directory, and be here all the same.
    """
    if path.exists():
        return path
    repository, path = Path(__file__).resolve().parent.parent, as_uploaded(path)
    return path if path.exists() else repository / path


def identity_digest(config: RunConfig) -> str:
    """Tells whether two configs mean the same numbers."""
    text = json.dumps(config.identity(), sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
