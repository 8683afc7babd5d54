"""What the commands do: pretrain, tune and evaluate, from a config to files in a run directory."""

import json
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from deploy.checks import check_split, check_stage_one, check_tune
from deploy.config import RunConfig
from deploy.config_file import ConfigError
from deploy.logs import log_of_run
from deploy.run_directory import EVALUATION_FILE, open_run_directory, write_atomically
from learner.config import StageOneConfig
from learner.progress import ProgressDisplay
from learner.stop import StopRequest, TrainingInterrupted
from vision.tasks.registry import build_task, prepare_task
from vision.tasks.task import Example, Task, token_names


def run_pretrain(config: RunConfig, overwrite: bool = False) -> Path:
    """Maximum likelihood, or stage I; returns the final checkpoint, `runs/NAME/final.npz`.

    Beside it `evaluation.json` holds the held-out metrics of the last step and the time it took.
    """
    from actors.evaluation import evaluate_policy
    from deploy.processes import build_engine
    from learner.pretrain import pretrain
    from learner.tune import FINAL_FILE
    from vision.models.checkpoint import save_npz

    if config.stage_one is not None:
        return _run_stage_one(config, config.stage_one, overwrite)
    settings = config.pretrain
    if settings is None:
        raise ConfigError("pretrain: missing (and stage_one too); this config only tunes")
    prepare_data(config)
    task = build_task(config.task)
    check_stage_one(task)
    model = config.model.build(task)
    check_split(task, "train", settings.batch_size, "pretrain.batch_size")
    params = _starting_params(config, model, task)
    engine = build_engine(config, task)
    held_out = _HeldOut(
        config, task, lambda p, e: evaluate_policy(task, engine, p, e, config.evaluation.batch_size)
    )
    with open_run_directory(config, overwrite) as directory, log_of_run(config, "pretrain"):
        trained = pretrain(task, model, settings, directory, config.seed, held_out, params, None)
        save_npz(directory / FINAL_FILE, trained, token_names=token_names(task))
        held_out.write(directory, trained)
    return directory / FINAL_FILE


def _run_stage_one(config: RunConfig, settings: StageOneConfig, overwrite: bool) -> Path:
    from deploy.processes import resolve_checkpoint
    from learner.stage_one import evaluate_stage_one, train_stage_one
    from learner.tune import FINAL_FILE
    from vision.models.uvim_checkpoint import load_stage_one, save_stage_one
    from vision.models.uvim_config import check_stage_two

    prepare_data(config)
    task: Any = build_task(config.task)
    if not hasattr(task, "stage_one"):
        raise ConfigError(
            f"stage_one: the task {config.task.kind!r} is not written in UViM's code words and has "
            "no stage I; set it to null, and use pretrain"
        )
    model = task.stage_one.config
    # What is to learn these code words should not first fail when they are there.
    check_stage_two(model, config.model.build(task))
    check_split(task, "train", settings.batch_size, "stage_one.batch_size")
    start = None
    if config.initial is not None:
        start = load_stage_one(resolve_checkpoint(config.initial), model)
    held_out = _HeldOut(
        config, task, lambda v, e: evaluate_stage_one(task, v, e, config.evaluation.batch_size)
    )
    with open_run_directory(config, overwrite) as directory, log_of_run(config, "pretrain"):
        trained = train_stage_one(task, settings, directory, config.seed, held_out, start)
        save_stage_one(directory / FINAL_FILE, trained)
        held_out.write(directory, trained)
    return directory / FINAL_FILE


class _HeldOut:
    """Judges parameters on the config's held-out examples, and remembers what came out last."""

    def __init__(
        self, config: RunConfig, task: Task, judge: Callable[[Any, list[Example]], dict[str, float]]
    ) -> None:
        from actors.evaluation import split_examples

        self._split, self._judge = config.evaluation.split, judge
        self._examples = split_examples(task, self._split, config.evaluation.examples)
        self._last: dict[str, float] = {}
        self._began = time.monotonic()

    def __call__(self, params: Any, step: int) -> Mapping[str, float]:
        self._last = self._judge(params, self._examples)
        return self._last

    def write(self, directory: Path, trained: Any) -> None:
        """Leaves `evaluation.json`, unless the run had been finished before and left it."""
        path = directory / EVALUATION_FILE
        if not self._last:
            if path.exists():
                return
            self._last = self._judge(trained, self._examples)  # it was ended before it was written
        record = {
            "split": self._split,
            "examples": len(self._examples),
            "seconds": round(time.monotonic() - self._began, 1),
            **self._last,
        }
        write_atomically(path, json.dumps(record, indent=1))


def prepare_data(config: RunConfig) -> None:
    """Makes what the data needs at first use, and shows that it does."""
    displays: dict[str, ProgressDisplay] = {}
    with ExitStack() as stack:

        def show(what: str, done: int, total: int) -> None:
            if what not in displays:
                display = ProgressDisplay(f"generating {what} data", total)
                displays[what] = stack.enter_context(display)
            displays[what].update(done)

        prepare_task(config.task, show)


def _starting_params(config: RunConfig, model: Any, task: Task) -> Any | None:
    from deploy.processes import load_initial, resolve_checkpoint
    from vision.models.checkpoint import load_encoder_npz
    from vision.models.sequence import init_params

    if config.initial is not None:
        return load_initial(config, model, task)
    if config.initial_encoder is not None:
        encoder = load_encoder_npz(resolve_checkpoint(config.initial_encoder), model)
        return init_params(model, config.seed) | encoder
    return None


def run_tune(config: RunConfig, overwrite: bool = False) -> dict[str, Any]:
    """Reward tuning on Ray; returns the learner's final status.

    Raises:
      TrainingInterrupted: asked to stop; the same command resumes.
    """
    from deploy.controller import Controller

    prepare_data(config)
    task = check_tune(config)
    with (
        open_run_directory(config, overwrite),
        StopRequest() as stop,
        ProgressDisplay("tuning", config.learner.steps) as progress,
    ):
        result = Controller(config, task, lambda s: _show(progress, s)).run(stop)
    if result["state"] != "finished":
        raise TrainingInterrupted(
            f"stopped after step {result['step']} of {config.learner.steps}; the same command "
            "resumes"
        )
    return result


def _show(progress: ProgressDisplay, status: Mapping[str, Any]) -> None:
    metrics = status["metrics"]
    shown = {
        short: metrics[name]
        for name, short in (("reward/mean", "reward"), ("policy/entropy", "entropy"))
        if name in metrics
    }
    queue = status["queue"]["stages"]
    waiting = {
        "to score": queue["to_score"]["ready"],
        "quarantined": status["queue"]["quarantined"],
    }
    shown |= {name: n for name, n in waiting.items() if n}
    progress.update(status["step"], shown, begun=status["state"] != "starting")


def run_evaluate(
    config: RunConfig, checkpoint: Path, split: str, end_token_bias: float = 0.0
) -> dict[str, float]:
    """The metrics of a checkpoint on a split, by greedy decoding."""
    from actors.evaluation import evaluate_policy, split_examples
    from deploy.processes import build_engine, resolve_checkpoint
    from vision.models.checkpoint import load_npz

    prepare_data(config)
    task = build_task(config.task)
    check_stage_one(task)
    check_split(task, split, 1, "split")
    path, model = resolve_checkpoint(checkpoint), config.model.build(task)
    params = load_npz(path, model, token_names(task))
    engine = build_engine(config, task, end_token_bias)
    examples = split_examples(task, split, config.evaluation.examples)
    return evaluate_policy(task, engine, params, examples, config.evaluation.batch_size)
