"""The detection rewards on the task's own types."""

from dataclasses import dataclass

import numpy as np
import pytest

from protos.trajectory import Scored
from rewards.detection import (
    MeanAveragePrecisionReward,
    RecallReward,
    balanced_class_weights,
)
from vision.tasks.boxes import Boxes, BoxLayout, Detections
from vision.tasks.task import Example


@dataclass
class CountsOnly:
    counts: np.ndarray
    max_boxes: int = 6

    @property
    def auxiliary_arrays(self):
        return {"match_iou": (self.max_boxes,)}

    def class_counts(self):
        return self.counts


TASK = CountsOnly(np.array([90, 10]))


def example(boxes, labels, crowd=None):
    crowd = np.zeros(len(labels), bool) if crowd is None else np.array(crowd)
    target = Boxes(np.array(boxes, np.int32), np.array(labels, np.int32), crowd)
    return Example("1", np.zeros((8, 8, 3), np.float32), target)


def detections(boxes, labels):
    score = np.ones(len(labels), np.float32)
    boxes = np.array(boxes, np.int32).reshape(-1, 4)
    return Detections(boxes, np.array(labels, np.int32), score, score)


def golden_samples(data):
    layout = BoxLayout(levels=1000, classes=80, max_boxes=20)
    _, true_labels, true_valid = layout.decode(data["gt"])
    true_boxes = layout.decode(data["gt"])[0]
    examples = [
        example(boxes[valid], labels[valid])
        for boxes, labels, valid in zip(true_boxes, true_labels, true_valid, strict=True)
    ]
    # The random sequences have holes, which a decoded sequence never has: closed up here.
    slots = data["pred"].reshape(16, 2, 20, 6)
    predictions = [
        [detections(rows[:, :4] - 3, rows[:, 4] - 1004) for rows in (s[s[:, 5] > 0] for s in both)]
        for both in slots
    ]
    return examples, predictions


@pytest.mark.parametrize(
    ("mode", "name"), [("paper", "true_mean_reward"), ("official", "official_reward")]
)
def test_map_reward_equals_the_released_code(golden, mode, name):
    data = np.load(golden / "detection_reward.npz")
    examples, predictions = golden_samples(data)
    reward = MeanAveragePrecisionReward(CountsOnly(data["class_counts"], 20), mode=mode)
    for k in range(2):
        outcomes = reward.score(examples, [both[k] for both in predictions])
        rewards = [outcome.reward for outcome in outcomes]
        np.testing.assert_allclose(rewards, data[name][:, k], atol=5e-6)
        for g, outcome in enumerate(outcomes):
            valid = data["pred"].reshape(16, 2, 20, 6)[g, k, :, 5] > 0
            match_iou = outcome.auxiliary["match_iou"]
            assert match_iou.shape == (20,)
            np.testing.assert_allclose(
                match_iou[: valid.sum()], data["match_iou_at_0p5"][g, k, valid], atol=5e-6
            )
            assert (match_iou[valid.sum() :] == 0).all()


def test_recall_counts_boxes_less_duplicates_whatever_the_class():
    truth = example([[0, 0, 10, 10], [20, 20, 30, 30]], [0, 1])
    found = detections(
        [[0, 0, 10, 10], [20, 20, 30, 30], [20, 20, 30, 29], [0, 0, 5, 5]], [0, 1, 1, 1]
    )
    (outcome,) = RecallReward(TASK).score([truth], [found])
    assert outcome.reward == pytest.approx(2 - 0.3)
    np.testing.assert_allclose(outcome.auxiliary["match_iou"], [1, 1, 0.9, 0, 0, 0])
    assert outcome.auxiliary["match_iou"].dtype == np.float32


