"""Box matching: the released code's numbers, the definition, and what must hold for any boxes."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from vision.metrics.boxes import MAX_COORDINATE, N_THRESHOLDS, score_boxes

CLASSES = 3
WEIGHTS = np.array([0.5, 1.0, 1.5])
MEAN = np.full(N_THRESHOLDS, 1 / N_THRESHOLDS)
PENALTY = 0.3

corner = st.integers(0, 9)  # few buckets: ties and exact thresholds occur often
label = st.integers(0, CLASSES - 1)


@st.composite
def any_box(draw):
    return (*draw(st.tuples(corner, corner, corner, corner)), draw(label))


@st.composite
def real_box(draw):
    y0, x0 = draw(corner), draw(corner)
    return (y0, x0, y0 + draw(st.integers(1, 9)), x0 + draw(st.integers(1, 9)), draw(label))


truths = st.lists(real_box(), min_size=1, max_size=5, unique=True)
sampled = st.lists(any_box() | real_box(), max_size=7)


@st.composite
def near(draw, true):
    """Boxes of which most lie near one of the truth, so that they match and tie."""
    step = st.integers(-1, 1)
    found = []
    for kind in draw(st.lists(st.integers(0, 4), max_size=7)):
        box = draw(st.sampled_from(true) if kind else any_box())
        found.append((*(max(0, value + draw(step)) for value in box[:4]), box[4]))
    return found


scenes = truths.flatmap(lambda true: st.tuples(st.just(true), near(true)))


def score(true, found, threshold_weights=MEAN, penalty=PENALTY):
    true, found = (np.array(rows, np.int32).reshape(-1, 5) for rows in (true, found))
    scores = score_boxes(
        true[None, :, :4],
        true[None, :, 4],
        found[None, None, :, :4],
        found[None, None, :, 4],
        WEIGHTS,
        threshold_weights,
        penalty,
    )
    return scores.rewards[0, 0], scores.match_iou[0, 0], scores.kept[0, 0]


def iou(a, b):
    height = min(a[2], b[2]) - max(a[0], b[0])
    width = min(a[3], b[3]) - max(a[1], b[1])
    inter = max(height, 0) * max(width, 0)
    area = [abs((y1 - y0) * (x1 - x0)) for y0, x0, y1, x1, _ in (a, b)]
    union = sum(area) - inter
    return Fraction(inter, union) if union else Fraction(0)


def by_definition(true, found, threshold):
    """Reward and match IoUs at one threshold, with the matching redone for it."""
    picks: dict[int, list[Fraction]] = {}
    match_iou = []
    for box in found:
        candidates = [(iou(box, t), -j) for j, t in enumerate(true) if t[4] == box[4]]
        best, minus_j = max(candidates, default=(Fraction(0), 0))
        match_iou.append(float(best) if best > threshold else 0.0)
        if best > threshold:
            picks.setdefault(-minus_j, []).append(best)
    reward = sum(WEIGHTS[true[j][4]] * (1 - PENALTY * (len(p) - 1)) for j, p in picks.items())
    return reward, match_iou


@given(scenes)
@settings(max_examples=300, deadline=None)
def test_closed_form_equals_the_matching_redone_for_each_threshold(scene):
    true, found = scene
    rewards = []
    for t in range(N_THRESHOLDS):
        expected, match_iou = by_definition(true, found, Fraction(10 + t, 20))
        reward, ious, _ = score(true, found, np.eye(N_THRESHOLDS)[t])
        assert reward == pytest.approx(expected)
        if t == 0:
            np.testing.assert_allclose(ious, match_iou, atol=1e-7)
        rewards.append(reward)
    assert score(true, found)[0] == pytest.approx(np.mean(rewards))


@given(truths)
@settings(deadline=None)
def test_perfect_prediction_scores_the_sum_of_weights(true):
    reward, match_iou, kept = score(true, true)
    assert reward == pytest.approx(sum(WEIGHTS[box[4]] for box in true))
    assert kept.all()
    assert (match_iou == 1).all()


@given(scenes)
@settings(deadline=None)
def test_reward_stays_within_its_bounds(scene):
    true, found = scene
    reward, match_iou, _ = score(true, found)
    assert reward <= sum(WEIGHTS[box[4]] for box in true) + 1e-9
    assert reward >= -PENALTY * WEIGHTS.max() * len(found)
    assert ((match_iou == 0) | ((match_iou > 0.5) & (match_iou <= 1))).all()


@given(truths, st.data())
@settings(deadline=None)
def test_each_duplicate_costs_its_share_of_the_class_weight(true, data):
    duplicate = data.draw(st.sampled_from(true))
    copies = data.draw(st.integers(1, 4))
    perfect, _, _ = score(true, true)
    reward, match_iou, kept = score(true, [*true, *[duplicate] * copies])
    assert perfect - reward == pytest.approx(PENALTY * WEIGHTS[duplicate[4]] * copies)
    assert kept.sum() == len(true)
    assert (match_iou == 1).all()


@given(scenes, st.randoms(use_true_random=False))
@settings(deadline=None)
def test_order_of_predictions_changes_nothing(scene, random):
    true, found = scene
    order = list(range(len(found)))
    random.shuffle(order)
    reward, match_iou, _ = score(true, found)
    shuffled, shuffled_iou, _ = score(true, [found[i] for i in order])
    assert shuffled == pytest.approx(reward)
    np.testing.assert_array_equal(shuffled_iou, match_iou[order])


@given(scenes, st.randoms(use_true_random=False))
@settings(deadline=None)
def test_order_of_truth_changes_nothing_where_no_pick_is_tied(scene, random):
    true, found = scene
    for box in found:
        ious = sorted(iou(box, t) for t in true if t[4] == box[4])
        assume(len(ious) < 2 or ious[-1] > ious[-2] or ious[-1] == 0)
    shuffled = list(true)
    random.shuffle(shuffled)
    before, after = score(true, found), score(shuffled, found)
    assert after[0] == pytest.approx(before[0])
    np.testing.assert_array_equal(after[1], before[1])


@given(scenes, any_box() | real_box())
@settings(deadline=None)
def test_false_positive_of_a_class_that_is_not_there_costs_nothing(scene, extra):
    true, found = scene
    absent = set(range(CLASSES)) - {box[4] for box in true}
    assume(absent)
    reward, _, _ = score(true, found)
    more, match_iou, kept = score(true, [*found, (*extra[:4], min(absent))])
    assert more == reward
    assert match_iou[-1] == 0
    assert not kept[-1]


@given(st.lists(st.tuples(truths, sampled, sampled), min_size=1, max_size=4))
@settings(deadline=None)
def test_batch_equals_one_by_one_whatever_the_padding(groups):
    true_boxes = np.zeros((len(groups), 6, 4), np.int32)
    true_labels = np.full((len(groups), 6), -1, np.int32)
    boxes = np.zeros((len(groups), 2, 16, 4), np.int32)
    labels = np.full((len(groups), 2, 16), -1, np.int32)
    for g, (true, *samples) in enumerate(groups):
        true_boxes[g, : len(true)] = [box[:4] for box in true]
        true_labels[g, : len(true)] = [box[4] for box in true]
        for k, found in enumerate(samples):
            for i, box in enumerate(found):  # with a hole before each
                boxes[g, k, 2 * i + 1], labels[g, k, 2 * i + 1] = box[:4], box[4]
    batch = score_boxes(true_boxes, true_labels, boxes, labels, WEIGHTS, MEAN, PENALTY)
    for g, (true, *samples) in enumerate(groups):
        for k, found in enumerate(samples):
            reward, match_iou, kept = score(true, found)
            slots = slice(1, 2 * len(found), 2)
            assert batch.rewards[g, k] == reward
            np.testing.assert_array_equal(batch.match_iou[g, k, slots], match_iou)
            np.testing.assert_array_equal(batch.kept[g, k, slots], kept)
            assert batch.kept[g, k].sum() == kept.sum()


@pytest.mark.parametrize(
    ("numerator", "passed"), [(10, 0), (11, 1), (12, 2), (15, 5), (19, 9), (20, 10)]
)
def test_an_iou_at_a_threshold_does_not_pass_it(numerator, passed):
    true = [(0, 0, 1, 20, 1)]
    found = [(0, 0, 1, numerator, 1)]  # IoU = numerator / 20 exactly
    reward, match_iou, kept = score(true, found)
    assert reward == pytest.approx(passed / N_THRESHOLDS)
    assert match_iou[0] == pytest.approx(numerator / 20 if passed else 0)
    assert kept[0] == (passed > 0)


def test_of_two_boxes_that_are_equally_good_the_first_is_picked():
    found = (0, 2, 1, 18, 1)
    left, right = (0, 0, 1, 18, 1), (0, 2, 1, 20, 1)  # IoU 16/18 with either
    _, _, kept = score([left, right], [found, left])
    assert kept.tolist() == [False, True]
    _, _, kept = score([right, left], [found, left])
    assert kept.tolist() == [True, True]


def test_inverted_box_matches_nothing():
    true = [(0, 0, 8, 8, 0)]
    for inverted in [(8, 0, 0, 8, 0), (0, 8, 8, 0, 0), (8, 8, 0, 0, 0)]:
        assert score(true, [inverted])[0] == 0


def test_largest_coordinates_are_exact():
    top = MAX_COORDINATE
    true = [(0, 0, top, top, 0), (0, 0, top, top - 1, 0)]
    for better, found in enumerate(true):
        _, match_iou, kept = score(true, [found])
        assert (match_iou[0], kept[0]) == (1.0, True), better


def golden_arrays(data):
    pred = data["pred"].reshape(16, 2, 20, 6)
    true = data["gt"].reshape(16, 20, 6)
    # Tokens: confidence 0 is no box; classes begin at 1004.
    pred_labels, true_labels = (
        np.where(boxes[..., 5] > 0, boxes[..., 4] - 1004, -1) for boxes in (pred, true)
    )
    return true[..., :4], true_labels, pred[..., :4], pred_labels


def test_released_code_agrees_at_every_threshold_and_on_match_ious(golden):
    data = np.load(golden / "detection_reward.npz")
    weights = 1 / (data["class_counts"] + 0.05 * data["class_counts"].sum())
    weights /= weights.mean()
    for t in range(N_THRESHOLDS):
        scores = score_boxes(
            *golden_arrays(data), weights, np.eye(N_THRESHOLDS)[t], duplicate_penalty=0.3
        )
        expected = data["reward_per_threshold"][..., t]
        np.testing.assert_allclose(scores.rewards, expected, atol=5e-6)
        np.testing.assert_allclose(scores.match_iou, data["match_iou_at_0p5"], atol=5e-6)


def test_arrays_that_do_not_fit_are_named():
    true_boxes, true_labels = np.zeros((1, 2, 4), np.int32), np.zeros((1, 2), np.int32)
    boxes, labels = np.zeros((1, 1, 3, 4), np.int32), np.zeros((1, 1, 3), np.int32)
    good = [true_boxes, true_labels, boxes, labels, WEIGHTS, MEAN, PENALTY]
    score_boxes(*good)
    for position, bad, message in [
        (0, true_boxes[:, :1], "true_boxes has shape"),
        (2, boxes[..., :3], "boxes has shape"),
        (3, labels[0], "labels have shape"),
        (3, labels + CLASSES, "labels holds class 3"),
        (2, boxes + MAX_COORDINATE + 1, "boxes holds the coordinate 30001"),
        (0, true_boxes - 1, "true_boxes holds the coordinate -1"),
        (5, MEAN[1:], "threshold_weights has shape"),
    ]:
        arguments = [*good]
        arguments[position] = bad
        with pytest.raises(ValueError, match=message):
            score_boxes(*arguments)
