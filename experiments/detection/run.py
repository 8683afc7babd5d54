"""Runs the detection experiments from the shipped checkpoint and writes a JSON file for each.

    python -m experiments.detection.run [NAME ...]        # all by default; finished ones are kept

Every tuning is the documented command `rewardtune tune configs/quickstart/...` with overrides, in
a process of its own. Choices are made on the validation split; the test split is only reported.
"""

import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from experiments.commands import rewardtune, write_result

RESULTS = Path(__file__).resolve().parent / "results"
RUNS = Path(os.environ.get("REWARDTUNE_EXPERIMENT_RUNS", "runs/experiments"))
MAP, RECALL = "configs/quickstart/detection_map.yaml", "configs/quickstart/detection_recall.yaml"
PRETRAIN = "configs/quickstart/detection_pretrain.yaml"
RANKS = ("class", "confidence", "product")
BIASES = (0.0, -0.5, -1.0, -1.5, -2.0, -2.5, -3.0, -4.0, -5.0)


def tunings() -> dict[str, tuple[str, list[str]]]:
    """Name -> (config, overrides)."""
    runs: dict[str, tuple[str, list[str]]] = {}
    for seed in (0, 1, 2):
        runs[f"map_seed{seed}"] = (MAP, [f"seed={seed}"])
    for seed in (0, 1, 2):
        runs[f"recall_seed{seed}"] = (RECALL, [f"seed={seed}"])
    runs["map_long"] = (MAP, ["learner.steps=1500", "evaluation.every=150"])
    # Equal reward queries: 8 samples of 16 images, or 2 samples of 64 images, for as many steps.
    k2 = ["learner.samples_per_group=2", "learner.groups_per_step=64"]
    short = ["learner.steps=200", "learner.resources.threads=1"]
    runs["k2_of_64"] = (MAP, [*k2, *short])
    runs["k8_of_16"] = (MAP, short)
    for lag in (0, 1, 4, 16):
        for weights in ("plain", "weighted"):
            cap = "2.0" if weights == "weighted" else "null"
            runs[f"lag{lag}_{weights}"] = (
                MAP,
                [
                    f"replay.policy_lag={lag}",
                    f"learner.reinforce.max_importance_weight={cap}",
                    "learner.optimizer.learning_rate=3.0e-5",
                    "learner.steps=120",
                    "learner.resources.threads=1",
                ],
            )
    return runs


