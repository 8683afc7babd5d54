"""Sampling in JAX: one compiled loop that ends when every sequence has ended.

An image is encoded once and its cross-attention keys and values are computed once, whatever K is;
self-attention is cached. The randomness of a sequence comes from (seed, k) and the position
alone, so a group does not depend on the groups it is sampled with.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from actors.engine import Samples, check_draws, check_images, check_settings
from actors.random_words import sequence_words
from vision.models.config import ModelConfig
from vision.models.decoder import Rows
from vision.models.logprobs import mask_logits, sequence_mask
from vision.models.sequence import PAD, SequenceModel

Array = jax.Array
# The shares of all sequences that the loop is compiled for; each costs a second of compilation.
STAGES = (1.0, 0.75, 0.5, 0.25)
# A batch that is no multiple of this wastes vector lanes.
ROW_MULTIPLE = 8


class _Loop(NamedTuple):
    """What the loop carries, for the M of the G x K sequences that it still works on."""

    position: Array  # scalar int32
    tokens: Array  # [M, L] int32
    logprobs: Array  # [M, L] float32
    last: Array  # [M] int32, the tokens just drawn
    ended: Array  # [M] bool
    cache: Any  # arrays [M, ...]


class JaxEngine:
    """Draws sequences from a `SequenceModel`.

    Args:
      config: the model's.
      allowed_tokens: [L, V] bool, what may stand where; the distribution is renormalised over it.
      end_token: ends a sequence; -1 where sequences always have L tokens.
      temperature: divides the logits when drawing. Logprobs stay those of temperature 1.
      end_token_bias: added to the end token's logit when drawing and when greedy: a decode-time
        control for experiments. Logprobs stay those without it.
    """

    def __init__(
        self,
        config: ModelConfig,
        allowed_tokens: np.ndarray,
        end_token: int,
        temperature: float = 1.0,
        end_token_bias: float = 0.0,
    ) -> None:
        check_settings(config, allowed_tokens, end_token, temperature)
        self._config = config
        self._model = SequenceModel(config)
        self._allowed = jnp.asarray(allowed_tokens, bool)
        self._end_token = end_token
        self._temperature = temperature
        self._bias = np.zeros(config.vocabulary_size, np.float32)
        if end_token >= 0:
            self._bias[end_token] = end_token_bias
        self._decode = jax.jit(self._decode_loop, static_argnames="samples")

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

    def _run(
        self, params: Any, images: np.ndarray, words: np.ndarray | None, samples: int
    ) -> Samples:
        check_images(self._config, images)
        tokens, logprobs, lengths = jax.device_get(
            self._decode(params, images, words, samples=samples)
        )
        return Samples(tokens, logprobs, lengths)

    def _decode_loop(
        self, params: Any, images: Array, words: Array | None, samples: int
    ) -> tuple[Array, Array, Array]:
        """tokens, logprobs and lengths; words [L, G * K, 2] uint32, or None to be greedy."""
        variables = {"params": params}
        model = self._model
        groups, length = images.shape[0], self._config.max_length
        memory = model.apply(variables, images, method="encode")
        cross = model.apply(variables, memory, method="cross_keys_values")
        sequences = groups * samples
        loop = _Loop(
            position=jnp.int32(0),
            tokens=jnp.full((sequences, length), PAD, jnp.int32),
            logprobs=jnp.zeros((sequences, length), jnp.float32),
            last=jnp.full(sequences, PAD, jnp.int32),
            ended=jnp.zeros(sequences, bool),
            cache=model.empty_cache(groups, samples),
        )
        tokens, logprobs = loop.tokens, loop.logprobs
        rows = None
        sizes = _stage_sizes(sequences) if self._end_token >= 0 else [sequences]
        for size, next_size in zip(sizes, [*sizes[1:], 0], strict=True):
            if size < sequences:
                loop, rows = _keep_active(loop, rows, size, (groups, samples))
            loop = self._stage(variables, cross, words, rows, loop, next_size)
            if rows is None:
                tokens, logprobs = loop.tokens, loop.logprobs
            else:
                tokens = tokens.at[rows.chosen].set(loop.tokens)
                logprobs = logprobs.at[rows.chosen].set(loop.logprobs)
        lengths = jnp.sum(sequence_mask(tokens, self._end_token), axis=-1, dtype=jnp.int32)
        shape = (groups, samples, length)
        return tokens.reshape(shape), logprobs.reshape(shape), lengths.reshape(shape[:2])

    def _stage(
        self,
        variables: Any,
        cross: Any,
        words: Array | None,
        rows: Rows | None,
        loop: _Loop,
        next_size: int,
    ) -> _Loop:
        """Decodes until the sequences that have not ended fit into `next_size` rows."""
        length = self._config.max_length
        if words is not None and rows is not None:
            words = words[:, rows.chosen]

        def step(loop: _Loop) -> _Loop:
            logits, cache = self._model.apply(
                variables, loop.last, loop.position, loop.cache, cross, rows, method="decode_step"
            )
            logits = mask_logits(logits, self._allowed[loop.position])
            drawn = self._draw(logits, None if words is None else words[loop.position])
            picked = jnp.take_along_axis(logits, drawn[..., None], axis=-1)[..., 0]
            logprob = picked - jax.nn.logsumexp(logits, axis=-1)
            drawn = jnp.where(loop.ended, PAD, drawn)
            logprob = jnp.where(loop.ended, 0.0, logprob)
            put = jax.lax.dynamic_update_index_in_dim
            return _Loop(
                position=loop.position + 1,
                tokens=put(loop.tokens, drawn, loop.position, 1),
                logprobs=put(loop.logprobs, logprob, loop.position, 1),
                last=drawn,
                ended=loop.ended | (drawn == self._end_token),
                cache=cache,
            )

        def unfinished(loop: _Loop) -> Array:
            return (loop.position < length) & (jnp.sum(~loop.ended) > next_size)

        return jax.lax.while_loop(unfinished, step, loop)

    def _draw(self, logits: Array, words: Array | None) -> Array:
        """[M] int32 tokens: the likeliest, or drawn with the position's random words [M, 2]."""
        logits = logits + self._bias
        if words is None:
            return _first_maximum(logits)
        # The first of V exponential clocks with rates p_v rings for v with probability p_v.
        scaled = (logits - jnp.max(logits, axis=-1, keepdims=True)) / self._temperature
        clocks = _exponential(words, logits.shape[-1])
        return _first_maximum(jnp.exp(scaled) / clocks)


