"""Time and memory of decoding UViM's code words on a CPU: torch against JAX.

Stage I's decoder turns the 36 or 256 code words of a sample into logits for every pixel; a reward
worker does that for each sample before it can score it. Measured at the quick start's size (48 x 48
pixels, 17 labels, 16 instances, eight samples of one image at once) and at the paper's (512 x 512,
134 labels, 100 instances, one sample), with random weights, float32 and bfloat16, 1 and 2 threads.
Every cell runs in a process of its own, held to as many cores as threads. CPU seconds are those of
all its threads: what a sample costs, whatever else the machine does.

    python -m benchmarks.uvim_decode        # writes benchmarks/results/uvim_decode.json
"""

import argparse
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vision.models.arrays import unflatten
from vision.models.uvim_config import (
    PANOPTIC_PLANES,
    Plane,
    UvimConfig,
    is_of_decoder,
    stage_one_shapes,
    uvim_config,
)

RESULT = Path(__file__).parent / "results" / "uvim_decode.json"
QUICK_PLANES = (Plane("semantics", 17), Plane("instances", 16))
# size: (config, samples decoded at once, repeats)
SIZES: dict[str, tuple[UvimConfig, int, int]] = {
    "quickstart": (
        uvim_config("quickstart", image_size=(48, 48), planes=QUICK_PLANES),
        8,
        40,
    ),
    "paper": (uvim_config("paper", image_size=(512, 512), planes=PANOPTIC_PLANES), 1, 4),
}
# The paper's step: 128 images, two samples each.
STEP_SAMPLES = 128 * 2
STEP_SECONDS = (10, 30, 60)


def random_variables(config: UvimConfig, decoder_only: bool) -> dict[str, Any]:
    """Weights of a trained model's scale; torch's decoder needs and loads only a part of them."""
    random = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    for name, shape in stage_one_shapes(config).items():
        if decoder_only and not is_of_decoder(name):
            continue
        fan_in = max(1, math.prod(shape[:-1]))
        values = random.standard_normal(shape, dtype=np.float32) * np.float32(fan_in**-0.5)
        arrays[name] = np.abs(values) + 1 if name == "state/counts" else values
    tree = unflatten(arrays)
    state = tree.pop("state")
    return {"params": tree, "state": state}


def measure(size: str, engine: str, dtype: str, threads: int) -> dict[str, Any]:
    """One cell, in this process."""
    config, samples, repeats = SIZES[size]
    random = np.random.default_rng(1)
    codes = random.integers(config.codes, size=(samples, config.tokens)).astype(np.int32)
    context = random.uniform(-1, 1, (1, *config.image_size, 3)).astype(np.float32)
    variables = random_variables(config, decoder_only=engine == "torch")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if engine == "torch":
        from vision.models.uvim_torch import TorchStageOneDecoder

        decoder = TorchStageOneDecoder(config, variables, dtype, threads)  # type: ignore[arg-type]
        del variables

        def decode() -> Any:
            return decoder.decode(codes, context)
    else:
        import jax

        from vision.models.uvim import decode_codes

        config = replace(config, dtype=dtype)  # type: ignore[arg-type]
        placed = jax.device_put(variables)
        del variables

        def decode() -> Any:
            return jax.tree.map(np.asarray, decode_codes(config, placed, codes, context))

    decode()
    decode()
    wall, cpu = [], []
    for _ in range(repeats):
        started, busy = time.perf_counter(), time.process_time()
        outputs = decode()
        wall.append((time.perf_counter() - started) / samples)
        cpu.append((time.process_time() - busy) / samples)
    assert all(np.isfinite(output).all() for output in outputs.values())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "seconds_per_sample": round(statistics.median(wall), 5),
        "cpu_seconds_per_sample": round(statistics.median(cpu), 5),
        "fastest_seconds_per_sample": round(min(wall), 5),
        "peak_mb": round(peak / 1024),
        "peak_mb_before_decoding": round(before / 1024),
    }


def in_own_process(size: str, engine: str, dtype: str, threads: int) -> dict[str, Any]:
    """One cell, in a process held to `threads` cores."""
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": str(threads),
        "NPROC": str(threads),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_cpu_multi_thread_eigen={'true' if threads > 1 else 'false'}",
    }
    cores = sorted(os.sched_getaffinity(0))[-threads:]
    cell = ["--cell", size, engine, dtype, str(threads)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.uvim_decode", *cell],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )
    if done.returncode:
        raise RuntimeError(f"{cell} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def workers(cpu_seconds: float) -> dict[str, int]:
    """One-core reward workers that decode a step's samples in so many seconds."""
    return {f"{s} s": math.ceil(STEP_SAMPLES * cpu_seconds / s) for s in STEP_SECONDS}


def main() -> None:
    """Measures every cell and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cell", nargs=4, help=argparse.SUPPRESS)
    chosen = parser.parse_args().cell
    if chosen is not None:
        print(json.dumps(measure(chosen[0], chosen[1], chosen[2], int(chosen[3]))))
        return
    import jax
    import torch

    result: dict[str, Any] = {
        "command": "python -m benchmarks.uvim_decode",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {"torch": torch.__version__, "jax": jax.__version__},
        "load_average_before": round(os.getloadavg()[0], 2),
        "sizes": {},
    }
    for size, (config, samples, repeats) in SIZES.items():
        cells: dict[str, Any] = {}
        for engine in ("torch", "jax"):
            for dtype in ("float32", "bfloat16"):
                for threads in (1, 2):
                    cell = in_own_process(size, engine, dtype, threads)
                    cells[f"{engine} {dtype} {threads} threads"] = cell
                    print(size, engine, dtype, threads, cell, flush=True)
        result["sizes"][size] = {
            "pixels": config.image_size,
            "samples_at_once": samples,
            "repeats": repeats,
            "cells": cells,
            "workers_for_a_step_of_256_samples": {
                name: workers(cell["cpu_seconds_per_sample"])
                for name, cell in cells.items()
                if "1 threads" in name
            },
        }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
