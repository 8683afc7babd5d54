"""Scoring image files without a model, whatever they hold."""

import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import skimage
from PIL import Image
from typer.testing import CliRunner

from deploy.cli import app
from rewards.score_colorization import score_colorization
from vision.data.images import ImageError, load_rgb, to_model
from vision.metrics.colorfulness import colorfulness

PHOTOS = Path(skimage.__file__).parent / "data"
COLOURS = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)


def write(path: Path, pixels: np.ndarray) -> Path:
    Image.fromarray(pixels).save(path)
    return path


def write_16_bit_rgb(path: Path, pixels: np.ndarray) -> Path:
    """Pillow writes none."""

    def chunk(name: bytes, data: bytes) -> bytes:
        check = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", check)

    height, width, _ = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
    return path


def test_means_are_over_the_images_and_each_has_its_own_figures():
    paths = [PHOTOS / "astronaut.png", PHOTOS / "rocket.jpg"]
    scores = score_colorization(paths)
    figures = [colorfulness(to_model(load_rgb(path))) for path in paths]
    assert scores["images"] == 2
    assert list(scores["by_image"]) == [str(path) for path in paths]
    assert scores["by_image"][str(paths[1])]["vivid"] == figures[1].vivid
    assert scores["vivid"] == pytest.approx(np.mean([f.vivid for f in figures]))
    assert scores["hue_entropy"] == pytest.approx(np.mean([f.entropy for f in figures]))
    assert scores["colorfulness"] == pytest.approx(np.mean([f.product for f in figures]))


def test_gray_images_of_one_channel_score_zero(tmp_path):
    gray = write(tmp_path / "gray.png", COLOURS[..., 0])
    deep = write(tmp_path / "deep.png", COLOURS[..., 0].astype(np.uint16) * 257)
    scores = score_colorization([gray, deep, PHOTOS / "camera.png"])
    assert scores["colorfulness"] == scores["vivid"] == scores["hue_entropy"] == 0.0


def test_16_bits_score_as_their_high_byte(tmp_path):
    low = np.random.default_rng(1).integers(0, 256, COLOURS.shape)
    deep = write_16_bit_rgb(tmp_path / "deep.png", COLOURS.astype(np.uint16) * 256 + low)
    plain = write(tmp_path / "plain.png", COLOURS)
    by_image = score_colorization([deep, plain])["by_image"]
    assert by_image[str(deep)] == by_image[str(plain)]


def test_an_opaque_alpha_channel_changes_nothing_and_what_is_transparent_is_gray(tmp_path):
    opaque = np.full((20, 30, 1), 255, np.uint8)
    half = opaque.copy()
    half[:10] = 0
    plain = write(tmp_path / "plain.png", COLOURS)
    shown = write(tmp_path / "shown.png", np.concatenate([COLOURS, opaque], 2))
    hidden = write(tmp_path / "hidden.png", np.concatenate([COLOURS, half], 2))
    lower = write(tmp_path / "lower.png", COLOURS[10:])
    by_image = score_colorization([plain, shown, hidden, lower])["by_image"]
    assert by_image[str(shown)] == by_image[str(plain)]
    assert by_image[str(hidden)]["vivid"] == by_image[str(lower)]["vivid"] / 2


def test_an_image_of_one_pixel_has_one_hue(tmp_path):
    pixel = write(tmp_path / "pixel.png", np.array([[[255, 0, 0]]], np.uint8))
    scores = score_colorization([pixel])
    assert (scores["vivid"], scores["hue_entropy"], scores["colorfulness"]) == (1.0, 0.0, 0.0)


@pytest.mark.parametrize("content", [b"", b"<html>", b"\x89PNG\r\n\x1a\n"])
def test_a_broken_image_is_named(tmp_path, content):
    good = write(tmp_path / "good.png", COLOURS)
    (tmp_path / "broken.png").write_bytes(content)
    with pytest.raises(ImageError, match=r"broken\.png"):
        score_colorization([good, tmp_path / "broken.png"])


def test_a_cut_image_a_missing_one_and_a_folder_are_named(tmp_path):
    good = write(tmp_path / "good.png", COLOURS)
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:500])
    for name in ("cut.png", "missing.png"):
        with pytest.raises(ImageError, match=name):
            score_colorization([tmp_path / name])
    with pytest.raises(ImageError, match=tmp_path.name):
        score_colorization([tmp_path])


def test_no_image_and_an_unknown_hue_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no image"):
        score_colorization([])
    with pytest.raises(ValueError, match="hue is 'hsv'"):
        score_colorization([write(tmp_path / "a.png", COLOURS)], hue="hsv")


def test_the_command_prints_a_table_or_json_and_names_what_it_cannot_read(tmp_path):
    path = str(write(tmp_path / "a.png", COLOURS))
    run = CliRunner().invoke(app, ["score", "colorization", path, "--json"])
    assert run.exit_code == 0, run.output
    assert json.loads(run.stdout) == score_colorization([path])
    shown = CliRunner().invoke(app, ["score", "colorization", path, path, "--hue", "arctan"])
    assert shown.exit_code == 0, shown.output
    assert "mean of" in shown.stdout
    failed = CliRunner().invoke(app, ["score", "colorization", path, str(tmp_path / "none.png")])
    assert failed.exit_code == 1
    assert "none.png" in failed.output
