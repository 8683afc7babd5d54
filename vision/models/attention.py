"""Multi-head attention in parts, so that keys and values can be computed once and kept."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

Array = jax.Array


class Attention(nn.Module):
    """Projections to queries, keys, values and back.

    Parameters as flax's own attention: `query|key|value` kernels [width_in, heads, head_dim],
    `out` kernel [heads, head_dim, width].
    """

    heads: int
    head_dim: int
    width: int
    use_bias: bool
    dtype: Any

    def setup(self) -> None:
        """Names the projections."""

        def project(features: Any, axis: Any) -> Any:
            return nn.DenseGeneral(
                features,
                axis=axis,
                use_bias=self.use_bias,
                dtype=self.dtype,
                kernel_init=nn.initializers.xavier_uniform(),
            )

        self.query = project((self.heads, self.head_dim), -1)
        self.key = project((self.heads, self.head_dim), -1)
        self.value = project((self.heads, self.head_dim), -1)
        self.out = project(self.width, (-2, -1))

    def queries(self, x: Array) -> Array:
        """[..., T, width] -> [..., T, heads, head_dim], scaled by 1/sqrt(head_dim)."""
        return self.query(x) * (self.head_dim**-0.5)

    def keys_values(self, x: Array) -> tuple[Array, Array]:
        """[..., S, width_in] -> keys and values, each [..., S, heads, head_dim]."""
        return self.key(x), self.value(x)

    def attend(self, queries: Array, keys: Array, values: Array, mask: Array | None) -> Array:
        """Softmax attention and the projection back to the width.

        Args:
          queries: [..., T, heads, head_dim].
          keys, values: [..., S, heads, head_dim].
          mask: broadcastable to [..., heads, T, S] bool, True where a query may look; or None.
        Returns:
          [..., T, width].
        """
        scores = jnp.einsum("...thd,...shd->...hts", queries, keys)
        weights = softmax(scores, mask).astype(self.dtype)
        return self.out(jnp.einsum("...hts,...shd->...thd", weights, values))

    def attend_head_major(
        self, queries: Array, keys: Array, values: Array, mask: Array | None
    ) -> Array:
        """As `attend` up to the projection, with keys and values as a decoding step reads them.

        Head before position: so a step need not move what it reads, which costs more than the
        attention itself.

        Args:
          queries: [..., T, heads, head_dim].
          keys, values: [..., heads, S, head_dim].
          mask: broadcastable to [..., heads, T, S] bool, or None.
        Returns:
          [..., T, heads, head_dim], to be projected by `out`.
        """
        scores = jnp.einsum("...thd,...hsd->...hts", queries, keys)
        weights = softmax(scores, mask).astype(self.dtype)
        # In this order the product is one that XLA's CPU backend has a fast kernel for.
        return jnp.einsum("...hts,...hsd->...htd", weights, values).swapaxes(-3, -2)


def softmax(scores: Array, mask: Array | None) -> Array:
    """Softmax over the last axis in float32, over the positions where the mask is True."""
    scores = scores.astype(jnp.float32)
    if mask is not None:
        scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    return jax.nn.softmax(scores, axis=-1)