def run_tuning(name: str, config: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Tunes (or resumes), and judges the result on validation and test."""
    from actors.evaluator import read_evaluations
    from learner.metrics import read_metrics

    arguments = ["tune", config, f"name={name}", f"runs={RUNS}", *overrides]
    seconds = rewardtune(arguments)
    directory = RUNS / name
    metrics = list(read_metrics(directory))
    kept = ("step", "reward/mean", "reward/spread", "policy/entropy", "staleness/mean")
    return {
        "command": "rewardtune " + " ".join(arguments),
        "seconds": seconds,
        "validation": judge(config, overrides, directory / "final.npz", "validation"),
        "test": judge(config, overrides, directory / "final.npz", "test"),
        "evaluations": read_evaluations(directory),
        "training": [{k: line[k] for k in kept if k in line} for line in metrics[::5]],
    }


def run_before() -> dict[str, Any]:
    """The shipped checkpoint, and with the end-token bias that is best on validation."""
    config = load(MAP, [])
    checkpoint = Path(config.initial)
    by_bias = {bias: judge(MAP, [], checkpoint, "validation", bias)["class"] for bias in BIASES}
    best = max(BIASES, key=lambda bias: by_bias[bias]["mAP"])
    return {
        "validation": judge(MAP, [], checkpoint, "validation"),
        "test": judge(MAP, [], checkpoint, "test"),
        "bias_validation": {str(bias): metrics for bias, metrics in by_bias.items()},
        "best_bias": best,
        "best_bias_test": judge(MAP, [], checkpoint, "test", best),
    }


def run_complete() -> dict[str, Any]:
    """The same from a checkpoint that maximum likelihood made with all the annotations."""
    name = "pretrain_complete"
    arguments = ["pretrain", PRETRAIN, f"name={name}", f"runs={RUNS}"]
    arguments.append("task.data.drop_annotations=0.0")
    rewardtune(arguments)
    checkpoint = RUNS / name / "final.npz"
    result = run_tuning("map_complete", MAP, [f"initial={checkpoint}"])
    return {
        "pretrain": "rewardtune " + " ".join(arguments),
        "before_validation": judge(MAP, [], checkpoint, "validation"),
        "before_test": judge(MAP, [], checkpoint, "test"),
        **result,
    }


def run_likelihood_continued(steps: int) -> dict[str, Any]:
    """Maximum likelihood on the complete annotations; the better of two learning rates.

    2,500 steps take about as long as 600 steps of tuning, 800 as long as 120.
    """
    tried = {}
    for rate in ("1.0e-4", "3.0e-4"):
        name = f"likelihood_{steps}_{rate}"
        arguments = [
            "pretrain",
            MAP,
            f"name={name}",
            f"runs={RUNS}",
            "pretrain.encoder_warmup=null",
            f"pretrain.steps={steps}",
            f"pretrain.optimizer.learning_rate={rate}",
        ]
        seconds = rewardtune(arguments)
        checkpoint = RUNS / name / "final.npz"
        tried[rate] = {
            "command": "rewardtune " + " ".join(arguments),
            "seconds": seconds,
            "validation": judge(MAP, [], checkpoint, "validation"),
            "test": judge(MAP, [], checkpoint, "test"),
        }
    best = max(tried, key=lambda rate: tried[rate]["validation"]["class"]["mAP"])
    return {
        "best_rate": best,
        "rates": tried,
        "test": tried[best]["test"],
    }


def run_after_likelihood() -> dict[str, Any]:
    """Tuning after maximum likelihood on the complete annotations; needs `likelihood_2500`."""
    checkpoint = RUNS / "likelihood_2500_3.0e-4" / "final.npz"
    overrides = [f"initial={checkpoint}", "learner.steps=400", "evaluation.every=80"]
    overrides += ["learner.optimizer.learning_rate=3.0e-5", "learner.optimizer.schedule=cosine"]
    overrides.append("learner.reinforce.auxiliary_weight=1.0")
    return run_tuning("map_after_likelihood", MAP, overrides)


def load(config: str, overrides: Sequence[str]) -> Any:
    """The resolved config."""
    from deploy.config import RunConfig
    from deploy.config_file import read_config

    return read_config(config, overrides, RunConfig)


def judge(
    config: str, overrides: Sequence[str], checkpoint: Path, split: str, bias: float = 0.0
) -> dict[str, dict[str, float]]:
    """Metrics by what ranks the boxes, all of one greedy decoding."""
    from actors.evaluation import greedy_predictions, split_examples
    from deploy.processes import build_engine, resolve_checkpoint
    from vision.models.checkpoint import load_npz
    from vision.tasks.registry import build_task

    resolved = load(config, overrides)
    task = build_task(resolved.task)
    engine = build_engine(resolved, task, bias)
    params = load_npz(resolve_checkpoint(checkpoint), resolved.model.build(task))
    examples = split_examples(task, split, None)
    predictions = greedy_predictions(task, engine, params, examples, 100)
    return {
        rank: build_task(resolved.task.model_copy(update={"rank": rank})).evaluate(
            examples, predictions
        )
        for rank in RANKS
    }


def main(names: Sequence[str]) -> None:
    """Runs what is named, in order."""
    runs = tunings()
    special: dict[str, Callable[[], dict[str, Any]]] = {
        "before": run_before,
        "likelihood_2500": partial(run_likelihood_continued, 2500),
        "likelihood_800": partial(run_likelihood_continued, 800),
        "after_likelihood": run_after_likelihood,
        "complete": run_complete,
    }
    for name in names or [*special, *runs]:
        if (RESULTS / f"{name}.json").exists():
            print(f"{name}: there is a result", flush=True)
            continue
        if name in special:
            result: dict[str, Any] = special[name]()
        elif name in runs:
            result = run_tuning(name, *runs[name])
        else:
            raise SystemExit(f"unknown experiment {name!r}: one of {[*special, *runs]}")
        write_result(RESULTS, name, result)
        print(f"{name}: test {result['test']}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
