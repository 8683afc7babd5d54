import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from learner.config import OptimizerConfig, ReinforceConfig
from learner.mesh import make_mesh, of_state
from learner.objectives import GroupBatch, TokenRules, make_reinforce_loss
from learner.optimizer import make_optimizer
from learner.pretrain import model_apply
from learner.train_state import (
    LOSS,
    LossSums,
    NonFiniteError,
    check_finite,
    create_train_state,
    make_train_step,
)
from vision.models.presets import model_config
from vision.models.sequence import init_params

REPOSITORY = Path(__file__).resolve().parents[2]
G, K, L, V, END = 8, 2, 5, 12, 1
MODEL = model_config(
    "tiny",
    vocabulary_size=V,
    max_length=L,
    image_size=(16, 16),
    encoder={"width": 16, "heads": 2, "mlp_dim": 32, "depth": 1},
    decoder={"width": 16, "heads": 2, "mlp_dim": 32, "depth": 1},
)


def group_batch(seed=0):
    """Groups with holes: one dropped, one with a failed sample, all in the first half."""
    random = np.random.default_rng(seed)
    scored = np.ones((G, K), bool)
    scored[1] = False
    scored[2, 0] = False
    return GroupBatch(
        images=random.uniform(-1, 1, (G, 16, 16, 3)).astype(np.float32),
        tokens=random.integers(1, V, (G, K, L)).astype(np.int32),
        behaviour_logprobs=random.uniform(-3, -2, (G, K, L)).astype(np.float32),
        rewards=np.where(scored, random.normal(size=(G, K)), np.nan).astype(np.float32),
        scored=scored,
        current=np.arange(G) % 3 == 0,
        auxiliary={},
    )


def train(microbatches=1, devices=1, steps=3, shards=1):
    """Metrics of each step, and the final parameters, of the real model on group batches."""
    allowed = np.ones((L, V), bool)
    allowed[:, 0] = False
    rules = TokenRules(allowed, np.ones(L, bool), END, None)
    loss = make_reinforce_loss(
        model_apply(MODEL), rules, ReinforceConfig(max_importance_weight=2.0, entropy_weight=0.01)
    )
    params = init_params(MODEL, 0)
    optimizer = make_optimizer(OptimizerConfig(name="adamw", learning_rate=1e-3), steps, params)
    mesh = make_mesh(devices, shards)
    state = create_train_state(params, optimizer, mesh)
    step = make_train_step(loss, optimizer, mesh, microbatches)
    history = []
    for number in range(steps):
        state, metrics = step(state, group_batch(number))
        history.append({name: float(value) for name, value in metrics.items()})
    return history, state.params


def assert_same_training(left, right):
    for one, other in zip(left[0], right[0], strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert other[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), left[1], right[1])


@pytest.fixture(scope="module")
def whole():
    return train()


def test_microbatches_give_the_full_batchs_gradients_with_masked_rows(whole):
    assert_same_training(whole, train(microbatches=4))


ON_DEVICES = """
import json, sys
import jax
from tests.unit.test_learner_train_state import train
devices, shards = {devices}, {shards}
assert len(jax.devices()) == devices
history, params = train(devices=devices, microbatches=2, shards=shards)
kernel = params["decoder"]["LogitsDense"]["kernel"]
assert len(kernel.sharding.device_set) == devices
share = kernel.addressable_shards[0].data.size / kernel.size
json.dump([history, share], sys.stdout)
"""


