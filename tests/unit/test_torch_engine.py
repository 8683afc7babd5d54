"""The torch engine draws what the JAX engine draws, with graphs as without."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
import torch

import actors.torch_engine
from actors.cuda_graphs import graph_spans, graphs_supported
from actors.engine import Samples
from actors.jax_engine import JaxEngine, _exponential
from actors.random_words import sequence_words, threefry
from actors.torch_decoding import exponential
from actors.torch_engine import TorchEngine
from vision.models.checkpoint import load_npz
from vision.models.config import Trunk
from vision.models.presets import model_config
from vision.models.sequence import SequenceModel, abstract_params
from vision.models.sequence_torch import TorchSequenceModel

TINY = model_config("tiny", vocabulary_size=65, max_length=16, image_size=(32, 32))
NO_PAD = np.tile(np.arange(65) > 0, (16, 1))
END = 7
SEEDS = np.arange(16, dtype=np.uint64) + np.uint64(1 << 40)


@pytest.fixture(scope="module")
def params(golden: Path) -> dict:
    """Under these sequences end at different positions."""
    published = jax.tree.map(np.array, load_npz(golden / "uvim_tiny_stage2.npz", TINY))
    published["decoder"]["LogitsDense"]["bias"][END] += 3.0
    return published


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (16, 32, 32, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def drawn_by_jax(params: dict, images: np.ndarray) -> Samples:
    return JaxEngine(TINY, NO_PAD, END, temperature=0.8).sample(params, images, SEEDS, 4)


class Unrecorded:
    """Stands in for graphs on a machine without CUDA: the same steps, launched one by one.

    Warms up as recording does, so that what it leaves behind must be undone.
    """

    made = 0

    def __init__(self, step: Callable[[int], None], rewind: Callable[[], None], spans: list[int]):
        Unrecorded.made += 1
        self._step, self._spans, self.launched = step, spans, []
        for span in spans:
            step(span)
            rewind()

    def __call__(self, span: int) -> None:
        assert span in self._spans
        self.launched.append(span)
        self._step(span)


@pytest.fixture
def graphed(monkeypatch: pytest.MonkeyPatch) -> TorchEngine:
    monkeypatch.setattr(actors.torch_engine, "graphs_supported", lambda device: True)
    monkeypatch.setattr(actors.torch_engine, "GraphedSteps", Unrecorded)
    monkeypatch.setattr(Unrecorded, "made", 0)
    return TorchEngine(TINY, NO_PAD, END, temperature=0.8)


def assert_equal(one: Samples, other: Samples) -> None:
    np.testing.assert_array_equal(one.tokens, other.tokens)
    np.testing.assert_array_equal(one.lengths, other.lengths)
    np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-4)


def test_both_engines_draw_the_same_sequences(
    params: dict, images: np.ndarray, drawn_by_jax: Samples
) -> None:
    drawn = TorchEngine(TINY, NO_PAD, END, temperature=0.8).sample(params, images, SEEDS, 4)
    assert len(set(drawn.lengths.ravel().tolist())) > 8
    assert_equal(drawn, drawn_by_jax)


def test_recorded_steps_draw_the_same_sequences_call_after_call(
    graphed: TorchEngine, params: dict, images: np.ndarray, drawn_by_jax: Samples
) -> None:
    plain = TorchEngine(TINY, NO_PAD, END, temperature=0.8, cuda_graphs=False)
    assert_equal(graphed.sample(params, images, SEEDS, 4), drawn_by_jax)
    other = images[::-1].copy()
    assert_equal(graphed.sample(params, other, SEEDS, 4), plain.sample(params, other, SEEDS, 4))
    assert Unrecorded.made == 1
    newer = jax.tree.map(lambda leaf: leaf * 1.1, params)
    assert_equal(graphed.sample(newer, images, SEEDS, 4), plain.sample(newer, images, SEEDS, 4))
    assert Unrecorded.made == 1
    assert_equal(graphed.greedy(params, images), plain.greedy(params, images))
    assert Unrecorded.made == 2


def test_a_policy_of_nan_leaves_nothing_behind(
    graphed: TorchEngine, params: dict, images: np.ndarray, drawn_by_jax: Samples
) -> None:
    graphed.sample(jax.tree.map(lambda leaf: leaf * np.nan, params), images, SEEDS, 4)
    assert_equal(graphed.sample(params, images, SEEDS, 4), drawn_by_jax)


def test_recorded_steps_end_soon_after_every_sequence_has(
    graphed: TorchEngine, params: dict, images: np.ndarray
) -> None:
    short = jax.tree.map(np.array, params)
    short["decoder"]["LogitsDense"]["bias"][END] = 100.0
    samples = graphed.sample(short, images, SEEDS, 4)
    assert (samples.lengths == 1).all()
    assert (samples.tokens[..., 1:] == 0).all()
    assert graphed._static[1].launched == [4, 4, 4, 4, 8, 8, 8, 8]


def test_a_newer_policy_goes_into_the_same_memory(params: dict) -> None:
    model = TorchSequenceModel(TINY, torch.device("cpu"))
    model.load(params)
    before = {name: tensor.data_ptr() for name, tensor in model._tensors.items()}
    newer = jax.tree.map(lambda leaf: leaf + 1.0, params)
    model.load(newer)
    assert {name: tensor.data_ptr() for name, tensor in model._tensors.items()} == before
    np.testing.assert_array_equal(
        model._tensors["decoder/LogitsDense/weight"].numpy().T,
        newer["decoder"]["LogitsDense"]["kernel"],
    )


def test_parameters_of_another_shape_are_refused(params: dict, images: np.ndarray) -> None:
    other = jax.tree.map(np.array, params)
    other["pos_embedding_decoder"] = other["pos_embedding_decoder"][:, :5]
    engine = TorchEngine(TINY, NO_PAD, END)
    engine.greedy(params, images)
    with pytest.raises(ValueError, match=r"pos_embedding_decoder is \[5, 64\], before \[16, 64\]"):
        engine.greedy(other, images)
    del other["decoder"]["LayerNorm"]
    with pytest.raises(KeyError, match="decoder/LayerNorm/scale"):
        engine.greedy(other, images)


def test_the_loop_ends_when_every_sequence_has(params: dict, images: np.ndarray) -> None:
    """A NaN that position 1 would meet is never met."""
    short = jax.tree.map(np.array, params)
    short["decoder"]["LogitsDense"]["bias"][END] = 100.0
    short["pos_embedding_decoder"][:, 1:] = np.nan
    samples = TorchEngine(TINY, NO_PAD, END).sample(short, images, SEEDS, 2)
    assert (samples.lengths == 1).all()
    assert np.isfinite(samples.logprobs).all()


@pytest.mark.parametrize("image_size", [(32, 32), (24, 40)])
def test_a_convolutional_stem_and_a_narrower_decoder_are_the_same_model(
    image_size: tuple[int, int],
) -> None:
    config = replace(
        TINY,
        stem="conv",
        image_size=image_size,
        decoder=Trunk(depth=1, width=32, heads=2, mlp_dim=48),
    )
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: rng.normal(scale=0.2, size=leaf.shape).astype(np.float32),
        abstract_params(config),
    )
    images = rng.uniform(-1, 1, (2, *image_size, 3)).astype(np.float32)
    encode = jax.jit(SequenceModel(config).apply, static_argnames="method")
    model = TorchSequenceModel(config, torch.device("cpu"))
    model.load(params)
    np.testing.assert_allclose(
        model.encode(torch.tensor(images)).numpy(),
        encode({"params": params}, images, method="encode"),
        atol=2e-5,
    )


def test_words_are_those_of_jax_random() -> None:
    seeds = np.array([0, 1, 2**63 + 5, 2**64 - 1], np.uint64)
    words = sequence_words(seeds, 3, 7)
    for g, seed in enumerate(seeds.tolist()):
        data = np.array([seed >> 32, seed & 0xFFFFFFFF], np.uint32)
        key = jax.random.wrap_key_data(data, impl="threefry2x32")
        for k in range(3):
            expected = jax.random.bits(jax.random.fold_in(key, k), (7, 2), np.uint32)
            np.testing.assert_array_equal(words[:, 3 * g + k], expected)


def test_threefry_gives_the_published_numbers() -> None:
    """Known answers that come with the algorithm (Salmon et al. 2011): 20 rounds of 2x32."""
    known = [
        ((0x00000000, 0x00000000), (0x00000000, 0x00000000), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ]
    for key, counter, expected in known:
        words = threefry(
            tuple(np.array([word], np.uint32) for word in key),
            tuple(np.array([word], np.uint32) for word in counter),
        )
        assert [int(word[0]) for word in words] == list(expected)


def test_both_engines_hash_words_to_the_same_clocks() -> None:
    words = np.random.default_rng(0).integers(0, 2**32, (64, 2), dtype=np.uint32)
    index = np.arange(1000, dtype=np.uint32) * np.uint32(0x9E3779B9)
    mine = exponential(torch.tensor(words.view(np.int32)), torch.tensor(index.view(np.int32)))
    np.testing.assert_allclose(mine.numpy(), _exponential(words, 1000), rtol=1e-5)


def test_a_step_is_recorded_for_spans_that_reach_the_last_position() -> None:
    assert graph_spans(16) == [4, 8, 12, 16]
    assert graph_spans(10) == [3, 5, 8, 10]
    assert graph_spans(1) == [1]


@pytest.mark.parametrize(
    ("capability", "cuda", "supported"),
    [
        ((8, 0), "12.8", True),
        ((7, 0), "12.8", True),
        ((6, 1), "12.8", False),
        ((9, 0), None, False),
    ],
)
def test_graphs_are_for_cuda_devices_that_can(
    capability: tuple[int, int], cuda: str | None, supported: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    assert graphs_supported(torch.device("cuda")) is supported
    assert not graphs_supported(torch.device("cpu"))


def test_a_torch_sampler_does_not_load_jax() -> None:
    """On a GPU it would take most of the memory."""
    code = (
        "import sys, actors.torch_engine, deploy.processes, actors.sampler, learner.weight_store; "
        "print(sorted({'jax', 'flax'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"
