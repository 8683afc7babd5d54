"""Reward tuning: the learner's loop (Pinto et al. 2023, Algorithm 2).

Each step collects G scored groups, trains on them, publishes the policy and acks the groups, in
this order: a group that is acked has been trained, and the policy that its ack makes room for is
there to be sampled with.
"""

import logging
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from learner.collect import Collector, StepGroups
from learner.config import TuneConfig
from learner.group_batches import group_batch
from learner.hosts import Hosts
from learner.mesh import make_mesh, put_state
from learner.metrics import add_seconds
from learner.mismatch import LaggedMismatch
from learner.objectives import TokenRules, make_reinforce_loss
from learner.optimizer import make_optimizer, make_schedule
from learner.packed_weights import WeightPublisher, WeightsUnavailable
from learner.pretrain import model_apply
from learner.run_record import FINAL_FILE, RunRecord
from learner.stop import StopRequest
from learner.train_state import (
    TrainState,
    check_finite,
    create_train_state,
    make_train_step,
)
from replay.queue import QueueClosed, QueueUnavailable, QueueWentBack, ReplayQueue
from vision.models.config import ModelConfig
from vision.tasks.task import Task, token_names

__all__ = ["FINAL_FILE", "Learner", "NothingToTrainError", "host_name"]

logger = logging.getLogger(__name__)

WORKER = "learner"
EMPTY_STEPS_ALLOWED = 3


