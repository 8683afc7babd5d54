"""The soak's reward misbehaves once an order, as ordered, and is the run's own otherwise."""

import math

import pytest

from deploy.soak.orders import Order, Orders
from deploy.soak.reward import UnreliableReward
from protos.trajectory import FailureKind, InfrastructureError, Scored
from rewards.judge import GroupFailure, judge_group
from vision.tasks.task import Example


class Lengths:
    """A reward whose outcomes tell the samples apart."""

    provides = ()

    def __init__(self, task):
        pass

    def score(self, examples, predictions):
        return [Scored(float(len(prediction)), {}) for prediction in predictions]


PREDICTIONS = ["a", "ab", "abc"]
EXAMPLE = Example("scene-7", None, None)


def reward(tmp_path) -> UnreliableReward:
    terms = [{"path": f"{__name__}:Lengths"}]
    return UnreliableReward(None, terms=terms, orders=str(tmp_path))


def ordered(tmp_path, what: str):
    made = reward(tmp_path)
    Orders(tmp_path).give(Order(4, what, 0.0))
    return judge_group(made, EXAMPLE, PREDICTIONS)


def values(outcomes):
    return [outcome.reward for outcome in outcomes]


def test_without_orders_it_is_the_runs_own(tmp_path):
    assert values(judge_group(reward(tmp_path), EXAMPLE, PREDICTIONS)) == [1.0, 2.0, 3.0]


def test_an_order_is_carried_out_once_and_leaves_its_traces(tmp_path):
    made, orders = reward(tmp_path), Orders(tmp_path)
    orders.give(Order(4, "raises", 0.0))
    assert orders.claim(4) is None
    with pytest.raises(ValueError, match="soak fault 4"):
        made.score([EXAMPLE], PREDICTIONS)
    assert orders.claim(4).example_id == "scene-7"
    assert values(made.score([EXAMPLE] * 3, PREDICTIONS)) == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("what", "kind"),
    [
        ("raises", FailureKind.DATA),
        ("length", FailureKind.DATA),
        ("unavailable", FailureKind.INFRASTRUCTURE),
        ("memory", FailureKind.INFRASTRUCTURE),
    ],
)
def test_what_a_misbehaviour_costs_its_group(tmp_path, what, kind):
    failure = ordered(tmp_path, what)
    assert isinstance(failure, GroupFailure)
    assert failure.kind is kind


def test_memory_is_eaten_up_to_a_limit_that_is_lifted_again(tmp_path):
    made = reward(tmp_path)
    Orders(tmp_path).give(Order(4, "memory", 0.0))
    with pytest.raises(MemoryError, match=r"soak fault 4$"):
        made.score([EXAMPLE], PREDICTIONS)
    assert len(bytearray(300 * 2**20)) == 300 * 2**20


def test_numbers_that_are_none_fail_their_samples(tmp_path):
    made = reward(tmp_path)
    Orders(tmp_path).give(Order(4, "nan", 0.0))
    assert all(math.isnan(outcome.reward) for outcome in made.score([EXAMPLE], PREDICTIONS))


def test_a_changed_order_looks_like_any_answer(tmp_path):
    # No answer names its sample, so nothing can tell.
    assert values(ordered(tmp_path, "order")) == [3.0, 2.0, 1.0]


def test_a_delay_is_an_answer_and_says_when_it_was_over(tmp_path):
    assert values(ordered(tmp_path, "delayed")) == [1.0, 2.0, 3.0]
    assert Orders(tmp_path).done_at(4) is not None


def test_infrastructure_is_what_another_worker_may_manage(tmp_path):
    made = reward(tmp_path)
    Orders(tmp_path).give(Order(4, "unavailable", 0.0))
    with pytest.raises(InfrastructureError, match="soak fault 4"):
        made.score([EXAMPLE], PREDICTIONS)
