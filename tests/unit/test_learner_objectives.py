"""The objectives, on a stand-in model whose logits are its parameters."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.config import ReinforceConfig
from learner.objectives import (
    GroupBatch,
    LikelihoodBatch,
    TokenRules,
    divergence_from,
    leave_one_out_advantages,
    make_likelihood_loss,
    make_reinforce_loss,
    reward_spread,
    trained_samples,
    truncated_importance_weights,
)

G, K, L, V = 3, 4, 5, 6
END = 1
ALLOWED = np.ones((L, V), bool)
ALLOWED[:, 0] = False
ALLOWED[2, 3:] = False
RULES = TokenRules(ALLOWED, np.ones(L, bool), END, None)


def apply(params, images, tokens):
    """Logits that differ by image and by position, and not by the tokens before."""
    logits = params["table"] + images[:, 0, 0, 0][:, None, None] * params["slope"]  # [G, L, V]
    return jnp.broadcast_to(logits[:, None], (*tokens.shape, V))


def make_params(seed=0):
    random = np.random.default_rng(seed)
    return {
        "table": jnp.asarray(random.normal(size=(L, V)), jnp.float32),
        "slope": jnp.asarray(random.normal(size=(L, V)), jnp.float32),
    }


def log_probability(params, image, sequence):
    """[L], of one sequence, written out."""
    logits = np.asarray(params["table"] + image[0, 0, 0] * params["slope"], np.float64)
    out = np.zeros(L)
    for t, token in enumerate(sequence):
        weights = np.where(ALLOWED[t], np.exp(logits[t]), 0)
        out[t] = np.log(weights[token] / weights.sum())
    return out


def make_batch(seed=0, groups=G, **changes):
    random = np.random.default_rng(seed)
    images = random.normal(size=(groups, 1, 1, 3)).astype(np.float32)
    tokens = np.full((groups, K, L), END, np.int32)
    for g in range(groups):
        for k in range(K):
            length = random.integers(1, L + 1)
            for t in range(length):
                tokens[g, k, t] = random.choice(np.flatnonzero(ALLOWED[t])[1:])
            if length < L:
                tokens[g, k, length:] = 0
                tokens[g, k, length] = END
    params = make_params()
    behaviour = np.zeros((groups, K, L), np.float32)
    for g in range(groups):
        for k in range(K):
            n = own_length(tokens[g, k])
            behaviour[g, k, :n] = log_probability(
                params, images[g], np.where(np.arange(L) < n, tokens[g, k], END)
            )[:n]
    batch = GroupBatch(
        images,
        tokens,
        behaviour,
        random.normal(size=(groups, K)).astype(np.float32),
        np.ones((groups, K), bool),
        np.ones(groups, bool),
        {},
    )
    return batch._replace(**changes)


def own_length(sequence):
    ends = np.flatnonzero(sequence == END)
    return ends[0] + 1 if len(ends) else L


def value_and_gradient(loss, params, batch, frozen=None):
    def mean(params):
        sums = loss(params, batch, frozen)
        return sums.loss / jnp.maximum(sums.weight, 1), sums

    (value, sums), gradient = jax.jit(jax.value_and_grad(mean, has_aux=True))(params)
    return float(value), gradient, sums


def assert_same(left, right, tolerance=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=tolerance), left, right)


def by_hand(params, batch, weights=None, mean=False):
    """Algorithm 2 in a loop: sum over groups of -mean_k A_k sum_t w_t log p, over valid groups."""
    total, groups = 0.0, 0
    for g in range(len(batch.tokens)):
        scored = [k for k in range(K) if batch.scored[g, k]]
        if len(scored) < 2:
            continue
        groups += 1
        for k in scored:
            others = [batch.rewards[g, j] for j in scored if j != k]
            advantage = batch.rewards[g, k] - np.mean(others)
            n = own_length(batch.tokens[g, k])
            logits = params["table"] + batch.images[g, 0, 0, 0] * params["slope"]
            logprobs = jax.nn.log_softmax(jnp.where(ALLOWED, logits, -jnp.inf))
            tokens = np.where(np.arange(L) < n, batch.tokens[g, k], END)
            chosen = logprobs[np.arange(L), tokens][:n]
            if weights is not None:
                chosen = chosen * weights[g, k, :n]
            total -= advantage * (chosen.mean() if mean else chosen.sum()) / len(scored)
    return total / groups


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_advantage_is_the_reward_minus_the_mean_of_the_other_scored_samples(data):
    samples = data.draw(st.integers(2, 6))
    rewards = np.array(
        data.draw(
            st.lists(
                st.lists(st.floats(-100, 100, width=32), min_size=samples, max_size=samples),
                min_size=1,
                max_size=3,
            )
        ),
        np.float32,
    )
    scored = np.array(
        [[data.draw(st.booleans()) for _ in range(samples)] for _ in range(len(rewards))]
    )
    expected = np.zeros_like(rewards)
    for g in range(len(rewards)):
        for k in range(samples):
            others = [rewards[g, j] for j in range(samples) if j != k and scored[g, j]]
            if scored[g, k] and others:
                expected[g, k] = rewards[g, k] - np.mean(others, dtype=np.float64)
    poisoned = np.where(scored, rewards, np.nan)
    found = leave_one_out_advantages(jnp.asarray(poisoned), jnp.asarray(scored))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-3)


def test_spread_is_the_sample_standard_deviation_of_the_scored():
    rewards = np.array([[1.0, 4.0, np.nan, 2.0], [3.0, np.nan, np.nan, np.nan]], np.float32)
    found = reward_spread(jnp.asarray(rewards), jnp.asarray(~np.isnan(rewards)))
    np.testing.assert_allclose(found, [np.std([1, 4, 2], ddof=1), 0], rtol=1e-6)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_gradient_is_algorithm_2(reduction):
    params, batch = make_params(), make_batch()
    loss = make_reinforce_loss(apply, RULES, ReinforceConfig(length_reduction=reduction))
    value, gradient, _ = value_and_gradient(loss, params, batch)
    expected = jax.value_and_grad(lambda p: by_hand(p, batch, mean=reduction == "mean"))(params)
    assert value == pytest.approx(float(expected[0]), abs=1e-5)
    assert_same(gradient, expected[1])


def test_failed_samples_are_left_out_before_the_baseline():
    params, batch = make_params(), make_batch()
    scored = batch.scored.copy()
    scored[0, 1] = scored[2, 0] = scored[2, 3] = False
    rewards = np.where(scored, batch.rewards, np.nan)
    batch = batch._replace(scored=scored, rewards=rewards)
    loss = make_reinforce_loss(apply, RULES, ReinforceConfig())
    value, gradient, sums = value_and_gradient(loss, params, batch)
    expected = jax.value_and_grad(lambda p: by_hand(p, batch))(params)
    assert value == pytest.approx(float(expected[0]), abs=1e-5)
    assert_same(gradient, expected[1])
    assert float(sums.means["reward/unscored_share"][0]) == 3
    assert float(sums.means["reward/mean"][0]) == pytest.approx(np.nansum(rewards), rel=1e-5)


def test_a_group_with_fewer_than_two_scored_samples_contributes_nothing():
    params, batch = make_params(), make_batch()
    loss = make_reinforce_loss(apply, RULES, ReinforceConfig())
    rest = jax.tree.map(lambda x: x[1:], batch)
    scored = batch.scored.copy()
    scored[0] = [False, True, False, False]
    dropped = batch._replace(
        scored=scored,
        rewards=np.where(scored, batch.rewards, np.inf),
        tokens=np.where([[[True]], [[False]], [[False]]], 0, batch.tokens),
        behaviour_logprobs=np.where([[[True]], [[False]], [[False]]], 0, batch.behaviour_logprobs),
    )
    value, gradient, sums = value_and_gradient(loss, params, dropped)
    expected_value, expected, _ = value_and_gradient(loss, params, rest)
    assert value == pytest.approx(expected_value, abs=1e-6)
    assert_same(gradient, expected)
    assert float(sums.weight) == 2
    assert float(sums.means["groups/dropped_share"][0]) == 1


def test_one_sample_mode_trains_the_first_scored_sample_with_the_others_as_baseline():
    scored = jnp.array([[True, True, True], [False, True, True], [False, True, False]])
    np.testing.assert_array_equal(
        trained_samples(scored, "one"),
        [[True, False, False], [False, True, False], [False, False, False]],
    )
    params, batch = make_params(), make_batch(groups=1)
    loss = make_reinforce_loss(apply, RULES, ReinforceConfig(use_samples="one"))
    _, gradient, _ = value_and_gradient(loss, params, batch)
    advantage = batch.rewards[0, 0] - batch.rewards[0, 1:].mean()
    n = own_length(batch.tokens[0, 0])

    def expected(p):
        logits = p["table"] + batch.images[0, 0, 0, 0] * p["slope"]
        logprobs = jax.nn.log_softmax(jnp.where(ALLOWED, logits, -jnp.inf))
        return -advantage * logprobs[np.arange(n), batch.tokens[0, 0, :n]].sum()

    assert_same(gradient, jax.grad(expected)(params))


def test_importance_weights_are_truncated_and_constant_to_the_gradient():
    logprobs = jnp.log(jnp.array([0.1, 0.5, 0.8]))
    behaviour = jnp.log(jnp.array([0.2, 0.5, 0.1]))
    weights = truncated_importance_weights(logprobs, behaviour, 2.0)
    np.testing.assert_allclose(weights, [0.5, 1.0, 2.0], rtol=1e-6)
    gradient = jax.grad(lambda x: truncated_importance_weights(x, behaviour, 2.0).sum())(logprobs)
    np.testing.assert_array_equal(gradient, np.zeros(3))

    params, batch = make_params(), make_batch()
    random = np.random.default_rng(1)
    behaviour = batch.behaviour_logprobs + random.normal(size=(G, K, L)).astype(np.float32)
    ratio = np.exp(batch.behaviour_logprobs - behaviour)
    batch = batch._replace(behaviour_logprobs=behaviour)
    loss = make_reinforce_loss(apply, RULES, ReinforceConfig(max_importance_weight=1.5))
    _, gradient, sums = value_and_gradient(loss, params, batch)
    weights = np.minimum(ratio, 1.5)
    assert_same(gradient, jax.grad(lambda p: by_hand(p, batch, weights))(params))
    own = np.array([[np.arange(L) < own_length(s) for s in group] for group in batch.tokens])
    clipped, tokens = sums.means["importance/clipped_share"]
    assert (float(clipped), float(tokens)) == ((ratio > 1.5)[own].sum(), own.sum())
    assert float(sums.maxima["importance/max"]) == pytest.approx(ratio[own].max(), rel=1e-4)


@pytest.mark.parametrize(
    "config", [ReinforceConfig(clip=0.2), ReinforceConfig(max_importance_weight=2)]
)
def test_on_policy_every_correction_gives_the_plain_gradient(config):
    params, batch = make_params(), make_batch()
    plain = make_reinforce_loss(apply, RULES, ReinforceConfig())
    corrected = make_reinforce_loss(apply, RULES, config)
    assert_same(
        value_and_gradient(plain, params, batch)[1], value_and_gradient(corrected, params, batch)[1]
    )


def test_ppo_stops_pushing_what_has_moved_far_enough():
    params, batch = make_params(), make_batch()
    loss = make_reinforce_loss(apply, RULES, ReinforceConfig(clip=0.2))
    advantages = leave_one_out_advantages(batch.rewards, jnp.asarray(batch.scored))
    # Good samples are already twice as likely as when sampled, bad ones half as likely.
    moved = np.where(np.asarray(advantages) > 0, np.log(2), -np.log(2))[..., None]
    far = batch._replace(behaviour_logprobs=batch.behaviour_logprobs - moved.astype(np.float32))
    _, gradient, _ = value_and_gradient(loss, params, far)
    assert_same(gradient, jax.tree.map(jnp.zeros_like, params), 1e-7)


def test_no_gradient_after_the_end_nor_where_the_policy_gradient_is_masked():
    params, batch = make_params(), make_batch()
    reinforced = np.ones(L, bool)
    reinforced[1] = False
    rules = replace(RULES, reinforced=reinforced)
    loss = make_reinforce_loss(apply, rules, ReinforceConfig())
    _, gradient, _ = value_and_gradient(loss, params, batch)
    assert np.abs(gradient["table"][1]).max() == 0
    assert np.abs(gradient["table"][0]).max() > 0

    short = np.zeros((G, K, L), np.int32)
    short[..., 0] = END
    short[0, 0, :2] = [2, END]
    _, gradient, _ = value_and_gradient(
        make_reinforce_loss(apply, RULES, ReinforceConfig()), params, batch._replace(tokens=short)
    )
    assert np.abs(gradient["table"][1]).max() > 0
    assert np.abs(gradient["table"][2:]).max() == 0


def test_normalised_advantages_do_not_see_the_scale_of_the_reward():
    params, batch = make_params(), make_batch()
    loss = make_reinforce_loss(apply, RULES, ReinforceConfig(normalise_advantage=True))
    scaled = batch._replace(rewards=batch.rewards * 7)
    assert_same(
        value_and_gradient(loss, params, batch)[1], value_and_gradient(loss, params, scaled)[1]
    )
    equal = batch._replace(rewards=np.ones_like(batch.rewards))
    assert_same(
        value_and_gradient(loss, params, equal)[1], jax.tree.map(jnp.zeros_like, params), 1e-7
    )


def test_kl_is_zero_at_the_reference_and_pulls_towards_it():
    params, reference = make_params(0), make_params(1)
    batch = make_batch()
    batch = batch._replace(rewards=np.zeros_like(batch.rewards))  # No advantage: only the KL acts.
    loss = make_reinforce_loss(apply, RULES, ReinforceConfig(kl_weight=0.5))
    value, gradient, _ = value_and_gradient(loss, params, batch, params)
    assert value == pytest.approx(0, abs=1e-6)
    assert_same(gradient, jax.tree.map(jnp.zeros_like, params), 1e-6)
    value, gradient, _ = value_and_gradient(loss, params, batch, reference)
    assert value > 0
    nearer = jax.tree.map(lambda p, g: p - 0.05 * g, params, gradient)
    assert value_and_gradient(loss, nearer, batch, reference)[0] < value


def test_divergence_equals_its_definition_with_forbidden_tokens():
    p, q = np.array([0.2, 0.8]), np.array([0.5, 0.5])
    logits = jnp.log(jnp.array([[*p, 1.0]])).at[0, 2].set(-1e9)
    reference = jnp.log(jnp.array([[*q, 1.0]])).at[0, 2].set(-1e9)
    np.testing.assert_allclose(
        divergence_from(logits, reference), [(p * np.log(p / q)).sum()], rtol=1e-5
    )


def test_the_entropy_bonus_raises_entropy():
    params, batch = make_params(), make_batch()
    batch = batch._replace(rewards=np.zeros_like(batch.rewards))
    loss = make_reinforce_loss(apply, RULES, ReinforceConfig(entropy_weight=0.1))
    _, gradient, before = value_and_gradient(loss, params, batch)
    moved = jax.tree.map(lambda p, g: p - 0.5 * g, params, gradient)
    _, _, after = value_and_gradient(loss, moved, batch)
    assert float(after.means["policy/entropy"][0]) > float(before.means["policy/entropy"][0])


def test_the_auxiliary_loss_is_the_mean_over_trained_samples_and_blind_to_unscored_ones():
    def auxiliary_loss(logits, tokens, auxiliary):
        return (auxiliary["target"][:, 0] * logits[:, 0, 2]).astype(jnp.float32)

    params, batch = make_params(), make_batch()
    scored = batch.scored.copy()
    scored[1, 2] = False
    scored[2, 1:] = False
    target = np.random.default_rng(3).random((G, K, 2)).astype(np.float32)
    batch = batch._replace(
        rewards=np.zeros_like(batch.rewards),
        scored=scored,
        auxiliary={"target": np.where(scored[..., None], target, np.nan)},
    )
    rules = replace(RULES, auxiliary_loss=auxiliary_loss)
    loss = make_reinforce_loss(apply, rules, ReinforceConfig(auxiliary_weight=0.3))
    value, gradient, _ = value_and_gradient(loss, params, batch)
    logits = np.asarray(params["table"] + batch.images[:, 0, 0, :1, None] * params["slope"])
    expected = 0.3 * np.mean(
        [
            np.mean([target[g, k, 0] * logits[g, 0, 2] for k in range(K) if scored[g, k]])
            for g in (0, 1)
        ]
    )
    assert value == pytest.approx(expected, rel=1e-5)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_a_batch_of_dropped_groups_has_no_weight_and_no_gradient():
    params, batch = make_params(), make_batch()
    batch = batch._replace(
        scored=np.zeros((G, K), bool), rewards=np.full((G, K), np.nan, np.float32)
    )
    loss = make_reinforce_loss(apply, RULES, ReinforceConfig())
    value, gradient, sums = value_and_gradient(loss, params, batch)
    assert (value, float(sums.weight)) == (0, 0)
    assert_same(gradient, jax.tree.map(jnp.zeros_like, params), 0)


def test_likelihood_is_the_mean_over_tokens_up_to_the_end():
    params, groups = make_params(), make_batch()
    tokens = groups.tokens[:, 0]
    loss = make_likelihood_loss(apply, RULES)
    value, _, sums = value_and_gradient(loss, params, LikelihoodBatch(groups.images, tokens))
    total, count = 0.0, 0
    for image, sequence in zip(groups.images, tokens, strict=True):
        n = own_length(sequence)
        padded = np.where(np.arange(L) < n, sequence, END)
        total -= log_probability(params, image, padded)[:n].sum()
        count += n
    assert value == pytest.approx(total / count, rel=1e-5)
    assert float(sums.means["loss/sequence"][0]) == pytest.approx(total, rel=1e-5)


def test_arrays_of_the_wrong_shape_are_refused_by_name():
    batch = make_batch()
    loss = make_reinforce_loss(apply, RULES, ReinforceConfig())
    wrong = batch._replace(rewards=batch.rewards[:, :2])
    with pytest.raises(ValueError, match=r"rewards has shape \(3, 2\).*\(3, 4\)"):
        loss(make_params(), wrong, None)
