"""What the commands do: pretrain, tune and evaluate, from a config to files in a run directory."""

import json
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from deploy.checks import check_split, check_tune
from deploy.config import RunConfig
from deploy.config_file import ConfigError
from deploy.run_directory import open_run_directory, write_atomically
from learner.progress import ProgressDisplay
from learner.stop import StopRequest, TrainingInterrupted
from vision.tasks.registry import KINDS, build_task


def run_pretrain(config: RunConfig, overwrite: bool = False) -> Path:
    """Maximum likelihood; returns the final checkpoint, `runs/NAME/final.npz`.

    Beside it `evaluation.json` holds the held-out metrics of the last step and the time it took.
    """
    from actors.evaluation import evaluate_policy, split_examples
    from deploy.processes import build_engine
    from learner.pretrain import pretrain
    from learner.tune import FINAL_FILE
    from vision.models.checkpoint import save_npz

    if config.pretrain is None:
        raise ConfigError("pretrain: missing; this config only tunes")
    prepare_data(config)
    task = build_task(config.task)
    model = config.model.build(task)
    check_split(task, "train", config.pretrain.batch_size, "pretrain.batch_size")
    params = _starting_params(config, model)
    engine = build_engine(config, task)
    examples = split_examples(task, config.evaluation.split, config.evaluation.examples)
    last: dict[str, float] = {}

    def evaluate(params: Any, step: int) -> Mapping[str, float]:
        metrics = evaluate_policy(task, engine, params, examples, config.evaluation.batch_size)
        last.update(metrics)
        return metrics

    with open_run_directory(config, overwrite) as directory:
        began = time.monotonic()
        trained = pretrain(
            task, model, config.pretrain, directory, config.seed, evaluate, params, None
        )
        save_npz(directory / FINAL_FILE, trained)
        if last:  # empty when the run had been finished before
            record = {
                "split": config.evaluation.split,
                "examples": len(examples),
                "seconds": round(time.monotonic() - began, 1),
                **last,
            }
            write_atomically(directory / "evaluation.json", json.dumps(record, indent=1))
    return directory / FINAL_FILE


def prepare_data(config: RunConfig) -> None:
    """Makes what the data needs at first use, and shows that it does."""
    displays: dict[str, ProgressDisplay] = {}
    with ExitStack() as stack:

        def show(what: str, done: int, total: int) -> None:
            if what not in displays:
                display = ProgressDisplay(f"generating {what} data", total)
                displays[what] = stack.enter_context(display)
            displays[what].update(done)

        task_class = KINDS[config.task.kind][1]
        task_class.prepare(config.task, show)


def _starting_params(config: RunConfig, model: Any) -> Any | None:
    from deploy.processes import load_initial, resolve_checkpoint
    from vision.models.checkpoint import load_encoder_npz
    from vision.models.sequence import init_params

    if config.initial is not None:
        return load_initial(config, model)
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
    progress.update(status["step"], shown | {name: n for name, n in waiting.items() if n})


def run_evaluate(
    config: RunConfig, checkpoint: Path, split: str, end_token_bias: float = 0.0
) -> dict[str, float]:
    """The metrics of a checkpoint on a split, by greedy decoding."""
    from actors.evaluation import evaluate_policy, split_examples
    from deploy.processes import build_engine, resolve_checkpoint
    from vision.models.checkpoint import load_npz

    prepare_data(config)
    task = build_task(config.task)
    check_split(task, split, 1, "split")
    params = load_npz(resolve_checkpoint(checkpoint), config.model.build(task))
    engine = build_engine(config, task, end_token_bias)
    examples = split_examples(task, split, config.evaluation.examples)
    return evaluate_policy(task, engine, params, examples, config.evaluation.batch_size)
