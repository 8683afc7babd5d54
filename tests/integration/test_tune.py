"""Reward tuning on a real Ray: the same numbers whoever does the work, and what became of it."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy import cluster
from deploy.run_directory import read_status
from learner.metrics import read_metrics
from learner.stop import StopRequest
from tests.last_step import LastStep
from tests.runs import STEPS, Run, wait_until_gone

Tune = Callable[..., Run]


def assert_same_weights(run: Run, other: Run) -> None:
    mine, others = run.weights(), other.weights()
    assert mine.keys() == others.keys()
    different = [name for name in mine if not np.array_equal(mine[name], others[name])]
    assert not different


def test_a_run_trains_every_step_and_changes_the_weights(undisturbed: Run) -> None:
    lines = list(read_metrics(undisturbed.directory))
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert undisturbed.result["state"] == "finished"
    with np.load(undisturbed.config.initial) as initial:
        final = undisturbed.weights()
        assert any(not np.array_equal(final[name], initial[name]) for name in final)
    # Reward groups must differ within, or all of the above would hold without any tuning.
    assert max(line["reward/spread"] for line in lines) > 0


def test_weights_do_not_depend_on_the_number_of_workers(tune: Tune, undisturbed: Run) -> None:
    run = tune("crowded", {"actors.count": 2, "rewards.count": 3})
    assert_same_weights(run, undisturbed)


def test_a_stopped_run_resumes_to_the_same_weights(
    tune: Tune, undisturbed: Run, tiny_values: dict[str, Any], tmp_path: Path
) -> None:
    last = LastStep(tiny_values, tmp_path)

    def stop_at_two(status: Mapping[str, Any], stop: StopRequest) -> None:
        if status["step"] >= 2:
            stop.request()

    stopped = tune("interrupted", last.changes, stop_at_two)
    assert stopped.result["state"] == "stopped"
    told = read_status(stopped.directory)
    assert told["state"] == "stopped"
    assert {worker["state"] for worker in told["workers"]} == {"ended"}
    assert 2 <= stopped.result["step"] < STEPS
    assert not (stopped.directory / "final.npz").exists()
    last.begin()
    resumed = tune("interrupted", last.changes)
    assert resumed.result["state"] == "finished"
    assert_same_weights(resumed, undisturbed)
    steps = [line["step"] for line in read_metrics(resumed.directory)]
    assert steps == list(range(1, STEPS + 1))


@pytest.mark.parametrize("lag", [0, 1])
def test_ordered_mode_trains_at_exactly_its_lag(tune: Tune, undisturbed: Run, lag: int) -> None:
    run = undisturbed if lag == 1 else tune("on-policy", {"replay.policy_lag": lag})
    staleness = [line["staleness/max"] for line in read_metrics(run.directory)]
    assert staleness == [min(step, lag) for step in range(STEPS)]


def test_async_mode_never_trains_a_group_older_than_its_bound(tune: Tune) -> None:
    changes = {"replay.mode": "async", "replay.max_policy_lag": 2, "actors.count": 2}
    run = tune("async", changes)
    assert run.result["state"] == "finished"
    assert max(line["staleness/max"] for line in read_metrics(run.directory)) <= 2


def test_a_group_that_became_too_old_is_dropped_and_made_up_for(
    tune: Tune, tiny_values: dict[str, Any]
) -> None:
    metrics = Path(tiny_values["runs"]) / "overtaken" / "metrics.jsonl"
    held = {
        "path": "tests.odd_rewards:HeldReward",
        "options": {"metrics": str(metrics), "steps": 4},
    }
    changes = {
        "replay.mode": "async",
        "replay.max_policy_lag": 1,
        "rewards.terms": [held],
        "rewards.count": 2,
        "rewards.groups_per_lease": 1,
    }
    run = tune("overtaken", changes)
    lines = list(read_metrics(run.directory))
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert max(line["staleness/max"] for line in lines) <= 1
    assert lines[-1]["groups/stale_dropped"] == run.statuses[-1]["queue"]["dropped"] == 1


def test_the_evaluator_judges_the_published_versions_and_keeps_the_best(tune: Tune) -> None:
    from actors.evaluator import read_evaluations

    run = tune("evaluated", {"evaluation.every": 2, "evaluation.batch_size": 4})
    evaluations = read_evaluations(run.directory)
    assert sorted(line["step"] for line in evaluations) == [0, 2, 4, 6]
    assert all(0 <= line["mAP"] <= 1 for line in evaluations)
    assert (run.directory / "best.npz").exists()


def test_no_process_outlives_a_run(tune: Tune, tiny_values: dict[str, Any], tmp_path: Path) -> None:
    last, pids = LastStep(tiny_values, tmp_path, {"actors.count": 2}), set()

    def begin_when_all_are_there(status: Mapping[str, Any], stop: StopRequest) -> None:
        pids.update(worker["pid"] for worker in status["workers"] if worker["pid"])
        if len(pids) == 4:
            last.begin()

    run = tune("tidy", last.changes, begin_when_all_are_there)
    assert len(pids) == 4
    assert wait_until_gone(list(pids)) == []
    told = read_status(run.directory)
    assert (told["state"], told["step"]) == ("finished", STEPS)
    assert {worker["state"] for worker in told["workers"]} == {"ended"}


def test_a_run_directory_with_other_settings_is_refused(tune: Tune, undisturbed: Run) -> None:
    from deploy.run_directory import RunDirectoryError

    with pytest.raises(RunDirectoryError, match=r"seed was 0, now 5.*--overwrite"):
        tune(undisturbed.config.name, {"seed": 5})


def test_a_second_run_in_the_same_directory_is_refused(tune: Tune, undisturbed: Run) -> None:
    from deploy.run_directory import RunDirectoryError, open_run_directory

    with (
        open_run_directory(undisturbed.config),
        pytest.raises(RunDirectoryError, match="is in use by process"),
    ):
        tune(undisturbed.config.name)


def test_a_second_run_of_a_name_in_one_cluster_is_refused_before_it_starts_anything(
    tune: Tune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "ENDING_SECONDS", 0.0)
    refused: list[bool] = []

    def try_another(status: Mapping[str, Any], stop: StopRequest) -> None:
        if not refused:
            refused.append(True)
            with pytest.raises(cluster.NameTaken, match=r"a run named twice is at work.*name=NAME"):
                tune("twice", {"runs": str(tmp_path)})

    run = tune("twice", None, try_another)
    assert refused
    assert run.result["step"] == STEPS
    assert not (tmp_path / "twice" / "status.json").exists()


def test_logs_of_every_process_stand_in_the_run_directory(undisturbed: Run) -> None:
    names = {path.name for path in Path(undisturbed.directory / "logs").iterdir()}
    assert names == {"controller.log", "learner.log", "sampler.log", "reward.log"}
