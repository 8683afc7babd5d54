"""The autoregressive decoder: causal self-attention, cross-attention to the image, MLP.

Two ways through the same parameters: whole sequences at once (teacher forcing, to train), and one
position at a time with a cache (to sample). Keys and values of the image are computed once an
image and shared by its K sequences in both.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from vision.models.attention import Attention, softmax
from vision.models.config import ModelConfig, Trunk
from vision.models.encoder import Mlp, compute_dtype, layer_norm
from vision.models.initial import smooth_rows

Array = jax.Array
# Keys and values of one layer, [..., heads, positions, head_dim].
KeysValues = tuple[Array, Array]


class Rows(NamedTuple):
    """Which of the B x K sequences a decoding step works on, when not on all.

    Attributes:
      chosen: [M] int32, positions in the flattened [B * K]; all different.
      place: [B, K] int32, the place of a sequence in `chosen`; anything for one that is absent.
    """

    chosen: Array
    place: Array


class DecoderBlock(nn.Module):
    """One pre-norm layer. Attention has no biases, as in big_vision's `vtt`."""

    trunk: Trunk
    dtype: Any

    def setup(self) -> None:
        """Names the parts as the published checkpoints do."""
        trunk = self.trunk

        def attention(name: str) -> Attention:
            return Attention(
                trunk.heads,
                trunk.head_dim,
                trunk.width,
                use_bias=False,
                dtype=self.dtype,
                name=name,
            )

        self.self_norm = layer_norm(self.dtype, "LayerNorm1")
        self.self_attention = attention("SelfAttn")
        self.cross_norm = layer_norm(self.dtype, "LayerNorm2")
        self.cross_attention = attention("CrossAttn")
        self.mlp_norm = layer_norm(self.dtype, "LayerNorm3")
        self.mlp = Mlp(trunk.mlp_dim, self.dtype, name="MLP")

    def __call__(self, x: Array, cross: KeysValues) -> Array:
        """All positions at once.

        Args:
          x: [B, K, L, width].
          cross: the image's keys and values, [B, heads, P, head_dim].
        """
        batch, samples, length, width = x.shape
        causal = jnp.tril(jnp.ones((length, length), bool))
        y = self.self_norm(x)
        attention = self.self_attention
        x = x + attention.attend(attention.queries(y), *attention.keys_values(y), causal)
        # The K sequences of an image look at the same keys: to cross-attention they are one long
        # sequence of queries.
        y = self.cross_norm(x).reshape(batch, samples * length, width)
        attention = self.cross_attention
        attended = attention.out(attention.attend_head_major(attention.queries(y), *cross, None))
        x = x + attended.reshape(x.shape)
        return x + self.mlp(self.mlp_norm(x))

    def cross_keys_values(self, memory: Array) -> KeysValues:
        """[B, P, encoder width] -> keys and values [B, heads, P, head_dim]."""
        keys, values = self.cross_attention.keys_values(memory)
        return keys.swapaxes(-3, -2), values.swapaxes(-3, -2)

    def step(
        self, x: Array, position: Array, cache: KeysValues, cross: KeysValues, rows: Rows | None
    ) -> tuple[Array, KeysValues]:
        """One position of M sequences.

        Args:
          x: [M, width].
          position: scalar int32.
          cache: keys and values of the positions so far, [M, heads, L, head_dim]: laid out so
            that a step reads them without moving them.
          cross: [B, heads, P, head_dim].
          rows: which sequences these are; None: all, K for each of the B images.
        Returns:
          x, and the cache with this position in it.
        """
        attention = self.self_attention
        y = self.self_norm(x)
        keys, values = (
            jax.lax.dynamic_update_slice_in_dim(old, new[:, :, None], position, 2)
            for old, new in zip(cache, attention.keys_values(y), strict=True)
        )
        scores = jnp.einsum("mhd,mhld->mhl", attention.queries(y), keys)
        weights = softmax(scores, jnp.arange(keys.shape[2]) <= position).astype(self.dtype)
        x = x + attention.out(jnp.einsum("mhl,mhld->mhd", weights, values))
        # The K sequences of an image are the queries of one cross-attention.
        attention = self.cross_attention
        queries = attention.queries(self.cross_norm(x))
        batch = cross[0].shape[0]
        grid = (
            queries.reshape(batch, -1, *queries.shape[1:]) if rows is None else queries[rows.place]
        )
        attended = attention.attend_head_major(grid, *cross, None)
        attended = attended.reshape(-1, *queries.shape[1:])
        if rows is not None:
            attended = attended[rows.chosen]
        x = x + attention.out(attended)
        return x + self.mlp(self.mlp_norm(x)), (keys, values)


