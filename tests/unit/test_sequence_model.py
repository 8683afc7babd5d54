"""The model is big_vision's, at every size; its settings are checked before anything is built."""

import functools
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from vision.models.checkpoint import load_npz
from vision.models.config import ModelConfig, ModelConfigError, Trunk
from vision.models.logprobs import entropy, mask_logits, sequence_mask, token_logprobs
from vision.models.presets import PRESETS, model_config, preset
from vision.models.sequence import SequenceModel, abstract_params, init_params

TINY = model_config("tiny", vocabulary_size=65, max_length=16, image_size=(32, 32))


@functools.partial(jax.jit, static_argnums=0)
def _logits(config: ModelConfig, params: dict, images: jax.Array, tokens: jax.Array) -> jax.Array:
    return SequenceModel(config).apply({"params": params}, images, tokens)


def _loss_and_gradients(config: ModelConfig, params: dict) -> tuple[jax.Array, dict]:
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (2, 32, 32, 3)).astype(np.float32)
    tokens = rng.integers(1, 65, (2, 3, 16)).astype(np.int32)

    def loss(params: dict) -> jax.Array:
        logits = SequenceModel(config).apply({"params": params}, images, tokens)
        return -token_logprobs(logits, tokens, np.ones((16, 65), bool)).mean()

    return jax.jit(jax.value_and_grad(loss))(params)


@pytest.fixture(scope="module")
def published(golden: Path) -> dict:
    return load_npz(golden / "uvim_tiny_stage2.npz", TINY)


@pytest.fixture(scope="module")
def io(golden: Path) -> dict[str, np.ndarray]:
    with np.load(golden / "uvim_tiny_io.npz") as file:
        return {name: file[name] for name in file.files}


def test_logits_are_big_visions(published: dict, io: dict[str, np.ndarray]) -> None:
    logits = _logits(TINY, published, io["image"], io["tokens"][:, None])
    assert logits.shape == (2, 1, 16, 65)
    np.testing.assert_allclose(logits[:, 0], io["stage2_logits"], atol=1e-4)


def test_greedy_by_teacher_forcing_is_big_visions(
    published: dict, io: dict[str, np.ndarray]
) -> None:
    tokens = np.zeros((2, 1, 16), np.int32)
    for t in range(16):
        tokens[:, :, t] = 1 + np.argmax(
            _logits(TINY, published, io["image"], tokens)[:, :, t, 1:], axis=-1
        )
    np.testing.assert_array_equal(tokens[:, 0], io["stage2_greedy_tokens"])


def test_k_sequences_of_an_image_have_the_logits_of_each_alone(
    published: dict, io: dict[str, np.ndarray]
) -> None:
    tokens = np.random.default_rng(1).integers(0, 65, (2, 3, 16)).astype(np.int32)
    together = _logits(TINY, published, io["image"], tokens)
    for k in range(3):
        alone = _logits(TINY, published, io["image"], tokens[:, k : k + 1])
        np.testing.assert_allclose(together[:, k], alone[:, 0], atol=1e-5)


def test_a_position_does_not_see_itself_or_what_follows(
    published: dict, io: dict[str, np.ndarray]
) -> None:
    tokens = io["tokens"][:, None]
    changed = tokens.copy()
    changed[..., 7:] = 3
    before = _logits(TINY, published, io["image"], tokens)
    after = _logits(TINY, published, io["image"], changed)
    np.testing.assert_allclose(before[:, :, :8], after[:, :, :8], atol=1e-6)
    assert np.abs(before[:, :, 8:] - after[:, :, 8:]).max() > 1e-3


def test_a_shorter_sequence_has_the_logits_of_the_long_ones_beginning(
    published: dict, io: dict[str, np.ndarray]
) -> None:
    whole = _logits(TINY, published, io["image"], io["tokens"][:, None])
    part = _logits(TINY, published, io["image"], io["tokens"][:, None, :5])
    np.testing.assert_allclose(part, whole[:, :, :5], atol=1e-5)


