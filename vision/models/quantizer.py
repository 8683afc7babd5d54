"""The dictionary of stage I: nearest words, and how it is learned without gradients.

`dictionary / counts` are the words: exponential averages of the vectors that chose them (van den
Oord et al. 2017, appendix A.1). UViM keeps words in use by splitting: one that was not chosen for
long is replaced by half of the most frequent one (Kolesnikov et al. 2022, section 3.1, after
Linde, Buzo and Gray 1980).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array
# Relative size of the noise by which the two halves of a split word differ.
SPLIT_NOISE = 1e-3


class WordStatistics(NamedTuple):
    """What a batch says about the words; of parts of a batch they add up.

    counts [codes] float32: how often each was chosen; sums [codes, codeword_dim] float32: the sum
    of the vectors that chose it.
    """

    counts: Array
    sums: Array


def code_words(state: Any) -> Array:
    """The words, [codes, codeword_dim] float32, of unit length."""
    words = state["dictionary"] / state["counts"][:, None]
    return words / jnp.linalg.norm(words, axis=-1, keepdims=True)


def nearest(vectors: Array, words: Array) -> Array:
    """The code of the nearest word of each vector, [...] int32, the first of equals.

    Args:
      vectors: [..., codeword_dim].
      words: [codes, codeword_dim].
    """
    dot = jnp.einsum("...d,kd->...k", vectors, words, precision=jax.lax.Precision.HIGHEST)
    distance = jnp.sum(words * words, axis=-1) - 2 * dot
    return jnp.argmin(distance, axis=-1).astype(jnp.int32)


def word_statistics(vectors: Array, codes: Array, size: int) -> WordStatistics:
    """Counts and sums of vectors [..., codeword_dim] by the codes [...] they chose of `size`."""
    flat = vectors.reshape(-1, vectors.shape[-1])
    chosen = codes.ravel()
    return WordStatistics(
        jnp.zeros(size, jnp.float32).at[chosen].add(1.0),
        jnp.zeros((size, flat.shape[-1]), jnp.float32).at[chosen].add(flat),
    )


def update_state(
    state: Any, statistics: WordStatistics, key: Array, momentum: float, min_count: float
) -> tuple[Any, Array]:
    """The state after a batch, and how many words were split.

    Args:
      state: dictionary [codes, codeword_dim] and counts [codes], float32.
      momentum: decay of counts and sums.
      min_count: a word whose count falls below it gives up its place.
    """
    counts = state["counts"] * momentum + statistics.counts
    dictionary = state["dictionary"] * momentum + statistics.sums
    # Halving must not make a new unused word, or the splitting would not end.
    enough = jnp.sum(counts) >= 2 * min_count * counts.size

    def unused(carry: Any) -> Array:
        counts, _, _, splits = carry
        return enough & (splits < counts.size) & jnp.any(counts < min_count)

    def split(carry: Any) -> Any:
        counts, dictionary, key, splits = carry
        key, noise_key = jax.random.split(key)
        common, rare = jnp.argmax(counts), jnp.argmin(counts)
        noise = jax.random.uniform(
            noise_key, dictionary.shape[1:], minval=1 - SPLIT_NOISE, maxval=1 + SPLIT_NOISE
        )
        half, half_count = dictionary[common] / 2, counts[common] / 2
        return (
            counts.at[rare].set(half_count).at[common].set(half_count),
            dictionary.at[rare].set(half * noise).at[common].set(half),
            key,
            splits + 1,
        )

    start = (counts, dictionary, key, jnp.zeros((), jnp.int32))
    counts, dictionary, _, splits = jax.lax.while_loop(unused, split, start)
    return {"dictionary": dictionary, "counts": counts}, splits


def usage(counts: Array) -> dict[str, Array]:
    """How widely words are used, of their counts [codes]: the share used at all, the perplexity.

    The perplexity is exp(entropy): of how many equally frequent words the choice is worth.
    """
    share = counts / jnp.maximum(jnp.sum(counts), 1e-8)
    entropy = -jnp.sum(share * jnp.log(jnp.maximum(share, 1e-30)))
    return {"used": jnp.mean(counts > 0), "perplexity": jnp.exp(entropy)}
