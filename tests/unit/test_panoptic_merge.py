"""Merging logits to segments: the published code's maps, and the definition for any logits."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vision.metrics.panoptic_merge import merge_logits


def by_pixel(logits, grid):
    """[gh * gw, C, p * p] to [H, W, C]."""
    (height, width), side = grid, int(logits.shape[2] ** 0.5)
    return (
        logits.reshape(height, width, -1, side, side)
        .transpose(0, 3, 1, 4, 2)
        .reshape(height * side, width * side, -1)
    )


def by_definition(semantics, instances, grid, min_fraction):
    semantics, ids = by_pixel(semantics, grid), by_pixel(instances, grid).argmax(-1)
    labels = np.zeros(instances.shape[1], np.int64)
    for instance in np.unique(ids):
        mask = ids == instance
        if mask.mean() >= min_fraction:
            labels[instance] = semantics[mask].astype(np.float64).sum(0).argmax()
    return ids, labels


@given(
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.integers(1, 4),
    st.integers(1, 6),
    st.integers(1, 40),
    st.sampled_from([0.0, 0.05, 0.3, 1.0]),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=150, deadline=None)
def test_merging_is_its_definition(grid, side, classes, instances, min_fraction, seed):
    random = np.random.default_rng(seed)
    patches = grid[0] * grid[1]
    # Few values: ties between instances occur often, sums of labels are exact.
    semantics = random.integers(-8, 9, (patches, classes, side * side)).astype(np.float32)
    logits = random.integers(0, 3, (patches, instances, side * side)).astype(np.float32)
    merged = merge_logits(semantics, logits, grid, min_fraction)
    ids, labels = by_definition(semantics, logits, grid, min_fraction)
    np.testing.assert_array_equal(merged.ids, ids)
    np.testing.assert_array_equal(merged.labels, labels)


@pytest.mark.parametrize("instances", [1, 3, 24, 25, 200])
def test_any_number_of_instances_in_a_patch_gives_the_same(instances):
    random = np.random.default_rng(instances)
    semantics = random.integers(-9, 10, (4, 7, 256)).astype(np.float32)
    logits = random.standard_normal((4, instances, 256), np.float32)
    merged = merge_logits(semantics, logits, (2, 2))
    ids, labels = by_definition(semantics, logits, (2, 2), 0.0)
    np.testing.assert_array_equal(merged.ids, ids)
    np.testing.assert_array_equal(merged.labels, labels)


@pytest.mark.parametrize(
    ("key", "fraction"), [("panoptic", 0.0), ("panoptic_min_fraction_0p02", 0.02)]
)
def test_maps_are_those_of_the_published_code(golden, key, fraction):
    with np.load(golden / "uvim_tiny_io.npz") as data:
        logits = data["decode_logits_semantics"], data["decode_logits_instances"]
        for semantics, instances, expected in zip(*logits, data[key], strict=True):
            merged = merge_logits(semantics, instances, (4, 4), fraction)
            found = np.stack([merged.labels[merged.ids], merged.ids], -1)
            np.testing.assert_array_equal(found, expected)


def test_only_instances_below_the_fraction_become_void():
    semantics = np.zeros((1, 2, 4), np.float32)
    semantics[:, 1] = 1
    instances = np.zeros((1, 3, 4), np.float32)
    instances[0, 2, 0] = 1  # a quarter of the pixels
    for fraction, label in ((0.25, 1), (0.26, 0)):
        assert merge_logits(semantics, instances, (1, 1), fraction).labels.tolist() == [1, 0, label]


def test_logits_that_do_not_fit_are_named():
    semantics, instances = np.zeros((4, 3, 16), np.float32), np.zeros((4, 5, 16), np.float32)
    merge_logits(semantics, instances, (2, 2))
    broken = semantics.copy()
    broken[1, 2, 3] = np.nan
    for arguments, message in [
        ((semantics, instances, (2, 3)), "6 patches of a 2 x 3 grid"),
        ((semantics[..., :15], instances[..., :15], (2, 2)), "square number"),
        ((semantics[:, :0], instances, (2, 2)), "at least one label"),
        ((semantics, instances[:, :0], (2, 2)), "at least one"),
        ((semantics, instances[:3], (2, 2)), r"instances have the shape \(3, 5, 16\)"),
        ((semantics, instances, (2, 2), 1.5), "min_fraction is 1.5"),
        ((broken, instances, (2, 2)), "semantic logits are not finite"),
        ((semantics, np.full_like(instances, np.nan), (2, 2)), "instance logits are not finite"),
    ]:
        with pytest.raises(ValueError, match=message):
            merge_logits(*arguments)
