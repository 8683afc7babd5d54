"""The two sampling engines against each other: tokens a second, torch over JAX, one thread each.

The engines take turns, call by call, so that what else the machine does meets both; the medians of
a turn's seconds are compared. Blocks as samplers decode them. How long sequences are decides the
time: of one model none ends early (the worst case), of the trained detector that is shipped they
end as they do. Greedy decoding, as in evaluations, is measured beside sampling.

    python -m benchmarks.engines [--quick]      # writes benchmarks/results/engines.json
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

from benchmarks.sampler import ONE_THREAD, parameters_that_end

RESULT = Path(__file__).parent / "results" / "engines.json"
WARM_UPS, REPEATS, QUICK_REPEATS = 2, 15, 5
DETECTOR = Path(__file__).parents[1] / "checkpoints" / "quickstart_detection.npz"


def measure(engines: dict[str, Any], call: Any, repeats: int) -> dict[str, Any]:
    """Median seconds, tokens a second and their ratio, of `call(engine, repeat)` -> Samples."""
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    tokens: dict[str, list[int]] = {name: [] for name in engines}
    equal: list[float] = []
    largest = 0.0
    for repeat in range(-WARM_UPS, repeats):
        drawn = {}
        for name, engine in engines.items():
            start = time.perf_counter()
            drawn[name] = call(engine, repeat)
            if repeat >= 0:
                seconds[name].append(time.perf_counter() - start)
                tokens[name].append(int(drawn[name].lengths.sum()))
        one, other = drawn["jax"], drawn["torch"]
        same = (one.tokens == other.tokens).all(axis=-1)
        equal.append(float(same.mean()))
        largest = max(largest, float(np.abs(one.logprobs - other.logprobs)[same].max(initial=0)))
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    rates = {name: statistics.median(tokens[name]) / medians[name] for name in engines}
    return {
        "mean_length": round(float(np.mean(one.lengths)), 1),
        "block_ms": {name: round(1e3 * value, 1) for name, value in medians.items()},
        "fastest_block_ms": {name: round(1e3 * min(x), 1) for name, x in seconds.items()},
        "tokens_per_second": {name: round(rate) for name, rate in rates.items()},
        "torch_over_jax": round(rates["torch"] / rates["jax"], 2),
        "equal_sequences": round(float(np.mean(equal)), 4),
        "largest_logprob_difference": float(f"{largest:.1e}"),
    }


def detector() -> tuple[Any, Any, Any, Any, dict[str, Any]]:
    """Model config, allowed tokens, end token, images, and parameters by what they do."""
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
    ids = task.example_ids("validation")[:16]
    images = np.stack([task.load("validation", name, None).image for name in ids])
    first_tokens = int(allowed[0].sum()) - 1
    parameters = {
        "none ends early": parameters_that_end(config, task.end_token, first_tokens, math.inf),
        DETECTOR.name: load_npz(DETECTOR, config),
    }
    return config, allowed, task.end_token, images, parameters


def codes() -> tuple[Any, Any, Any, Any, dict[str, Any]]:
    """A model of UViM's kind, smaller than the paper's, with fresh parameters."""
    from vision.models.presets import model_config
    from vision.models.sequence import init_params

    vocabulary, length, side = 4097, 256, 224
    config = model_config(
        "vit_s16", vocabulary_size=vocabulary, max_length=length, image_size=(side, side)
    )
    allowed = np.tile(np.arange(vocabulary) > 0, (length, 1))
    images = np.random.default_rng(0).uniform(-1, 1, (4, side, side, 3)).astype(np.float32)
    return config, allowed, -1, images, {"none ends early": init_params(config, 0)}


# name -> what makes it, and K
MODELS = {
    "quick start, detection": (detector, 8),
    "ViT-S/16 with 12 decoder layers, 256 of 4,096 codes, 224x224": (codes, 2),
}


def run(name: str, repeats: int) -> dict[str, Any]:
    """Every length of one model, in this process."""
    from actors.jax_engine import JaxEngine
    from actors.torch_engine import TorchEngine

    make, samples = MODELS[name]
    config, allowed, end_token, images, parameters = make()
    engines = {
        "jax": JaxEngine(config, allowed, end_token),
        "torch": TorchEngine(config, allowed, end_token),
    }
    result: dict[str, Any] = {"images_per_block": len(images)}
    for kind, params in parameters.items():

        def sample(engine: Any, repeat: int, params: Any = params) -> Any:
            first = 1000 + len(images) * repeat
            seeds = np.arange(first, first + len(images), dtype=np.uint64)
            return engine.sample(params, images, seeds, samples)

        def greedy(engine: Any, repeat: int, params: Any = params) -> Any:
            return engine.greedy(params, images)

        result[f"K={samples}, {kind}"] = measure(engines, sample, repeats)
        result[f"greedy, {kind}"] = measure(engines, greedy, repeats)
    return result


def main() -> None:
    """Runs one process a model, each held to one core, and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer repeats")
    parser.add_argument("--model", choices=MODELS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    repeats = QUICK_REPEATS if arguments.quick else REPEATS
    if arguments.model is not None:
        json.dump(run(arguments.model, repeats), sys.stdout)
        return
    cores = sorted(os.sched_getaffinity(0))
    result: dict[str, Any] = {
        "command": " ".join(["python -m benchmarks.engines", *sys.argv[1:]]),
        "machine": f"{platform.machine()}, {len(cores)} cores, no GPU; one thread, one core",
        "repeats": repeats,
        "load_average_before": round(os.getloadavg()[0], 2),
        "models": {},
    }
    environment = os.environ | {"OMP_NUM_THREADS": "1", "XLA_FLAGS": ONE_THREAD}
    for name in MODELS:
        own = [sys.executable, "-m", "benchmarks.engines", *sys.argv[1:], "--model", name]
        done = subprocess.run(
            ["taskset", "-c", str(cores[0]), *own],
            env=environment,
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        result["models"][name] = json.loads(done.stdout)
    result["load_average_after"] = round(os.getloadavg()[0], 2)
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
