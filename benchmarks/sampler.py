"""Time of the sampling engine: a group of K = 8 against a group of K = 1, quick-start model.

Blocks of 16 images, the detection task's slots (36 tokens). How long sequences are decides the
time, so it is measured for three lengths: none ends early (the worst case), and sequences that end
after a geometric number of boxes with mean 2.92 and 1.75 (those of the quick start's pretrained
models, complete and incomplete annotations). With `--checkpoint` the lengths are those of a trained
model on held-out scenes. Each thread count runs in its own process, held to as many cores;
K = 1 and K = 8 take turns, so that what else the machine does meets both.

    python -m benchmarks.sampler [--checkpoint FILE.npz]    # writes benchmarks/results/sampler.json
"""

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

RESULT = Path(__file__).parent / "results" / "sampler.json"
GROUPS, REPEATS = 16, 31
ONE_THREAD = "--xla_cpu_multi_thread_eigen=false"


def parameters_that_end(config: Any, end_token: int, first_tokens: int, boxes: float) -> Any:
    """Fresh parameters whose sequences have a geometric number of boxes with this mean.

    The output layer is constant: before each box, the end token against `first_tokens` others.
    """
    from vision.models.sequence import init_params

    params = init_params(config, 0)
    bias = np.zeros(config.vocabulary_size, np.float32)
    bias[end_token] = -math.log(boxes) + math.log(first_tokens) if math.isfinite(boxes) else -1e9
    kernel = np.zeros_like(params["decoder"]["LogitsDense"]["kernel"])
    params["decoder"]["LogitsDense"] = {"kernel": kernel, "bias": bias}
    return params


def measure(params: Any, engine: Any, images: np.ndarray) -> dict[str, Any]:
    """Medians of a block's seconds for K = 1 and 8, and the lengths of what was sampled."""
    seconds: dict[int, list[float]] = {1: [], 8: []}
    lengths: dict[int, list[np.ndarray]] = {1: [], 8: []}
    for repeat in range(-2, REPEATS):
        seeds = np.arange(GROUPS, dtype=np.uint64) + np.uint64(1000 + GROUPS * repeat)
        for samples, times in seconds.items():
            start = time.perf_counter()
            drawn = engine.sample(params, images, seeds, samples)
            if repeat >= 0:
                times.append(time.perf_counter() - start)
                lengths[samples].append(drawn.lengths)
    medians = {f"K={k}": round(statistics.median(times) * 1e3, 2) for k, times in seconds.items()}
    fastest = {f"K={k}": round(min(times) * 1e3, 2) for k, times in seconds.items()}
    longest = {f"K={k}": float(np.mean([x.max() for x in drawn])) for k, drawn in lengths.items()}
    return {
        "mean_length": round(float(np.mean(lengths[8])), 2),
        "mean_longest_of_block": {name: round(value, 1) for name, value in longest.items()},
        "block_ms": medians,
        "fastest_block_ms": fastest,
        "ratio": round(medians["K=8"] / medians["K=1"], 2),
        "ratio_of_fastest": round(fastest["K=8"] / fastest["K=1"], 2),
    }


def run(checkpoint: str | None) -> dict[str, Any]:
    """Every length, in this process."""
    from actors.jax_engine import JaxEngine
    from vision.models.checkpoint import load_npz
    from vision.models.presets import model_config
    from vision.tasks.detection import DetectionConfig, DetectionTask

    task = DetectionTask(DetectionConfig())
    config = model_config(
        "quickstart",
        vocabulary_size=task.vocabulary_size,
        max_length=task.max_length,
        image_size=task.image_size,
        ordered_tokens=task.ordered_tokens,
    )
    allowed = task.allowed_tokens()
    engine = JaxEngine(config, allowed, task.end_token)
    if checkpoint is not None:
        ids = task.example_ids("validation")[:GROUPS]
        images = np.stack([task.load("validation", name, None).image for name in ids])
        params = load_npz(checkpoint, config)
        return {f"trained model {Path(checkpoint).name}": measure(params, engine, images)}
    images = np.random.default_rng(0).uniform(-1, 1, (GROUPS, *task.image_size, 3))
    images = images.astype(np.float32)
    first_tokens = int(allowed[0].sum()) - 1
    return {
        name: measure(
            parameters_that_end(config, task.end_token, first_tokens, boxes), engine, images
        )
        for name, boxes in (
            ("none ends early", math.inf),
            ("2.92 boxes", 2.92),
            ("1.75 boxes", 1.75),
        )
    }


def main() -> None:
    """Runs one process a thread count and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", help="a quick-start .npz to take real lengths from")
    parser.add_argument("--threads", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.threads is not None:
        json.dump(run(arguments.checkpoint), sys.stdout)
        return
    cores = sorted(os.sched_getaffinity(0))
    result: dict[str, Any] = {
        "command": " ".join(["python -m benchmarks.sampler", *sys.argv[1:]]),
        "machine": f"{platform.machine()}, {len(cores)} cores",
        "groups_per_block": GROUPS,
        "repeats": REPEATS,
        "load_average_before": round(os.getloadavg()[0], 2),
        "threads": {},
    }
    for threads in (1, 2):
        if threads > len(cores):
            continue
        environment = os.environ | {
            "OMP_NUM_THREADS": str(threads),
            "XLA_FLAGS": ONE_THREAD if threads == 1 else "",
        }
        held = ["taskset", "-c", ",".join(map(str, cores[:threads]))]
        again = [sys.executable, "-m", "benchmarks.sampler", *sys.argv[1:], "--threads"]
        done = subprocess.run(
            [*held, *again, str(threads)],
            env=environment,
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        result["threads"][threads] = json.loads(done.stdout)
    result["load_average_after"] = round(os.getloadavg()[0], 2)
    # A trained model's figures are added to those without.
    if arguments.checkpoint is not None and RESULT.exists():
        result = json.loads(RESULT.read_text()) | {"trained": result}
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
