"""Whatever an image file holds, it is read as RGB, or its name is in the error."""

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vision.data.images import ImageError, from_model, load_ids, load_rgb, resize_rgb, to_model

RAMP = (np.arange(20 * 30 * 3) % 251).astype(np.uint8).reshape(20, 30, 3)


def test_rgb_is_read_as_it_is(tmp_path: Path) -> None:
    Image.fromarray(RAMP).save(tmp_path / "a.png")
    assert np.array_equal(load_rgb(tmp_path / "a.png"), RAMP)


def test_gray_becomes_three_equal_channels(tmp_path: Path) -> None:
    Image.fromarray(RAMP[..., 0]).save(tmp_path / "a.png")
    assert np.array_equal(load_rgb(tmp_path / "a.png"), np.repeat(RAMP[..., :1], 3, 2))


@pytest.mark.parametrize("values", [(0, 65535), (3, 200)])
def test_16_bit_gray_keeps_its_high_byte(tmp_path: Path, values: tuple[int, int]) -> None:
    deep = np.linspace(*values, 600).astype(np.uint16).reshape(20, 30)
    Image.fromarray(deep).save(tmp_path / "a.png")
    expected = np.repeat((deep >> 8).astype(np.uint8)[..., None], 3, 2)
    assert np.array_equal(load_rgb(tmp_path / "a.png"), expected)


def test_what_is_transparent_is_black(tmp_path: Path) -> None:
    alpha = np.zeros((20, 30, 1), np.uint8)
    alpha[:10] = 255
    Image.fromarray(np.concatenate([RAMP, alpha], 2)).save(tmp_path / "a.png")
    expected = RAMP.copy()
    expected[10:] = 0
    assert np.array_equal(load_rgb(tmp_path / "a.png"), expected)


def test_palettes_and_gray_with_alpha_are_read(tmp_path: Path) -> None:
    Image.fromarray(RAMP).convert("P").save(tmp_path / "p.png")
    assert load_rgb(tmp_path / "p.png").shape == (20, 30, 3)
    Image.fromarray(RAMP).convert("LA").save(tmp_path / "la.png")
    gray = np.asarray(Image.fromarray(RAMP).convert("L"))
    assert np.array_equal(load_rgb(tmp_path / "la.png"), np.repeat(gray[..., None], 3, 2))


def test_cmyk_is_converted(tmp_path: Path) -> None:
    red = np.zeros((16, 16, 3), np.uint8)
    red[..., 0] = 255
    Image.fromarray(red).convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    read = load_rgb(tmp_path / "a.jpg").astype(int)
    assert np.abs(read - red).max() < 12


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"nowhere\.jpg"):
        load_rgb(tmp_path / "nowhere.jpg")


@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_a_truncated_file_is_named(tmp_path: Path, kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / f"whole.{kind}")
    content = (tmp_path / f"whole.{kind}").read_bytes()
    (tmp_path / f"half.{kind}").write_bytes(content[: len(content) // 2])
    with pytest.raises(ImageError, match=rf"half\.{kind}"):
        load_rgb(tmp_path / f"half.{kind}")


@pytest.mark.parametrize("content", [b"", b"<html>404</html>"])
def test_what_is_no_image_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "page.jpg").write_bytes(content)
    with pytest.raises(ImageError, match=r"page\.jpg"):
        load_rgb(tmp_path / "page.jpg")


def test_a_folder_is_no_image(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=tmp_path.name):
        load_rgb(tmp_path)


def test_the_models_range_is_undone_without_loss() -> None:
    values = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, 2)
    scaled = to_model(values)
    assert scaled.dtype == np.float32
    assert (scaled.min(), scaled.max()) == (-1, 1)
    assert np.array_equal(from_model(scaled), values)


def test_resizing_gives_the_size_asked_for() -> None:
    assert resize_rgb(RAMP, 7, 50).shape == (7, 50, 3)
    assert np.array_equal(resize_rgb(RAMP, 20, 30), RAMP)


def test_a_file_system_that_is_away_is_no_fault_of_the_image(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="is its file system mounted") as away:
        load_rgb(tmp_path / "unmounted" / "a.jpg")
    assert not isinstance(away.value, ImageError)
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    with pytest.raises(ImageError, match=r"loop\.png"):
        load_rgb(tmp_path / "loop.png")


@pytest.mark.parametrize("read", [load_rgb, load_ids])
@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EMFILE])
def test_what_the_operating_system_refuses_is_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Any, number: int
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError(number, "refused")

    monkeypatch.setattr("builtins.open", refuse)
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(OSError, match="refused") as refused:
        read(tmp_path / "a.png")
    assert refused.value.errno == number