class Decoder(nn.Module):
    """Token embeddings, the layers, and logits."""

    config: ModelConfig

    def setup(self) -> None:
        """Names the parts as the published checkpoints do."""
        config, dtype = self.config, compute_dtype(self.config)
        block = nn.remat(DecoderBlock) if config.remat else DecoderBlock
        self.embed = nn.Embed(
            config.vocabulary_size,
            config.decoder.width,
            embedding_init=self._initial_embedding,
            dtype=dtype,
            name="EmbedTargets",
        )
        self.blocks = [
            block(config.decoder, dtype, name=f"EncDecBlock{i}")
            for i in range(config.decoder.depth)
        ]
        self.norm = layer_norm(dtype, "LayerNorm")
        self.logits = nn.Dense(
            config.vocabulary_size,
            kernel_init=self._initial_logits,
            dtype=dtype,
            name="LogitsDense",
        )

    def __call__(self, inputs: Array, positions: Array, cross: list[KeysValues]) -> Array:
        """Logits [B, K, L, V] of input tokens [B, K, L], with position embeddings [1, L, width]."""
        x = self.embed(inputs) + positions.astype(self.embed.dtype)
        for block, keys_values in zip(self.blocks, cross, strict=True):
            x = block(x, keys_values)
        return self._read_out(x)

    def cross_keys_values(self, memory: Array) -> list[KeysValues]:
        """For each layer, the image's keys and values [B, heads, P, head_dim]."""
        return [block.cross_keys_values(memory) for block in self.blocks]

    def step(
        self,
        tokens: Array,
        position_embedding: Array,
        position: Array,
        cache: list[KeysValues],
        cross: list[KeysValues],
        rows: Rows | None,
    ) -> tuple[Array, list[KeysValues]]:
        """Logits [M, V] of one position, given the tokens [M] before it."""
        x = self.embed(tokens) + position_embedding.astype(self.embed.dtype)
        filled = []
        for block, layer_cache, keys_values in zip(self.blocks, cache, cross, strict=True):
            x, layer_cache = block.step(x, position, layer_cache, keys_values, rows)
            filled.append(layer_cache)
        return self._read_out(x), filled

    def _read_out(self, x: Array) -> Array:
        return self.logits(self.norm(x)).astype(jnp.float32)

    def _initial_embedding(self, key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
        """Unit normal rows; smooth where the tokens are ordered."""
        key, smooth_key = jax.random.split(key)
        rows = jax.random.normal(key, shape, dtype)
        if self.config.ordered_tokens is None:
            return rows
        first, count = self.config.ordered_tokens
        return rows.at[first : first + count].set(smooth_rows(smooth_key, count, shape[1]))

    def _initial_logits(self, key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
        """Zero columns, as in `vtt`; where the tokens are ordered, smooth and of unit logits."""
        kernel = jnp.zeros(shape, dtype)
        if self.config.ordered_tokens is None:
            return kernel
        first, count = self.config.ordered_tokens
        columns = smooth_rows(key, count, shape[0]).T * shape[0] ** -0.5
        return kernel.at[:, first : first + count].set(columns)
