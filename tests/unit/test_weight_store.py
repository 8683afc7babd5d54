"""Published weights are what their manifest says, or are refused."""

import asyncio
import dataclasses

import ml_dtypes
import numpy as np
import pytest

from learner.packed_weights import WeightsError, pack_weights, unpack_weights
from learner.weight_store import MOST_TO_EVALUATE, RayWeights, WeightStore
from replay.queue import LearnerFenced
from vision.models.arrays import flatten, unflatten


@pytest.fixture
def params():
    random = np.random.default_rng(0)
    return {
        "encoder": {
            "block_0": {"kernel": random.normal(size=(3, 4)).astype(np.float32)},
            "norm": {"scale": np.ones(4, np.float32)},
        },
        "temperature": np.array(0.25, np.float32),
        "empty": np.zeros((0, 2), np.float32),
    }


def assert_same(tree, other):
    mine, others = flatten(tree), flatten(other)
    assert mine.keys() == others.keys()
    for name, array in mine.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, others[name])


def test_trees_flatten_to_paths_and_back(params):
    flat = flatten(params)
    assert set(flat) == {"encoder/block_0/kernel", "encoder/norm/scale", "temperature", "empty"}
    assert_same(unflatten(flat), params)


def test_float32_weights_arrive_bit_for_bit(params):
    manifest, arrays = pack_weights(7, params, "float32")
    assert (manifest.version, manifest.dtype) == (7, "float32")
    assert manifest.shapes["encoder/block_0/kernel"] == (3, 4)
    assert_same(unpack_weights(manifest, arrays), params)


def test_bfloat16_weights_arrive_rounded_once_and_half_as_large(params):
    manifest, arrays = pack_weights(1, params, "bfloat16")
    kernel = params["encoder"]["block_0"]["kernel"]
    assert arrays["encoder/block_0/kernel"].nbytes == kernel.nbytes // 2
    unpacked = unpack_weights(manifest, arrays)
    rounded = kernel.astype(ml_dtypes.bfloat16).astype(np.float32)
    assert not np.array_equal(rounded, kernel)
    np.testing.assert_array_equal(unpacked["encoder"]["block_0"]["kernel"], rounded)
    again = unpack_weights(*pack_weights(2, unpacked, "bfloat16"))
    assert_same(again, unpacked)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_one_flipped_bit_is_found(params, dtype):
    manifest, arrays = pack_weights(3, params, dtype)
    damaged = arrays["encoder/block_0/kernel"].copy()
    damaged.reshape(-1).view(np.uint8)[5] ^= 1
    with pytest.raises(WeightsError, match="version 3: checksum differs"):
        unpack_weights(manifest, arrays | {"encoder/block_0/kernel": damaged})


def test_swapped_arrays_of_one_shape_are_found():
    params = {"a": np.zeros(3, np.float32), "b": np.ones(3, np.float32)}
    manifest, arrays = pack_weights(0, params, "float32")
    with pytest.raises(WeightsError, match="checksum"):
        unpack_weights(manifest, {"a": arrays["b"], "b": arrays["a"]})


def test_the_order_of_the_arrays_does_not_matter(params):
    manifest, arrays = pack_weights(0, params, "float32")
    assert_same(unpack_weights(manifest, dict(reversed(arrays.items()))), params)


def test_another_shape_than_the_manifest_says_names_both(params):
    manifest, arrays = pack_weights(3, params, "float32")
    turned = arrays["encoder/block_0/kernel"].reshape(4, 3)
    with pytest.raises(WeightsError, match=r"kernel is float32\[4, 3\].*float32\[3, 4\]"):
        unpack_weights(manifest, arrays | {"encoder/block_0/kernel": turned})


def test_another_type_than_the_manifest_says_names_both(params):
    manifest, arrays = pack_weights(3, params, "float32")
    wide = arrays["temperature"].astype(np.float64)
    with pytest.raises(WeightsError, match=r"temperature is float64.*float32"):
        unpack_weights(manifest, arrays | {"temperature": wide})


def test_missing_and_surplus_parameters_are_named(params):
    manifest, arrays = pack_weights(3, params, "float32")
    less = {name: array for name, array in arrays.items() if name != "encoder/norm/scale"}
    with pytest.raises(WeightsError, match="encoder/norm/scale"):
        unpack_weights(manifest, less)
    with pytest.raises(WeightsError, match="decoder/bias"):
        unpack_weights(manifest, arrays | {"decoder/bias": np.zeros(1, np.float32)})


