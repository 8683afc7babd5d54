"""The fused pass puts every pixel where scikit-image's Lab in float64 puts it."""

import math
from pathlib import Path

import numpy as np
import pytest
import skimage
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from skimage.color import rgb2lab

from vision.data.images import load_rgb, to_model
from vision.metrics.colorfulness import colorfulness, count_colours

HUES = ("atan2", "arctan")
PHOTOS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "camera.png", "color.png")


def by_scikit_image(image: np.ndarray, hue: str) -> tuple[np.ndarray, int]:
    """Counts from the definition; set apart is what is exact gray to scikit-image's float64."""
    rgb = (image.astype(np.float64) + 1) / 2
    lab = rgb2lab(rgb)
    colored = ~((rgb[..., 0] == rgb[..., 1]) & (rgb[..., 1] == rgb[..., 2]))
    a, b = lab[..., 1][colored], lab[..., 2][colored]
    with np.errstate(divide="ignore"):
        angle, end = (np.arctan2(b, a), np.pi) if hue == "atan2" else (np.arctan(b / a), np.pi / 2)
    hues = np.histogram(angle, 7, (-end, end))[0]
    hues[3] += (~colored).sum()
    return hues, int((a**2 + b**2 > 10).sum())


def assert_equal_counts(image: np.ndarray, hue: str) -> None:
    hues, vivid = count_colours(image, hue)
    expected, expected_vivid = by_scikit_image(image, hue)
    assert hues.tolist() == expected.tolist()
    assert vivid == expected_vivid


def random_image(seed: int, spread: float, brightest: float, side: int = 96) -> np.ndarray:
    """Gray values of all lightness, coloured by `spread`."""
    random = np.random.default_rng(seed)
    gray = random.uniform(-1, brightest, (side, side, 1))
    colour = random.uniform(-spread, spread, (side, side, 3))
    return np.clip(gray + colour, -1, 1).astype(np.float32)


@pytest.mark.parametrize("hue", HUES)
@pytest.mark.parametrize("spread", [2.0, 0.3, 0.05, 0.003, 1e-5])
@pytest.mark.parametrize("brightest", [1.0, -0.85])
def test_bins_are_scikit_images_on_random_images(spread, brightest, hue):
    assert_equal_counts(random_image(0, spread, brightest), hue)


@pytest.mark.parametrize("hue", HUES)
@pytest.mark.parametrize("name", PHOTOS)
def test_bins_are_scikit_images_on_real_photos(name, hue):
    photo = load_rgb(Path(skimage.__file__).parent / "data" / name)
    assert_equal_counts(to_model(photo), hue)


@settings(max_examples=150, deadline=None)
@given(
    hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 3), st.integers(1, 4), st.just(3)),
        elements=st.one_of(
            st.floats(-1, 1, width=32), st.integers(0, 255).map(lambda v: np.float32(v / 127.5 - 1))
        ),
    ),
    st.sampled_from(HUES),
)
@example(np.array([[[0, 0, 1.2e-38]]], np.float32), "atan2")  # gray: 1 + 1.2e-38 is 1
def test_bins_are_scikit_images_on_any_image(image, hue):
    assert_equal_counts(image, hue)


@pytest.mark.parametrize("hue", HUES)
def test_bins_are_scikit_images_next_to_every_edge(hue):
    """Along a line between two colours hue passes edges; the steps there are those of float32."""
    random = np.random.default_rng(3)
    for _ in range(30):
        first, second = random.uniform(-0.6, 0.6, (2, 3))
        steps = np.linspace(0, 1, 400)[:, None]
        for _ in range(5):  # zoom in on where the bins change
            line = ((1 - steps) * first + steps * second).astype(np.float32)[None]
            assert_equal_counts(line, hue)
            bins = [int(count_colours(line[:, i : i + 1], hue)[0].argmax()) for i in range(400)]
            change = np.flatnonzero(np.diff(bins))
            if not len(change):
                break
            low, high = steps[change[0], 0], steps[change[0] + 1, 0]
            steps = np.linspace(low, high, 400)[:, None]


