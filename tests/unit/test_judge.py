"""What may go wrong in a reward becomes a typed failure."""

import numpy as np
import pytest

from protos.trajectory import Abstained, Failed, FailureKind, InfrastructureError, Scored
from rewards.judge import GroupFailure, judge_group
from vision.tasks.task import Example

EXAMPLE = Example("1", np.zeros((8, 8, 3), np.float32), None)


class Returns:
    """Scores whatever it was given, as it is."""

    def __init__(self, outcomes, provides=()):
        self.outcomes = outcomes
        self.provides = provides

    def score(self, examples, predictions):
        assert len(examples) == len(predictions)
        if isinstance(self.outcomes, Exception):
            raise self.outcomes
        return self.outcomes


def judged(outcomes, provides=()):
    return judge_group(Returns(outcomes, provides), EXAMPLE, ["a", "b"])


def test_good_outcomes_pass_as_they_are():
    outcomes = [Scored(1.0), Abstained("too dark")]
    assert judged(outcomes) == tuple(outcomes)
    failed = Failed("no label", FailureKind.INFRASTRUCTURE)
    assert judged([failed, Scored(-1e6)]) == (failed, Scored(-1e6))


def test_numpy_numbers_become_floats():
    result = judged([Scored(np.float32(0.5)), Scored(np.array(2))])
    assert result == (Scored(0.5), Scored(2.0))
    assert all(type(outcome.reward) is float for outcome in result)


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), -np.inf, np.float32("nan"), 1e39, -1e20, 1.01e6]
)
def test_reward_that_cannot_be_trained_on_fails_its_own_sample(value):
    first, second = judged([Scored(value), Scored(1.0)])
    assert isinstance(first, Failed)
    assert first.kind is FailureKind.DATA
    assert "Returns gave the reward" in first.reason
    assert ("at most 1,000,000 in size can be trained on" in first.reason) is not np.isnan(value)
    assert second == Scored(1.0)


@pytest.mark.parametrize(
    "outcome",
    [
        Failed("no label", "data"),
        Failed(None, FailureKind.DATA),
        Abstained(None),
        Scored(1.0, {"iou": np.zeros(2, complex)}),
        Scored(1.0, {"iou": np.array(["a"])}),
        Scored(1.0, {1: np.zeros(2)}),
    ],
)
def test_what_could_not_travel_fails_its_group_before_it_is_sent(outcome):
    failure = judged([outcome, Scored(1.0)])
    assert failure.kind is FailureKind.DATA
    assert "RewardContractError" in failure.reason


def test_auxiliary_array_that_is_not_finite_fails_its_own_sample():
    good, bad = np.ones(2, np.float32), np.array([1, np.nan], np.float32)
    first, second = judged([Scored(1.0, {"iou": bad}), Scored(1.0, {"iou": good})], ["iou"])
    assert isinstance(first, Failed)
    assert "iou" in first.reason
    assert isinstance(second, Scored)


@pytest.mark.parametrize(
    ("outcomes", "provides", "reason"),
    [
        ([Scored(1.0)], (), "1 outcomes for 2 predictions"),
        ([], (), "0 outcomes for 2 predictions"),
        (None, (), "returned NoneType"),
        (3.0, (), "returned float"),
        ([1.0, 2.0], (), "expected Scored, Abstained or Failed"),
        ([Scored("high"), Scored(1.0)], (), "expected a number"),
        ([Scored(np.ones(2)), Scored(1.0)], (), "expected a number"),
        ([Scored(1.0), Scored(1.0)], ("match_iou",), "provides"),
        (KeyError("annotation"), (), "KeyError: 'annotation'"),
        (RecursionError(), (), "RecursionError"),
    ],
)
def test_broken_reward_is_a_data_failure_of_its_group(outcomes, provides, reason):
    result = judged(outcomes, provides)
    assert isinstance(result, GroupFailure)
    assert result.kind is FailureKind.DATA
    assert reason in result.reason


def test_a_full_memory_is_a_failure_that_another_worker_may_not_have():
    result = judged(MemoryError("1 GB"), ())
    assert isinstance(result, GroupFailure)
    assert result.kind is FailureKind.INFRASTRUCTURE
    assert "MemoryError: 1 GB" in result.reason


def test_raised_error_says_where():
    assert "test_judge.py:" in judged(KeyError("annotation")).reason


def test_infrastructure_error_may_be_tried_elsewhere():
    result = judged(InfrastructureError("service is down"))
    assert isinstance(result, GroupFailure)
    assert result.kind is FailureKind.INFRASTRUCTURE
    assert "service is down" in result.reason


def test_reasons_are_short_enough_to_travel():
    assert len(judged(ValueError("x" * 10_000)).reason) < 1000
    assert len(judged([Scored("x" * 10_000), Scored(1.0)]).reason) < 1000


def test_stop_signals_are_not_swallowed():
    class Interrupted(Returns):
        def score(self, examples, predictions):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        judge_group(Interrupted(None), EXAMPLE, ["a"])
