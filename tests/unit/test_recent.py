"""What a run did lately, from statuses of runs that never were."""

import pytest

from deploy.recent import Recent
from tests.statuses import Imagined


def test_what_is_recent_forgets_what_was_before():
    recent = Recent()
    slow = Imagined(busy={"learner": 1.0, "sampler": 0.1, "reward": 0.1})
    for second in range(100):
        status = slow.at(float(second))
        added = recent.observe(status, float(second))
    assert added["roles"]["sampler"]["busy"] == pytest.approx(0.1)
    before = slow.at(99.0)["workers"]
    for second in range(1, 41):
        status = slow.at(99.0 + second)
        for worker, old in zip(status["workers"], before, strict=True):
            if worker["role"] == "sampler":  # from now on it never waits
                worker |= {"working": old["working"] + second, "waiting": old["waiting"]}
        added = recent.observe(status, 99.0 + second)
    assert added["roles"]["sampler"]["busy"] == pytest.approx(1.0)
    assert added["roles"]["reward"]["busy"] == pytest.approx(0.1)
    sampler = next(w for w in status["workers"] if w["role"] == "sampler")
    assert sampler["recent"]["busy"] == pytest.approx(1.0)


def test_throughput_counts_what_left_each_stage():
    run = Imagined(per_second=4.0)
    recent = Recent()
    for second in range(41):
        run.held["to_score"] = (second, 0)  # one more sampled than scored, every second
        added = recent.observe(run.at(float(second)), float(second))
    groups = added["throughput"]["groups"]
    assert groups["to_train"]["recent"] == pytest.approx(4.0, rel=0.05)
    assert groups["to_score"]["recent"] == pytest.approx(4.0, rel=0.05)
    assert groups["to_sample"]["recent"] == pytest.approx(5.0, rel=0.05)
    assert added["throughput"]["steps"]["recent"] == pytest.approx(0.5, rel=0.1)


def test_the_average_is_since_the_start_and_does_not_count_the_starting():
    run = Imagined(state="starting", per_second=0.0)
    recent = Recent()
    for second in range(60):
        recent.observe(run.at(float(second)), float(second))
    run.state, run.per_second = "training", 4.0
    for second in range(60, 121):
        added = recent.observe(run.at(float(second - 60)), float(second))
        if second == 70:
            lately = added["throughput"]["groups"]["to_train"]["recent"]
            assert lately == pytest.approx(4.0, rel=0.2)
    assert added["throughput"]["groups"]["to_train"]["average"] == pytest.approx(4.0, rel=0.05)


def test_a_resumed_learner_begins_the_figures_anew():
    recent, run = Recent(), Imagined()
    for second in range(50):
        recent.observe(run.at(float(second)), float(second))
    added = recent.observe(run.at(20.0), 50.0)  # its last checkpoint was of then
    assert added["throughput"]["groups"]["to_train"]["recent"] is None
    added = recent.observe(run.at(21.0), 51.0)
    assert added["throughput"]["groups"]["to_train"]["recent"] == pytest.approx(4.0)


def test_a_process_that_was_started_anew_counts_from_its_start():
    recent, run = Recent(), Imagined(busy={"learner": 0.5, "sampler": 0.9, "reward": 0.5})
    for second in range(50):
        recent.observe(run.at(float(second)), float(second))
    status = run.at(50.0)
    status["workers"][1] |= {"restarts": 1, "groups": 1, "working": 0.5, "waiting": 0.5}
    recent.observe(status, 50.0)
    assert status["workers"][1]["recent"] == {
        "groups": 1,
        "working": 0.5,
        "waiting": 0.5,
        "busy": 0.5,
    }


def test_a_step_longer_than_the_window_is_looked_back_for():
    run = Imagined(per_second=0.1, groups_per_step=8)  # a step takes 80 s
    added = run.status(200.0)
    assert added["throughput"]["steps"]["recent"] > 0
    assert added["roles"]["learner"]["busy"] == pytest.approx(0.5)
    assert added["roles"]["learner"]["seconds_per_group"] == pytest.approx(5.0)


def test_a_worker_that_has_told_nothing_has_no_share():
    status = Imagined(busy={}).status(3.0)
    assert all(worker["recent"]["busy"] is None for worker in status["workers"])
    assert status["roles"]["reward"] == {
        "workers": {"running": 4},
        "busy": None,
        "seconds_per_group": None,
    }


def test_what_a_group_costs_a_worker_is_its_work_over_its_groups():
    status = Imagined(per_second=4.0, busy={"learner": 0.5, "sampler": 0.8, "reward": 0.2}).status()
    roles = status["roles"]
    assert roles["sampler"]["seconds_per_group"] == pytest.approx(0.4, rel=0.05)
    assert roles["reward"]["seconds_per_group"] == pytest.approx(0.2, rel=0.05)
    assert roles["learner"]["seconds_per_group"] == pytest.approx(0.125, rel=0.05)