def test_recall_threshold_is_an_option():
    truth, found = example([[0, 0, 1, 20]], [0]), detections([[0, 0, 1, 15]], [0])  # IoU 0.75

    def reward(threshold):
        return RecallReward(TASK, iou_threshold=threshold).score([truth], [found])[0].reward

    assert [reward(0.5), reward(0.7), reward(0.75)] == [1, 1, 0]
    assert reward(None) == pytest.approx(0.5)
    with pytest.raises(ValueError, match=r"iou_threshold is 0\.4"):
        reward(0.4)


def test_duplicates_match_decides_only_the_confidence_of_duplicates():
    truth = example([[0, 0, 10, 10]], [0])
    found = detections([[0, 0, 10, 9], [0, 0, 10, 10]], [0, 0])
    with_iou, without = (
        MeanAveragePrecisionReward(TASK, duplicates_match=given).score([truth], [found])[0]
        for given in (True, False)
    )
    assert with_iou.reward == without.reward
    np.testing.assert_allclose(with_iou.auxiliary["match_iou"][:2], [0.9, 1])
    np.testing.assert_allclose(without.auxiliary["match_iou"][:2], [0, 1])


def test_rare_classes_weigh_more_in_map_and_a_duplicate_costs_by_its_class():
    weights = balanced_class_weights(TASK.counts)
    assert weights.mean() == pytest.approx(1)
    assert weights[1] / weights[0] == pytest.approx((90 + 5) / (10 + 5))
    reward = MeanAveragePrecisionReward(TASK)
    for label in (0, 1):
        truth = example([[0, 0, 10, 10]], [label])
        once, twice = (
            reward.score([truth], [detections([[0, 0, 10, 10]] * n, [label] * n)])[0].reward
            for n in (1, 2)
        )
        assert once == pytest.approx(weights[label])
        assert once - twice == pytest.approx(0.3 * weights[label])
    (even,) = MeanAveragePrecisionReward(TASK, class_weights=False).score(
        [example([[0, 0, 10, 10]], [1])], [detections([[0, 0, 10, 10]], [1])]
    )
    assert even.reward == pytest.approx(1)


def test_crowds_are_unknown_to_the_reward():
    truth = example([[0, 0, 10, 10], [0, 0, 40, 40]], [0, 0], crowd=[False, True])
    (outcome,) = RecallReward(TASK).score([truth], [detections([[0, 0, 40, 40]], [0])])
    assert outcome.reward == 0
    assert (outcome.auxiliary["match_iou"] == 0).all()


def test_nothing_found_or_nothing_there_scores_zero():
    nothing, box = example(np.zeros((0, 4)), []), example([[0, 0, 10, 10]], [0])
    for reward in (RecallReward(TASK), MeanAveragePrecisionReward(TASK)):
        outcomes = reward.score(
            [nothing, box, nothing],
            [detections([], []), detections([], []), detections([[0, 0, 10, 10]], [0])],
        )
        assert [outcome.reward for outcome in outcomes] == [0, 0, 0]
        assert all(isinstance(outcome, Scored) for outcome in outcomes)
        assert reward.score([], []) == []


def test_options_and_predictions_out_of_range_are_named():
    with pytest.raises(ValueError, match="duplicate_penalty is -1"):
        RecallReward(TASK, duplicate_penalty=-1)
    with pytest.raises(ValueError, match="mode is 'oficial'"):
        MeanAveragePrecisionReward(TASK, mode="oficial")
    with pytest.raises(ValueError, match="class counts"):
        MeanAveragePrecisionReward(CountsOnly(np.zeros(3, np.int64)))
    with pytest.raises(ValueError, match="prediction 0 has 7 boxes; the task allows 6"):
        RecallReward(TASK).score(
            [example([[0, 0, 1, 1]], [0])], [detections([[0, 0, 1, 1]] * 7, [0] * 7)]
        )
    with pytest.raises(ValueError, match="labels holds class 2"):
        RecallReward(TASK).score([example([[0, 0, 1, 1]], [0])], [detections([[0, 0, 1, 1]], [2])])