@pytest.mark.parametrize(("devices", "shards"), [(2, 1), (4, 2), (4, 4)])
def test_several_devices_give_the_losses_of_one_and_hold_their_share(whole, devices, shards):
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu"}
    flags = os.environ.get("XLA_FLAGS", "")
    done = subprocess.run(
        [sys.executable, "-c", ON_DEVICES.format(devices=devices, shards=shards)],
        cwd=REPOSITORY,
        env=environment
        | {"XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={devices}"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    history, share = json.loads(done.stdout.splitlines()[-1])
    assert share == 1 / shards
    for one, several in zip(whole[0], history, strict=True):
        for name, value in one.items():
            assert several[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name


def test_a_mesh_of_a_broken_share_is_refused():
    with pytest.raises(ValueError, match=r"devices 1 .* shards 2"):
        make_mesh(1, 2)


def test_on_one_device_nothing_is_split():
    shardings = jax.tree.leaves(of_state(make_mesh(), {"a": np.zeros((4, 6)), "b": np.zeros(())}))
    assert all(sharding.is_fully_replicated for sharding in shardings)


def squares(params, batch, frozen):
    """A loss without a model: mean over the rows that count of (w - y)^2."""
    error = jnp.where(batch["counts"], (params["w"] - batch["y"]) ** 2, 0.0)
    weight = batch["counts"].sum().astype(jnp.float32)
    return LossSums(error.sum(), weight, {"error": (error.sum(), weight)}, {"worst": error.max()})


def small_training(microbatches=1):
    optimizer = make_optimizer(OptimizerConfig(name="adamw", learning_rate=0.1), 10, {"w": 0})
    state = create_train_state({"w": np.float32(0)}, optimizer)
    return state, make_train_step(squares, optimizer, make_mesh(), microbatches)


def rows(y, counts):
    return {"y": np.array(y, np.float32), "counts": np.array(counts, bool)}


@pytest.mark.parametrize("microbatches", [1, 2])
def test_metrics_are_over_the_whole_batch(microbatches):
    state, step = small_training(microbatches)
    state, metrics = step(state, rows([1, 2, 3, 9], [True, True, True, False]))
    assert float(metrics[LOSS]) == pytest.approx(14 / 3)
    assert float(metrics["error"]) == pytest.approx(14 / 3)
    assert float(metrics["worst"]) == 9
    assert float(metrics["optimizer/gradient_norm"]) == pytest.approx(4)
    assert int(state.step) == 1


@pytest.mark.parametrize("poison", [np.nan, np.inf])
@pytest.mark.parametrize("microbatches", [1, 2])
def test_a_batch_that_is_not_finite_changes_nothing_and_is_named(poison, microbatches):
    state, step = small_training(microbatches)
    state, _ = step(state, rows([1, 2, 3, 4], [True] * 4))
    before = jax.tree.map(np.array, state)
    state, metrics = step(state, rows([1, poison, 3, 4], [True] * 4))
    jax.tree.map(np.testing.assert_array_equal, state, before)
    with pytest.raises(NonFiniteError, match=r"step 2: loss/total = \w+.*\[40, 41, 42, 43\]") as e:
        check_finite(metrics, 2, [40, 41, 42, 43])
    assert e.value.ordinals == (40, 41, 42, 43)


def test_finite_metrics_pass():
    state, step = small_training()
    check_finite(step(state, rows([1], [True]))[1], 1, [0])


def test_a_batch_without_weight_counts_as_a_step_and_moves_nothing():
    state, step = small_training()
    state, _ = step(state, rows([1, 2], [True, True]))
    before = jax.tree.map(np.array, state)
    state, metrics = step(state, rows([5, 2], [False, False]))
    jax.tree.map(
        np.testing.assert_array_equal,
        (state.params, state.optimizer_state),
        (before.params, before.optimizer_state),
    )
    assert int(state.step) == 2
    assert float(metrics[LOSS]) == 0
    assert np.isnan(metrics["error"])


def test_rows_that_do_not_divide_are_refused():
    state, step = small_training(microbatches=2)
    with pytest.raises(ValueError, match="3 rows does not divide over 1 devices and 2"):
        step(state, rows([1, 2, 3], [True] * 3))


def test_rows_that_differ_are_refused():
    state, step = small_training()
    with pytest.raises(ValueError, match=r"differ in their number of rows: \[2, 3\]"):
        step(state, rows([1, 2, 3], [True] * 2))


def test_more_devices_than_there_are_is_refused():
    with pytest.raises(ValueError, match="devices: 99 asked for, but JAX sees"):
        make_mesh(99)


def test_a_non_finite_loss_keeps_its_ordinals_on_the_way_to_another_process():
    error = NonFiniteError(7, {"loss/total": float("nan")}, [32, 33])
    arrived = pickle.loads(pickle.dumps(error))
    assert str(arrived) == str(error)
    assert arrived.ordinals == (32, 33)