class NothingToTrainError(RuntimeError):
    """Step after step, no group could be scored."""


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
        hosts: Hosts | None = None,
    ):
        """Prepares the loop; `run` starts it.

        Args:
          run_directory: where host 0 keeps the run's record.
          initial: the parameters that tuning starts from.
          identity: digest of all settings that the numbers depend on; a checkpoint of another
            identity is refused.
          max_staleness: groups of an older policy are dropped (async mode); None: never.
          kept_policies: published policies before the newest that a resumed run must publish
            again, because its samples are made with them (ordered mode: policy_lag).
          hosts: that train together, of which this process is one; None: it is alone.
        """
        self._task, self._config, self._queue, self._weights = task, config, queue, weights
        self._run_directory, self._identity = run_directory, identity
        self._max_staleness, self._kept_policies = max_staleness, kept_policies
        self._initial, self._hosts = initial, hosts or Hosts()
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
            config,
            self._hosts,
            max_staleness,
        )
        self._collector = Collector(
            queue,
            self._hosts,
            host_name(self._hosts.index, self._hosts.count),
            config.groups_per_step,
            max_staleness,
        )
        self._epoch: str | None = None
        self._trained: TrainState  # as the last step left it
        self._dropped = self._empty_steps = 0
        self.status: dict[str, Any] = {"step": 0, "steps": config.steps, "state": "starting"}

    def run(self, stop: StopRequest) -> dict[str, Any]:
        """Trains to the last step, or until a host is asked to stop; returns the final status.

        A host returns when the last checkpoint is written, so that any of them tells that all
        are done.

        Raises:
          NonFiniteError: NaN or inf in loss or gradients, with the batch's ordinals.
          CheckpointError: the run directory cannot be written, or holds another run.
          LearnerFenced: another learner has taken over.
          QueueWentBack: the queue has forgotten what was trained; `run` anew sets it right.
          HostLost: another host is gone.
        """
        with ExitStack() as stack:
            record = stack.enter_context(self._open_record()) if self._hosts.first else None
            state = self._portable(create_train_state(self._initial, self._optimizer, self._mesh))
            if record is not None:
                state = record.resume(state)
            state = put_state(self._mesh, self._hosts.from_first(state))
            epoch = "" if record is None else record.take_over(int(state.step))
            self._epoch = str(self._hosts.gather(epoch)[0])
            self._collector.begin(self._epoch, None if record is None else record.frontier)
            self._trained = state
            try:
                self._loop(state, record, stop)
            except (QueueClosed, QueueUnavailable, QueueWentBack, WeightsUnavailable):
                # A run that ends, is out of reach or forgets costs no step that has been trained.
                self._save_trained(record)
                raise
        return self.status

    def _save_trained(self, record: RunRecord | None) -> None:
        """Saves the last step's state, if this host has all of it: others may not answer now."""
        if record is not None and self._hosts.has_whole(self._trained):
            record.save(self._portable(self._trained))
            record.finish(None)

    def _open_record(self) -> RunRecord:
        return RunRecord(
            self._run_directory,
            self._config,
            self._queue,
            self._weights,
            token_names(self._task),
            self._identity,
            self._initial,
            self._kept_policies,
        )

    def _portable(self, state: TrainState) -> TrainState:
        """The state as host 0 keeps it: of several hosts, whole in memory."""
        return state if self._hosts.count == 1 else self._hosts.whole(state)

    def _loop(self, state: TrainState, record: RunRecord | None, stop: StopRequest) -> None:
        config, saved = self._config, int(state.step)
        done = saved
        self.status |= {"step": done, "resumed": done, "seconds": {}}
        self._lagged_mismatch.begin(done)
        if record is not None:
            self._lagged_mismatch.keep(*record.policies[-1])
        logger.info("trains from step %d to %d", done, config.steps, extra={"step": done})
        frozen = put_state(self._mesh, self._initial) if config.reinforce.kl_weight else None
        while done < config.steps:
            self.status |= {"state": "waiting", "step": done}
            began = time.monotonic()
            step = self._collector.collect(done, stop)
            if step is None:
                break
            self._check_something_to_train(done, step)
            collected = time.monotonic()
            self.status["state"] = "training"
            batch = group_batch(
                self._task,
                step.groups,
                config.samples_per_group,
                threads=config.loading_threads,
                version=done,
            )
            loaded = time.monotonic()
            with self._hosts.together():
                rows = self._hosts.rows(self._mesh, batch)
                state, values = self._train_step(state, rows, frozen)
                fetched = {name: float(value) for name, value in values.items()}
            check_finite(fetched, done, step.ordinals)
            done += 1
            self._trained = state
            self._dropped += len(step.dropped)
            if record is not None:
                record.trained(done, step)
            trained = time.monotonic()
            if self._lagged_mismatch.due(done, fetched):
                versions = [group.version for group in step.groups]
                policies = () if record is None else record.policies
                fetched |= self._lagged_mismatch(done, policies, versions, batch, state.params)
            measured = time.monotonic()
            last = done == config.steps
            if last or done % config.publish_every == 0:
                params = self._hosts.whole(state.params)
                if record is not None:
                    record.publish(done, params)
                    self._lagged_mismatch.keep(done, params)
            if record is not None:
                # Every host has trained it: they computed the step together.
                self._collector.ack(step.ordinals)
            rate = config.optimizer.learning_rate * float(self._schedule(done - 1))
            # A part must not take the place of a metric of ours.
            fetched = step.reward_parts | fetched | _staleness(done - 1, step.versions)
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
            if record is not None:
                record.write(done, fetched)
            self.status |= {
                "step": done,
                "metrics": fetched,
                "seconds": add_seconds(self.status["seconds"], fetched),
                "dropped": self._dropped,
            }
            if last or done % config.checkpoint_every == 0:
                self._save(state, record)
                saved = done
        if done != saved:
            self._save(state, record)
        final = self._hosts.whole(state.params) if done == config.steps else None
        if record is not None:
            record.finish(final)
        self._hosts.gather("done")
        self.status |= {"state": "finished" if done == config.steps else "stopped", "step": done}

    def _save(self, state: TrainState, record: RunRecord | None) -> None:
        whole = self._portable(state)
        if record is not None:
            record.save(whole)

    def _check_something_to_train(self, step: int, groups: StepGroups) -> None:
        """A reward that never works would otherwise count as a run that learned nothing."""
        if any(of_host["trained"] for of_host in groups.accounts):
            self._empty_steps = 0
            return
        self._empty_steps += 1
        if self._empty_steps >= EMPTY_STEPS_ALLOWED:
            raise NothingToTrainError(
                f"step {step}: no group of the last {self._empty_steps} steps had two scored "
                "samples. The last reasons: "
                f"{groups.reasons or 'the samples were not scored, see logs/'}"
            )


def host_name(index: int, count: int) -> str:
    """What a host of the learner is called, in the queue and in the status."""
    return WORKER if count == 1 else f"{WORKER}-{index}"


def _staleness(step: int, versions: Sequence[int | None]) -> dict[str, float]:
    ages = [step - version for version in versions if version is not None] or [0]
    return {
        "staleness/mean": float(np.mean(ages)),
        "staleness/max": float(max(ages)),
        "groups/quarantined": float(sum(version is None for version in versions)),
    }
