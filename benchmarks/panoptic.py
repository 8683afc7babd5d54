"""Time of panoptic merging and matching: this repository's kernels against their definitions.

Merging, of 134 + 100 logits a pixel: the reference is the one-hot einsum, jitted in JAX, on logits
that are already laid out by pixel. Ours takes them as the decoder gives them, by patch. Matching:
the reference counts pairs of ids by `np.unique` over their joint code and then goes through them in
Python, on arrays in memory. Each pair runs in the same process on one core, on the same maps, and
must agree. What is measured is CPU time, so that other processes disturb it less.

    python -m benchmarks.panoptic
"""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["NPROC"] = "1"
os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"

import jax
import jax.numpy as jnp
import numpy as np

from vision.metrics.panoptic import match_segments, panoptic_reward
from vision.metrics.panoptic_merge import merge_logits

SIDE, PATCH, LABELS, INSTANCES = 512, 16, 134, 100
THINGS, TRUE_SEGMENTS, SEGMENTS = 80, 18, 20
PENALTY = 0.3
RESULT = Path(__file__).parent / "results" / "panoptic.json"


def regions(random: np.random.Generator, count: int) -> np.ndarray:
    """[SIDE, SIDE] int32: every pixel has the number of its nearest of `count` points."""
    points = random.integers(0, SIDE, (count, 2))
    y, x = np.mgrid[:SIDE, :SIDE]
    distance = (y[..., None] - points[:, 0]) ** 2 + (x[..., None] - points[:, 1]) ** 2
    return distance.argmin(-1).astype(np.int32)