def _stage_sizes(sequences: int) -> list[int]:
    """The numbers of rows that the loop is compiled for, falling.

    Sequences end at different positions. Each time that a quarter of them has ended, the others
    move to a smaller batch.
    """
    rows = {math.ceil(share * sequences / ROW_MULTIPLE) * ROW_MULTIPLE for share in STAGES}
    return sorted({min(size, sequences) for size in rows}, reverse=True)


def _keep_active(
    loop: _Loop, rows: Rows | None, size: int, grid: tuple[int, int]
) -> tuple[_Loop, Rows]:
    """The loop with `size` of its rows, those that have not ended first; and which these are."""
    kept = jnp.argsort(loop.ended, stable=True)[:size].astype(jnp.int32)
    chosen = kept if rows is None else rows.chosen[kept]
    place = jnp.zeros(grid[0] * grid[1], jnp.int32).at[chosen].set(jnp.arange(size))
    smaller = jax.tree.map(lambda x: x[kept], tuple(loop[1:]))
    return _Loop(loop.position, *smaller), Rows(chosen, place.reshape(grid))


def _first_maximum(x: Array) -> Array:
    """argmax over the last axis, [...] int32; as two plain reductions, six times faster on CPU."""
    last = x.shape[-1] - 1
    index = jnp.arange(x.shape[-1], dtype=jnp.int32)
    return jnp.min(jnp.where(x == jnp.max(x, axis=-1, keepdims=True), index, last), axis=-1)


def _exponential(words: Array, count: int) -> Array:
    """[..., count] standard exponential variates, a hash of [..., 2] words and the index.

    The words come from Threefry; a cheaper keyed hash (two rounds of MurmurHash3's finalizer)
    spreads them over the vocabulary, where Threefry itself would cost more than the layers.
    """
    index = jnp.arange(count, dtype=jnp.uint32) * jnp.uint32(0x9E3779B9)
    bits = _mix(_mix(index + words[..., :1]) ^ words[..., 1:])
    uniform = ((bits >> 9).astype(jnp.float32) + 0.5) * jnp.float32(2.0**-23)
    return -jnp.log(uniform)


def _mix(bits: Array) -> Array:
    """MurmurHash3's 32-bit finalizer: every input bit changes every output bit."""
    bits = (bits ^ (bits >> 16)) * jnp.uint32(0x85EBCA6B)
    bits = (bits ^ (bits >> 13)) * jnp.uint32(0xC2B2AE35)
    return bits ^ (bits >> 16)
