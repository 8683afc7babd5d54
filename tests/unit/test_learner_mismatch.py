"""Every run tells how far the sampler's logprobs are from the learner's for the same policy."""

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from deploy.payloads import LOGPROBS
from learner.config import ReinforceConfig, TuneConfig
from learner.group_batches import group_batch
from learner.hosts import Hosts
from learner.mismatch import CLIPPED, MAXIMUM, MEAN, LaggedMismatch, clipped_ratios
from learner.objectives import make_reinforce_loss
from rewards.judge import LARGEST
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


@pytest.mark.parametrize(
    "settings", [{}, {"clip": 0.2}, {"max_importance_weight": 2}, {"normalise_advantage": True}]
)
def test_no_reward_and_no_logprob_that_is_let_in_gives_an_infinite_gradient(settings):
    batch, params = make_batch(), make_params()
    rewards = np.where(np.arange(batch.rewards.shape[1]) % 2, LARGEST, -LARGEST)
    rewards = np.broadcast_to(rewards, batch.rewards.shape).astype(np.float32)
    behaviour = np.full_like(batch.behaviour_logprobs, LOGPROBS[0])
    worst = batch._replace(rewards=rewards, behaviour_logprobs=behaviour)
    loss = make_reinforce_loss(apply, RULES, ReinforceConfig(**settings))
    value, gradient, _ = value_and_gradient(loss, params, worst)
    assert np.isfinite(value)
    assert np.isfinite(sum(np.square(leaf).sum() for leaf in gradient.values()))


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


def make_lagged(rows=3, max_staleness=None, every=1, **learner):
    config = TuneConfig(
        groups_per_step=rows,
        mismatch_every=every,
        reinforce=ReinforceConfig(max_importance_weight=1.5),
        **learner,
    )
    return LaggedMismatch(apply, ALLOWED, END, config, Hosts(), max_staleness)


@pytest.mark.parametrize("rows", [1, 3])
def test_lagged_groups_are_measured_with_the_policy_that_sampled_most_of_them(rows):
    lagged = make_lagged(rows)
    # make_batch samples with make_params(0).
    batch = off_by(make_batch(), {(1, 0, 0): 0.6, (0, 0, 0): 5.0})
    policies = [(6, make_params(2)), (7, make_params(0)), (8, make_params(1))]
    values = lagged(9, policies, [6, 7, 7], batch, make_params())
    assert values[MAXIMUM] == pytest.approx(0.6, abs=1e-5)
    shown = (1, 2)[: rows if rows == 1 else 2]
    count = sum(own_length(sequence) for row in shown for sequence in batch.tokens[row])
    assert values[MEAN] == pytest.approx(0.6 / count, abs=1e-5)
    assert values[CLIPPED] == pytest.approx(1 / count)
    assert lagged(10, policies, [3, 4, None], batch, make_params()) == {}


def async_steps(lag, every, steps=60, publish_every=1):
    """Of a learner whose groups are all `lag` versions old: the steps that measure, and what."""
    lagged = make_lagged(max_staleness=lag + publish_every - 1, every=every)
    lagged.begin(0)
    batch, nothing = off_by(make_batch(), {(0, 0, 0): 0.6}), {MEAN: float("nan")}
    params = make_params()
    newest = (0, params)
    lagged.keep(*newest)
    found = {}
    for done in range(1, steps + 1):
        version = max(0, done - 1 - lag) // publish_every * publish_every
        if done > lag + 1 and lagged.due(done, nothing):
            values = lagged(done, [newest], [version] * 3, batch, params)
            found |= {done: values} if values else {}
        if done % publish_every == 0:
            newest = (done, params)
            lagged.keep(*newest)
    return found


@pytest.mark.parametrize(("lag", "publish_every"), [(1, 1), (2, 1), (4, 1), (9, 1), (4, 3)])
@pytest.mark.parametrize("every", [1, 10])
def test_however_old_groups_are_one_kept_policy_measures_them(lag, every, publish_every):
    found = async_steps(lag, every, publish_every=publish_every)
    steps = [lag, *found, 60]
    gaps = [after - before for before, after in pairwise(steps)]
    assert max(gaps) <= every + 2 * (lag + publish_every)
    for values in found.values():
        assert values[MAXIMUM] == pytest.approx(0.6, abs=1e-5)


def test_a_step_that_measured_its_own_groups_needs_no_older_policy():
    lagged = make_lagged(every=2)
    lagged.begin(0)
    assert not lagged.due(2, {MEAN: 0.0})
    assert lagged.due(2, {MEAN: float("nan")})
    assert not lagged.due(1, {MEAN: float("nan")})
    assert not make_lagged(every=0).due(2, {MEAN: float("nan")})


ON_DEVICES = """
import json, sys
import numpy as np
from tests.unit.test_learner_mismatch import make_batch, make_lagged, make_params, off_by
devices, shards = {devices}, {shards}
lagged = make_lagged(4, devices=devices, shards=shards)
batch = off_by(make_batch(groups=4), {{(1, 0, 0): 0.6, (0, 0, 0): 5.0}})
params = make_params()
print(json.dumps(lagged(2, [(1, params)], [0, 1, 1, 1], batch, params)))
"""


@pytest.mark.parametrize(("devices", "shards"), [(2, 2), (4, 2), (4, 4)])
def test_parameters_that_are_split_over_devices_are_measured_as_whole_ones(devices, shards):
    flags = os.environ.get("XLA_FLAGS", "")
    flags += f" --xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    done = subprocess.run(
        [sys.executable, "-c", ON_DEVICES.format(devices=devices, shards=shards)],
        cwd=Path(__file__).resolve().parents[2],
        env=environment | {"PYTHONPATH": "."},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    batch = off_by(make_batch(groups=4), {(1, 0, 0): 0.6, (0, 0, 0): 5.0})
    params = make_params()
    whole = make_lagged(4)(2, [(1, params)], [0, 1, 1, 1], batch, params)
    assert whole[MAXIMUM] == pytest.approx(0.6, abs=1e-5)
    assert json.loads(done.stdout.splitlines()[-1]) == pytest.approx(whole, abs=1e-5)


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
