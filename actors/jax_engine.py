"""Sampling in JAX: one compiled loop that ends when every sequence has ended.

An image is encoded once and its cross-attention keys and values are computed once, whatever K is;
self-attention is cached. The randomness of a sequence comes from (seed, k) and the position
alone, so a group does not depend on the groups it is sampled with.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from actors.engine import Samples
from vision.models.config import ModelConfig
from vision.models.logprobs import mask_logits, sequence_mask
from vision.models.sequence import PAD, SequenceModel

Array = jax.Array


class EngineInputError(ValueError):
    """What was handed to the engine cannot be sampled with."""


class _Loop(NamedTuple):
    """What the loop carries."""

    position: Array  # scalar int32
    tokens: Array  # [G, K, L] int32
    logprobs: Array  # [G, K, L] float32
    last: Array  # [G, K] int32, the tokens just drawn
    ended: Array  # [G, K] bool
    cache: Any


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
        shape = (config.max_length, config.vocabulary_size)
        if allowed_tokens.shape != shape:
            raise EngineInputError(
                f"allowed_tokens has shape {allowed_tokens.shape}, the model needs [L, V] = {shape}"
            )
        empty = np.flatnonzero(~allowed_tokens.any(axis=1))
        if empty.size:
            raise EngineInputError(f"allowed_tokens allows no token at position {empty[0]}")
        if not -1 <= end_token < config.vocabulary_size:
            raise EngineInputError(
                f"end_token {end_token} is outside the vocabulary of {config.vocabulary_size} "
                "(-1 says that there is none)"
            )
        if not temperature > 0:
            raise EngineInputError(
                f"temperature must be above 0, not {temperature}; use greedy() for the mode"
            )
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
        if samples_per_group < 1:
            raise EngineInputError(f"samples_per_group must be 1 or more, not {samples_per_group}")
        seeds = np.asarray(seeds)
        if seeds.dtype != np.uint64 or seeds.shape != images.shape[:1]:
            raise EngineInputError(
                f"seeds must be uint64, one for each of {images.shape[0]} images; "
                f"got {seeds.dtype} of shape {seeds.shape}"
            )
        words = np.stack([seeds >> np.uint64(32), seeds & np.uint64(0xFFFFFFFF)], axis=-1)
        return self._run(params, images, words.astype(np.uint32), samples_per_group)

    def greedy(self, params: Any, images: np.ndarray) -> Samples:
        """The most likely token at each position: K = 1."""
        return self._run(params, images, None, 1)

    def _run(
        self, params: Any, images: np.ndarray, seeds: np.ndarray | None, samples: int
    ) -> Samples:
        expected = (*self._config.image_size, 3)
        if images.ndim != 4 or images.shape[1:] != expected:
            raise EngineInputError(
                f"images have shape {images.shape}, the model needs [G, *{expected}]"
            )
        tokens, logprobs, lengths = jax.device_get(
            self._decode(params, images, seeds, samples=samples)
        )
        return Samples(tokens, logprobs, lengths)

    def _decode_loop(
        self, params: Any, images: Array, seeds: Array | None, samples: int
    ) -> tuple[Array, Array, Array]:
        """tokens, logprobs and lengths; seeds [G, 2] uint32, or None to be greedy."""
        variables = {"params": params}
        model = self._model
        groups, length = images.shape[0], self._config.max_length
        memory = model.apply(variables, images, method="encode")
        cross = model.apply(variables, memory, method="cross_keys_values")
        keys = None if seeds is None else _sequence_keys(seeds, samples)
        empty = jnp.zeros((groups, samples, length), jnp.int32)
        start = _Loop(
            position=jnp.int32(0),
            tokens=empty + PAD,
            logprobs=empty.astype(jnp.float32),
            last=empty[..., 0] + PAD,
            ended=jnp.zeros((groups, samples), bool),
            cache=model.empty_cache(groups, samples),
        )

        def step(loop: _Loop) -> _Loop:
            logits, cache = model.apply(
                variables, loop.last, loop.position, loop.cache, cross, method="decode_step"
            )
            logits = mask_logits(logits, self._allowed[loop.position])
            drawn = self._draw(logits, keys, loop.position)
            picked = jnp.take_along_axis(logits, drawn[..., None], axis=-1)[..., 0]
            logprob = picked - jax.nn.logsumexp(logits, axis=-1)
            drawn = jnp.where(loop.ended, PAD, drawn)
            logprob = jnp.where(loop.ended, 0.0, logprob)
            put = jax.lax.dynamic_update_index_in_dim
            return _Loop(
                position=loop.position + 1,
                tokens=put(loop.tokens, drawn, loop.position, 2),
                logprobs=put(loop.logprobs, logprob, loop.position, 2),
                last=drawn,
                ended=loop.ended | (drawn == self._end_token),
                cache=cache,
            )

        def unfinished(loop: _Loop) -> Array:
            return (loop.position < length) & ~jnp.all(loop.ended)

        done = jax.lax.while_loop(unfinished, step, start)
        lengths = jnp.sum(sequence_mask(done.tokens, self._end_token), axis=-1, dtype=jnp.int32)
        return done.tokens, done.logprobs, lengths

    def _draw(self, logits: Array, keys: Array | None, position: Array) -> Array:
        """[G, K] int32 tokens: the greatest logit, with Gumbel noise when there are keys."""
        logits = logits + self._bias
        if keys is None:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        fold_in = jax.vmap(jax.vmap(jax.random.fold_in, (0, None)), (0, None))
        noise = jax.vmap(jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[-1:])))(
            fold_in(keys, position)
        )
        return jnp.argmax(logits / self._temperature + noise, axis=-1).astype(jnp.int32)


def _sequence_keys(seeds: Array, samples: int) -> Array:
    """[G, K] keys: one for each sequence, from its group's seed ([G, 2] uint32) and its k."""
    groups = jax.random.wrap_key_data(seeds, impl="threefry2x32")
    return jax.vmap(
        lambda key: jax.vmap(lambda k: jax.random.fold_in(key, k))(jnp.arange(samples))
    )(groups)