@pytest.mark.parametrize("name", ["vit_s16", "vit_b16", "vit_b16_dec6", "vit_l16", "vit_l16_dec6"])
def test_paper_sizes_resolve_without_allocation(name: str) -> None:
    config = model_config(name, vocabulary_size=4097, max_length=256, image_size=(512, 512))
    shapes = flatten_dict(abstract_params(config), sep="/")
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in shapes.values())
    assert shapes["pos_embedding_encoder"].shape == (1, 1024, config.encoder.width)
    encoder = sum(leaf.size for n, leaf in shapes.items() if n.startswith("encoder/"))
    # The trunks of ViT-S, -B and -L: 21.3, 85.1 and 302.3 million parameters.
    expected = {"s": 21.3e6, "b": 85.1e6, "l": 302.3e6}[name[4]]
    assert encoder == pytest.approx(expected, rel=2e-3)


def test_paper_detection_has_6400_patches_and_600_tokens() -> None:
    config = model_config(
        "vit_b16_dec6", vocabulary_size=1084, max_length=600, image_size=(1280, 1280)
    )
    assert config.patches == 6400
    logits = jax.eval_shape(
        functools.partial(_logits, config),
        abstract_params(config),
        jax.ShapeDtypeStruct((2, 1280, 1280, 3), jnp.float32),
        jax.ShapeDtypeStruct((2, 2, 600), jnp.int32),
    )
    assert logits.shape == (2, 2, 600, 1084)


def test_the_quickstart_model_has_about_a_million_parameters() -> None:
    config = model_config("quickstart", vocabulary_size=206, max_length=36, image_size=(48, 48))
    total = sum(leaf.size for leaf in jax.tree.leaves(abstract_params(config)))
    assert total == pytest.approx(1.08e6, rel=0.01)
    assert config.patches == 36


def test_encoder_and_decoder_may_differ_in_width_and_depth() -> None:
    config = replace(TINY, decoder=Trunk(depth=3, width=32, heads=2, mlp_dim=48))
    params = init_params(config, 0)
    assert params["decoder"]["EncDecBlock2"]["CrossAttn"]["key"]["kernel"].shape == (64, 2, 16)
    images, tokens = np.zeros((1, 32, 32, 3), np.float32), np.ones((1, 1, 16), np.int32)
    logits = _logits(config, params, images, tokens)
    assert logits.shape == (1, 1, 16, 65)


def test_initial_parameters_are_a_pure_function_of_the_seed() -> None:
    first, again, other = (init_params(TINY, seed) for seed in (3, 3, 4))
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, first, again)))
    assert not np.array_equal(first["EmbedPatches"]["kernel"], other["EmbedPatches"]["kernel"])
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(first))


def test_ordered_tokens_start_with_neighbours_alike() -> None:
    config = replace(TINY, vocabulary_size=230, ordered_tokens=(3, 193))
    decoder = init_params(config, 0)["decoder"]
    for rows in (decoder["EmbedTargets"]["embedding"], decoder["LogitsDense"]["kernel"].T):
        rows = np.asarray(rows[3:196])
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        assert np.sum(rows[1:] * rows[:-1], axis=1).min() > 0.9
        assert np.mean(np.sum(rows[60:] * rows[:-60], axis=1)) < 0.5
    others = np.asarray(decoder["EmbedTargets"]["embedding"][196:])
    others = others / np.linalg.norm(others, axis=1, keepdims=True)
    assert np.abs(np.sum(others[1:] * others[:-1], axis=1)).max() < 0.6


def test_rematerialisation_changes_no_gradient(published: dict) -> None:
    loss, gradients = _loss_and_gradients(TINY, published)
    remat_loss, remat_gradients = _loss_and_gradients(replace(TINY, remat=True), published)
    np.testing.assert_allclose(loss, remat_loss, rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        gradients,
        remat_gradients,
    )


def test_bfloat16_computes_near_float32_with_float32_logits_and_gradients(published: dict) -> None:
    loss, gradients = _loss_and_gradients(TINY, published)
    half_loss, half_gradients = _loss_and_gradients(replace(TINY, dtype="bfloat16"), published)
    assert half_loss.dtype == jnp.float32
    assert half_loss != loss
    np.testing.assert_allclose(half_loss, loss, rtol=0.01)
    flat = jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(gradients)])
    half = jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(half_gradients)])
    assert half.dtype == jnp.float32
    assert jnp.linalg.norm(flat - half) < 0.05 * jnp.linalg.norm(flat)


