"""Augmentation: a function of the seed; boxes and segments follow what they enclose."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from vision.data.augment import AugmentOptions, augment, augment_segments
from vision.data.segments import SegmentMap

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


def segments_of(ids: np.ndarray, labels: list[int]) -> SegmentMap:
    """Segments by rows of a table, the last one a crowd."""
    crowd = np.arange(len(labels)) == len(labels) - 1
    return SegmentMap(ids.astype(np.int32), np.array(labels, np.int32), crowd)


def painted(semantics: np.ndarray) -> np.ndarray:
    """An image whose colours are the labels of the pixels, 40 levels apart; void is gray."""
    gray = np.where(semantics == 0, 128, 40 * semantics - 35).astype(np.uint8)
    return np.repeat(gray[..., None], 3, 2)


def quarters(height: int = 100, width: int = 120) -> SegmentMap:
    """Four quarters of the labels 1 .. 4, the last a crowd; nobody is row 0, which is void."""
    ids = np.ones((height, width), np.int32)
    ids[: height // 2, width // 2 :] = 2
    ids[height // 2 :, : width // 2] = 3
    ids[height // 2 :, width // 2 :] = 4
    return segments_of(ids, [0, 1, 2, 3, 4])


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**64 - 1),
    flip=st.sampled_from([0.0, 1.0]),
    height=st.integers(1, 90),
    width=st.integers(1, 90),
)
def test_segments_are_where_their_pixels_went(
    seed: int, flip: float, height: int, width: int
) -> None:
    true = quarters(height, width)
    options = AugmentOptions(scale=(0.3, 4.0), flip=flip)
    image, found = augment_segments(painted(true.semantics()), true, SIZE, options, seed)
    assert image.shape == (*SIZE, 3)
    assert found.ids.shape == SIZE
    semantics = found.semantics()
    # Away from borders, where interpolation mixes the colours of both sides.
    inside = np.ones(SIZE, bool)
    reach = 1 + int(np.ceil(4.0 * max(SIZE[0] / height, SIZE[1] / width)))
    for axis in (0, 1):
        changes = np.diff(image[..., 0].astype(int), axis=axis) != 0
        for shift in range(-reach, reach + 1):
            near = np.roll(np.pad(changes, [(0, int(a == axis)) for a in (0, 1)]), shift, axis)
            inside &= ~near
    assert np.array_equal(image[..., 0][inside], painted(semantics)[..., 0][inside])


def test_segments_follow_their_pixels_without_interpolation_to_the_last_one() -> None:
    """Whole magnifications of the image's own size, mirrored or not, show whole pixels."""
    random = np.random.default_rng(0)
    true = segments_of(random.integers(0, 6, (32, 40)), [0, 1, 2, 3, 4, 5])
    image = painted(true.semantics())
    for flip in (0.0, 1.0):
        options = AugmentOptions(scale=(1, 1), flip=flip)
        changed, found = augment_segments(image, true, (32, 40), options, 1)
        assert np.array_equal(changed, painted(found.semantics()))
        assert np.array_equal(changed, image[:, ::-1] if flip else image)
        # At half the size the nearest pixel is the one that resizing alone takes.
        _, small = augment_segments(image, true, (16, 20), options, 1)
        expected = true.resized(16, 20).semantics()
        assert np.array_equal(small.semantics(), expected[:, ::-1] if flip else expected)


def test_segments_are_seen_in_the_frame_where_boxes_are() -> None:
    """A box around a segment, and the segment, by the same seed."""
    image, boxes = scene(30, 20, 70, 60)
    true = segments_of(image[..., 0] // 255, [0, 1])
    for seed in range(40):
        options = AugmentOptions(scale=(0.4, 3.0), flip=0.5, least_visible=0)
        pixels, moved, kept = augment(image, boxes, SIZE, options, seed)
        again, found = augment_segments(image, true, SIZE, options, seed)
        assert np.array_equal(pixels, again)
        mask = found.semantics() == 1
        if not kept[0]:
            assert mask.sum() <= max(SIZE)  # the box may begin within the last pixel
            continue
        extent = (moved[0] * np.array(SIZE * 2)).reshape(2, 2)
        if (extent[1] - extent[0]).min() < 1:
            continue
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        seen = np.array([rows[0], columns[0], rows[-1] + 1, columns[-1] + 1])
        assert np.abs(seen - extent.ravel()).max() <= 0.5 + 1e-9  # of a pixel's centre


def test_segments_that_have_left_the_frame_are_dropped() -> None:
    true = quarters()
    options = AugmentOptions(scale=(3, 3), flip=0)
    fewer = 0
    for seed in range(20):
        _, found = augment_segments(painted(true.semantics()), true, SIZE, options, seed)
        assert found.labels[0] == 0
        assert sorted(set(found.ids.ravel())) == list(range(1, len(found.labels)))
        assert len(set(found.labels)) == len(found.labels)
        assert np.array_equal(found.crowd, found.labels == 4)
        fewer += len(found.labels) < 5
    assert fewer > 5


def test_what_surrounds_a_shrunken_image_is_void() -> None:
    true = quarters()
    options = AugmentOptions(scale=(0.5, 0.5), flip=0)
    image, found = augment_segments(painted(true.semantics()), true, SIZE, options, 4)
    assert np.array_equal(found.semantics() == 0, image[..., 0] == 128)
    assert (found.semantics() > 0).sum() == SIZE[0] * SIZE[1] // 4


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**64 - 1))
def test_equal_seeds_give_equal_segments_and_leave_the_input(seed: int) -> None:
    true = quarters()
    before = true.ids.copy()
    options = AugmentOptions(brightness=0.3)
    image = painted(true.semantics())
    first, second = (augment_segments(image.copy(), true, SIZE, options, seed) for _ in range(2))
    assert np.array_equal(first[0], second[0])
    for name in ("ids", "labels", "crowd"):
        assert np.array_equal(getattr(first[1], name), getattr(second[1], name))
    assert np.array_equal(true.ids, before)


@pytest.mark.parametrize(
    "options",
    [{"scale": (2, 1)}, {"scale": (0, 1)}, {"flip": 1.5}, {"brightness": -1}, {"zoom": 2}],
)
def test_options_out_of_range_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(options))):
        AugmentOptions.model_validate(options)


def test_a_turn_of_hues_keeps_grays_and_luma_and_reaches_every_hue():
    image = np.full((4, 4, 3), (150, 110, 120), np.uint8)
    luma = np.array([0.299, 0.587, 0.114])
    options = AugmentOptions(scale=(1.0, 1.0), flip=0.0, hue=0.5)
    boxes = np.zeros((0, 4))
    strongest = set()
    for seed in range(60):
        turned, _, _ = augment(image, boxes, (4, 4), options, seed)
        assert np.abs(turned @ luma - image @ luma).max() < 1.0  # by rounding to whole values
        strongest.add(int(turned[0, 0].argmax()))
    assert strongest == {0, 1, 2}
    gray = np.full((4, 4, 3), 77, np.uint8)
    np.testing.assert_array_equal(augment(gray, boxes, (4, 4), options, 1)[0], gray)