def random_logits(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """[SIDE, SIDE, LABELS] and [SIDE, SIDE, INSTANCES] float32: noise, and segments above it."""
    random = np.random.default_rng(seed)
    region = regions(random, SEGMENTS)
    result = []
    for channels in (LABELS, INSTANCES):
        logits = random.standard_normal((SIDE, SIDE, channels), np.float32)
        channel = random.permutation(channels)[:SEGMENTS][region]
        np.put_along_axis(logits, channel[..., None], np.float32(6), -1)
        result.append(logits)
    return result[0], result[1]


def by_patch(logits: np.ndarray) -> np.ndarray:
    """[SIDE, SIDE, C] as [patches, C, PATCH * PATCH]."""
    grid = SIDE // PATCH
    split = logits.reshape(grid, PATCH, grid, PATCH, -1).transpose(0, 2, 4, 1, 3)
    return np.ascontiguousarray(split).reshape(grid * grid, -1, PATCH * PATCH)


@jax.jit
def merge_reference(semantics, instances):
    """[SIDE, SIDE, 2] int32 label and instance of each pixel."""
    masks = jax.nn.one_hot(instances.argmax(-1), INSTANCES)
    labels = jnp.einsum("hwi,hws->is", masks, semantics).argmax(-1)
    label = jnp.einsum("hwi,i->hw", masks, labels.astype(jnp.float32))
    return jnp.stack([label.astype(jnp.int32), masks.argmax(-1)], -1)


def random_maps(seed: int) -> tuple[np.ndarray, ...]:
    """True ids, labels and crowds, and a prediction: the truth, shifted, with other regions."""
    random = np.random.default_rng(seed)
    true = regions(random, TRUE_SEGMENTS)
    true_labels = random.integers(0, LABELS, TRUE_SEGMENTS).astype(np.int32)
    true_labels[0] = 0
    crowd = np.zeros(TRUE_SEGMENTS, bool)
    crowd[1] = true_labels[1] > 0
    shift = random.integers(-12, 13, 2)
    found = np.roll(true, tuple(shift), (0, 1))
    extra = regions(random, 6)
    for index, region in enumerate(range(SEGMENTS - TRUE_SEGMENTS)):
        found = np.where((extra == region) & (found % 3 == index), TRUE_SEGMENTS + index, found)
    labels = np.concatenate([true_labels, random.integers(1, LABELS, 2)]).astype(np.int32)
    return true, true_labels, crowd, np.ascontiguousarray(found, np.int32), labels


def match_reference(true_ids, true_labels, crowd, ids, labels, is_stuff) -> float:
    """The reward, from COCO's definition; stuff has one row a class in these tables."""
    codes, counts = np.unique(
        true_ids.astype(np.uint64) * 65536 + ids.astype(np.uint64), return_counts=True
    )
    pairs: dict[tuple[int, int], int] = {}
    true_area = dict.fromkeys(range(len(true_labels)), 0)
    area = dict.fromkeys(range(len(labels)), 0)
    void: dict[int, int] = {}
    for code, count in zip(codes, counts, strict=True):
        t, p = int(code) // 65536, int(code) % 65536
        pairs[t, p] = int(count)
        true_area[t] += int(count)
        area[p] += int(count)
        if true_labels[t] == 0:
            void[p] = void.get(p, 0) + int(count)
    reward, matched = 0.0, set()
    for (t, p), inter in pairs.items():
        if true_labels[t] == 0 or labels[p] != true_labels[t] or crowd[t]:
            continue
        iou = inter / (true_area[t] + area[p] - inter - void.get(p, 0))
        if iou > 0.5:
            reward += iou
            matched.add(p)
    crowds: dict[int, list[int]] = {}
    for t, in_crowd in enumerate(crowd):
        if in_crowd:
            crowds.setdefault(int(true_labels[t]), []).append(t)
    for p, pixels in area.items():
        if not pixels or labels[p] == 0 or p in matched:
            continue
        forgiven = void.get(p, 0)
        forgiven += sum(pairs.get((t, p), 0) for t in crowds.get(int(labels[p]), ()))
        if forgiven / pixels <= 0.5:
            reward -= PENALTY
    return reward


def with_one_row_a_stuff_class(ids, labels, is_stuff) -> tuple[np.ndarray, np.ndarray]:
    """The same map as panopticapi wants it: its files hold each stuff class once."""
    first: dict[int, int] = {}
    row_of = np.arange(len(labels))
    for row, label in enumerate(labels):
        if is_stuff[label]:
            row_of[row] = first.setdefault(int(label), row)
    return row_of.astype(np.int32)[ids], labels


def measure(run: Callable[[], object], repeats: int) -> list[float]:
    """CPU seconds of each repeat, after one that warms up."""
    run()
    times = []
    for _ in range(repeats):
        began = time.process_time()
        run()
        times.append(time.process_time() - began)
    return times


def compare(ours: Callable[[], object], theirs: Callable[[], object], repeats: int) -> list[float]:
    """Median CPU seconds of both, in turns, so that a busy machine slows both."""
    our_times, their_times = [], []
    for _ in range(5):
        our_times += measure(ours, 2 * repeats)
        their_times += measure(theirs, repeats)
    return [statistics.median(our_times), statistics.median(their_times)]


def merging() -> dict[str, object]:
    """Both merges on the same logits."""
    semantics, instances = random_logits(seed=0)
    patches = by_patch(semantics), by_patch(instances)
    on_device = jnp.asarray(semantics), jnp.asarray(instances)
    grid = (SIDE // PATCH, SIDE // PATCH)
    merged = merge_logits(*patches, grid)
    expected = np.asarray(merge_reference(*on_device))
    if not np.array_equal(np.stack([merged.labels[merged.ids], merged.ids], -1), expected):
        raise SystemExit("the merges disagree")
    ours, theirs = compare(
        lambda: merge_logits(*patches, grid),
        lambda: merge_reference(*on_device).block_until_ready(),
        5,
    )
    return {
        "fused_milliseconds": round(ours * 1e3, 2),
        "einsum_milliseconds": round(theirs * 1e3, 1),
        "times_faster": round(theirs / ours, 1),
    }


def matching() -> dict[str, object]:
    """Both matchers on the same maps, of several kinds."""
    is_stuff = np.arange(LABELS) > THINGS
    maps = []
    for seed in range(8):
        true, true_labels, crowd, found, labels = random_maps(seed)
        true, true_labels = with_one_row_a_stuff_class(true, true_labels, is_stuff)
        found, labels = with_one_row_a_stuff_class(found, labels, is_stuff)
        crowd &= ~is_stuff[true_labels]
        maps.append((true, true_labels, crowd, found, labels, is_stuff))

    def ours() -> list[float]:
        return [panoptic_reward(match_segments(*arrays), PENALTY) for arrays in maps]

    def theirs() -> list[float]:
        return [match_reference(*arrays) for arrays in maps]

    rewards = ours()
    if not np.allclose(rewards, theirs(), rtol=0, atol=1e-12):
        raise SystemExit(f"the matchers disagree: {rewards}, {theirs()}")
    our_median, their_median = compare(ours, theirs, 5)
    return {
        "joint_histogram_milliseconds": round(our_median / len(maps) * 1e3, 4),
        "unique_milliseconds": round(their_median / len(maps) * 1e3, 2),
        "times_faster": round(their_median / our_median, 1),
        "mean_reward": float(np.mean(rewards)),
    }


def main() -> None:
    """Measures, prints and writes the result."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    result = {
        "what": f"maps of {SIDE} x {SIDE} pixels on one core, median CPU time; merging of {LABELS} "
        f"+ {INSTANCES} logits a pixel, matching of {TRUE_SEGMENTS} x {SEGMENTS} segments",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, python "
        f"{platform.python_version()}, jax {jax.__version__}, numpy {np.__version__}",
        "merging": merging(),
        "matching": matching(),
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
