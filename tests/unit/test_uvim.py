"""Stage I against big_vision's own outputs, its dictionary, and its checkpoints."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vision.models.arrays import CheckpointError, CheckpointMismatch, flatten
from vision.models.config import ModelConfigError
from vision.models.presets import model_config
from vision.models.quantizer import (
    WordStatistics,
    code_words,
    nearest,
    update_state,
    usage,
    word_statistics,
)
from vision.models.resample import linear_weights
from vision.models.uvim import (
    StageOne,
    abstract_stage_one,
    decode_codes,
    encode_planes,
    init_stage_one,
)
from vision.models.uvim_checkpoint import load_stage_one, save_stage_one
from vision.models.uvim_config import (
    COLOR_PLANES,
    PANOPTIC_PLANES,
    Plane,
    check_stage_two,
    stage_one_shapes,
    uvim_config,
)

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
STAGE_ONE = GOLDEN / "uvim_tiny_stage1.npz"
PLANES = (Plane("semantics", 5), Plane("instances", 8))
UPDATE = jax.jit(update_state)
TINY = uvim_config("tiny", image_size=(32, 32), planes=PLANES)


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "uvim_tiny_io.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def variables():
    return load_stage_one(STAGE_ONE, TINY)


def label_planes(labels):
    return {"semantics": labels[..., 0], "instances": labels[..., 1]}


def some_planes(config, batch, seed=0):
    random = np.random.default_rng(seed)
    planes = {}
    for plane in config.planes:
        shape = (batch, *config.image_size)
        if plane.kind == "labels":
            planes[plane.name] = random.integers(plane.channels, size=shape).astype(np.int32)
        else:
            planes[plane.name] = random.uniform(-1, 1, (*shape, plane.channels)).astype(np.float32)
    context = random.uniform(-1, 1, (batch, *config.image_size, 3)).astype(np.float32)
    return planes, context


def test_codes_are_those_of_the_published_code(golden, variables):
    codes = encode_planes(TINY, variables, label_planes(golden["labels"]), golden["image"])
    assert codes.dtype == jnp.int32
    np.testing.assert_array_equal(codes, golden["stage1_code"])


def test_decoded_logits_are_those_of_the_published_code(golden, variables):
    outputs = decode_codes(TINY, variables, golden["decode_code"], golden["image"])
    for name in ("semantics", "instances"):
        expected = golden[f"decode_logits_{name}"]
        assert outputs[name].shape == expected.shape
        np.testing.assert_allclose(outputs[name], expected, atol=1e-4)


def test_samples_of_one_image_share_its_context(golden, variables):
    codes, images = golden["decode_code"], golden["image"]
    repeated = decode_codes(TINY, variables, np.repeat(codes, 3, 0), np.repeat(images, 3, 0))
    shared = decode_codes(TINY, variables, np.repeat(codes, 3, 0), images)
    for name, expected in repeated.items():
        np.testing.assert_allclose(shared[name], expected, atol=1e-5)


@pytest.mark.parametrize("preset", ["tiny", "quickstart", "paper"])
@pytest.mark.parametrize("bottleneck_resize", [True, False])
def test_the_listed_shapes_are_the_models(preset, bottleneck_resize):
    side, planes = (512, PANOPTIC_PLANES) if preset == "paper" else (48, COLOR_PLANES)
    config = uvim_config(
        preset, image_size=(side, side), planes=planes, bottleneck_resize=bottleneck_resize
    )
    tree = abstract_stage_one(config)
    shapes = {name: leaf.shape for name, leaf in flatten(tree["params"]).items()}
    shapes |= {f"state/{name}": leaf.shape for name, leaf in tree["state"].items()}
    assert shapes == stage_one_shapes(config)


def test_the_quick_start_fits_five_megabytes():
    planes = (Plane("semantics", 20), Plane("instances", 20))
    shapes = stage_one_shapes(uvim_config("quickstart", image_size=(48, 48), planes=planes))
    assert sum(int(np.prod(shape)) for shape in shapes.values()) * 2 < 5e6


@pytest.mark.parametrize("kind", ["resized", "mixed", "values", "no context"])
def test_every_variant_encodes_and_decodes(kind):
    config = {
        "resized": replace(TINY, image_size=(48, 32)),
        "mixed": replace(TINY, tokens=5, bottleneck_resize=False),
        "values": replace(TINY, planes=COLOR_PLANES),
        "no context": replace(TINY, with_encoder_ctx=False, with_decoder_ctx=False),
    }[kind]
    fresh = init_stage_one(config, seed=1)
    planes, context = some_planes(config, 2)
    codes = encode_planes(config, fresh, planes, context)
    assert codes.shape == (2, config.tokens)
    assert int(codes.min()) >= 0
    assert int(codes.max()) < config.codes
    outputs = decode_codes(config, fresh, codes, context)
    for plane in config.planes:
        shape = (2, config.patches, plane.channels, config.patch_pixels)
        assert outputs[plane.name].shape == shape


def test_labels_enter_as_one_hot_values(golden, variables):
    config = replace(TINY, planes=tuple(replace(plane, kind="values") for plane in PLANES))
    planes = label_planes(golden["labels"])
    values = {p.name: np.eye(p.channels, dtype=np.float32)[planes[p.name]] for p in PLANES}
    codes = encode_planes(config, variables, values, golden["image"])
    np.testing.assert_array_equal(codes, golden["stage1_code"])


def test_dropped_code_words_do_not_reach_the_decoder(golden, variables):
    planes, images = label_planes(golden["labels"]), golden["image"]
    kept = np.ones((2, TINY.tokens), bool)
    model = StageOne(TINY)
    whole, quantized = model.apply(variables, planes, images, kept)
    np.testing.assert_array_equal(quantized.codes, golden["stage1_code"])
    expected = decode_codes(TINY, variables, golden["stage1_code"], images)
    np.testing.assert_allclose(whole["semantics"], expected["semantics"], atol=1e-4)
    none, _ = model.apply(variables, planes, images, ~kept)
    others, _ = model.apply(variables, label_planes(golden["labels"][::-1]), images, ~kept)
    np.testing.assert_allclose(none["semantics"], others["semantics"], atol=1e-6)
    assert np.abs(whole["semantics"] - none["semantics"]).max() > 0.1


def test_gradients_pass_the_quantiser_and_leave_the_dictionary(golden, variables):
    def loss(variables):
        planes = label_planes(golden["labels"])
        outputs, _ = StageOne(TINY).apply(variables, planes, golden["image"])
        return sum(jnp.square(output).sum() for output in outputs.values())

    gradient = jax.grad(loss)(variables)
    assert float(jnp.abs(gradient["params"]["encoder_head"]["kernel"]).max()) > 1e-3
    assert float(jnp.abs(gradient["state"]["dictionary"]).max()) == 0


@settings(max_examples=25, deadline=None)
@given(old=st.integers(1, 40), new=st.integers(1, 40))
def test_resizing_is_that_of_jax(old, new):
    values = np.random.default_rng(old).normal(size=(old, 2)).astype(np.float32)
    expected = jax.image.resize(values, (new, 2), "linear")
    np.testing.assert_allclose(linear_weights(old, new) @ values, expected, atol=1e-5)


def test_the_nearest_word_is_the_nearest():
    random = np.random.default_rng(0)
    vectors, words = random.normal(size=(3, 7, 6)), random.normal(size=(11, 6))
    distance = ((vectors[:, :, None] - words) ** 2).sum(-1)
    np.testing.assert_array_equal(nearest(vectors, words), distance.argmin(-1))


def state_of(counts, words):
    counts = np.asarray(counts, np.float32)
    return {"counts": counts, "dictionary": np.asarray(words, np.float32) * counts[:, None]}


def test_words_are_the_means_of_what_chose_them():
    vectors = np.array([[2.0, 0], [4, 0], [0, 6]], np.float32)
    statistics = word_statistics(vectors, np.array([1, 1, 0]), 3)
    np.testing.assert_array_equal(statistics.counts, [1, 2, 0])
    state = state_of([1, 1, 1], [[0, 1], [1, 0], [1, 1]])
    updated, splits = update_state(state, statistics, jax.random.key(0), 0.5, 0.1)
    np.testing.assert_allclose(updated["counts"], [1.5, 2.5, 0.5])
    np.testing.assert_allclose(updated["dictionary"], [[0, 6.5], [6.5, 0], [0.5, 0.5]])
    assert splits == 0
    np.testing.assert_allclose(jnp.linalg.norm(code_words(updated), axis=-1), 1, atol=1e-6)


def test_an_unused_word_becomes_half_of_the_most_frequent():
    state = state_of([0.05, 8, 3], [[0, 1], [1, 0.5], [1, 1]])
    nothing = WordStatistics(jnp.zeros(3), jnp.zeros((3, 2)))
    updated, splits = update_state(state, nothing, jax.random.key(0), 1.0, 0.1)
    assert splits == 1
    np.testing.assert_allclose(updated["counts"], [4, 4, 3])
    words = code_words(updated)
    np.testing.assert_allclose(words[0], words[1], atol=2e-3)
    assert np.abs(words[0] - words[1]).max() > 0


@settings(max_examples=25, deadline=None)
@given(counts=st.lists(st.floats(0, 3, width=32), min_size=6, max_size=6))
def test_splitting_keeps_what_was_counted_and_ends(counts):
    counts = np.asarray(counts, np.float32) + np.float32(1e-3)
    state = state_of(counts, np.eye(6)[:, :4] + 0.5)
    nothing = WordStatistics(jnp.zeros(6), jnp.zeros((6, 4)))
    updated, splits = UPDATE(state, nothing, jax.random.key(1), 1.0, 0.1)
    new = np.asarray(updated["counts"])
    assert int(splits) <= 6
    if counts.sum() >= 1.2:
        assert new.min() >= 0.1
        # What a word that gave up its place had counted is lost; the rest is shared out.
        assert new.sum() == pytest.approx(counts[counts >= 0.1].sum(), rel=0.1, abs=0.6)
    assert np.isfinite(code_words(updated)).all()


def test_usage_counts_words():
    spread = usage(jnp.array([2.0, 2, 2, 2]))
    assert (float(spread["used"]), float(spread["perplexity"])) == pytest.approx((1, 4))
    one = usage(jnp.array([0.0, 7, 0, 0]))
    assert (float(one["used"]), float(one["perplexity"])) == pytest.approx((0.25, 1))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_saved_stage_one_comes_back(tmp_path, variables, dtype):
    many = {**variables["state"], "counts": np.full(64, 1e5, np.float32)}
    save_stage_one(tmp_path / "a.npz", {"params": variables["params"], "state": many}, dtype)
    loaded = load_stage_one(tmp_path / "a.npz", TINY)
    np.testing.assert_array_equal(loaded["state"]["counts"], many["counts"])
    expected, found = flatten(variables["params"]), flatten(loaded["params"])
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=2e-3 if dtype == "float16" else 2e-2)


def test_the_old_names_of_the_trunks_load(tmp_path, variables):
    with np.load(STAGE_ONE) as file:
        arrays = {
            name.replace("/encoder/", "/Encoder/").replace("/decoder/", "/Decoder/"): file[name]
            for name in file.files
        }
    assert any("/Decoder/" in name for name in arrays)
    np.savez(tmp_path / "old.npz", **arrays)
    loaded = load_stage_one(tmp_path / "old.npz", TINY)
    assert flatten(loaded["params"]).keys() == flatten(variables["params"]).keys()


@pytest.mark.parametrize(
    ("change", "name", "shapes", "fix"),
    [
        ({"codes": 128}, "state/dictionary", ["(64, 32)", "(128, 32)"], "codes"),
        ({"image_size": (48, 48)}, "pos_embedding", ["(1, 16, 64)", "(1, 36, 64)"], "image_size"),
        (
            {"planes": (Plane("semantics", 7), PLANES[1])},
            "semantics",
            ["(5, 64, 64)", "(7, 64, 64)"],
            "planes",
        ),
        ({"planes": COLOR_PLANES}, "color", ["(64,)"], "planes"),
        ({"bottleneck_resize": False}, "bottleneck_downsample", ["(16, 16)"], "tokens"),
        ({"codeword_dim": 16}, "encoder_head", ["(64, 16)"], "codeword_dim"),
    ],
)
def test_a_stage_one_of_other_settings_is_refused(change, name, shapes, fix):
    with pytest.raises(CheckpointMismatch) as error:
        load_stage_one(STAGE_ONE, replace(TINY, **change))
    for part in (str(STAGE_ONE), name, *shapes, fix):
        assert part in str(error.value)


def test_a_stage_two_checkpoint_is_no_stage_one():
    with pytest.raises(CheckpointMismatch, match=r"no dictionary.*`initial`"):
        load_stage_one(GOLDEN / "uvim_tiny_stage2.npz", TINY)
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        load_stage_one(GOLDEN / "missing.npz", TINY)


def test_a_dictionary_without_direction_is_refused(tmp_path, variables):
    broken = dict(variables["state"])
    broken["dictionary"] = broken["dictionary"].copy()
    broken["dictionary"][3] = 0
    save_stage_one(tmp_path / "a.npz", {"params": variables["params"], "state": broken})
    with pytest.raises(CheckpointMismatch, match=r"word 3 .*damaged"):
        load_stage_one(tmp_path / "a.npz", TINY)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocabulary_size": 64}, "vocabulary must be 65"),
        ({"max_length": 25}, "25 tokens and stage I reads 16"),
        ({"image_size": (48, 48)}, r"\(48, 48\) and stage I of \(32, 32\)"),
    ],
)
def test_a_stage_two_of_another_stage_one_is_refused(change, message):
    sizes = {"vocabulary_size": 65, "max_length": 16, "image_size": (32, 32)}
    check_stage_two(TINY, model_config("tiny", **sizes))
    with pytest.raises(ModelConfigError, match=message):
        check_stage_two(TINY, model_config("tiny", **(sizes | change)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": 15}, "15 is no square.*use 9"),
        ({"image_size": (30, 32)}, "height 30 is not a positive multiple of patch_size 8"),
        ({"codes": 1}, "codes 1: 2 at least"),
        ({"planes": ()}, "planes of different names"),
        ({"planes": (PLANES[0], PLANES[0])}, "planes of different names"),
        ({"encoder": replace(TINY.encoder, width=32)}, "width 32 and the decoder's 64"),
        ({"dtype": "float64"}, "dtype 'float64'"),
    ],
)
def test_settings_that_cannot_be_are_refused(change, message):
    with pytest.raises(ModelConfigError, match=message):
        replace(TINY, **change)


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(ModelConfigError, match="did you mean 'quickstart'"):
        uvim_config("quikstart", image_size=(48, 48), planes=PLANES)


def test_images_of_another_size_are_refused(golden, variables):
    with pytest.raises(ValueError, match="stage I takes"):
        decode_codes(TINY, variables, golden["decode_code"], golden["image"][:, :16])
    with pytest.raises(ValueError, match="do not divide over 2 images"):
        decode_codes(TINY, variables, np.zeros((3, 16), np.int32), golden["image"])
