"""A learner of several hosts on a real Ray."""

from typing import Any

import pytest

from learner.metrics import read_metrics
from tests.runs import STEPS, Run, assert_ends_near


def test_two_hosts_end_near_where_one_does(
    two_hosts: Run, undisturbed: Run, tiny_values: dict[str, Any]
) -> None:
    assert two_hosts.result["state"] == "finished"
    assert_ends_near(two_hosts.weights(), undisturbed.weights(), tiny_values)
    lines, wanted = (list(read_metrics(run.directory)) for run in (two_hosts, undisturbed))
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    for line, other in zip(lines, wanted, strict=True):
        assert line["reward/mean"] == pytest.approx(other["reward/mean"], rel=1e-3)


def test_every_host_is_shown_and_ends_with_the_run(two_hosts: Run) -> None:
    shown = [w for w in two_hosts.statuses[-1]["workers"] if w["role"] == "learner"]
    assert [w["name"] for w in shown] == ["learner-0", "learner-1"]
    assert [(w["state"], w["step"], w["restarts"]) for w in shown] == [("ended", STEPS, 0)] * 2