def test_images_of_another_size_are_refused(published: dict) -> None:
    with pytest.raises(ValueError, match="the model takes 32x32 pixels"):
        _logits(TINY, published, np.zeros((1, 40, 32, 3)), np.zeros((1, 1, 16), np.int32))


def test_logprobs_are_a_distribution_over_the_allowed_tokens() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3, 5, 7)).astype(np.float32) * 5
    allowed = rng.random((5, 7)) < 0.5
    allowed[:, 2] = True
    every = np.stack(
        [token_logprobs(logits, np.full((3, 5), v), allowed) for v in range(7)], axis=-1
    )
    np.testing.assert_allclose(np.exp(every).sum(-1), 1, rtol=1e-5)
    assert np.exp(every)[:, ~allowed].max() == 0
    reference = np.where(allowed, logits, -np.inf)
    reference -= np.log(np.exp(reference).sum(-1, keepdims=True))
    np.testing.assert_allclose(every[:, allowed], reference[:, allowed], atol=1e-5)


def test_entropy_of_a_uniform_choice_is_the_log_of_its_size() -> None:
    allowed = np.array([[True] * 4 + [False] * 3, [True] + [False] * 6])
    values = entropy(mask_logits(np.zeros((2, 7), np.float32), allowed))
    np.testing.assert_allclose(values, [np.log(4), 0], atol=1e-6)


@pytest.mark.parametrize(
    ("tokens", "end", "expected"),
    [
        ([5, 5, 9, 0, 0], 9, [1, 1, 1, 0, 0]),
        ([5, 0, 0, 0, 0], 0, [1, 1, 0, 0, 0]),
        ([5, 9, 5, 9, 5], 9, [1, 1, 0, 0, 0]),
        ([5, 5, 5, 5, 5], 9, [1, 1, 1, 1, 1]),
        ([5, 0, 5, 5, 5], -1, [1, 1, 1, 1, 1]),
    ],
)
def test_a_sequence_reaches_up_to_and_including_its_first_end(
    tokens: list[int], end: int, expected: list[int]
) -> None:
    mask = sequence_mask(np.array([tokens, tokens]), end)
    np.testing.assert_array_equal(mask, np.array([expected, expected], bool))


def test_an_unknown_preset_or_setting_names_the_nearest() -> None:
    sizes = {"vocabulary_size": 65, "max_length": 16, "image_size": (32, 32)}
    with pytest.raises(ModelConfigError, match="'vit_b32'; did you mean 'vit_b16'"):
        preset("vit_b32")
    with pytest.raises(ModelConfigError, match="'pach_size'; did you mean 'patch_size'"):
        model_config("tiny", pach_size=4, **sizes)
    with pytest.raises(ModelConfigError, match="'dept'; did you mean 'depth'"):
        model_config("tiny", decoder={"dept": 4}, **sizes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": (30, 32)}, "image height 30 .* patch_size 8"),
        ({"stem": "convolution"}, "stem 'convolution' is not one of patch, conv"),
        ({"stem": "conv", "patch_size": 12, "image_size": (24, 24)}, "power of two"),
        ({"dtype": "float16"}, "dtype 'float16' is not one of"),
        ({"decoder": {"heads": 3}}, "width 64 is not a multiple of heads 3"),
        ({"encoder": {"depth": 0}}, "depth must be at least 1, not 0"),
        ({"ordered_tokens": (3, 70)}, "first 3, count 70"),
        ({"max_length": 0}, "max_length 0"),
    ],
)
def test_settings_that_cannot_be_built_are_refused(changes: dict, message: str) -> None:
    sizes = {"vocabulary_size": 65, "max_length": 16, "image_size": (32, 32)}
    with pytest.raises(ModelConfigError, match=message):
        model_config("tiny", **(sizes | changes))


def test_presets_are_settings_of_the_config() -> None:
    for name in PRESETS:
        config = model_config(name, vocabulary_size=10, max_length=4, image_size=(64, 64))
        assert hash(config) == hash(replace(config))