def test_a_manifest_of_another_version_of_the_weights_is_refused(params):
    _, arrays = pack_weights(1, params, "float32")
    params["temperature"] = np.array(0.5, np.float32)
    newer, _ = pack_weights(2, params, "float32")
    with pytest.raises(WeightsError, match="checksum"):
        unpack_weights(newer, arrays)
    # A manifest that tells nothing of a parameter does not let it in either.
    shapes = {n: s for n, s in newer.shapes.items() if n != "temperature"}
    with pytest.raises(WeightsError, match="temperature"):
        unpack_weights(dataclasses.replace(newer, shapes=shapes), arrays)


def test_packing_float32_copies_nothing(params):
    _, arrays = pack_weights(0, params, "float32")
    assert np.shares_memory(
        arrays["encoder/block_0/kernel"], params["encoder"]["block_0"]["kernel"]
    )


def test_an_earlier_learner_that_comes_late_does_not_take_the_store_back():
    async def body():
        store = WeightStore(keep=2)
        for epoch in ("a.2", "a.10", "a.10"):
            await store.fence(epoch)
        with pytest.raises(LearnerFenced, match=r"the learner of epoch a\.2 is not the run's"):
            await store.fence("a.2")
        assert store._epoch == "a.10"
        await store.fence("b.1")  # the queue was made anew, and counts anew
        assert store._epoch == "b.1"

    asyncio.run(body())


def test_the_stores_own_wait_is_added_to_the_time_for_its_answer(monkeypatch):
    timeouts = []

    class Call:
        def remote(self, *arguments):
            return None

    class Handle:
        next_to_evaluate = newest_version = Call()

    def get(reference, timeout):
        timeouts.append(timeout)

    monkeypatch.setattr("learner.weight_store.ray.get", get)
    weights = RayWeights(Handle(), timeout=5.0)
    weights.next_to_evaluate(20.0)
    weights.newest_version()
    assert timeouts == [25.0, 5.0]


def test_an_upload_that_comes_late_does_not_take_newer_versions_back(params, monkeypatch):
    monkeypatch.setattr("learner.weight_store.ray.put", lambda arrays: arrays)

    async def body():
        store = WeightStore(keep=3)
        await store.publish(*pack_weights(0, params, "float32"))  # the controller's
        await store.fence("q.1")
        for version in (0, 1, 2):
            await store.publish(*pack_weights(version, params, "float32"), epoch="q.1")
        await store.publish(*pack_weights(1, params, "float32"), epoch="q.1")  # begun before 2
        assert await store.newest_version() == 2
        for stranger in (None, "q.0"):
            with pytest.raises(LearnerFenced):
                await store.publish(*pack_weights(1, params, "float32"), epoch=stranger)
        await store.fence("q.1")  # a repeated call
        await store.publish(*pack_weights(2, params, "float32"), epoch="q.1")
        await store.fence("q.2")  # the next learner goes back to its checkpoint
        await store.publish(*pack_weights(1, params, "float32"), epoch="q.2")
        assert await store.newest_version() == 1
        with pytest.raises(LearnerFenced):
            await store.publish(*pack_weights(3, params, "float32"), epoch="q.1")
        assert sorted(store._versions) == [0, 1]

    asyncio.run(body())


def test_an_evaluator_that_falls_behind_bounds_what_is_kept_for_it(params, monkeypatch, caplog):
    monkeypatch.setattr("learner.weight_store.ray.put", lambda arrays: arrays)

    async def body():
        store = WeightStore(keep=2, evaluate_every=1)
        for version in range(100):
            await store.publish(*pack_weights(version, params, "float32"), last=version == 99)
            assert len(store._versions) <= MOST_TO_EVALUATE + 2
            assert set(await store.to_evaluate()) <= set(store._versions)
            # What the evaluator was told to load is there until it is done.
            assert await store.next_to_evaluate(0) == 0
            assert (await store.get(0))[0].version == 0
        newest = list(range(101 - MOST_TO_EVALUATE, 100))
        assert await store.to_evaluate() == [0, *newest]
        await store.evaluated(0)
        assert await store.next_to_evaluate(0) == newest[0]
        assert sorted(store._versions) == newest

    asyncio.run(body())
    skipped = [line for line in caplog.messages if "skipped" in line]
    assert len(skipped) == 100 - MOST_TO_EVALUATE
    assert "version 1 is skipped" in skipped[0]
