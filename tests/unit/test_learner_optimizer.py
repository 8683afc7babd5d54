import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

from learner.config import OptimizerConfig
from learner.optimizer import MultiplierError, make_optimizer, make_schedule, scale_by_adafactor


def gradients(shape, steps, seed=0):
    random = np.random.default_rng(seed)
    return [random.normal(size=shape).astype(np.float32) for _ in range(steps)]


def run(optimizer, params, steps):
    """The updates of each step for a list of gradient trees."""
    state, updates = optimizer.init(params), []
    for gradient in steps:
        update, state = optimizer.update(gradient, state, params)
        updates.append(update)
    return updates


def adafactor_by_hand(steps, cap, factored):
    """Zhai et al. 2022, section 3.4, in numpy: decay min(cap, 1 - t^-0.8), bfloat16 momentum."""
    rows = columns = whole = 0.0
    momentum = np.zeros(steps[0].shape, ml_dtypes.bfloat16)
    nine_tenths = ml_dtypes.bfloat16(0.9)
    updates = []
    for t, gradient in enumerate(steps, start=1):
        decay = min(cap, 1 - t**-0.8)
        square = gradient.astype(np.float64) ** 2 + 1e-30
        if factored:
            rows = decay * rows + (1 - decay) * square.mean(axis=1)
            columns = decay * columns + (1 - decay) * square.mean(axis=0)
            second = rows[:, None] * columns[None] / rows.mean()
        else:
            whole = decay * whole + (1 - decay) * square
            second = whole
        # The decayed momentum is a bfloat16 before the new direction is added in float32.
        decayed = (nine_tenths * momentum).astype(np.float64)
        update = decayed + 0.1 * gradient / np.sqrt(second)
        momentum = update.astype(ml_dtypes.bfloat16)
        updates.append(update)
    return updates


@pytest.mark.parametrize(
    ("shape", "factored"), [((40, 33), True), ((40, 31), False), ((50,), False)]
)
def test_adafactor_follows_its_definition(shape, factored):
    steps = gradients(shape, 8)
    # Capped at 0.7 the cap is reached within the steps: 1 - 5^-0.8 = 0.72.
    found = run(scale_by_adafactor(0.9, 0.7), jnp.zeros(shape), [jnp.asarray(g) for g in steps])
    expected = adafactor_by_hand(steps, 0.7, factored)
    for left, right in zip(found, expected, strict=True):
        # Momentum is stored in bfloat16: a last bit of its 8 may fall on the other side.
        np.testing.assert_allclose(left, right, rtol=2e-2, atol=2e-3)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-4, atol=1e-5)


def test_adafactor_keeps_its_momentum_in_bfloat16_and_its_matrices_factored():
    optimizer = make_optimizer(OptimizerConfig(), 10, {"kernel": jnp.zeros((64, 48))})
    state = optimizer.init({"kernel": jnp.zeros((64, 48))})
    shapes = {(leaf.shape, str(leaf.dtype)) for leaf in jax.tree.leaves(state)}
    assert ((64, 48), "bfloat16") in shapes
    assert ((64, 48), "float32") not in shapes
    assert {((64,), "float32"), ((48,), "float32")} <= shapes


def test_adamw_is_adam_with_decay_apart_from_the_learning_rate():
    params = {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)}
    steps = [
        {"kernel": jnp.asarray(g[:, :4]), "bias": jnp.asarray(g[0, :4])}
        for g in gradients((3, 4), 5)
    ]
    config = OptimizerConfig(name="adamw", learning_rate=1e-2, weight_decay=1e-3, clip_norm=None)
    found = run(make_optimizer(config, 5, params), params, steps)
    expected = run(optax.adam(1e-2, b1=0.9, b2=0.98), params, steps)
    for left, right in zip(found, expected, strict=True):
        np.testing.assert_allclose(left["kernel"], right["kernel"] - 1e-3, atol=1e-6)
        np.testing.assert_allclose(left["bias"], right["bias"], atol=1e-6)


def test_multipliers_scale_whole_paths_and_the_first_match_counts():
    params = {
        name: {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)} for name in ("encoder", "decoder")
    }
    steps = [jax.tree.map(lambda x: 0.3 * x, params)] * 3

    def config(multipliers):
        return OptimizerConfig(
            name="adamw", learning_rate=1e-2, weight_decay=1e-2, multipliers=multipliers
        )

    plain = run(make_optimizer(config([]), 3, params), params, steps)[-1]
    scaled = run(
        make_optimizer(
            config([("encoder/bias", 0.0), ("encoder/.*", 0.1), ("encoder/kernel", 5.0)]), 3, params
        ),
        params,
        steps,
    )[-1]
    np.testing.assert_allclose(scaled["encoder"]["kernel"], 0.1 * plain["encoder"]["kernel"])
    np.testing.assert_array_equal(scaled["encoder"]["bias"], np.zeros(2))
    np.testing.assert_array_equal(scaled["decoder"]["kernel"], plain["decoder"]["kernel"])


def test_a_multiplier_that_matches_nothing_is_refused():
    config = OptimizerConfig(multipliers=[("encodr/.*", 0.1)])
    with pytest.raises(MultiplierError, match=r"'encodr/\.\*' matches no parameter.*decoder"):
        make_optimizer(config, 10, {"decoder": {"kernel": jnp.zeros((2, 2))}})


def test_schedules_rise_to_one_and_cosine_falls_to_zero():
    constant = make_schedule(OptimizerConfig(warmup_steps=4), 100)
    np.testing.assert_allclose([constant(s) for s in (0, 1, 3, 4, 99)], [0.25, 0.5, 1, 1, 1])
    cosine = make_schedule(OptimizerConfig(warmup_steps=20, schedule="cosine"), 100)
    np.testing.assert_allclose(
        [cosine(s) for s in (9, 19, 20, 60, 100, 150)], [0.5, 1, 1, 0.5, 0, 0], atol=1e-6
    )
    assert float(make_schedule(OptimizerConfig(), 10)(0)) == 1


def test_the_update_follows_the_schedule_and_the_clipped_gradient():
    params = {"kernel": jnp.zeros((1, 1))}
    config = OptimizerConfig(
        name="adamw", learning_rate=0.5, beta1=0.0, warmup_steps=2, weight_decay=0, clip_norm=1
    )
    updates = run(
        make_optimizer(config, 10, params), params, [{"kernel": jnp.full((1, 1), 3.0)}] * 3
    )
    # Adam of a constant gradient moves by the learning rate, downhill.
    np.testing.assert_allclose([u["kernel"][0, 0] for u in updates], [-0.25, -0.5, -0.5], rtol=1e-5)

    two = {"kernel": jnp.array([[3.0, 4.0]])}
    adafactor = make_optimizer(OptimizerConfig(clip_norm=1.0), 10, two)
    state = adafactor.update(two, adafactor.init(two), two)[1]
    second_moments = [leaf for leaf in jax.tree.leaves(state) if leaf.shape == (1, 2)]
    assert any(np.allclose(v, [[0.36, 0.64]]) for v in second_moments)
