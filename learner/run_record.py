"""What of a tuning run is left when its learner ends: checkpoints, metrics, published policies.

Host 0 of the learner keeps it. Others know nothing of it, and need not see its directory.
"""

import logging
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
import numpy as np

from learner.checkpoints import CheckpointError, Checkpoints
from learner.collect import StepGroups
from learner.config import TuneConfig
from learner.metrics import MetricsWriter
from learner.ordinals import OrdinalsWriter
from learner.packed_weights import WeightPublisher
from learner.pretrain import CHECKPOINTS_DIRECTORY
from learner.train_state import TrainState
from replay.queue import Frontier, ReplayQueue
from vision.models.checkpoint import save_npz

logger = logging.getLogger(__name__)

FINAL_FILE = "final.npz"


class RunRecord:
    """Of one run; a context manager."""

    def __init__(
        self,
        directory: Path,
        config: TuneConfig,
        queue: ReplayQueue,
        weights: WeightPublisher,
        names: Sequence[str] | None,
        identity: str,
        initial: Mapping[str, Any],
        kept_policies: int,
    ) -> None:
        """Opens the checkpoints.

        Args:
          directory: of the run.
          names: what the task's tokens stand for.
          identity, kept_policies: see `learner.tune.Learner`.

        Raises:
          CheckpointError: the directory cannot be written.
        """
        self._directory, self._config = directory, config
        self._queue, self._weights = queue, weights
        self._names, self._identity, self._initial = names, identity, initial
        self._kept = kept_policies
        self.policies: deque[tuple[int, Any]] = deque(maxlen=kept_policies + 1)
        self._frontier = Frontier()
        self._metrics: MetricsWriter | None = None
        self._ordinals: OrdinalsWriter | None = None
        self._open = ExitStack()
        self._checkpoints = self._open.enter_context(
            Checkpoints(
                directory / CHECKPOINTS_DIRECTORY, keep=config.keep_checkpoints, token_names=names
            )
        )

    @property
    def frontier(self) -> Frontier:
        """What this learner has trained and dropped, and those before it that it goes on from."""
        return self._frontier

    def resume(self, state: TrainState) -> TrainState:
        """The state to go on from: of the last checkpoint, or the one that is given.

        Raises:
          CheckpointError: it is of another run, or was trained for longer than asked for.
        """
        if self._checkpoints.latest_step() is None:
            self.policies.append((0, jax.device_get(state.params)))
            self.save(state)
            # The metrics file of a run without a checkpoint would look like another run's.
            self._checkpoints.wait()
            return state
        like = self._with_policies(state, [state.params] * self._kept)
        saved, extra = self._checkpoints.restore(like)
        step = int(saved.step)
        if step > self._config.steps:
            raise CheckpointError(
                f"{self._directory} has been trained for {step} steps, more than learner.steps "
                f"{self._config.steps}; ask for more, or give this run another name"
            )
        if extra["identity"] != self._identity:
            raise CheckpointError(
                f"{self._directory} holds a run of other settings at step {step}: choose another "
                "name, or go back to its settings (runs/NAME/config.yaml)"
            )
        before = saved.optimizer_state["previous_policies"]
        for age, name in zip(range(self._kept, 0, -1), sorted(before), strict=True):
            if step - age >= 0:
                self.policies.append((step - age, jax.device_get(before[name])))
        self.policies.append((step, jax.device_get(saved.params)))
        self._frontier = Frontier.from_json(extra["frontier"])
        return saved._replace(optimizer_state=saved.optimizer_state["optimizer"])

    def take_over(self, step: int) -> str:
        """Becomes the run's learner after so many steps; returns the epoch.

        Earlier learners are refused from now on, the policies in use are published, and the queue
        forgets what came after the checkpoint.
        """
        self._metrics = self._open.enter_context(MetricsWriter(self._directory, step))
        epoch = self._queue.fence()
        self._ordinals = self._open.enter_context(OrdinalsWriter(self._directory, step, epoch))
        self._weights.fence(epoch)
        for version, params in self.policies:
            self._send(version, params)
        self._queue.restart(self._frontier, epoch)
        return epoch

    def publish(self, version: int, params: Any) -> None:
        """Publishes a policy; its arrays are in memory."""
        self.policies.append((version, params))
        self._send(version, params)

    def _send(self, version: int, params: Any) -> None:
        """The first and the last policy exactly, since they are kept.

        A learner elsewhere begins from the first, and a run writes the last one as its result.
        """
        last = version == self._config.steps
        exact = last or version == 0
        dtype = "float32" if exact else self._config.weights_dtype
        self._weights.publish(version, params, dtype, last)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes a step's metrics."""
        assert self._metrics is not None, "take_over comes first"
        self._metrics.write(step, metrics)

    def trained(self, step: int, groups: StepGroups) -> None:
        """Notes what a step has trained, and what was too old for it."""
        assert self._ordinals is not None, "take_over comes first"
        self._ordinals.write(step, groups.accounts, groups.dropped)
        self._frontier = self._frontier.with_acked(groups.ordinals, groups.dropped)

    def save(self, state: TrainState) -> None:
        """Starts to save a checkpoint of what has been trained."""
        logger.info("saves step %d", int(state.step), extra={"step": int(state.step)})
        previous = [params for version, params in self.policies if version < int(state.step)]
        # Filled up at the start of a run, so that every checkpoint has one shape.
        kept = self._kept
        previous = ([self._initial] * kept + previous)[len(previous) :] if kept else []
        self._checkpoints.save(
            self._with_policies(state, previous),
            {"identity": self._identity, "frontier": self._frontier.to_json()},
        )

    def finish(self, final: Any | None) -> None:
        """Waits for the last checkpoint, and leaves the parameters after the last step."""
        self._checkpoints.wait()
        if final is not None:
            save_npz(self._directory / FINAL_FILE, final, token_names=self._names)

    def _with_policies(self, state: TrainState, previous: list[Any]) -> TrainState:
        """The state as it is saved: with the policies that samples in flight were made with."""
        named = {
            f"{index:04d}": jax.tree.map(np.asarray, params)
            for index, params in enumerate(previous)
        }
        return state._replace(
            optimizer_state={"optimizer": state.optimizer_state, "previous_policies": named}
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.close()
