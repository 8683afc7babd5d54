"""Augmentation: a function of the seed, with boxes that follow what they enclose."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from vision.data.augment import AugmentOptions, augment

SIZE = (64, 80)


def scene(y0: int, x0: int, y1: int, x1: int) -> tuple[np.ndarray, np.ndarray]:
    """A white rectangle on black in an image of 100 x 120 pixels, and its box."""
    image = np.zeros((100, 120, 3), np.uint8)
    image[y0:y1, x0:x1] = 255
    return image, np.array([[y0 / 100, x0 / 120, y1 / 100, x1 / 120]])


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**64 - 1), flip=st.sampled_from([0.0, 1.0]))
def test_the_box_is_where_its_rectangle_went(seed: int, flip: float) -> None:
    image, boxes = scene(30, 20, 70, 60)
    options = AugmentOptions(scale=(0.5, 2.0), flip=flip, least_visible=0)
    changed, moved, kept = augment(image, boxes, SIZE, options, seed)
    assert changed.shape == (*SIZE, 3)
    if not kept[0]:
        return
    white = changed[..., 0] > 191
    extent = (moved[0] * np.array(SIZE * 2)).reshape(2, 2)
    if (extent[1] - extent[0]).min() < 2:
        return
    rows, columns = np.flatnonzero(white.any(1)), np.flatnonzero(white.any(0))
    seen = np.array([rows[0], columns[0], rows[-1] + 1, columns[-1] + 1])
    assert np.abs(seen - extent.ravel()).max() <= 1.5  # of interpolation at the edges, pixels


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**64 - 1))
def test_equal_seeds_give_equal_results(seed: int) -> None:
    image, boxes = scene(10, 10, 50, 90)
    options = AugmentOptions(brightness=0.3, contrast=0.3, saturation=0.3)
    first, second = (augment(image.copy(), boxes.copy(), SIZE, options, seed) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert np.array_equal(a, b)


def test_other_seeds_give_other_results() -> None:
    image, boxes = scene(10, 10, 50, 90)
    results = [augment(image, boxes, SIZE, AugmentOptions(), seed)[1] for seed in range(10)]
    assert len({result.tobytes() for result in results}) > 5


def test_the_input_is_left_as_it_is() -> None:
    image, boxes = scene(10, 10, 50, 90)
    before = image.copy(), boxes.copy()
    augment(image, boxes, SIZE, AugmentOptions(brightness=0.5, flip=1), 3)
    assert np.array_equal(image, before[0])
    assert np.array_equal(boxes, before[1])


def test_with_nothing_to_change_the_boxes_stay() -> None:
    image, boxes = scene(10, 10, 50, 90)
    options = AugmentOptions(scale=(1, 1), flip=0)
    changed, moved, kept = augment(image, boxes, (100, 120), options, 5)
    assert np.array_equal(changed, image)
    assert np.allclose(moved, boxes)
    assert kept.all()


def test_what_is_mostly_out_of_the_frame_is_not_kept() -> None:
    image, _ = scene(0, 0, 1, 1)
    corners = np.array([[0, 0, 0.1, 0.1], [0.9, 0.9, 1, 1], [0, 0.9, 0.1, 1], [0.9, 0, 1, 0.1]])
    options = AugmentOptions(scale=(4, 4), flip=0, least_visible=0.5)
    for seed in range(20):
        _, moved, kept = augment(image, corners, SIZE, options, seed)
        assert kept.sum() <= 1  # a quarter of each side shows one corner at most
        assert ((moved >= 0) & (moved <= 1)).all()
        sides = np.maximum(moved[:, 2:] - moved[:, :2], 0)
        assert np.array_equal(kept, sides.prod(1) >= 0.5 * 0.4**2)


def test_no_boxes_stay_no_boxes() -> None:
    image, _ = scene(0, 0, 1, 1)
    _, moved, kept = augment(image, np.zeros((0, 4)), SIZE, AugmentOptions(), 1)
    assert (moved.shape, kept.shape) == ((0, 4), (0,))


def test_colours_change_within_their_bounds() -> None:
    image = np.full((10, 10, 3), 100, np.uint8)
    options = AugmentOptions(scale=(1, 1), flip=0, brightness=0.2)
    levels = {
        int(augment(image, np.zeros((0, 4)), (10, 10), options, seed)[0][0, 0, 0])
        for seed in range(40)
    }
    assert len(levels) > 10
    assert min(levels) >= 80
    assert max(levels) <= 120


@pytest.mark.parametrize(
    "options",
    [{"scale": (2, 1)}, {"scale": (0, 1)}, {"flip": 1.5}, {"brightness": -1}, {"zoom": 2}],
)
def test_options_out_of_range_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(options))):
        AugmentOptions.model_validate(options)
