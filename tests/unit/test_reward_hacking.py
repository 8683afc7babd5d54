"""The warning comes when the reward rises while the held-out metric falls, and not from noise."""

import json
import logging
import math

import numpy as np
import pytest

from deploy.reward_hacking import (
    RewardHackingWatch,
    find_reward_hacking,
    nearest_evaluation,
    reward_by_evaluation,
    reward_hacking_in,
)

EVERY = 20  # steps between evaluations
RUNS = 60


def find(metric, reward, seed=0, metric_noise=0.005, reward_noise=0.2):
    """The rule on curves of (evaluation's number) and of (share of the run), with noise."""
    random = np.random.default_rng(seed)
    values = np.asarray(metric, float)
    values = values + random.normal(size=len(values)) * metric_noise
    evaluated = EVERY * np.arange(len(values))
    steps = np.arange(1, evaluated[-1] + 1)
    rewards = reward(steps / steps[-1]) + random.normal(size=len(steps)) * reward_noise
    return find_reward_hacking("mAP", steps, rewards, evaluated, values)


def rises(share):
    return 1 + share


def levels_off(share):
    return 2 - np.exp(-8 * share)


def peaked(count, peak, end):
    """Rises from 0.4 to `peak` over the first third, then falls to `end`."""
    return np.interp(np.arange(count), [0, count // 3, count - 1], [0.4, peak, end])


def false_alarms(metric, reward):
    return sum(find(metric, reward, seed) is not None for seed in range(RUNS))


@pytest.mark.parametrize("count", [8, 13, 40])
def test_a_metric_that_falls_while_the_reward_rises_is_found(count):
    found = [find(peaked(count, 0.5, 0.42), rises, seed) for seed in range(RUNS)]
    assert sum(one is not None for one in found) > 0.8 * RUNS
    one = next(one for one in found if one is not None)
    assert one.metric_best > one.metric_last
    assert one.reward_best < one.reward_last
    assert one.best_steps[1] < one.last_steps[0]
    assert one.last_steps[1] == EVERY * (count - 1)


def test_a_metric_that_falls_from_the_start_is_found():
    found = find(0.5 - 0.02 * np.arange(8), rises)
    assert found is not None
    assert found.best_steps[0] == 0


@pytest.mark.parametrize("count", [6, 8, 13, 40, 120])
def test_noise_alone_raises_no_alarm(count):
    assert false_alarms(np.full(count, 0.5), lambda share: 0 * share) <= 0.05 * RUNS


@pytest.mark.parametrize("count", [6, 8, 13, 40, 120])
def test_a_metric_that_levels_off_while_the_reward_still_rises_raises_no_alarm(count):
    metric = 0.5 - 0.12 * np.exp(-np.arange(count))
    assert false_alarms(metric, rises) <= 0.05 * RUNS


def test_a_metric_that_rises_with_the_reward_raises_no_alarm():
    assert false_alarms(np.linspace(0.4, 0.5, 13), levels_off) == 0


def test_a_collapse_of_reward_and_metric_is_another_matter():
    assert false_alarms(peaked(13, 0.5, 0.2), lambda share: 1 - share) == 0


def test_one_bad_evaluation_raises_no_alarm():
    metric = np.full(20, 0.5)
    metric[-1] = 0.4
    assert false_alarms(metric, rises) <= 0.05 * RUNS


def test_a_fall_that_does_not_matter_raises_no_alarm():
    # Far beyond the noise, which is none, and less than a per cent.
    assert find(peaked(13, 0.5, 0.497), rises, metric_noise=0) is None
    assert find(peaked(13, 0.5, 0.48), rises, metric_noise=0) is not None


def test_a_run_with_too_little_to_tell_raises_no_alarm():
    for count in range(6):
        metric = 0.5 - 0.05 * np.arange(count)
        evaluated = EVERY * np.arange(count)
        steps = np.arange(1, 101)
        assert find_reward_hacking("mAP", steps, rises(steps), evaluated, metric) is None
    metric, evaluated = 0.5 - 0.05 * np.arange(8), EVERY * np.arange(8)
    assert find_reward_hacking("mAP", [], [], evaluated, metric) is None
    assert find_reward_hacking("mAP", [20, 140], [1.0, 2.0], evaluated, metric) is None


def test_a_training_step_belongs_to_its_nearest_evaluation():
    np.testing.assert_array_equal(nearest_evaluation([1, 5, 6, 14, 16, 99], [0, 10, 20]),
                                  [0, 0, 1, 1, 2, 2])  # fmt: skip
    means = reward_by_evaluation([1, 4, 9], [1.0, 3.0, 5.0], [0, 10, 20])
    assert means[:2] == [2.0, 5.0]
    assert math.isnan(means[2])
    assert reward_by_evaluation([1], [1.0], []) == []
    assert reward_by_evaluation([1, 2], [1.0, 2.0], [2]) == [1.5]


def lines(count=13):
    training = [{"step": s, "reward/mean": s / 100 + 0.1 * (s % 2)} for s in range(1, 20 * count)]
    values = peaked(count, 0.5, 0.4)
    judged = [{"step": EVERY * i, "split": "validation", "examples": 50, "mAP": float(value)}
              for i, value in enumerate(values)]  # fmt: skip
    return training, judged


def test_evaluations_of_other_examples_are_not_compared():
    training, judged = lines()
    assert reward_hacking_in("mAP", training, judged) is not None
    other = [line | {"examples": 500} if line["step"] >= 160 else line for line in judged]
    assert reward_hacking_in("mAP", training, other) is None


def test_an_evaluation_that_gave_no_number_is_left_out():
    training, judged = lines()
    fine = [line | {"mAP": 0.5} for line in judged]
    fine[5]["mAP"] = float("nan")
    assert reward_hacking_in("mAP", training, fine) is None
    judged[5]["mAP"] = float("nan")
    assert reward_hacking_in("mAP", training, judged) is not None


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def test_a_run_is_warned_of_once_and_its_status_holds_as_long_as_it_does(tmp_path, caplog):
    training, judged = lines()
    watch = RewardHackingWatch(tmp_path, "mAP")
    assert watch.look() is None  # nothing is written yet
    write(tmp_path / "metrics.jsonl", training)
    for count in range(1, len(judged) + 1):
        write(tmp_path / "evaluations.jsonl", judged[:count])
        watch.look()
    found = watch.look()
    assert found is not None
    warned = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warned) == 1
    for part in ("reward hacking", "mAP 0.4", "at steps 120..160"):
        assert part in warned[0].getMessage()
    assert found.to_json()["message"] == str(found)
    assert json.loads(json.dumps(found.to_json()))["metric"] == "mAP"
    recovered = [*judged, *({**judged[4], "step": 260 + EVERY * i} for i in range(5))]
    write(tmp_path / "evaluations.jsonl", recovered)
    assert watch.look() is None


def test_files_are_read_only_when_there_is_a_new_evaluation(tmp_path):
    training, judged = lines()
    write(tmp_path / "metrics.jsonl", training)
    write(tmp_path / "evaluations.jsonl", judged)
    watch = RewardHackingWatch(tmp_path, "mAP")
    found = watch.look()
    (tmp_path / "metrics.jsonl").write_text("")  # would find nothing
    assert watch.look() is found is not None


def test_files_that_cannot_be_read_for_a_while_are_read_later(tmp_path, caplog):
    training, judged = lines()
    write(tmp_path / "evaluations.jsonl", judged)
    (tmp_path / "metrics.jsonl").mkdir()
    watch = RewardHackingWatch(tmp_path, "mAP")
    assert watch.look() is None
    assert "cannot be read" in caplog.text
    (tmp_path / "metrics.jsonl").rmdir()
    write(tmp_path / "metrics.jsonl", training)
    assert watch.look() is not None
