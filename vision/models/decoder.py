"""The autoregressive decoder: causal self-attention, cross-attention to the image, MLP.

Two ways through the same parameters: whole sequences at once (teacher forcing, to train), and one
position at a time with a cache (to sample). Keys and values of the image are computed once an
image and shared by its K sequences in both.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vision.models.attention import Attention, softmax
from vision.models.config import ModelConfig, Trunk
from vision.models.encoder import Mlp, compute_dtype, layer_norm
from vision.models.initial import smooth_rows

Array = jax.Array
# Keys and values of one layer.
KeysValues = tuple[Array, Array]


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
          cross: the image's keys and values, [B, P, heads, head_dim].
        """
        batch, samples, length, width = x.shape
        causal = jnp.tril(jnp.ones((length, length), bool))
        y = self.self_norm(x)
        attention = self.self_attention
        x = x + attention.attend(attention.queries(y), *attention.keys_values(y), causal)
        # The K sequences of an image look at the same keys: to cross-attention they are one long
        # sequence of queries.
        y = self.cross_norm(x).reshape(batch, samples * length, width)
        attended = self.cross_attention.attend(self.cross_attention.queries(y), *cross, None)
        x = x + attended.reshape(x.shape)
        return x + self.mlp(self.mlp_norm(x))

    def cross_keys_values(self, memory: Array) -> KeysValues:
        """[B, P, encoder width] -> keys and values [B, P, heads, head_dim]."""
        return self.cross_attention.keys_values(memory)

    def step(
        self, x: Array, position: Array, cache: KeysValues, cross: KeysValues
    ) -> tuple[Array, KeysValues]:
        """One position.

        Args:
          x: [B, K, width].
          position: scalar int32.
          cache: keys and values of the positions so far, [B, K, L, heads, head_dim].
          cross: [B, P, heads, head_dim].
        Returns:
          [B, K, width], and the cache with this position in it.
        """
        attention = self.self_attention
        y = self.self_norm(x)
        new_keys, new_values = attention.keys_values(y)
        keys = jax.lax.dynamic_update_slice_in_dim(cache[0], new_keys[:, :, None], position, 2)
        values = jax.lax.dynamic_update_slice_in_dim(cache[1], new_values[:, :, None], position, 2)
        seen = jnp.arange(keys.shape[2]) <= position
        scores = jnp.einsum("bkhd,bklhd->bkhl", attention.queries(y), keys)
        weights = softmax(scores, seen).astype(self.dtype)
        x = x + attention.out(jnp.einsum("bkhl,bklhd->bkhd", weights, values))
        # The K samples of an image are the queries of one cross-attention.
        y = self.cross_norm(x)
        x = x + self.cross_attention.attend(self.cross_attention.queries(y), *cross, None)
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
        """For each layer, the image's keys and values [B, P, heads, head_dim]."""
        return [block.cross_keys_values(memory) for block in self.blocks]

    def step(
        self,
        tokens: Array,
        position_embedding: Array,
        position: Array,
        cache: list[KeysValues],
        cross: list[KeysValues],
    ) -> tuple[Array, list[KeysValues]]:
        """Logits [B, K, V] of one position, given the tokens [B, K] before it."""
        x = self.embed(tokens) + position_embedding.astype(self.embed.dtype)
        filled = []
        for block, layer_cache, keys_values in zip(self.blocks, cache, cross, strict=True):
            x, layer_cache = block.step(x, position, layer_cache, keys_values)
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
