"""Reward tuning: the learner's loop (Pinto et al. 2023, Algorithm 2).

Each step collects G scored groups, trains on them, publishes the policy and acks the groups, in
this order: a group that is acked has been trained, and the policy that its ack makes room for is
there to be sampled with.
"""

import logging
import math
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from learner.checkpoints import CheckpointError, Checkpoints
from learner.config import TuneConfig
from learner.group_batches import TrainingGroup, group_batch, reward_parts, staleness
from learner.mesh import make_mesh
from learner.metrics import MetricsWriter, add_seconds
from learner.mismatch import LaggedMismatch
from learner.objectives import GroupBatch, TokenRules, make_reinforce_loss
from learner.optimizer import make_optimizer, make_schedule
from learner.ordinals import OrdinalsWriter
from learner.packed_weights import WeightPublisher, WeightsUnavailable
from learner.pretrain import CHECKPOINTS_DIRECTORY, model_apply
from learner.stop import StopRequest
from learner.train_state import (
    TrainState,
    check_finite,
    create_train_state,
    make_train_step,
)
from protos.trajectory import ScoredGroup
from replay.queue import (
    Frontier,
    Lease,
    MustResume,
    QueueClosed,
    QueueUnavailable,
    ReplayQueue,
    Stage,
)
from vision.models.checkpoint import save_npz
from vision.models.config import ModelConfig
from vision.tasks.task import Task, token_names

logger = logging.getLogger(__name__)

WORKER = "learner"
FINAL_FILE = "final.npz"
EMPTY_STEPS_ALLOWED = 3


class NothingToTrainError(RuntimeError):
    """Step after step, no group could be scored."""


class OutOfStepError(MustResume):
    """The queue gave groups of another step: some of this one are leased to nobody who knows."""


