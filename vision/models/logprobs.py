"""Log probabilities of tokens under the allowed tokens: one definition for sampler and learner.

A policy here is the softmax over the tokens that a task allows at each position. Sampler and
learner must agree on it to rounding, or the importance weights would correct for a difference
that is not there.
"""

import jax
import jax.numpy as jnp
import numpy as np

# Finite, so that no inf - inf arises; its probability is exactly zero in float32.
DISALLOWED = -1e9

Array = jax.Array | np.ndarray


def mask_logits(logits: Array, allowed: Array) -> jax.Array:
    """Logits with the disallowed tokens at `DISALLOWED`.

    Args:
      logits: [..., L, V], any float type.
      allowed: [L, V] (or anything that broadcasts) bool.
    Returns:
      [..., L, V] float32.
    """
    return jnp.where(jnp.asarray(allowed), jnp.asarray(logits, jnp.float32), DISALLOWED)


def token_logprobs(logits: Array, tokens: Array, allowed: Array) -> jax.Array:
    """The log probability of each token under the allowed tokens of its position.

    A token that is not allowed (the padding behind the end, where the end is another token) gets
    a hugely negative number: mask by `sequence_mask`.

    Args:
      logits: [..., L, V].
      tokens: [..., L] int32.
      allowed: [L, V] bool.
    Returns:
      [..., L] float32.
    """
    masked = mask_logits(logits, allowed)
    picked = jnp.take_along_axis(masked, jnp.asarray(tokens)[..., None], axis=-1)[..., 0]
    return picked - jax.nn.logsumexp(masked, axis=-1)


def sequence_mask(tokens: Array, end_token: int) -> jax.Array:
    """[..., L] bool: True up to and including the first end token; all True when there is none."""
    ends = (jnp.asarray(tokens) == end_token).astype(jnp.int32)
    return jnp.cumsum(ends, axis=-1) - ends == 0


def entropy(masked_logits: Array) -> jax.Array:
    """[...] float32: entropy in nats of the distributions of masked logits [..., V]."""
    logprobs = jax.nn.log_softmax(jnp.asarray(masked_logits, jnp.float32), axis=-1)
    return -jnp.sum(jnp.exp(logprobs) * logprobs, axis=-1)
