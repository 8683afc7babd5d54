"""Time of the detection reward: this repository's kernel against the released code's way.

The reference is written from its definition, batched and jitted in JAX: for each of the ten
thresholds IoU matrix, best ground-truth box, best prediction of each, duplicates by one-hot sums.
Both run in the same process on one core, on the same boxes, and must agree. What is measured is
CPU time, so that other processes disturb it less.

    python -m benchmarks.detection_reward
"""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"

import jax
import jax.numpy as jnp
import numpy as np

from vision.metrics.boxes import N_THRESHOLDS, THRESHOLDS, score_boxes

GROUPS, SAMPLES, BOXES, CLASSES, LEVELS = 256, 2, 100, 80, 1000
PENALTY = 0.3
RESULT = Path(__file__).parent / "results" / "detection_reward.json"


def random_boxes(seed: int) -> tuple[np.ndarray, ...]:
    """True boxes and samples of them that are jittered, relabelled and doubled here and there."""
    random = np.random.default_rng(seed)
    corner = random.integers(0, LEVELS - 100, (GROUPS, BOXES, 2))
    extent = random.integers(20, 400, (GROUPS, BOXES, 2))
    true = np.concatenate([corner, np.minimum(corner + extent, LEVELS)], -1).astype(np.int32)
    true_labels = random.integers(0, CLASSES, (GROUPS, BOXES)).astype(np.int32)
    pick = random.integers(0, BOXES, (GROUPS, SAMPLES, BOXES))
    group = np.arange(GROUPS)[:, None, None]
    found = true[group, pick] + random.integers(-20, 21, (GROUPS, SAMPLES, BOXES, 4))
    labels = true_labels[group, pick]
    labels = np.where(random.random(labels.shape) < 0.2, (labels + 1) % CLASSES, labels)
    return (
        true,
        true_labels,
        np.clip(found, 0, LEVELS).astype(np.int32),
        labels.astype(np.int32),
    )


@jax.jit
def reference(true, true_labels, boxes, labels, weights):
    """[GROUPS, SAMPLES] float32 rewards, everything redone at each threshold."""

    def area(box):
        return jnp.abs((box[..., 2] - box[..., 0]) * (box[..., 3] - box[..., 1]))

    def at_threshold(threshold, true, true_labels, boxes, labels):
        low = jnp.maximum(boxes[:, None, :2], true[None, :, :2])
        high = jnp.minimum(boxes[:, None, 2:], true[None, :, 2:])
        inter = jnp.prod(jnp.maximum(high - low, 0.0), -1)
        union = area(boxes)[:, None] + area(true)[None] - inter
        same = jax.nn.one_hot(labels, CLASSES) @ jax.nn.one_hot(true_labels, CLASSES).T
        iou = same * inter / jnp.maximum(union, 1e-9)  # [M, N]
        picked = jax.nn.one_hot(iou.argmax(1), BOXES) * (iou.max(1, keepdims=True) > threshold)
        kept = jax.nn.one_hot((iou * picked).argmax(0), BOXES, axis=0) * picked
        duplicates = picked - kept
        return jnp.sum((kept - PENALTY * duplicates) * weights[true_labels][None])

    def all_thresholds(*image):
        return jnp.mean(jnp.stack([at_threshold(t, *image) for t in THRESHOLDS]))

    samples = jax.vmap(all_thresholds, (None, None, 0, 0))
    return jax.vmap(samples)(true / LEVELS, true_labels, boxes / LEVELS, labels)


def measure(run: Callable[[], object], repeats: int) -> list[float]:
    """CPU seconds of each repeat, after one that warms up."""
    run()
    times = []
    for _ in range(repeats):
        began = time.process_time()
        run()
        times.append(time.process_time() - began)
    return times


def main() -> None:
    """Measures, prints and writes the result."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    arrays = random_boxes(seed=0)
    weights = np.random.default_rng(1).uniform(0.5, 1.5, CLASSES)
    mean = np.full(N_THRESHOLDS, 1 / N_THRESHOLDS)
    on_device = [jnp.asarray(array) for array in (*arrays, weights.astype(np.float32))]

    def ours() -> np.ndarray:
        return score_boxes(*arrays, weights, mean, PENALTY).rewards

    def theirs() -> np.ndarray:
        return np.asarray(reference(*on_device))

    difference = np.abs(ours() - theirs())
    # A float32 IoU may fall on the other side of a threshold that it ties with.
    if np.quantile(difference, 0.95) > 1e-3:
        raise SystemExit(f"the two disagree: {np.quantile(difference, [0.5, 0.95, 1])}")
    # In turns, so that a busy machine slows both.
    our_times, their_times = [], []
    for _ in range(5):
        our_times += measure(ours, 20)
        their_times += measure(theirs, 3)
    our_median, their_median = statistics.median(our_times), statistics.median(their_times)
    result = {
        "what": f"{GROUPS} groups × {SAMPLES} samples × {BOXES} boxes on one core, median CPU time",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, python "
        f"{platform.python_version()}, jax {jax.__version__}",
        "closed_form_milliseconds": round(our_median * 1e3, 3),
        "reference_milliseconds": round(their_median * 1e3, 1),
        "times_faster": round(their_median / our_median, 1),
        "mean_reward": float(ours().mean()),
        "images_that_differ_by_a_tie": int((difference > 1e-3).sum()),
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