class Learner:
    """Trains a policy from the groups that a queue brings."""

    def __init__(
        self,
        task: Task,
        model_config: ModelConfig,
        config: TuneConfig,
        queue: ReplayQueue,
        weights: WeightPublisher,
        run_directory: Path,
        initial: Mapping[str, Any],
        identity: str,
        max_staleness: int | None,
        kept_policies: int,
    ):
        """Prepares the loop; `run` starts it.

        Args:
          initial: the parameters that tuning starts from.
          identity: digest of all settings that the numbers depend on; a checkpoint of another
            identity is refused.
          max_staleness: groups of an older policy are dropped (async mode); None: never.
          kept_policies: published policies before the newest that a resumed run must publish
            again, because its samples are made with them (ordered mode: policy_lag).
        """
        self._task, self._config, self._queue, self._weights = task, config, queue, weights
        self._run_directory, self._identity = run_directory, identity
        self._max_staleness, self._kept_policies = max_staleness, kept_policies
        self._initial = initial
        self._optimizer = make_optimizer(config.optimizer, config.steps, initial)
        self._schedule = make_schedule(config.optimizer, config.steps)
        self._mesh = make_mesh(config.devices, config.shards)
        apply, rules = model_apply(model_config), TokenRules.of(task)
        self._train_step = make_train_step(
            make_reinforce_loss(apply, rules, config.reinforce),
            self._optimizer,
            self._mesh,
            config.microbatches,
        )
        self._lagged_mismatch = LaggedMismatch(
            apply,
            rules.allowed,
            rules.end_token,
            config.reinforce,
            # As many as a device trains at once.
            config.groups_per_step // (config.microbatches * config.devices),
        )
        self._epoch: str | None = None
        # The last step's state, and what had been trained and dropped by then.
        self._trained: tuple[TrainState, Frontier]
        self._dropped = 0
        self._dropped_ordinals: list[int] = []  # since the last step
        self._empty_steps = 0
        self.status: dict[str, Any] = {"step": 0, "steps": config.steps, "state": "starting"}

    def run(self, stop: StopRequest) -> dict[str, Any]:
        """Trains to the last step, or until asked to stop; returns the final status.

        May be called again after it raised: it goes on from the last checkpoint.

        Raises:
          NonFiniteError: NaN or inf in loss or gradients, with the batch's ordinals.
          CheckpointError: the run directory cannot be written, or holds another run.
          LearnerFenced: another learner has taken over.
          OutOfStepError: in ordered mode, groups of another step.
        """
        directory = self._run_directory / CHECKPOINTS_DIRECTORY
        keep, names = self._config.keep_checkpoints, token_names(self._task)
        with Checkpoints(directory, keep=keep, token_names=names) as checkpoints:
            state, policies, frontier = self._resume(checkpoints)
            first = int(state.step)
            if not checkpoints.steps():
                # The metrics file of a run without a checkpoint would look like another run's.
                self._save(checkpoints, state, policies, frontier)
                checkpoints.wait()
            self._dropped_ordinals = []
            with (
                MetricsWriter(self._run_directory, first) as metrics,
                OrdinalsWriter(self._run_directory, first) as ordinals,
            ):
                self._epoch = self._queue.fence()
                self._weights.fence(self._epoch)
                for version, params in policies:
                    self._send(version, params)
                self._queue.restart(frontier, self._epoch)
                self._trained = state, frontier
                try:
                    self._loop(state, policies, checkpoints, metrics, ordinals, stop)
                except (QueueClosed, QueueUnavailable, WeightsUnavailable):
                    # A run that ends, or is out of reach, costs no step that has been trained.
                    self._save_trained(checkpoints, policies)
                    raise
        return self.status

    def _save_trained(self, checkpoints: Checkpoints, policies: deque[tuple[int, Any]]) -> None:
        state, frontier = self._trained
        if int(state.step) not in checkpoints.steps():
            self._save(checkpoints, state, policies, frontier)
            checkpoints.wait()

    def _loop(
        self,
        state: TrainState,
        policies: deque[tuple[int, Any]],
        checkpoints: Checkpoints,
        metrics: MetricsWriter,
        ordinals: OrdinalsWriter,
        stop: StopRequest,
    ) -> None:
        config, done = self._config, int(state.step)
        self.status |= {"step": done, "resumed": done, "seconds": {}}
        logger.info("trains from step %d to %d", done, config.steps, extra={"step": done})
        frozen = self._initial if config.reinforce.kl_weight else None
        while done < config.steps and not stop.requested:
            self.status |= {"state": "waiting", "step": done}
            began = time.monotonic()
            groups = self._collect(done, stop)
            if groups is None:
                break
            collected = time.monotonic()
            self.status["state"] = "training"
            batch = group_batch(
                self._task,
                groups,
                config.samples_per_group,
                threads=config.loading_threads,
                version=done,
            )
            self._check_something_to_train(done, groups, batch)
            loaded = time.monotonic()
            state, values = self._train_step(state, batch, frozen)
            fetched = {name: float(value) for name, value in values.items()}
            check_finite(fetched, done, [group.ordinal for group in groups])
            done += 1
            ordinals.write(done, groups, self._dropped_ordinals)
            self._dropped_ordinals = []
            frontier = self._trained[1].with_acked([group.ordinal for group in groups])
            self._trained = state, frontier
            trained = time.monotonic()
            if self._measures_lagged(done, batch):
                versions = [group.version for group in groups]
                fetched |= self._lagged_mismatch(policies, versions, batch)
            measured = time.monotonic()
            last = done == config.steps
            if last or done % config.publish_every == 0:
                self._publish(done, state.params, policies)
            self._queue.ack([group.ordinal for group in groups], epoch=self._epoch)
            rate = config.optimizer.learning_rate * float(self._schedule(done - 1))
            # A part must not take the place of a metric of ours.
            fetched = reward_parts(groups) | fetched | staleness(done - 1, groups)
            fetched |= {
                "optimizer/learning_rate": rate,
                "seconds/waiting": collected - began,
                "seconds/loading": loaded - collected,
                "seconds/training": trained - loaded,
                "seconds/mismatch": measured - trained,
                "seconds/publishing": time.monotonic() - measured,
                "groups/stale_dropped": float(self._dropped),
            }
            # Means and maxima of nothing are left out: status.json has no way to write them.
            fetched = {name: value for name, value in fetched.items() if math.isfinite(value)}
            metrics.write(done, fetched)
            self.status |= {
                "step": done,
                "metrics": fetched,
                "seconds": add_seconds(self.status["seconds"], fetched),
                "dropped": self._dropped,
            }
            if last or done % config.checkpoint_every == 0 or stop.requested:
                # Its own account: the queue's is another learner's, where one has taken over.
                self._save(checkpoints, state, policies, self._trained[1])
        if done not in checkpoints.steps():
            self._save(checkpoints, state, policies, self._trained[1])
        checkpoints.wait()
        if done == config.steps:
            params = jax.device_get(state.params)
            names = token_names(self._task)
            save_npz(self._run_directory / FINAL_FILE, params, token_names=names)
        self.status |= {"state": "finished" if done == config.steps else "stopped", "step": done}

    def _collect(self, step: int, stop: StopRequest) -> list[TrainingGroup] | None:
        """The next G groups by ordinal; None when asked to stop."""
        wanted = self._config.groups_per_step
        groups: list[TrainingGroup] = []
        held: dict[int, str] = {}
        while len(groups) < wanted:
            if stop.requested:
                return None
            self._queue.renew(list(held.values()))
            leases = self._queue.lease(
                Stage.TO_TRAIN, wanted - len(groups), None, WORKER, wait=0.5, epoch=self._epoch
            )
            self._check_in_step(step, leases)
            stale = []
            for lease in leases:
                if lease.ordinal in held:  # its lease ran out here: it is in the batch already
                    continue
                scored = None if lease.payload is None else ScoredGroup.from_bytes(lease.payload)
                if scored is not None and self._is_stale(step, scored):
                    stale.append(lease.ordinal)
                else:
                    held[lease.ordinal] = lease.id
                    groups.append(TrainingGroup(lease.ordinal, scored, lease.reasons))
            if stale:
                self._dropped += len(stale)
                self._dropped_ordinals += stale
                self._queue.ack([], dropped=stale, epoch=self._epoch)
                state, frontier = self._trained
                self._trained = state, frontier.with_acked([], stale)
        return sorted(groups, key=lambda group: group.ordinal)

    def _check_in_step(self, step: int, leases: list[Lease]) -> None:
        """A lease whose answer was lost would otherwise make this step train the next one's groups.

        The step's own groups are then leased to this learner without its knowledge.
        """
        if self._max_staleness is not None:  # async mode: a step is what is ready
            return
        wanted = self._config.groups_per_step
        first, end = step * wanted, (step + 1) * wanted
        odd = [lease.ordinal for lease in leases if not first <= lease.ordinal < end]
        if odd:
            raise OutOfStepError(
                f"step {step} trains ordinals {first} .. {end - 1}, and the queue gave {odd[:4]}: "
                "an answer of the queue was lost. Resume the run from its last checkpoint"
            )

    def _check_something_to_train(
        self, step: int, groups: list[TrainingGroup], batch: GroupBatch
    ) -> None:
        """A reward that never works would otherwise count as a run that learned nothing."""
        if np.any(batch.scored.sum(axis=1) >= 2):
            self._empty_steps = 0
            return
        self._empty_steps += 1
        if self._empty_steps >= EMPTY_STEPS_ALLOWED:
            reasons = [reason for group in groups for reason in group.reasons][-3:]
            raise NothingToTrainError(
                f"step {step}: no group of the last {self._empty_steps} steps had two scored "
                f"samples. The last reasons: {reasons or 'the samples were not scored, see logs/'}"
            )

    def _measures_lagged(self, done: int, batch: GroupBatch) -> bool:
        """Whether to measure the mismatch with an older policy, which costs a forward pass.

        Where parameters are split over devices they may not fit the one that it would run on.
        """
        every = self._config.mismatch_every
        due = every > 0 and done % every == 0
        return due and self._config.shards == 1 and not batch.current.any()

    def _is_stale(self, step: int, scored: ScoredGroup) -> bool:
        if self._max_staleness is None:
            return False
        # A version after this learner's own is of one that has gone back to a checkpoint since.
        return not 0 <= step - scored.sampled.policy_version <= self._max_staleness

    def _publish(self, version: int, params: Any, policies: deque[tuple[int, Any]]) -> None:
        host = jax.device_get(params)
        policies.append((version, host))
        self._send(version, host)

    def _send(self, version: int, params: Any) -> None:
        """Publishes a policy; the first and the last one exactly, since they are kept.

        A learner elsewhere begins from the first, and a run writes the last one as its result.
        """
        last = version == self._config.steps
        exact = last or version == 0
        dtype = "float32" if exact else self._config.weights_dtype
        self._weights.publish(version, params, dtype, last)

    def _resume(
        self, checkpoints: Checkpoints
    ) -> tuple[TrainState, deque[tuple[int, Any]], Frontier]:
        """The state to go on from, the policies to publish, and what the queue has had trained."""
        state = create_train_state(self._initial, self._optimizer, self._mesh)
        # Groups that lag by a step can be measured where the policy before the newest is kept.
        kept = self._kept_policies + 1 + bool(self._max_staleness)
        policies: deque[tuple[int, Any]] = deque(maxlen=kept)
        if checkpoints.latest_step() is None:
            policies.append((0, jax.device_get(state.params)))
            return state, policies, Frontier()
        like = self._with_policies(state, [state.params] * self._kept_policies)
        saved, extra = checkpoints.restore(like)
        if int(saved.step) > self._config.steps:
            raise CheckpointError(
                f"{self._run_directory} has been trained for {int(saved.step)} steps, more than "
                f"learner.steps {self._config.steps}; ask for more, or give this run another name"
            )
        if extra["identity"] != self._identity:
            raise CheckpointError(
                f"{self._run_directory} holds a run of other settings at step {int(saved.step)}: "
                "choose another name, or go back to its settings (runs/NAME/config.yaml)"
            )
        step = int(saved.step)
        state = saved._replace(optimizer_state=saved.optimizer_state["optimizer"])
        before = saved.optimizer_state["previous_policies"]
        for age, name in zip(range(self._kept_policies, 0, -1), sorted(before), strict=True):
            if step - age >= 0:
                policies.append((step - age, jax.device_get(before[name])))
        policies.append((step, jax.device_get(state.params)))
        return state, policies, Frontier.from_json(extra["frontier"])

    def _save(
        self,
        checkpoints: Checkpoints,
        state: TrainState,
        policies: deque[tuple[int, Any]],
        frontier: Frontier,
    ) -> None:
        logger.info("saves step %d", int(state.step), extra={"step": int(state.step)})
        kept = self._kept_policies
        previous = [params for version, params in policies if version < int(state.step)]
        # Filled up at the start of a run, so that every checkpoint has one shape.
        previous = ([self._initial] * kept + previous)[len(previous) :] if kept else []
        checkpoints.save(
            self._with_policies(state, previous),
            {"identity": self._identity, "frontier": frontier.to_json()},
        )

    def _with_policies(self, state: TrainState, previous: list[Any]) -> TrainState:
        """The state as it is saved: with the policies that samples in flight were made with."""
        named = {
            f"{index:04d}": jax.tree.map(np.asarray, params)
            for index, params in enumerate(previous)
        }
        return state._replace(
            optimizer_state={"optimizer": state.optimizer_state, "previous_policies": named}
        )
