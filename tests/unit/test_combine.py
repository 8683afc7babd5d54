"""Rewards by import path and weighted sums."""

import sys
import types
from pathlib import Path

import numpy as np
import pytest

from protos.trajectory import Abstained, Failed, FailureKind, InfrastructureError, Scored
from rewards.combine import RewardLoadError, WeightedSum, load_reward
from rewards.detection import RecallReward
from rewards.judge import GroupFailure, judge_group
from vision.tasks.task import Example

EXAMPLE = Example("1", np.zeros((8, 8, 3), np.float32), None)


class Constant:
    provides = ()

    def __init__(self, task, value=1.0):
        self.value = value

    def score(self, examples, predictions):
        return [Scored(self.value) for _ in predictions]


class Returns(Constant):
    def __init__(self, outcomes, provides=()):
        self.outcomes = outcomes
        self.provides = provides

    def score(self, examples, predictions):
        if isinstance(self.outcomes, Exception):
            raise self.outcomes
        return self.outcomes


class ReadsFile(Constant):
    def __init__(self, task, path):
        self.value = float(Path(path).read_text())


class TaskStub:
    auxiliary_arrays = {"match_iou": (6,)}  # noqa: RUF012

    def class_counts(self):
        return np.array([3, 4])


@pytest.fixture
def own_module(monkeypatch):
    """A module of the user's, importable as `my_rewards`."""
    module = types.ModuleType("my_rewards")
    module.Constant = Constant
    module.NUMBER = 3
    module.NoScore = type("NoScore", (), {"__init__": lambda self, task: None, "provides": ()})
    module.NoProvides = type(
        "NoProvides", (), {"__init__": lambda self, task: None, "score": lambda self, e, p: []}
    )
    module.ReadsFile = ReadsFile
    monkeypatch.setitem(sys.modules, "my_rewards", module)


def test_rewards_load_by_path_with_their_options(own_module):
    assert isinstance(load_reward("rewards.detection:RecallReward", TaskStub(), {}), RecallReward)
    assert load_reward("my_rewards:Constant", TaskStub(), {"value": 4.0}).value == 4.0


@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        ("rewards.detection.RecallReward", {}, "not of the form 'module:Class'"),
        ("rewards.detection:", {}, "not of the form 'module:Class'"),
        ("no_such_module:Reward", {}, "cannot import 'no_such_module'"),
        ("rewards.detection:RecalReward", {}, "Did you mean 'RecallReward'"),
        ("my_rewards:NUMBER", {}, "is a int, not a class"),
        ("my_rewards:NoScore", {}, r"no method score\(examples, predictions\)"),
        ("my_rewards:NoProvides", {}, "`provides` is None"),
        ("my_rewards:Constant", {"valeu": 1}, "Did you mean 'value'"),
        ("my_rewards:ReadsFile", {"path": "missing"}, "FileNotFoundError"),
        ("rewards.detection:RecallReward", {"duplicate_penalty": -1}, "duplicate_penalty is -1"),
    ],
)
def test_reward_that_cannot_be_built_says_why(own_module, path, options, message):
    with pytest.raises(RewardLoadError, match=message):
        load_reward(path, TaskStub(), options)


def test_module_that_breaks_on_import_says_where(tmp_path, monkeypatch):
    (tmp_path / "broken_rewards.py").write_text("x = 1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RewardLoadError, match=r"ZeroDivisionError.*broken_rewards\.py:1"):
        load_reward("broken_rewards:Reward", TaskStub(), {})


def test_sum_weighs_its_terms_and_merges_their_arrays():
    iou, map_ = np.ones(2, np.float32), np.zeros(3, np.float32)
    first = Returns([Scored(1.0, {"iou": iou}), Scored(2.0, {"iou": iou})], ("iou",))
    second = Returns([Scored(10.0, {"map": map_})] * 2, ("map",))
    total = WeightedSum([(first, 0.5), (second, -0.1)])
    assert list(total.provides) == ["iou", "map"]
    outcomes = judge_group(total, EXAMPLE, ["a", "b"])
    assert [outcome.reward for outcome in outcomes] == pytest.approx([-0.5, 0.0])
    assert all(set(outcome.auxiliary) == {"iou", "map"} for outcome in outcomes)


def test_sample_is_scored_only_where_every_term_scores_it():
    first = Returns([Scored(1.0), Scored(1.0), Abstained("dark"), Abstained("dark")])
    second = Returns(
        [Scored(1.0), Abstained("small"), Failed("lost", FailureKind.DATA), Scored(np.nan)]
    )
    outcomes = WeightedSum([(first, 1.0), (second, 1.0)]).score([EXAMPLE] * 4, list("abcd"))
    assert outcomes[0] == Scored(2.0)
    assert outcomes[1] == Abstained("term 1 (Returns): small")
    assert outcomes[2] == Failed("term 1 (Returns): lost", FailureKind.DATA)
    assert isinstance(outcomes[3], Failed)
    assert "nan" in outcomes[3].reason


def test_failure_that_may_pass_elsewhere_stays_one_unless_the_data_is_at_fault_too():
    away = Returns([Failed("timeout", FailureKind.INFRASTRUCTURE)])
    broken = Returns([Failed("broken", FailureKind.DATA)])
    (alone,) = WeightedSum([(away, 1.0), (Constant(None), 1.0)]).score([EXAMPLE], ["a"])
    for terms in ([(away, 1.0), (broken, 1.0)], [(broken, 1.0), (away, 1.0)]):
        (both,) = WeightedSum(terms).score([EXAMPLE], ["a"])
        assert both.kind is FailureKind.DATA
        assert "timeout" in both.reason
        assert "broken" in both.reason
    assert alone.kind is FailureKind.INFRASTRUCTURE


def test_terms_that_disagree_on_an_array_fail_the_sample():
    terms = [(Returns([Scored(1.0, {"iou": np.full(2, v)})], ("iou",)), 1.0) for v in (0.1, 0.2)]
    (outcome,) = WeightedSum(terms).score([EXAMPLE], ["a"])
    assert isinstance(outcome, Failed)
    assert "iou differs" in outcome.reason


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        (InfrastructureError("down"), FailureKind.INFRASTRUCTURE),
        (KeyError("down"), FailureKind.DATA),
    ],
)
def test_term_that_raises_is_named(raised, kind):
    total = WeightedSum([(Constant(None), 1.0), (Returns(raised), 1.0)])
    result = judge_group(total, EXAMPLE, ["a"])
    assert isinstance(result, GroupFailure)
    assert result.kind is kind
    assert "term 1 (Returns)" in result.reason
    assert "down" in result.reason


def test_sum_of_nothing_or_with_a_weight_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="at least one term"):
        WeightedSum([])
    with pytest.raises(ValueError, match="weight of Constant is nan"):
        WeightedSum([(Constant(None), float("nan"))])
