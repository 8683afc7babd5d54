"""Maximum likelihood on ground truth (Pinto et al. 2023, Algorithm 1).

A run directory gets `checkpoints/`, `metrics.jsonl` and `tensorboard/`. Called again with the same
settings it continues from the newest checkpoint, and ends where it would have ended.
"""

import hashlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from learner.batches import LoadedAhead, TrainingExamples
from learner.checkpoints import CheckpointError, Checkpoints
from learner.config import PretrainConfig
from learner.encoder_warmup import warm_up_encoder
from learner.metrics import MetricsWriter
from learner.objectives import ApplyModel, TokenRules, make_likelihood_loss
from learner.optimizer import make_optimizer, make_schedule
from learner.progress import ProgressDisplay
from learner.stop import StopRequest, TrainingInterrupted
from learner.train_state import (
    LOSS,
    TrainState,
    check_finite,
    create_train_state,
    make_mesh,
    make_train_step,
)
from vision.models.config import ModelConfig
from vision.models.sequence import SequenceModel, init_params
from vision.tasks.task import Task

CHECKPOINTS_DIRECTORY = "checkpoints"

# (parameters, finished steps) -> metrics by the names of `Task.evaluate`.
Evaluate = Callable[[Any, int], Mapping[str, float]]


def model_apply(config: ModelConfig) -> ApplyModel:
    """The model as a function of (parameters, images, tokens)."""
    model = SequenceModel(config)
    return lambda params, images, tokens: model.apply({"params": params}, images, tokens)


def pretrain(
    task: Task,
    model_config: ModelConfig,
    config: PretrainConfig,
    run_directory: Path | str,
    seed: int,
    evaluate: Evaluate | None = None,
    params: Any | None = None,
    stop: StopRequest | None = None,
) -> Any:
    """Trains, or goes on training, and returns the parameters after the last step.

    Args:
      evaluate: called every `config.evaluate_every` steps and after the last; its metrics are
        written as 'validation/NAME', and the best by `task.headline` is kept.
      params: what to start from; None: fresh ones of `seed`.
      stop: asks to stop; None: a request of its own that listens to Ctrl-C.
    Raises:
      TrainingInterrupted: asked to stop; a checkpoint was left.
      CheckpointError: the run directory is not writable, full, or of other settings.
      NonFiniteError: the loss became NaN or infinite; names the examples.
    """
    run = Path(run_directory)
    digest = _digest(model_config, config, seed)
    with (
        stop or StopRequest() as stop,
        Checkpoints(
            run / CHECKPOINTS_DIRECTORY, keep=config.keep_checkpoints, best_metric=task.headline
        ) as checkpoints,
    ):
        resumed = checkpoints.latest_step()
        with MetricsWriter(run, resumed) as metrics:
            if params is None:
                params = init_params(model_config, seed)
            optimizer = make_optimizer(config.optimizer, config.steps, params)
            if resumed is None:
                measured: dict[str, float] = {}
                if config.encoder_warmup is not None:
                    params, measured = warm_up_encoder(
                        task, model_config, config.encoder_warmup, params, seed, stop
                    )
                state = create_train_state(params, optimizer)
                checkpoints.save(state, {"digest": digest})
                checkpoints.wait()
                # Only now: without a checkpoint, metrics would look like another run's.
                if measured:
                    metrics.write(0, measured)
            else:
                state, extra = checkpoints.restore(create_train_state(params, optimizer))
                if extra["digest"] != digest:
                    raise CheckpointError(
                        f"{run} holds a run of other settings (or another seed) at step {resumed};"
                        " choose another run directory, or go back to its settings"
                    )
            loop = _Loop(task, model_config, config, seed, optimizer, evaluate, digest)
            return loop.run(state, checkpoints, metrics, stop).params


class _Loop:
    """The training loop over a run's open files."""

    def __init__(
        self,
        task: Task,
        model_config: ModelConfig,
        config: PretrainConfig,
        seed: int,
        optimizer: Any,
        evaluate: Evaluate | None,
        digest: str,
    ) -> None:
        self._config, self._evaluate, self._digest = config, evaluate, digest
        self._examples = TrainingExamples(task, seed, config.batch_size)
        self._schedule = make_schedule(config.optimizer, config.steps)
        loss = make_likelihood_loss(model_apply(model_config), TokenRules.of(task))
        self._train_step = make_train_step(
            loss, optimizer, make_mesh(config.devices), config.microbatches
        )

    def run(
        self,
        state: TrainState,
        checkpoints: Checkpoints,
        metrics: MetricsWriter,
        stop: StopRequest,
    ) -> TrainState:
        config, first = self._config, int(state.step)
        window = _Window()
        unchecked: tuple[int, dict[str, jax.Array]] | None = None

        def fetch() -> None:
            # One step late, so that the device computes while the host prepares the next.
            if unchecked is not None:
                done, values = unchecked
                fetched = {name: float(value) for name, value in values.items()}
                check_finite(fetched, done, self._examples.batch_ids(done - 1))
                window.add(fetched)
                progress.update(done, {"loss": fetched[LOSS]})

        with (
            ProgressDisplay("maximum likelihood", config.steps) as progress,
            LoadedAhead(self._examples.likelihood_batch, first, config.steps) as batches,
        ):
            started = time.perf_counter()
            for done, batch in enumerate(batches, start=first + 1):
                waited = time.perf_counter() - started
                state, values = self._train_step(state, batch)
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
                    checkpoints.save(state, {"digest": self._digest}, measured)
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


def _digest(model_config: ModelConfig, config: PretrainConfig, seed: int) -> str:
    """Of what decides the numbers; how often it logs, saves or evaluates does not."""
    deciding = config.model_dump_json(
        exclude={"checkpoint_every", "keep_checkpoints", "evaluate_every", "log_every"}
    )
    text = f"{model_config}\n{deciding}\n{seed}"
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