@pytest.mark.parametrize("hue", HUES)
@pytest.mark.parametrize("size", [1, 1023, 1024, 1025, 4099])
def test_images_of_any_number_of_pixels_are_counted_whole(size, hue):
    image = random_image(1, 1.0, 1.0)[: size // 96 + 1].reshape(1, -1, 3)[:, :size]
    hues, vivid = count_colours(image, hue)
    assert hues.sum() == size
    assert vivid <= size
    assert_equal_counts(image, hue)


@pytest.mark.parametrize("hue", HUES)
def test_exact_gray_has_no_colour_and_goes_to_one_bin(hue):
    gray = np.linspace(-1, 1, 3001, dtype=np.float32)[None, :, None].repeat(3, axis=2)
    hues, vivid = count_colours(gray, hue)
    assert hues.tolist() == [0, 0, 0, 3001, 0, 0, 0]
    assert vivid == 0
    assert colorfulness(gray, hue) == (0.0, 0.0)
    assert colorfulness(gray, hue).product == 0.0


def test_seven_hues_in_equal_shares_have_the_greatest_entropy():
    """One saturated colour from the middle of each bin."""
    from skimage.color import lab2rgb

    angles = -np.pi + (np.arange(7) + 0.5) * 2 * np.pi / 7
    lab = np.stack([np.full(7, 60.0), 25 * np.cos(angles), 25 * np.sin(angles)], -1)
    image = (2 * lab2rgb(lab[None]) - 1).astype(np.float32).repeat(5, axis=1)
    figures = colorfulness(image)
    assert figures.vivid == 1.0
    assert figures.entropy == pytest.approx(math.log(7))
    assert figures.product == pytest.approx(math.log(7))


def test_opposite_colours_are_one_hue_for_arctan_only():
    from skimage.color import lab2rgb

    lab = np.array([[[60.0, 20, 15], [60, -20, -15]]])
    image = (2 * lab2rgb(lab) - 1).astype(np.float32)
    assert colorfulness(image, "atan2").entropy == pytest.approx(math.log(2))
    assert colorfulness(image, "arctan").entropy == 0.0


def test_one_colour_has_no_entropy_and_a_half_gray_image_half_the_vividness():
    image = np.zeros((10, 10, 3), np.float32)
    image[:5] = (1, -1, -1)
    figures = colorfulness(image)
    assert figures.vivid == 0.5
    red = int(count_colours(image[:5])[0].argmax())
    assert red != 3  # red is at 40 degrees, gray's bin ends at 26
    assert figures.entropy == pytest.approx(math.log(2))
    assert colorfulness(image[:5]) == (1.0, 0.0)


def test_values_beyond_the_range_count_as_its_ends():
    image = np.array([[[1.7, -3, 0.2], [-1.1, 0.3, 5]]], np.float32)
    assert_equal_counts(np.clip(image, -1, 1), "atan2")
    assert colorfulness(image) == colorfulness(np.clip(image, -1, 1))


@pytest.mark.parametrize("hue", HUES)
def test_what_lies_beyond_the_range_in_all_channels_is_gray(hue):
    image = np.array([[[1.2, 1.3, 1.1], [-1.2, -1.1, -1.3]]], np.float32)
    hues, vivid = count_colours(image, hue)
    assert (hues.tolist(), vivid) == ([0, 0, 0, 2, 0, 0, 0], 0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(value):
    image = np.zeros((40, 40, 3), np.float32)
    image[39, 39, 1] = value
    with pytest.raises(ValueError, match="1 of the image's 4800 values are not finite"):
        colorfulness(image)


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 1), (4, 4, 4), (2, 4, 4, 3), (0, 4, 3)])
def test_another_shape_is_named(shape):
    with pytest.raises(ValueError, match=r"image has shape .*expected"):
        colorfulness(np.zeros(shape, np.float32))


def test_an_unknown_hue_is_named():
    with pytest.raises(ValueError, match="hue is 'hsv'; it must be one of atan2, arctan"):
        colorfulness(np.zeros((1, 1, 3), np.float32), "hsv")
