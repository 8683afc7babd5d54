"""The loop of every training on ground truth: checkpoints, metrics, progress, resume.

A run directory gets `checkpoints/`, `metrics.jsonl` and `tensorboard/`. Called again with the same
settings it continues from the newest checkpoint, and ends where it would have ended.
"""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from learner.batches import LoadedAhead, TrainingExamples
from learner.checkpoints import CheckpointError, Checkpoints
from learner.config import SupervisedConfig
from learner.metrics import MetricsWriter
from learner.optimizer import make_schedule
from learner.progress import ProgressDisplay
from learner.stop import StopRequest, TrainingInterrupted
from learner.train_state import LOSS, TrainState, TrainStep, check_finite, create_train_state

CHECKPOINTS_DIRECTORY = "checkpoints"

# (parameters, finished steps) -> metrics by the names of `Task.evaluate`.
Evaluate = Callable[[Any, int], Mapping[str, float]]


@dataclass(frozen=True)
class Training:
    """What is trained, and on what.

    Attributes:
      description: its name, to show.
      digest: of all that decides the numbers; a run of another one is not continued.
      examples: which examples each step sees.
      load: step -> batch.
      optimizer: optax's.
      mesh: the devices that it runs on.
      train_step: the compiled step.
      headline: the metric of `evaluate` by which the best checkpoint is kept.
      prepare: what to do before the first step of a new run: parameters -> parameters and metrics.
      token_names: see `vision.tasks.task.NamedTokens`.
    """

    description: str
    digest: str
    examples: TrainingExamples
    load: Callable[[int], Any]
    optimizer: Any
    mesh: Mesh
    train_step: TrainStep
    headline: str
    prepare: Callable[[Any, StopRequest], tuple[Any, dict[str, float]]] | None = None
    token_names: Sequence[str] | None = None


def train(
    training: Training,
    config: SupervisedConfig,
    run_directory: Path | str,
    params: Any,
    evaluate: Evaluate | None,
    stop: StopRequest | None,
) -> Any:
    """Trains, or goes on training, and returns the parameters after the last step.

    Args:
      params: what a new run starts from.
      evaluate: called every `config.evaluate_every` steps and after the last; its metrics are
        written as 'validation/NAME'.
      stop: asks to stop; None: a request of its own that listens to Ctrl-C.
    Raises:
      TrainingInterrupted: asked to stop; a checkpoint was left.
      CheckpointError: the run directory is not writable, full, or of other settings.
      NonFiniteError: the loss became NaN or infinite; names the examples.
    """
    run = Path(run_directory)
    with (
        stop or StopRequest() as stop,
        Checkpoints(
            run / CHECKPOINTS_DIRECTORY,
            keep=config.keep_checkpoints,
            best_metric=training.headline,
            token_names=training.token_names,
        ) as checkpoints,
    ):
        resumed = checkpoints.latest_step()
        with MetricsWriter(run, resumed) as metrics:
            if resumed is None:
                measured: dict[str, float] = {}
                if training.prepare is not None:
                    params, measured = training.prepare(params, stop)
                state = create_train_state(params, training.optimizer, training.mesh)
                checkpoints.save(state, {"digest": training.digest})
                checkpoints.wait()
                # Only now: without a checkpoint, metrics would look like another run's.
                if measured:
                    metrics.write(0, measured)
            else:
                like = create_train_state(params, training.optimizer, training.mesh)
                state, extra = checkpoints.restore(like)
                if extra["digest"] != training.digest:
                    raise CheckpointError(
                        f"{run} holds a run of other settings (or another seed) at step {resumed};"
                        " choose another run directory, or go back to its settings"
                    )
            loop = _Loop(training, config, evaluate)
            return loop.run(state, checkpoints, metrics, stop).params


def digest_of(*deciding: Any) -> str:
    """A short name of all that decides a training's numbers."""
    text = "\n".join(str(part) for part in deciding)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


class _Loop:
    """The training loop over a run's open files."""

    def __init__(
        self, training: Training, config: SupervisedConfig, evaluate: Evaluate | None
    ) -> None:
        self._training, self._config, self._evaluate = training, config, evaluate
        self._schedule = make_schedule(config.optimizer, config.steps)

    def run(
        self,
        state: TrainState,
        checkpoints: Checkpoints,
        metrics: MetricsWriter,
        stop: StopRequest,
    ) -> TrainState:
        training, config, first = self._training, self._config, int(state.step)
        window = _Window()
        unchecked: tuple[int, dict[str, jax.Array]] | None = None

        def fetch() -> None:
            # One step late, so that the device computes while the host prepares the next.
            if unchecked is not None:
                done, values = unchecked
                fetched = {name: float(value) for name, value in values.items()}
                check_finite(fetched, done, training.examples.batch_ids(done - 1))
                window.add(fetched)
                progress.update(done, {"loss": fetched[LOSS]})

        with (
            ProgressDisplay(training.description, config.steps) as progress,
            LoadedAhead(training.load, first, config.steps) as batches,
        ):
            started = time.perf_counter()
            for done, batch in enumerate(batches, start=first + 1):
                waited = time.perf_counter() - started
                state, values = training.train_step(state, batch)
                fetch()
                unchecked = (done, values)
                last = done == config.steps or stop.requested
                save_now = last or _due(config.checkpoint_every, done)
                evaluate_now = self._evaluate is not None and (
                    done == config.steps or _due(config.evaluate_every, done)
                )
                log_now = last or _due(config.log_every, done)
                if save_now or evaluate_now or log_now:
                    fetch()
                    unchecked = None
                window.time(time.perf_counter() - started, waited)
                started = time.perf_counter()
                if log_now:
                    rate = config.optimizer.learning_rate * float(self._schedule(done - 1))
                    metrics.write(done, window.means() | {"optimizer/learning_rate": rate})
                    window = _Window()
                measured: Mapping[str, float] | None = None
                if evaluate_now and self._evaluate is not None:
                    measured = self._evaluate(state.params, done)
                    metrics.write(done, {f"validation/{k}": v for k, v in measured.items()})
                if save_now or evaluate_now:
                    checkpoints.save(state, {"digest": training.digest}, measured)
                if stop.requested and done < config.steps:
                    checkpoints.wait()
                    raise TrainingInterrupted(
                        f"stopped after step {done} of {config.steps}; the same command resumes"
                    )
        return state


class _Window:
    """Means of metrics and times since the last line."""

    def __init__(self) -> None:
        self._values: list[dict[str, float]] = []
        self._times: list[tuple[float, float]] = []

    def add(self, metrics: dict[str, float]) -> None:
        self._values.append(metrics)

    def time(self, total: float, waited: float) -> None:
        self._times.append((total, waited))

    def means(self) -> dict[str, float]:
        means = {k: float(np.mean([v[k] for v in self._values])) for k in self._values[0]}
        total, waited = np.mean(self._times, axis=0)
        return means | {"seconds/step": float(total), "seconds/waiting_for_data": float(waited)}


def _due(every: int, done: int) -> bool:
    return every > 0 and done % every == 0
