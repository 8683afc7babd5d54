"""Every run tells how far the sampler's logprobs are from the learner's for the same policy."""

import jax.numpy as jnp
import numpy as np
import pytest

from learner.config import ReinforceConfig
from learner.group_batches import group_batch
from learner.mismatch import CLIPPED, MAXIMUM, MEAN, LaggedMismatch, clipped_ratios
from learner.objectives import make_reinforce_loss
from tests.unit.test_group_batches import SAMPLES, FakeTask, TrainingGroup, group, scored
from tests.unit.test_learner_objectives import (
    ALLOWED,
    END,
    RULES,
    apply,
    make_batch,
    make_params,
    own_length,
    value_and_gradient,
)


def measured(batch, params, **settings):
    loss = make_reinforce_loss(apply, RULES, ReinforceConfig(**settings))
    sums = value_and_gradient(loss, params, batch)[2]
    means = {name: float(sums.means[name][0] / sums.means[name][1]) for name in (MEAN, CLIPPED)}
    return means | {MAXIMUM: float(sums.maxima[MAXIMUM])}


def off_by(batch, places):
    """The batch with the sampler's logprobs of some tokens changed: (g, k, t) -> difference."""
    behaviour = batch.behaviour_logprobs.copy()
    for place, difference in places.items():
        behaviour[place] -= difference
    return batch._replace(behaviour_logprobs=behaviour)


def test_equal_logprobs_have_no_mismatch():
    values = measured(make_batch(), make_params(), max_importance_weight=1.5)
    assert values[MEAN] == pytest.approx(0, abs=1e-6)
    assert values[MAXIMUM] == pytest.approx(0, abs=1e-5)
    assert values[CLIPPED] == 0


def test_mean_largest_and_clipped_are_of_the_sampled_tokens_by_hand():
    batch = make_batch()
    count = sum(own_length(sequence) for group in batch.tokens for sequence in group)
    off = off_by(batch, {(0, 0, 0): 0.6, (1, 2, 0): -0.3, (2, 3, 0): 0.1})
    # Behind the end nothing was sampled.
    g, k = np.argwhere([[own_length(s) < 5 for s in group] for group in batch.tokens])[0]
    off = off_by(off, {(g, k, 4): 9.0})
    values = measured(off, make_params(), max_importance_weight=1.5)
    assert values[MEAN] == pytest.approx(1.0 / count, abs=1e-5)
    assert values[MAXIMUM] == pytest.approx(0.6, abs=1e-5)
    assert values[CLIPPED] == pytest.approx(1 / count)  # exp(0.6) > 1.5
    assert measured(off, make_params(), clip=0.2)[CLIPPED] == pytest.approx(2 / count)
    assert measured(off, make_params())[CLIPPED] == 0  # nothing is ever clipped


def test_samples_that_were_not_scored_are_compared_too():
    off = off_by(make_batch(), {(0, 0, 0): 0.6})
    unscored = off.scored.copy()
    unscored[0, 0] = False
    assert measured(off._replace(scored=unscored), make_params())[MAXIMUM] == pytest.approx(
        0.6, abs=1e-5
    )


def test_groups_of_another_policy_are_not_compared():
    off = off_by(make_batch(), {(0, 0, 0): 0.6, (1, 0, 0): 0.2})
    values = measured(off._replace(current=np.array([False, True, True])), make_params())
    assert values[MAXIMUM] == pytest.approx(0.2, abs=1e-5)
    none = measured(off._replace(current=np.zeros(3, bool)), make_params())
    assert np.isnan(none[MEAN])
    assert none[MAXIMUM] == -np.inf


def test_what_is_compared_does_not_change_the_loss():
    loss = make_reinforce_loss(apply, RULES, ReinforceConfig(max_importance_weight=2.0))
    batch = make_batch()
    one = value_and_gradient(loss, make_params(3), batch)
    two = value_and_gradient(loss, make_params(3), batch._replace(current=np.zeros(3, bool)))
    assert one[0] == two[0]
    np.testing.assert_array_equal(one[1]["table"], two[1]["table"])


def test_the_rows_of_a_batch_know_whether_the_policy_that_is_trained_sampled_them():
    groups = [group(0, map(scored, (1, 2, 3))), TrainingGroup(1, None)]
    assert group_batch(FakeTask(), groups, SAMPLES, version=0).current.tolist() == [True, False]
    assert group_batch(FakeTask(), groups, SAMPLES, version=1).current.tolist() == [False, False]
    assert group_batch(FakeTask(), groups, SAMPLES).current.tolist() == [False, False]


@pytest.mark.parametrize("rows", [1, 3])
def test_lagged_groups_are_measured_with_the_policy_that_sampled_most_of_them(rows):
    config = ReinforceConfig(max_importance_weight=1.5)
    lagged = LaggedMismatch(apply, ALLOWED, END, config, rows)
    # make_batch samples with make_params(0).
    batch = off_by(make_batch(), {(1, 0, 0): 0.6, (0, 0, 0): 5.0})
    policies = [(6, make_params(2)), (7, make_params(0)), (8, make_params(1))]
    values = lagged(policies, [6, 7, 7], batch)
    assert values[MAXIMUM] == pytest.approx(0.6, abs=1e-5)
    shown = (1, 2)[: rows if rows == 1 else 2]
    count = sum(own_length(sequence) for row in shown for sequence in batch.tokens[row])
    assert values[MEAN] == pytest.approx(0.6 / count, abs=1e-5)
    assert values[CLIPPED] == pytest.approx(1 / count)
    assert lagged(policies, [3, 4, None], batch) == {}


def test_ratios_that_are_clipped_are_those_that_the_objective_changes():
    ratios = jnp.asarray([0.7, 0.9, 1.0, 1.1, 1.3, 3.0])
    assert clipped_ratios(ratios, ReinforceConfig(clip=0.2)).tolist() == [
        True,
        False,
        False,
        False,
        True,
        True,
    ]
    truncated = clipped_ratios(ratios, ReinforceConfig(max_importance_weight=2.0))
    assert truncated.tolist() == [False] * 5 + [True]
    assert not clipped_ratios(ratios, ReinforceConfig()).any()
