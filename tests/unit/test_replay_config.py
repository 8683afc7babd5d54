"""Settings that would stall a run are refused before it starts."""

import pytest
from pydantic import ValidationError

from replay.config import QueueConfig
from replay.queue import Frontier


def test_the_window_is_a_step_and_its_lag():
    assert QueueConfig(groups_per_step=32, block=16, lag=3).window == 128


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"groups_per_step": 6, "block": 4}, "must divide"),
        ({"groups_per_step": 8, "block": 8, "total_groups": 12}, "wait for ever"),
        ({"lag": -1}, "greater than or equal to 0"),
        ({"max_deliveries": 0}, "greater than or equal to 1"),
        ({"score_ttl": 0}, "greater than 0"),
        ({"mode": "sync"}, "'ordered' or 'async'"),
        ({"windows": 3}, "Extra inputs"),
    ],
)
def test_settings_that_cannot_work_say_why(changes, says):
    with pytest.raises(ValidationError, match=says):
        QueueConfig(**changes)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"next_unacked": 3, "acked_above": [3]},
        {"next_unacked": 3, "acked_above": [6, 5]},
        {"next_unacked": -1, "acked_above": []},
        {"next_unacked": 1, "acked_above": [4], "dropped": 3},
        {"next_unacked": None, "acked_above": []},
    ],
)
def test_a_broken_frontier_is_refused(values):
    with pytest.raises(ValueError, match="frontier"):
        Frontier.from_json(values)


def test_a_frontier_survives_json():
    frontier = Frontier(3, (5, 9), 2)
    assert Frontier.from_json(frontier.to_json()) == frontier
