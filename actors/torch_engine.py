"""Sampling in torch: one loop over positions that ends when every sequence has ended.

As in the JAX engine an image is encoded once and its cross-attention keys and values are computed
once, whatever K is; self-attention is cached; the randomness of a sequence comes from (seed, k) and
the position alone, by the same words and the same hash. Where CUDA graphs can be had, a position is
one launch; elsewhere sequences that have ended leave the batch.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actors.cuda_graphs import GraphedSteps, graph_spans, graphs_supported
from actors.engine import Samples, check_draws, check_images, check_settings
from actors.random_words import sequence_words
from actors.torch_decoding import SHRINK_AT, Decoding, Steps
from vision.models.config import ModelConfig
from vision.models.sequence_torch import KeysValues, TorchSequenceModel

# Asking a device whether all sequences have ended makes it wait for the answer.
POSITIONS_BETWEEN_QUESTIONS = 8


class TorchEngine:
    """Draws sequences from a `TorchSequenceModel`.

    Args:
      config: the model's.
      allowed_tokens: [L, V] bool, what may stand where; the distribution is renormalised over it.
      end_token: ends a sequence; -1 where sequences always have L tokens.
      temperature: divides the logits when drawing. Logprobs stay those of temperature 1.
      end_token_bias: added to the end token's logit when drawing and when greedy: a decode-time
        control for experiments. Logprobs stay those without it.
      device: such as "cuda" or "cpu"; None: CUDA where it is there, else the CPU.
      cuda_graphs: launch a position's kernels as one, where the device can.
    """

    def __init__(
        self,
        config: ModelConfig,
        allowed_tokens: np.ndarray,
        end_token: int,
        temperature: float = 1.0,
        end_token_bias: float = 0.0,
        device: str | None = None,
        cuda_graphs: bool = True,
    ) -> None:
        check_settings(config, allowed_tokens, end_token, temperature)
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self._config, self._device = config, torch.device(device)
        self._end_token = end_token
        self._model = TorchSequenceModel(config, self._device)
        self._steps = Steps(
            self._model, allowed_tokens, end_token, temperature, end_token_bias, self._device
        )
        self._loaded: Any = None
        self._graphs = cuda_graphs and graphs_supported(self._device)
        # Of the last shape that was decoded: groups, samples, greedy or not.
        self._shape: tuple[int, int, bool] | None = None
        self._static: tuple[Decoding, Callable[[int], None]] | None = None

    def sample(
        self, params: Any, images: np.ndarray, seeds: np.ndarray, samples_per_group: int
    ) -> Samples:
        """K sequences for each image; see `actors.engine.Engine.sample`."""
        seeds = np.asarray(seeds)
        check_draws(images, seeds, samples_per_group)
        words = sequence_words(seeds, samples_per_group, self._config.max_length)
        return self._run(params, images, words, samples_per_group)

    def greedy(self, params: Any, images: np.ndarray) -> Samples:
        """The most likely token at each position: K = 1."""
        return self._run(params, images, None, 1)

    @torch.inference_mode()
    def _run(
        self, params: Mapping[str, Any], images: np.ndarray, words: np.ndarray | None, samples: int
    ) -> Samples:
        check_images(self._config, images)
        if params is not self._loaded:
            self._model.load(params)
            self._loaded = params
        cross = self._model.cross_keys_values(self._model.encode(torch.tensor(images)))
        on_device = None
        if words is not None:
            on_device = torch.tensor(words.view(np.int32), device=self._device)
        decode = self._decode_graphed if self._graphs else self._decode_shrinking
        tokens, logprobs = (x.cpu().numpy() for x in decode(cross, on_device, samples))
        shape = (len(images), samples, self._config.max_length)
        tokens = tokens.astype(np.int32).reshape(shape)
        return Samples(tokens, logprobs.reshape(shape), _lengths(tokens, self._end_token))

    def _decode_shrinking(
        self, cross: list[KeysValues], words: Tensor | None, samples: int
    ) -> tuple[Tensor, Tensor]:
        """Tokens and logprobs [G * K, L]; works on fewer and fewer sequences as they end."""
        decoding = Decoding.start(self._model, cross, words, samples)
        tokens, logprobs = decoding.tokens, decoding.logprobs
        for position in range(self._config.max_length):
            self._steps.advance(decoding, position + 1)
            if self._end_token < 0:
                continue
            active = len(decoding.ended) - int(decoding.ended.sum())
            if active == 0:
                break
            if active <= SHRINK_AT * len(decoding.ended):
                _put_back(decoding, tokens, logprobs)
                decoding = decoding.without_ended(samples, position + 1)
        _put_back(decoding, tokens, logprobs)
        return tokens, logprobs

    def _decode_graphed(
        self, cross: list[KeysValues], words: Tensor | None, samples: int
    ) -> tuple[Tensor, Tensor]:
        """Tokens and logprobs [G * K, L]; one launch a position, of all sequences to the end."""
        length = self._config.max_length
        spans = graph_spans(length)
        shape = (len(cross[0][0]), samples, words is None)
        if self._static is None or shape != self._shape:
            self._static = None  # Its memory goes before the next one's is taken.
            decoding = Decoding.start(self._model, cross, words, samples)
            self._static, self._shape = (decoding, self._record(decoding, spans)), shape
        decoding, step = self._static
        decoding.restart(cross, words)
        for position in range(length):
            step(next(span for span in spans if span > position))
            asked = position % POSITIONS_BETWEEN_QUESTIONS == POSITIONS_BETWEEN_QUESTIONS - 1
            if self._end_token >= 0 and asked and bool(decoding.ended.all()):
                break
        return decoding.tokens, decoding.logprobs

    def _record(self, decoding: Decoding, spans: list[int]) -> Callable[[int], None]:
        """What decodes a position of `decoding`, given how much of the cache to look at."""

        def step(span: int) -> None:
            self._steps.advance(decoding, span)

        def rewind() -> None:
            decoding.position.zero_()

        return GraphedSteps(step, rewind, spans)


def _put_back(decoding: Decoding, tokens: Tensor, logprobs: Tensor) -> None:
    """Writes the sequences of a smaller batch where they belong."""
    if decoding.rows is not None:
        tokens.index_copy_(0, decoding.chosen, decoding.tokens)
        logprobs.index_copy_(0, decoding.chosen, decoding.logprobs)


def _lengths(tokens: np.ndarray, end_token: int) -> np.ndarray:
    """[...] int32 of tokens [..., L]: up to and including the end token; L when there is none."""
    ends = tokens == end_token
    length = tokens.shape[-1]
    return np.where(ends.any(-1), ends.argmax(-1) + 1, length).astype(np.int32)
