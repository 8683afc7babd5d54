"""How many workers keep a learner busy."""

import itertools
import json

import pytest
from typer.testing import CliRunner

from deploy.cli import app
from deploy.run_directory import CONFIG_FILE, write_status
from deploy.sizing import UTILISATION, StageTimes, balanced, needed, predict
from deploy.stage_times import NoStageTimes, times_of_status
from tests.statuses import Imagined


def test_as_many_workers_as_their_work_takes_at_the_planned_utilisation():
    assert needed(seconds_per_group=0.85, groups_per_second=10.0) == 10
    assert needed(0.86, 10.0) == 11
    assert needed(0.001, 1.0) == 1


def test_a_balanced_run_trains_as_fast_as_its_learner_can():
    for sampling, scoring, training in itertools.product((0.02, 1.0, 7.0), repeat=3):
        times = StageTimes(sampling, scoring, training)
        plan = balanced(times, groups_per_step=8, lag=1)
        assert plan.groups_per_second == pytest.approx(1 / training)
        assert plan.step_seconds == pytest.approx(8 * training)
        assert plan.busy["learner"] == pytest.approx(1.0)
        assert max(plan.busy["sampler"], plan.busy["reward"]) <= UTILISATION + 1e-9


def test_one_worker_fewer_would_be_busier_than_planned():
    plan = balanced(StageTimes(3.0, 5.0, 0.5), groups_per_step=8, lag=1)
    fewer = predict(
        StageTimes(3.0, 5.0, 0.5), plan.samplers - 1, plan.rewards - 1, groups_per_step=8, lag=1
    )
    assert fewer.busy["sampler"] > UTILISATION
    assert fewer.busy["reward"] > UTILISATION


def test_the_slowest_stage_decides():
    plan = predict(StageTimes(1.0, 4.0, 0.1), 2, 2, groups_per_step=10, lag=1)
    assert plan.groups_per_second == pytest.approx(0.5)
    assert plan.busy["reward"] == pytest.approx(1.0)
    assert plan.busy["learner"] == pytest.approx(0.05)


def test_without_lag_a_step_costs_the_sum():
    plan = predict(StageTimes(1.0, 0.5, 2.0), 1, 1, groups_per_step=4, lag=0)
    assert plan.step_seconds == pytest.approx(4 * 3.0)
    assert not plan.overlap


def run_directory(tmp_path, **changes):
    values = {
        "learner": {"groups_per_step": 8, "resources": resources(num_gpus=1.0)},
        "actors": {"count": 2, "groups_per_block": 4, "resources": resources(num_gpus=0.5)},
        "rewards": {"count": 4, "groups_per_lease": 2, "resources": resources(num_cpus=2.0)},
        "evaluation": {"every": 0},
    }
    directory = tmp_path / "runs" / "imagined"
    directory.mkdir(parents=True)
    (directory / CONFIG_FILE).write_text(json.dumps(values))
    write_status(directory, Imagined(**changes).status())
    return directory


def resources(num_cpus=1.0, num_gpus=0.0):
    return {"num_cpus": num_cpus, "num_gpus": num_gpus, "custom": {}, "labels": {}, "threads": 1}


def test_the_plan_of_a_run_is_computed_from_its_last_half_minute(tmp_path):
    busy = {"learner": 0.25, "sampler": 0.3, "reward": 0.93}
    directory = run_directory(tmp_path, busy=busy)
    result = CliRunner().invoke(app, ["plan", str(directory), "--json"])
    assert result.exit_code == 0, result.output
    plan = json.loads(result.output)
    assert plan["seconds_per_group"]["scoring"] == pytest.approx(0.93, rel=0.05)
    assert plan["now"]["rewards"] == 4
    # The learner takes 16 groups a second; 16 * 0.93 / 0.85 is 17.5, 16 * 0.15 / 0.85 is 2.8.
    assert (plan["balanced"]["samplers"], plan["balanced"]["rewards"]) == (3, 18)
    assert plan["needs"] == {"CPU": 1 + 3 + 36, "GPU": 2.5}
    text = CliRunner().invoke(app, ["plan", str(directory)]).output
    assert "set it: actors.count=3 rewards.count=18" in text
    # 3 x 4 + 18 x 2, where 8 x (1 + 1) are out.
    assert "48 groups" in plan["doubt"]
    assert "at most 16 are out" in " ".join(text.split())


def test_a_run_that_has_finished_nothing_yet_has_no_plan():
    status = Imagined(busy={"sampler": 0.5}, per_second=4.0).status()
    with pytest.raises(NoStageTimes, match="reward workers and the learner"):
        times_of_status(status)
