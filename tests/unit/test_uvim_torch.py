"""The torch decoder of stage I is the JAX one, and what tasks make of both."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vision.metrics.panoptic_merge import merge_logits
from vision.models.arrays import CheckpointMismatch
from vision.models.config import ModelConfigError
from vision.models.uvim import decode_codes, encode_planes, init_stage_one
from vision.models.uvim_checkpoint import load_stage_one
from vision.models.uvim_config import COLOR_PLANES, Plane, patches_to_pixels, uvim_config
from vision.models.uvim_torch import TorchStageOneDecoder
from vision.tasks.uvim import StageOneCodec, StageOneSettings

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
STAGE_ONE = GOLDEN / "uvim_tiny_stage1.npz"
PLANES = (Plane("semantics", 5), Plane("instances", 8))
TINY = uvim_config("tiny", image_size=(32, 32), planes=PLANES)


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "uvim_tiny_io.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def variables():
    return load_stage_one(STAGE_ONE, TINY)


@pytest.fixture(scope="module")
def codec():
    return StageOneCodec(StageOneSettings(preset="tiny", checkpoint=STAGE_ONE), (32, 32), PLANES)


def random_heads(variables):
    """Fresh heads are zero and would hide everything before them."""
    random = np.random.default_rng(0)
    params = dict(variables["params"])
    for name in params:
        if name.startswith("head_"):
            params[name] = {
                part: random.normal(size=value.shape, scale=0.2).astype(np.float32)
                for part, value in params[name].items()
            }
    return {"params": params, "state": variables["state"]}


def test_torch_decodes_what_the_published_code_decodes(golden, variables):
    outputs = TorchStageOneDecoder(TINY, variables).decode(golden["decode_code"], golden["image"])
    for name in ("semantics", "instances"):
        np.testing.assert_allclose(outputs[name], golden[f"decode_logits_{name}"], atol=1e-4)


@pytest.mark.parametrize("key", ["panoptic", "panoptic_min_fraction_0p02"])
def test_panoptic_maps_are_those_of_the_published_code(golden, codec, key):
    fraction = 0.02 if "fraction" in key else 0.0
    for row, expected in enumerate(golden[key]):
        tokens = golden["decode_code"][row : row + 1] + 1
        (outputs,) = codec.decode(tokens, golden["image"][row])
        merged = merge_logits(outputs["semantics"], outputs["instances"], (4, 4), fraction)
        np.testing.assert_array_equal(merged.labels[merged.ids], expected[..., 0])
        np.testing.assert_array_equal(merged.ids, expected[..., 1])


@pytest.mark.parametrize("kind", ["resized", "mixed", "values", "no context"])
def test_torch_is_jax_in_every_variant(kind):
    config = {
        "resized": replace(TINY, image_size=(48, 32)),
        "mixed": replace(TINY, tokens=5, bottleneck_resize=False),
        "values": replace(TINY, planes=COLOR_PLANES),
        "no context": replace(TINY, with_decoder_ctx=False),
    }[kind]
    fresh = random_heads(init_stage_one(config, seed=1))
    random = np.random.default_rng(2)
    codes = random.integers(config.codes, size=(4, config.tokens)).astype(np.int32)
    context = random.uniform(-1, 1, (2, *config.image_size, 3)).astype(np.float32)
    expected = decode_codes(config, fresh, codes, context)
    found = TorchStageOneDecoder(config, fresh).decode(codes, context)
    for name, output in found.items():
        assert np.abs(output).max() > 0.1
        np.testing.assert_allclose(output, expected[name], atol=1e-4)


def test_bfloat16_stays_near(golden, variables):
    codes, images = golden["decode_code"], golden["image"]
    outputs = TorchStageOneDecoder(TINY, variables, dtype="bfloat16").decode(codes, images)
    for name in ("semantics", "instances"):
        expected = golden[f"decode_logits_{name}"]
        difference = np.abs(outputs[name] - expected)
        assert 0 < difference.mean() < 0.02 * np.abs(expected).max()


def test_the_settings_choose_the_type_of_decoding(golden, codec):
    settings = StageOneSettings(preset="tiny", checkpoint=STAGE_ONE, decoding="bfloat16")
    tokens, image = golden["decode_code"][:1] + 1, golden["image"][0]
    (rounded,) = StageOneCodec(settings, (32, 32), PLANES).decode(tokens, image)
    (exact,) = codec.decode(tokens, image)
    assert 0 < np.abs(rounded["semantics"] - exact["semantics"]).mean() < 0.05


def test_pixels_come_from_their_patch(golden, variables):
    values = np.zeros((1, TINY.patches, 2, TINY.patch_pixels), np.float32)
    # Patch (1, 2), channel 1, pixel (3, 5) in it.
    values[0, 4 + 2, 1, 3 * 8 + 5] = 1
    maps = patches_to_pixels(values, TINY)
    assert maps.shape == (1, 32, 32, 2)
    assert np.argwhere(maps).tolist() == [[0, 8 + 3, 16 + 5, 1]]


def test_a_codec_writes_and_reads_tokens(golden, codec):
    labels = golden["labels"]
    planes = {"semantics": labels[0, ..., 0], "instances": labels[0, ..., 1]}
    tokens = codec.encode(planes, golden["image"][0])
    np.testing.assert_array_equal(tokens, golden["stage1_code"][0] + 1)
    assert codec.allowed_tokens()[np.arange(16), tokens].all()
    assert not codec.allowed_tokens()[:, 0].any()
    assert codec.vocabulary_size == 65


def test_decoding_needs_no_encoder(golden, variables):
    part = load_stage_one(STAGE_ONE, TINY, decoder_only=True)
    assert not any("enc" in name and name != "decoder" for name in part["params"])
    codes, images = golden["decode_code"], golden["image"]
    whole = TorchStageOneDecoder(TINY, variables).decode(codes, images)
    alone = TorchStageOneDecoder(TINY, part).decode(codes, images)
    np.testing.assert_array_equal(alone["instances"], whole["instances"])
    with pytest.raises(CheckpointMismatch, match="use the codes"):
        load_stage_one(STAGE_ONE, replace(TINY, codes=128), decoder_only=True)


def test_samples_are_decoded_one_by_one_as_together(golden, codec, variables, monkeypatch):
    tokens = np.concatenate([golden["decode_code"]] * 3)[:5] + 1
    together = list(codec.decode(tokens, golden["image"][0]))
    monkeypatch.setattr("vision.tasks.uvim.PATCHES_AT_ONCE", 32)
    apart = list(codec.decode(tokens, golden["image"][0]))
    assert len(together) == len(apart) == 5
    for one, other in zip(together, apart, strict=True):
        np.testing.assert_allclose(one["semantics"], other["semantics"], atol=1e-5)


def test_codes_and_images_that_do_not_fit_are_refused(golden, variables):
    decoder = TorchStageOneDecoder(TINY, variables)
    codes, images = golden["decode_code"], golden["image"]
    with pytest.raises(ValueError, match="but the dictionary has 64"):
        decoder.decode(codes + 20, images)
    with pytest.raises(ValueError, match="codes from -1"):
        decoder.decode(np.full((1, 16), -1), images)
    with pytest.raises(ValueError, match=r"stage I reads \[N, 16\]"):
        decoder.decode(codes[:, :9], images)
    with pytest.raises(ValueError, match="stage I takes"):
        decoder.decode(codes, images[:, :16])
    with pytest.raises(ValueError, match="do not divide over 2 images"):
        decoder.decode(codes[:1], images)


def test_a_codec_without_its_checkpoint_says_what_is_missing(golden):
    codec = StageOneCodec(StageOneSettings(preset="tiny"), (32, 32), PLANES)
    assert codec.max_length == 16
    with pytest.raises(ValueError, match=r"stage_one\.checkpoint: missing"):
        codec.load()


def test_a_codec_refuses_a_checkpoint_of_other_sizes():
    settings = StageOneSettings(preset="tiny", checkpoint=STAGE_ONE)
    with pytest.raises(CheckpointMismatch, match="image_size"):
        StageOneCodec(settings, (48, 48), PLANES).load()
    other = settings.model_copy(update={"codes": 128})
    with pytest.raises(CheckpointMismatch, match="use the codes"):
        StageOneCodec(other, (32, 32), PLANES).load()
    with pytest.raises(ModelConfigError, match="no square"):
        settings.model_copy(update={"tokens": 17}).build((32, 32), PLANES)


def test_encoding_in_batches_is_encoding_alone(golden, codec, variables):
    labels = golden["labels"]
    planes = {"semantics": labels[..., 0], "instances": labels[..., 1]}
    codes = encode_planes(TINY, variables, planes, golden["image"])
    for row in range(2):
        alone = codec.encode({n: p[row] for n, p in planes.items()}, golden["image"][row])
        np.testing.assert_array_equal(alone, codes[row] + 1)
