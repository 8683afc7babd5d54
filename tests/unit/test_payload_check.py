"""Workers outside may put into a run only what its next stage can use."""

import dataclasses

import numpy as np
import pytest

from deploy.config import RunConfig
from deploy.payloads import PayloadCheck
from deploy.processes import ticket_source
from protos.trajectory import Abstained, Sampled, Scored, ScoredGroup, WireError
from replay.queue import Stage
from vision.tasks.registry import build_task


@pytest.fixture(scope="module")
def check(tiny_values):
    config = RunConfig.model_validate(tiny_values)
    task = build_task(config.task)
    return PayloadCheck(config, task, ticket_source(config, task), lambda: 24), task


def sampled(check, ordinal=5):
    checker, task = check
    ticket = checker._tickets.ticket(ordinal)
    tokens = np.zeros((2, task.max_length), np.int32)
    version = ticket.policy_version or 0
    return Sampled(ticket, tokens, np.zeros(tokens.shape, np.float32), version, "jax")


def test_what_a_worker_of_the_run_makes_passes(check):
    checker, task = check
    group = sampled(check)
    arrays = {n: np.zeros(shape, np.float32) for n, shape in task.auxiliary_arrays.items()}
    scored = ScoredGroup(group, (Scored(1.0, arrays), Abstained("no")))
    for made, stage in ((group, Stage.TO_SAMPLE), (scored, Stage.TO_SCORE)):
        checker(5, stage, made.to_bytes())


def test_a_stage_is_completed_with_what_it_makes_and_nothing_else(check):
    checker, _ = check
    group = sampled(check)
    scored = ScoredGroup(group, (Abstained("no"), Abstained("no")))
    with pytest.raises(WireError, match="Sampled without tokens"):
        checker(5, Stage.TO_SAMPLE, scored.to_bytes())
    with pytest.raises(WireError, match="Sampled without ticket"):
        checker(5, Stage.TO_SCORE, group.to_bytes())


def test_what_would_break_the_next_stage_is_refused(check):
    checker, task = check
    good = sampled(check)
    wide = np.zeros((2, task.max_length + 1), np.int32)
    beyond, negative = good.tokens.copy(), good.tokens.copy()
    beyond[1, 2], negative[0, 0] = task.vocabulary_size, -1
    holes, impossible, unlikely = (good.logprobs.copy() for _ in range(3))
    holes[0, 0], impossible[0, 1], unlikely[1, 0] = np.nan, 0.01, -1e38
    other_seed = dataclasses.replace(good.ticket, sampling_seed=good.ticket.sampling_seed ^ 1)
    change = dataclasses.replace
    lies = {
        "the lease is of ordinal 5, the group of 6": sampled(check, 6),
        "the ticket is not of this run": change(good, ticket=other_seed),
        "sampled with policy 9": change(good, policy_version=9),
        r"tokens are \[2, ": change(good, tokens=wide, logprobs=wide.astype(np.float32)),
        r"tokens are \[1, ": change(good, tokens=good.tokens[:1], logprobs=good.logprobs[:1]),
        "tokens are in 0 ..": change(good, tokens=beyond),
        "tokens are in -1 ..": change(good, tokens=negative),
        "logprobs hold NaN,": change(good, logprobs=holes),
        "more than 0, which is no probability's,": change(good, logprobs=impossible),
        "or less than -10000, which is no sample's": change(good, logprobs=unlikely),
        "kept_mass are not all finite": change(good, kept_mass=holes),
    }
    for reason, lie in lies.items():
        with pytest.raises(WireError, match=reason):
            checker(5, Stage.TO_SAMPLE, lie.to_bytes())
    with pytest.raises(WireError, match="not a Sampled"):
        checker(5, Stage.TO_SAMPLE, b"\xff\xff")
    name, shape = next(iter(task.auxiliary_arrays.items()))
    holes_in_it = np.zeros(shape, np.float32)
    holes_in_it.flat[0] = np.inf
    large = np.full(shape, -1e7, np.float32)
    for reason, odd in {
        f"sample 1: {name} is \\[": Scored(1.0, {name: np.zeros((*shape, 2), np.float32)}),
        f"sample 1: {name} is not all finite": Scored(1.0, {name: holes_in_it}),
        f"sample 1: {name} is not .* at most 1,000,000 in size": Scored(1.0, {name: large}),
        "sample 1: reward -1e\\+20 is beyond 1,000,000 in size": Scored(-1e20),
    }.items():
        with pytest.raises(WireError, match=reason):
            checker(5, Stage.TO_SCORE, ScoredGroup(good, (Abstained("no"), odd)).to_bytes())


def test_a_policy_that_is_not_published_yet_is_refused_where_tickets_name_none(tiny_values):
    replay = tiny_values["replay"] | {"mode": "async"}
    config = RunConfig.model_validate(tiny_values | {"replay": replay})
    task, asked = build_task(config.task), []

    def trained():
        asked.append(1)
        return 4 * len(asked)  # a step more, each time

    checker = PayloadCheck(config, task, ticket_source(config, task), trained)
    good = sampled((checker, task))
    assert (config.learner.groups_per_step, config.learner.steps) == (4, 6)
    # After one step version 1 is published, and 2 may be before its groups are acknowledged.
    for version, questions in ((0, 0), (2, 1), (1, 1), (3, 2)):
        made = dataclasses.replace(good, policy_version=version)
        checker(5, Stage.TO_SAMPLE, made.to_bytes())
        assert len(asked) == questions
    with pytest.raises(WireError, match=r"policy 6; this run's are 0 \.\. 4 by now"):
        checker(5, Stage.TO_SAMPLE, dataclasses.replace(good, policy_version=6).to_bytes())
    asked += [1] * 10
    with pytest.raises(WireError, match=r"policy 7; this run's are 0 \.\. 6 by now"):
        checker(5, Stage.TO_SAMPLE, dataclasses.replace(good, policy_version=7).to_bytes())
