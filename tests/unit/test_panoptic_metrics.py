"""Panoptic matching: COCO's figures, the definition, and what must hold for any maps."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vision.data.coco_panoptic import load_panoptic
from vision.metrics.panoptic import PanopticStatistics, match_segments, panoptic_reward

# Label 0 is void, 1 and 2 are things, 3 and 4 are stuff.
IS_STUFF = np.array([False, False, False, True, True])
PENALTY = 0.3


@st.composite
def tables(draw):
    labels = draw(st.lists(st.integers(0, 4), min_size=1, max_size=5))
    crowd = [draw(st.booleans()) and label in (1, 2) for label in labels]
    return np.array(labels, np.int32), np.array(crowd)


@st.composite
def map_pairs(draw):
    """Two maps of few large segments, so that they often match, tie and lie on void."""
    (true_labels, crowd), (labels, _) = draw(tables()), draw(tables())
    height, width = draw(st.integers(1, 6)), draw(st.integers(1, 9))
    seed = draw(st.integers(0, 2**32 - 1))
    random = np.random.default_rng(seed)
    true = random.integers(0, len(true_labels), (height, width))
    if draw(st.booleans()):  # runs, and a prediction that is near the truth
        true = np.sort(true.ravel()).reshape(height, width)
    ids = np.where(random.random(true.shape) < 0.7, true % len(labels), 0)
    if draw(st.booleans()):
        labels = np.resize(true_labels, len(labels))
    return true.astype(np.int32), true_labels, crowd, ids.astype(np.int32), labels


def segments_of(ids, labels, crowd):
    """Masks as sets of pixels, by what makes a segment: its row, or the class of stuff."""
    segments: dict[tuple, set] = {}
    for pixel, row in np.ndenumerate(ids):
        label = int(labels[row])
        key = ("stuff", label) if IS_STUFF[label] else (int(row), label)
        segments.setdefault((*key, bool(crowd[row])), set()).add(pixel)
    return {key: pixels for key, pixels in segments.items() if key[1] != 0}


def by_definition(true_ids, true_labels, crowd, ids, labels):
    """(label, IoU) of matches, labels of unmatched, labels of missed; all sorted."""
    true = segments_of(true_ids, true_labels, crowd)
    found = segments_of(ids, labels, np.zeros(len(labels), bool))
    void = {p for p, row in np.ndenumerate(true_ids) if true_labels[row] == 0}
    matches, matched_true, matched = [], set(), set()
    for t, t_pixels in true.items():
        for p, p_pixels in found.items():
            if t[1] != p[1] or t[2]:
                continue
            union = len(t_pixels | (p_pixels - void))
            iou = Fraction(len(t_pixels & p_pixels), union)
            if iou > Fraction(1, 2):
                matches.append((t[1], float(iou)))
                matched_true.add(t)
                matched.add(p)
    unmatched = []
    for p, pixels in found.items():
        crowds = set().union(*(q for t, q in true.items() if t[2] and t[1] == p[1]))
        if p not in matched and not 2 * len(pixels & (void | crowds)) > len(pixels):
            unmatched.append(p[1])
    missed = [t[1] for t in true if t not in matched_true and not t[2]]
    return sorted(matches), sorted(unmatched), sorted(missed)


def match(true_ids, true_labels, crowd, ids, labels):
    found = match_segments(true_ids, true_labels, crowd, ids, labels, IS_STUFF)
    matches = sorted(zip(found.labels.tolist(), found.ious.tolist(), strict=True))
    return matches, sorted(found.unmatched.tolist()), sorted(found.missed.tolist())


def of(*rows):
    """A map of one row of pixels, with a table in which the row is the label: 'ids, labels'."""
    return np.array([rows], np.int32), np.arange(5, dtype=np.int32)


NO_CROWD = np.zeros(5, bool)


@given(map_pairs())
@settings(max_examples=300, deadline=None)
def test_the_kernel_is_the_definition(maps):
    assert match(*maps) == by_definition(*maps)


@given(map_pairs())
@settings(max_examples=50, deadline=None)
def test_a_map_matches_itself_wholly_but_for_crowds(maps):
    ids, labels, crowd, *_ = maps
    found = match_segments(ids, labels, crowd, ids, labels, IS_STUFF)
    assert (found.ious == 1).all()
    assert not len(found.unmatched)
    assert not len(found.missed)
    assert len(found.ious) == sum(not key[2] for key in segments_of(ids, labels, crowd))


@given(map_pairs(), st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_the_order_of_rows_changes_nothing(maps, random):
    true_ids, true_labels, crowd, ids, labels = maps
    order = list(range(len(labels)))
    random.shuffle(order)
    place = np.argsort(order).astype(np.int32)
    assert match(true_ids, true_labels, crowd, place[ids], labels[order]) == match(*maps)


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (16, 16), (7, 33), (40, 50)])
def test_every_pixel_counts_whatever_the_size(size):
    random = np.random.default_rng(sum(size))
    true = np.sort(random.integers(0, 5, size), axis=1).astype(np.int32)
    ids = np.sort(random.integers(0, 5, size), axis=1).astype(np.int32)
    labels = np.arange(5, dtype=np.int32)
    assert match(true, labels, NO_CROWD, ids, labels) == by_definition(
        true, labels, NO_CROWD, ids, labels
    )


def test_an_iou_of_exactly_one_half_is_no_match():
    (true, labels), (found, _) = of(1, 1, 0 + 2, 2), of(1, 2, 2, 2)
    assert match(true, labels, NO_CROWD, found, labels) == ([(2, 2 / 3)], [1], [1])
    (true, labels), (found, _) = of(1, 1, 1, 2), of(1, 1, 2, 2)
    assert match(true, labels, NO_CROWD, found, labels) == ([(1, 2 / 3)], [2], [2])


def test_void_of_the_truth_does_not_count_in_the_union_and_void_of_the_prediction_does():
    (true, labels), (found, _) = of(1, 0, 0, 0), of(1, 1, 1, 1)
    assert match(true, labels, NO_CROWD, found, labels) == ([(1, 1.0)], [], [])
    assert match(found, labels, NO_CROWD, true, labels) == ([], [1], [1])


@pytest.mark.parametrize(("on_void", "ignored"), [(2, False), (3, True)])
def test_a_prediction_with_more_than_half_on_void_is_ignored(on_void, ignored):
    true, labels = of(*[0] * on_void, *[2] * (4 - on_void), 2, 2, 2)
    found, _ = of(1, 1, 1, 1, 2, 2, 2)
    _, unmatched, _ = match(true, labels, NO_CROWD, found, labels)
    assert unmatched == ([] if ignored else [1])


def test_a_prediction_on_crowds_is_ignored_only_where_they_are_of_its_class():
    ids = np.array([[1, 1, 2, 2, 3]], np.int32)  # two crowds of things 1, and one of things 2
    labels, crowd = np.array([0, 1, 1, 2], np.int32), np.array([False, True, True, True])
    found = np.array([[1, 1, 1, 1, 1]], np.int32)
    for label, unmatched in ((1, []), (2, [2])):
        expected = ([], unmatched, [])
        assert match(ids, labels, crowd, found, np.array([0, label], np.int32)) == expected


def test_the_coco_images_give_their_figures(shared_data):
    folder = shared_data / "coco_panoptic_2"
    files = load_panoptic(folder / "panoptic_examples.json", folder / "panoptic_examples")
    is_stuff = np.array([False, *(not category.is_thing for category in files.categories)])
    statistics, rewards = PanopticStatistics(is_stuff), []
    for image_id in files.images:
        true = files.read_segments(image_id)
        arrays = (true.ids, true.labels, true.crowd)
        matches = match_segments(*arrays, true.ids, true.labels, is_stuff)
        statistics.add(matches)
        rewards.append(panoptic_reward(matches, PENALTY))
        # Splitting its largest stuff region in two changes nothing.
        pixels = np.bincount(true.ids.ravel(), minlength=len(true.labels))
        largest = int(np.argmax(pixels * is_stuff[true.labels]))
        halves = true.ids.copy()
        halves[:, : halves.shape[1] // 2][true.ids[:, : halves.shape[1] // 2] == largest] = len(
            true.labels
        )
        assert 0 < (halves == largest).sum() < pixels[largest]
        labels = np.append(true.labels, true.labels[largest]).astype(np.int32)
        split = match_segments(*arrays, halves, labels, is_stuff)
        assert panoptic_reward(split, PENALTY) == rewards[-1]
        things = match_segments(*arrays, halves, labels, np.zeros_like(is_stuff))
        assert panoptic_reward(things, PENALTY) < rewards[-1] - 0.2  # were it not merged
    assert rewards == [17.0, 30.0]
    assert statistics.all() == (1.0, 1.0, 1.0, 8)
    assert statistics.things() == statistics.stuff() == (1.0, 1.0, 1.0, 4)


def test_quality_is_the_mean_over_the_classes_that_occur():
    statistics = PanopticStatistics(IS_STUFF)
    assert statistics.all() is statistics.things() is statistics.stuff() is None
    (true, labels), (found, _) = of(1, 1, 1, 2), of(1, 1, 2, 2)  # 1: IoU 2/3; 2: one on each side
    for _ in range(2):
        statistics.add(match_segments(true, labels, NO_CROWD, found, labels, IS_STUFF))
    assert statistics.of([1]) == pytest.approx((2 / 3, 2 / 3, 1.0, 1))
    assert statistics.of([2]) == (0.0, 0.0, 0.0, 1)
    assert statistics.all() == statistics.things() == pytest.approx((1 / 3, 1 / 3, 0.5, 2))
    assert statistics.stuff() is None
    assert statistics.counts(1) == {"matched": 2, "unmatched": 0, "missed": 0}
    assert statistics.counts(2) == {"matched": 0, "unmatched": 2, "missed": 2}


def test_the_reward_is_matched_iou_less_the_unmatched():
    (true, labels), (found, _) = of(1, 1, 1, 2), of(1, 1, 2, 2)
    matches = match_segments(true, labels, NO_CROWD, found, labels, IS_STUFF)
    assert panoptic_reward(matches, PENALTY) == pytest.approx(2 / 3 - PENALTY)


@pytest.mark.parametrize("place", [0, 5, 17, 39])
@pytest.mark.parametrize("bad", [-1, 5, 2**30])
def test_an_id_without_a_row_is_named_with_its_pixel(place, bad):
    labels = np.arange(5, dtype=np.int32)
    true, ids = np.zeros((2, 20), np.int32), np.zeros((2, 20), np.int32)
    for broken in (true, ids):
        broken.flat[place] = bad
        with pytest.raises(ValueError, match=rf"y {place // 20}, x {place % 20}\).* {bad} "):
            match_segments(true, labels, NO_CROWD, ids, labels, IS_STUFF)
        broken.flat[place] = 0


def test_maps_and_tables_that_do_not_fit_are_named():
    ids, labels = of(0, 1, 2, 3)
    for arguments, message in [
        ((ids, labels, NO_CROWD, ids[:, :3], labels), r"\(1, 3\).*\(1, 4\)"),
        ((ids[0], labels, NO_CROWD, ids[0], labels), "height, width"),
        ((ids, labels, NO_CROWD[1:], ids, labels), "true_crowd has shape"),
        ((ids, labels + 1, NO_CROWD, ids, labels), r"0 \(void\) .. 4"),
        ((ids, labels, NO_CROWD, ids, labels - 1), r"0 \(void\) .. 4"),
    ]:
        with pytest.raises(ValueError, match=message):
            match_segments(*arguments, IS_STUFF)
