"""Checkpoints of everything that training needs to go on, by Orbax: asynchronous and atomic.

A checkpoint holds the parameters, the optimizer's state and a small JSON record (queue frontier,
seeds, digest of the config). A crash while one is written leaves the one before; what was being
written is never listed.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from learner.optimizer import parameter_paths
from learner.train_state import TrainState

# Orbax narrates every save at INFO and warns of single-host details; errors still come through.
logging.getLogger("absl").setLevel(logging.ERROR)

PARAMS, OPTIMIZER_STATE, EXTRA = "params", "optimizer_state", "extra"
TOKENS = "token_names"  # in the record


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written or read, with what would help."""


class Checkpoints:
    """The checkpoints of one run: the newest `keep`, and the best by one metric."""

    def __init__(
        self,
        directory: Path | str,
        *,
        keep: int = 2,
        best_metric: str | None = None,
        token_names: Sequence[str] | None = None,
    ):
        """Opens or makes the directory.

        Args:
          directory: one checkpoint a subdirectory, named by its step.
          keep: how many of the newest stay.
          best_metric: the metric of `save` by which the best also stays (higher is better).
          token_names: what each token stands for; a checkpoint of other names is not restored.
        Raises:
          CheckpointError: the directory cannot be written.
        """
        self._directory = Path(directory).absolute()
        self._best_metric = best_metric
        self._tokens = {} if token_names is None else {TOKENS: _digest(token_names)}
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            probe = self._directory / ".writable"
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise CheckpointError(
                f"cannot write checkpoints to {self._directory}: {error.strerror or error};"
                " choose a run directory that can be written"
            ) from error
        policies = [preservation_policy.LatestN(keep)]
        if best_metric is not None:
            policies.append(
                preservation_policy.BestN(
                    get_metric_fn=lambda metrics: metrics[best_metric],
                    n=1,
                    keep_checkpoints_without_metrics=False,
                )
            )
        self._manager = ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=preservation_policy.AnyPreservationPolicy(policies),
                create=False,  # it is there, and Orbax cannot where only one host keeps them
                enable_async_checkpointing=True,
                # Of several hosts the first one alone keeps them, whole.
                multiprocessing_options=ocp.options.MultiprocessingOptions(
                    active_processes={0} if jax.process_count() > 1 else None
                ),
                # Needed for best_step(); the policy above says what stays.
                best_fn=None if best_metric is None else lambda metrics: metrics[best_metric],
            ),
            # Named here, so that a newly opened manager can tell an old checkpoint's shapes.
            item_handlers={
                PARAMS: ocp.StandardCheckpointHandler(),
                OPTIMIZER_STATE: ocp.StandardCheckpointHandler(),
                EXTRA: ocp.JsonCheckpointHandler(),
            },
        )

    def save(
        self,
        state: TrainState,
        extra: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
    ) -> bool:
        """Starts to save `state` under its step; the state may be donated at once.

        Args:
          extra: JSON-able; comes back from `restore`.
          metrics: of this very state; must hold `best_metric` to compete for the best.
        Returns:
          False when this step has been saved before (nothing is done then).
        Raises:
          CheckpointError: the disk is full, or this or the previous save failed.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return False
        self._check_space(state)
        # The next train step donates the state's buffers while Orbax still writes: give it copies.
        copy = jax.tree.map(lambda leaf: leaf.copy(), state)
        scored = metrics is not None and self._best_metric in metrics
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.StandardSave(copy.params),
                    optimizer_state=ocp.args.StandardSave(copy.optimizer_state),
                    extra=ocp.args.JsonSave(json.loads(json.dumps(dict(extra) | self._tokens))),
                ),
                metrics={k: float(v) for k, v in metrics.items()} if scored and metrics else None,
            )
        except (OSError, ValueError) as error:
            raise self._failed(step, error) from error
        return True

    def wait(self) -> None:
        """Returns when what was saved is on the disk; raises `CheckpointError` if it is not."""
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError) as error:
            raise self._failed(None, error) from error

    def steps(self) -> list[int]:
        """The steps that can be restored, ascending."""
        return sorted(self._manager.all_steps())

    def latest_step(self) -> int | None:
        """The newest step, or None."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """The step with the best metric; the newest when none has one."""
        best = None if self._best_metric is None else self._manager.best_step()
        return self.latest_step() if best is None else best

    def restore(
        self, like: TrainState, step: int | None = None
    ) -> tuple[TrainState, dict[str, Any]]:
        """A checkpoint's state and extra record.

        Args:
          like: a state, or its shapes, of the model and optimizer that are to go on.
          step: None: the newest.
        Raises:
          CheckpointError: there is no such checkpoint, or it is of another model or optimizer.
        """
        step = self._existing(step)
        self._check_fit(step, PARAMS, like.params)
        self._check_fit(step, OPTIMIZER_STATE, like.optimizer_state)
        restored = self._read(
            step,
            params=ocp.args.StandardRestore(_shapes(like.params)),
            optimizer_state=ocp.args.StandardRestore(_shapes(like.optimizer_state)),
            extra=ocp.args.JsonRestore(),
        )
        state = TrainState(
            jnp.asarray(step, jnp.int32), restored[PARAMS], restored[OPTIMIZER_STATE]
        )
        extra = dict(restored[EXTRA])
        named = extra.pop(TOKENS, None)
        if self._tokens and named not in (None, self._tokens[TOKENS]):
            raise CheckpointError(
                f"checkpoint {self._directory / str(step)} was trained with tokens that stand for"
                " something else, such as other words: go back to the data of its run, or choose"
                " another run directory"
            )
        return state, extra

    def restore_params(
        self, like: Any, step: int | Literal["latest", "best"] = "latest"
    ) -> tuple[int, Any]:
        """The step and the parameters alone, for evaluation; `like` as in `restore`."""
        number = self._existing(
            self.best_step() if step == "best" else None if step == "latest" else step
        )
        self._check_fit(number, PARAMS, like)
        restored = self._read(number, params=ocp.args.StandardRestore(_shapes(like)))
        return number, restored[PARAMS]

    def close(self) -> None:
        """Waits for what is being written and ends Orbax's threads."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def _existing(self, step: int | None) -> int:
        steps = self.steps()
        if not steps:
            raise CheckpointError(f"there is no checkpoint in {self._directory}")
        if step is None:
            return steps[-1]
        if step not in steps:
            raise CheckpointError(
                f"there is no checkpoint of step {step} in {self._directory}; there are {steps}"
            )
        return step

    def _read(self, step: int, **items: Any) -> Any:
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self._damaged(step, error) from error

    def _check_fit(self, step: int, item: str, like: Any) -> None:
        try:
            metadata = self._manager.item_metadata(step)[item]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self._damaged(step, error) from error
        if metadata is None:
            raise self._damaged(step, ValueError(f"it has no {item}"))
        saved = {
            path: tuple(leaf.shape)
            for path, leaf in parameter_paths(getattr(metadata, "tree", metadata)).items()
            if hasattr(leaf, "shape")
        }
        wanted = {path: tuple(leaf.shape) for path, leaf in parameter_paths(like).items()}
        where = f"checkpoint {self._directory / str(step)}, {item}"
        fix = "use the configuration it was made with, or another run directory"
        for path, shape in wanted.items():
            if path not in saved:
                raise CheckpointError(f"{where}: {path} {shape} is missing; {fix}")
            if saved[path] != shape:
                raise CheckpointError(
                    f"{where}: {path} has shape {saved[path]}, the model asks for {shape}; {fix}"
                )
        if unknown := sorted(saved.keys() - wanted.keys()):
            raise CheckpointError(f"{where}: the model has no {unknown[0]}; {fix}")

    def _check_space(self, state: TrainState) -> None:
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        free = shutil.disk_usage(self._directory).free
        if free < needed:
            raise CheckpointError(
                f"the disk of {self._directory} is full: a checkpoint needs {needed / 1e6:.1f} MB"
                f" and {free / 1e6:.1f} MB are free; make room, then resume"
            )

    def _damaged(self, step: int, error: Exception) -> CheckpointError:
        return CheckpointError(
            f"checkpoint {self._directory / str(step)} cannot be read; delete it to go on from"
            f" another of {self.steps()}. The cause: {_first_words(error)}"
        )

    def _failed(self, step: int | None, error: Exception) -> CheckpointError:
        free = shutil.disk_usage(self._directory).free
        which = "the last checkpoint" if step is None else f"checkpoint {step}"
        return CheckpointError(
            f"{which} was not written to {self._directory} ({free / 1e6:.1f} MB free);"
            f" earlier ones are whole: {self.steps()}. The cause: {_first_words(error)}"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _shapes(tree: Any) -> Any:
    """What Orbax reads a checkpoint as: numpy's arrays as such, the others where they lie."""
    return jax.tree.map(
        lambda leaf: (
            leaf
            if isinstance(leaf, np.ndarray)
            else jax.ShapeDtypeStruct(  # type: ignore[no-untyped-call]
                leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None)
            )
        ),
        tree,
    )


def _digest(names: Sequence[str]) -> str:
    return hashlib.blake2b(json.dumps(list(names)).encode(), digest_size=16).hexdigest()


def _first_words(error: Exception) -> str:
    """Without the pages of settings that tensorstore adds."""
    return str(error).split(" [tensorstore_spec", 1)[0]
