"""What every engine promises: draws from the learner's distribution, whatever is in the batch."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from actors.engine import Engine, EngineInputError, Samples
from actors.jax_engine import JaxEngine
from actors.torch_engine import TorchEngine
from vision.models.checkpoint import load_npz
from vision.models.config import ModelConfig, Trunk
from vision.models.logprobs import mask_logits, sequence_mask, token_logprobs
from vision.models.presets import model_config
from vision.models.sequence import SequenceModel, abstract_params

TINY = model_config("tiny", vocabulary_size=65, max_length=16, image_size=(32, 32))
NO_PAD = np.tile(np.arange(65) > 0, (16, 1))
END = 7


@pytest.fixture(scope="module")
def published(golden: Path) -> dict:
    return load_npz(golden / "uvim_tiny_stage2.npz", TINY)


def _ending(published: dict, bias: float) -> dict:
    """Parameters under which sequences end at different positions."""
    params = jax.tree.map(np.array, published)
    params["decoder"]["LogitsDense"]["bias"][END] += bias
    return params


@pytest.fixture(scope="module")
def ending(published: dict) -> dict:
    return _ending(published, 3.5)


@pytest.fixture(scope="module")
def ending_greedily(published: dict) -> dict:
    return _ending(published, 2.5)


@pytest.fixture(scope="module")
def io(golden: Path) -> dict[str, np.ndarray]:
    with np.load(golden / "uvim_tiny_io.npz") as file:
        return {name: file[name] for name in file.files}


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (16, 32, 32, 3)).astype(np.float32)


@pytest.fixture(scope="module", params=[JaxEngine, TorchEngine])
def make(request: pytest.FixtureRequest) -> type:
    return request.param


@pytest.fixture(scope="module")
def engine(make: type) -> Engine:
    return make(TINY, NO_PAD, END)


@pytest.fixture(scope="module")
def sampled(engine: Engine, ending: dict, images: np.ndarray) -> Samples:
    """16 groups of 4: batches of 64, 48, 32 and 16 rows as sequences end."""
    return engine.sample(ending, images, np.arange(16, dtype=np.uint64), 4)


@jax.jit
def _logits(params: dict, images: jax.Array, tokens: jax.Array) -> jax.Array:
    return SequenceModel(TINY).apply({"params": params}, images, tokens)


def test_greedy_tokens_are_big_visions(
    make: type, published: dict, io: dict[str, np.ndarray]
) -> None:
    greedy = make(TINY, NO_PAD, -1).greedy(published, io["image"])
    np.testing.assert_array_equal(greedy.tokens[:, 0], io["stage2_greedy_tokens"])
    assert (greedy.lengths == 16).all()


def test_greedy_equals_brute_force_by_teacher_forcing(
    engine: Engine, ending_greedily: dict, images: np.ndarray
) -> None:
    greedy = engine.greedy(ending_greedily, images)
    tokens = np.zeros((16, 1, 16), np.int32)
    ended = np.zeros((16, 1), bool)
    for t in range(16):
        best = np.argmax(
            mask_logits(_logits(ending_greedily, images, tokens), NO_PAD)[:, :, t], axis=-1
        )
        tokens[:, :, t] = np.where(ended, 0, best)
        ended |= best == END
    assert len(set(greedy.lengths.ravel().tolist())) > 1
    np.testing.assert_array_equal(greedy.tokens, tokens)


def test_logprobs_are_the_learners(sampled: Samples, ending: dict, images: np.ndarray) -> None:
    learned = token_logprobs(_logits(ending, images, sampled.tokens), sampled.tokens, NO_PAD)
    valid = np.asarray(sequence_mask(sampled.tokens, END))
    assert np.abs(learned - sampled.logprobs)[valid].max() <= 1e-4
    # Sequences of many lengths, so that the loop went through all its batch sizes.
    lengths = np.sort(sampled.lengths.ravel())
    assert lengths[16] < lengths[32] < lengths[48] < lengths[63]


def test_after_the_end_comes_padding_with_logprob_zero(sampled: Samples) -> None:
    valid = np.asarray(sequence_mask(sampled.tokens, END))
    assert (sampled.tokens[~valid] == 0).all()
    assert (sampled.logprobs[~valid] == 0).all()
    assert (sampled.tokens[valid] > 0).all()
    assert (sampled.logprobs[valid] < 0).all()
    np.testing.assert_array_equal(sampled.lengths, valid.sum(-1))
    last = np.take_along_axis(sampled.tokens, sampled.lengths[..., None] - 1, axis=-1)[..., 0]
    np.testing.assert_array_equal(last == END, sampled.lengths < 16)
    assert sampled.tokens.dtype == sampled.lengths.dtype == np.int32
    assert sampled.logprobs.dtype == np.float32


def test_a_group_does_not_depend_on_the_groups_beside_it(
    engine: Engine, sampled: Samples, ending: dict, images: np.ndarray
) -> None:
    order = np.random.default_rng(1).permutation(16)
    others = images[order].copy()
    seeds = np.arange(16, dtype=np.uint64)[order]
    others[8:], seeds[8:] = 0.3, np.uint64(99)
    again = engine.sample(ending, others, seeds, 4)
    for place, group in enumerate(order[:8]):
        np.testing.assert_array_equal(again.tokens[place], sampled.tokens[group])
        np.testing.assert_allclose(again.logprobs[place], sampled.logprobs[group], atol=2e-5)


def test_sample_k_does_not_depend_on_how_many_are_drawn(
    engine: Engine, sampled: Samples, ending: dict, images: np.ndarray
) -> None:
    fewer = engine.sample(ending, images[:4], np.arange(4, dtype=np.uint64), 2)
    np.testing.assert_array_equal(fewer.tokens, sampled.tokens[:4, :2])


def test_the_same_seeds_give_the_same_bits(
    engine: Engine, sampled: Samples, ending: dict, images: np.ndarray
) -> None:
    again = engine.sample(ending, images, np.arange(16, dtype=np.uint64), 4)
    np.testing.assert_array_equal(again.tokens, sampled.tokens)
    np.testing.assert_array_equal(again.logprobs, sampled.logprobs)


def test_seeds_differ_in_their_high_word_too(
    engine: Engine, sampled: Samples, ending: dict, images: np.ndarray
) -> None:
    seeds = np.arange(16, dtype=np.uint64) + np.uint64(1 << 40)
    other = engine.sample(ending, images, seeds, 4)
    assert (other.tokens != sampled.tokens).any(axis=(1, 2)).all()


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_draws_follow_the_tempered_distribution(
    make: type, published: dict, temperature: float
) -> None:
    shallow = replace(TINY.encoder, depth=1)
    config = replace(TINY, max_length=2, encoder=shallow, decoder=shallow)
    params = jax.tree.map(np.array, published)
    params["pos_embedding_decoder"] = params["pos_embedding_decoder"][:, :2]
    del params["encoder"]["encoderblock_1"], params["decoder"]["EncDecBlock1"]
    allowed = np.zeros((2, 65), bool)
    allowed[:, 10:16] = True
    images = np.zeros((16, 32, 32, 3), np.float32)
    engine = make(config, allowed, -1, temperature=temperature)
    seeds = np.arange(16, dtype=np.uint64)
    drawn = engine.sample(params, images, seeds, 500)
    apply = SequenceModel(config).apply
    logits = np.asarray(jax.jit(apply)({"params": params}, images[:1], drawn.tokens[:1, :1]))
    first = logits[0, 0, 0, 10:16].astype(np.float64)
    expected = np.exp(first / temperature) / np.exp(first / temperature).sum()
    counts = np.bincount(drawn.tokens[..., 0].ravel(), minlength=65)
    assert counts[10:16].sum() == 8000
    # Pearson's chi-squared with 5 degrees of freedom: 25.7 is passed once in 10,000.
    assert (((counts[10:16] - 8000 * expected) ** 2) / (8000 * expected)).sum() < 25.7
    # The second token is drawn independently of the first but for the model's own dependence.
    pairs = np.corrcoef(drawn.tokens[..., 0].ravel(), drawn.tokens[..., 1].ravel())[0, 1]
    assert abs(pairs) < 0.1
    recorded = drawn.logprobs[0, :, 0]
    plain = first - np.log(np.exp(first).sum())
    np.testing.assert_allclose(recorded, plain[drawn.tokens[0, :, 0] - 10], atol=1e-4)


def test_forbidden_tokens_are_never_drawn_and_carry_no_probability(
    make: type, ending: dict, images: np.ndarray
) -> None:
    allowed = np.zeros((16, 65), bool)
    allowed[0::2, 20:24] = True
    allowed[1::2, 30:33] = True
    samples = make(TINY, allowed, -1).sample(ending, images[:4], np.arange(4, dtype=np.uint64), 16)
    assert set(np.unique(samples.tokens[..., 0::2])) == set(range(20, 24))
    assert set(np.unique(samples.tokens[..., 1::2])) == set(range(30, 33))
    learned = token_logprobs(_logits(ending, images[:4], samples.tokens), samples.tokens, allowed)
    assert np.abs(learned - samples.logprobs).max() <= 1e-4


def test_an_end_token_bias_moves_the_draw_and_not_the_logprobs(
    make: type, engine: Engine, ending_greedily: dict, images: np.ndarray
) -> None:
    biased = make(TINY, NO_PAD, END, end_token_bias=-3.0).greedy(ending_greedily, images)
    assert biased.lengths.sum() > engine.greedy(ending_greedily, images).lengths.sum()
    learned = token_logprobs(_logits(ending_greedily, images, biased.tokens), biased.tokens, NO_PAD)
    valid = np.asarray(sequence_mask(biased.tokens, END))
    assert np.abs(learned - biased.logprobs)[valid].max() <= 1e-4


def test_bfloat16_sampling_agrees_with_its_own_teacher_forcing(
    make: type, ending: dict, images: np.ndarray
) -> None:
    config = replace(TINY, dtype="bfloat16")
    samples = make(config, NO_PAD, END).sample(ending, images[:4], np.arange(4, dtype=np.uint64), 2)
    logits = jax.jit(SequenceModel(config).apply)({"params": ending}, images[:4], samples.tokens)
    assert logits.dtype == jnp.float32
    learned = token_logprobs(logits, samples.tokens, NO_PAD)
    valid = np.asarray(sequence_mask(samples.tokens, END))
    assert np.abs(learned - samples.logprobs)[valid].max() <= 0.1


def test_a_decoder_of_another_width_and_depth_samples_what_it_learns(
    make: type, images: np.ndarray
) -> None:
    config: ModelConfig = replace(TINY, decoder=Trunk(depth=1, width=32, heads=2, mlp_dim=48))
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: rng.normal(scale=0.2, size=leaf.shape).astype(np.float32),
        abstract_params(config),
    )
    samples = make(config, NO_PAD, END).sample(params, images[:2], np.arange(2, dtype=np.uint64), 3)
    logits = jax.jit(SequenceModel(config).apply)({"params": params}, images[:2], samples.tokens)
    learned = token_logprobs(logits, samples.tokens, NO_PAD)
    valid = np.asarray(sequence_mask(samples.tokens, END))
    assert np.abs(learned - samples.logprobs)[valid].max() <= 1e-4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"allowed_tokens": NO_PAD[:5]}, r"\(5, 65\), the model needs \[L, V\] = \(16, 65\)"),
        ({"allowed_tokens": NO_PAD & (np.arange(16) != 3)[:, None]}, "no token at position 3"),
        ({"end_token": 65}, "end_token 65 is outside the vocabulary of 65"),
        ({"temperature": 0.0}, "temperature must be above 0, not 0.0"),
    ],
)
def test_settings_that_cannot_be_sampled_with_are_refused(
    make: type, changes: dict, message: str
) -> None:
    settings = {"allowed_tokens": NO_PAD, "end_token": END} | changes
    with pytest.raises(EngineInputError, match=message):
        make(TINY, **settings)


def test_inputs_of_another_shape_or_type_are_refused(
    engine: Engine, ending: dict, images: np.ndarray
) -> None:
    with pytest.raises(EngineInputError, match="seeds must be uint64, one for each of 16 images"):
        engine.sample(ending, images, np.arange(16), 2)
    with pytest.raises(EngineInputError, match="seeds must be uint64, one for each of 16 images"):
        engine.sample(ending, images, np.arange(4, dtype=np.uint64), 2)
    with pytest.raises(EngineInputError, match=r"images have shape \(16, 16, 32, 3\)"):
        engine.greedy(ending, images[:, :16])
    with pytest.raises(EngineInputError, match="samples_per_group must be 1 or more, not 0"):
        engine.sample(ending, images, np.arange(16, dtype=np.uint64), 0)
