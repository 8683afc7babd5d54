"""Runs the experiments of the quick starts beside detection and writes a JSON file for each.

    python -m experiments.quick_starts.run [NAME ...]     # all by default; finished ones are kept

Every tuning is the documented command `rewardtune tune configs/quickstart/...` with a seed, in a
process of its own. Choices are made on the validation split; the test split is only reported.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.commands import evaluate, rewardtune, write_result

RESULTS = Path(__file__).resolve().parent / "results"
RUNS = Path(os.environ.get("REWARDTUNE_EXPERIMENT_RUNS", "runs/experiments"))
CONFIGS = {
    task: f"configs/quickstart/{task}_{reward}.yaml"
    for task, reward in (
        ("captioning", "cider"),
        ("colorization", "colorfulness"),
        ("panoptic", "pq"),
    )
}
SEEDS = (0, 1, 2)
# Maximum likelihood continued for about the wall time of tuning, at rates from which validation
# chooses.
LIKELIHOOD_STEPS = 1500
LIKELIHOOD_RATES = ("1.0e-4", "3.0e-4")


def run_before(task: str) -> dict[str, Any]:
    """The shipped checkpoint."""
    config = CONFIGS[task]
    return {split: evaluate([config, "--split", split]) for split in ("validation", "test")}


def run_tuning(task: str, seed: int) -> dict[str, Any]:
    """Tunes (or resumes), and judges the result."""
    from actors.evaluator import read_evaluations
    from learner.metrics import read_metrics

    name = f"{task}_seed{seed}"
    arguments = ["tune", CONFIGS[task], f"name={name}", f"runs={RUNS}", f"seed={seed}"]
    seconds = rewardtune(arguments)
    directory = RUNS / name
    kept = ("step", "reward/mean", "reward/spread", "policy/entropy", "staleness/mean")
    metrics = list(read_metrics(directory))
    return {
        "command": "rewardtune " + " ".join(arguments),
        "seconds": seconds,
        **judge(task, directory / "final.npz"),
        "evaluations": read_evaluations(directory),
        "training": [{k: line[k] for k in kept if k in line} for line in metrics[::5]],
    }


def run_likelihood(task: str, seed: int, rate: str) -> dict[str, Any]:
    """Maximum likelihood continued from the shipped checkpoint."""
    name = f"{task}_likelihood_{rate}_seed{seed}"
    arguments = ["pretrain", f"configs/quickstart/{task}_pretrain.yaml"]
    arguments += [f"initial=checkpoints/quickstart_{task}.npz", "initial_encoder=null"]
    arguments += [f"name={name}", f"runs={RUNS}", f"seed={seed}"]
    arguments += [f"pretrain.steps={LIKELIHOOD_STEPS}", f"pretrain.optimizer.learning_rate={rate}"]
    seconds = rewardtune(arguments)
    return {
        "command": "rewardtune " + " ".join(arguments),
        "seconds": seconds,
        **judge(task, RUNS / name / "final.npz"),
    }


def run_complete() -> dict[str, Any]:
    """The same with complete annotations from stage I on: before, tuned, likelihood continued."""
    complete = [f"runs={RUNS}", "task.data.drop_annotations=0.0"]
    commands: dict[str, list[str]] = {}

    def made(name: str, arguments: list[str]) -> Path:
        commands[name] = [*arguments, f"name={name}", *complete]
        rewardtune(commands[name])
        return RUNS / name / "final.npz"

    presets = "configs/quickstart/panoptic"
    first = made("complete_stage_one", ["pretrain", f"{presets}_stage_one.yaml"])
    complete.append(f"task.stage_one.checkpoint={first}")
    start = made("complete_pretrain", ["pretrain", f"{presets}_pretrain.yaml"])
    rates = ["learner.optimizer.learning_rate=1.0e-4", "learner.optimizer.schedule=cosine"]
    tuned = made("complete_pq", ["tune", CONFIGS["panoptic"], f"initial={start}", *rates])
    more = ["pretrain", f"{presets}_pretrain.yaml", f"initial={start}", "initial_encoder=null"]
    more += [f"pretrain.steps={LIKELIHOOD_STEPS}", "pretrain.optimizer.learning_rate=3.0e-4"]
    likelihood = made("complete_likelihood", more)
    rows = {"before": start, "tuned": tuned, "likelihood": likelihood}
    judged = {name: judge("panoptic", checkpoint, complete) for name, checkpoint in rows.items()}
    shown = {name: " ".join(["rewardtune", *arguments]) for name, arguments in commands.items()}
    return {"commands": shown, "rows": judged, "test": judged["tuned"]["test"]}


def judge(task: str, checkpoint: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Metrics of greedy decoding on both held-out splits."""
    arguments = [CONFIGS[task], *overrides, "--checkpoint", str(checkpoint), "--split"]
    return {split: evaluate([*arguments, split]) for split in ("validation", "test")}


def main(names: Sequence[str]) -> None:
    """Runs what is named, in order."""
    runs: dict[str, tuple[Any, ...]] = {f"{task}_before": (run_before, task) for task in CONFIGS}
    for task in CONFIGS:
        runs |= {f"{task}_seed{seed}": (run_tuning, task, seed) for seed in SEEDS}
    for rate in LIKELIHOOD_RATES:
        for seed in SEEDS:
            runs[f"panoptic_likelihood_{rate}_seed{seed}"] = (
                run_likelihood,
                "panoptic",
                seed,
                rate,
            )
    runs["panoptic_complete"] = (run_complete,)
    for name in names or list(runs):
        if name not in runs:
            raise SystemExit(f"unknown experiment {name!r}: one of {list(runs)}")
        if (RESULTS / f"{name}.json").exists():
            print(f"{name}: there is a result", flush=True)
            continue
        run, *settings = runs[name]
        result = run(*settings)
        write_result(RESULTS, name, result)
        print(f"{name}: test {result['test']}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
