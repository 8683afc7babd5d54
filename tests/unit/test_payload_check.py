"""Workers outside may put into a run only what its next stage can use."""

import dataclasses

import numpy as np
import pytest

from deploy.config import RunConfig
from deploy.payloads import PayloadCheck
from deploy.processes import ticket_source
from protos.trajectory import Abstained, Sampled, Scored, ScoredGroup, WireError
from vision.tasks.registry import build_task


@pytest.fixture(scope="module")
def check(tiny_values):
    config = RunConfig.model_validate(tiny_values)
    task = build_task(config.task)
    return PayloadCheck(config, task, ticket_source(config, task)), task


def sampled(check, ordinal=5):
    checker, task = check
    ticket = checker._tickets.ticket(ordinal)
    tokens = np.zeros((2, task.max_length), np.int32)
    return Sampled(ticket, tokens, np.zeros(tokens.shape, np.float32), ticket.policy_version, "jax")


def test_what_a_worker_of_the_run_makes_passes(check):
    checker, task = check
    group = sampled(check)
    arrays = {n: np.zeros(shape, np.float32) for n, shape in task.auxiliary_arrays.items()}
    for ordinal in (5, None):
        checker(ordinal, group.to_bytes())
        checker(ordinal, ScoredGroup(group, (Scored(1.0, arrays), Abstained("no"))).to_bytes())


def test_what_would_break_the_next_stage_is_refused(check):
    checker, task = check
    good = sampled(check)
    wide = np.zeros((2, task.max_length + 1), np.int32)
    beyond, negative = good.tokens.copy(), good.tokens.copy()
    beyond[1, 2], negative[0, 0] = task.vocabulary_size, -1
    holes = good.logprobs.copy()
    holes[0, 0] = np.nan
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
        "logprobs are not all finite": change(good, logprobs=holes),
        "kept_mass are not all finite": change(good, kept_mass=holes),
    }
    for reason, lie in lies.items():
        with pytest.raises(WireError, match=reason):
            checker(5, lie.to_bytes())
    with pytest.raises(WireError, match="not a Sampled"):
        checker(5, b"\xff\xff")
    name, shape = next(iter(task.auxiliary_arrays.items()))
    odd = Scored(1.0, {name: np.zeros((*shape, 2), np.float32)})
    with pytest.raises(WireError, match=f"sample 1: {name} is"):
        checker(5, ScoredGroup(good, (Abstained("no"), odd)).to_bytes())
