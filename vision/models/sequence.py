"""Image to token sequence: a ViT encoder with an autoregressive decoder.

The parameters carry the names and shapes of big_vision's `vtt`, the model of UViM's second stage
and of "Tuning computer vision models with task rewards" (Pinto et al. 2023), so its published
checkpoints load as they are.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vision.models.config import ModelConfig
from vision.models.decoder import Decoder, KeysValues, Rows
from vision.models.encoder import Encoder, compute_dtype, patch_stem
from vision.models.initial import sincos_1d, sincos_2d

Array = jax.Array
# A nested dict of float32 arrays.
Params = dict[str, Any]
PAD = 0


class SequenceModel(nn.Module):
    """p(tokens | image), one token after the other."""

    config: ModelConfig

    def setup(self) -> None:
        """Names the parts as the published checkpoints do."""
        config, dtype = self.config, compute_dtype(self.config)
        self.stem = patch_stem(config, dtype, "EmbedPatches")
        self.encoder = Encoder(config.encoder, dtype, config.remat)
        self.decoder = Decoder(config)
        self.pos_embedding_encoder = self.param(
            "pos_embedding_encoder", _initial_encoder_positions, config
        )
        self.pos_embedding_decoder = self.param(
            "pos_embedding_decoder", _initial_decoder_positions, config
        )

    def __call__(self, images: Array, tokens: Array) -> Array:
        """Teacher forcing: position t predicts tokens[t] from the tokens before it.

        Args:
          images: [B, H, W, 3] float32 in [-1, 1].
          tokens: [B, K, L] int32, K sequences of each image.
        Returns:
          logits, [B, K, L, V] float32.
        """
        inputs = jnp.pad(tokens[..., :-1], ((0, 0), (0, 0), (1, 0)), constant_values=PAD)
        cross = self.cross_keys_values(self.encode(images))
        return self.decoder(inputs, self.pos_embedding_decoder[:, : tokens.shape[-1]], cross)

    def encode(self, images: Array) -> Array:
        """Images [B, H, W, 3] to memory [B, P, encoder width]."""
        if images.shape[1:3] != self.config.image_size:
            raise ValueError(
                f"images of shape {images.shape}, but the model takes "
                f"{self.config.image_size[0]}x{self.config.image_size[1]} pixels"
            )
        patches = self.stem(images.astype(compute_dtype(self.config)))
        patches = patches.reshape(images.shape[0], self.config.patches, -1)
        return self.encoder(patches + self.pos_embedding_encoder.astype(patches.dtype))

    def cross_keys_values(self, memory: Array) -> list[KeysValues]:
        """For each decoder layer, the image's keys and values [B, heads, P, head_dim]."""
        return self.decoder.cross_keys_values(memory)

    def empty_cache(self, batch: int, samples: int) -> list[KeysValues]:
        """The self-attention caches before the first position: [B * K, heads, L, head_dim]."""
        trunk = self.config.decoder
        shape = (batch * samples, trunk.heads, self.config.max_length, trunk.head_dim)
        zeros = jnp.zeros(shape, compute_dtype(self.config))
        return [(zeros, zeros) for _ in range(trunk.depth)]

    def decode_step(
        self,
        tokens: Array,
        position: Array,
        cache: list[KeysValues],
        cross: list[KeysValues],
        rows: Rows | None = None,
    ) -> tuple[Array, list[KeysValues]]:
        """Logits of one position, for all sequences or for some rows of them.

        Args:
          tokens: [B, K] or flat [B * K] int32, the tokens at position - 1 (PAD at the first
            position); [M] when there are rows.
          position: scalar int32.
          cache: from `empty_cache` or the step before; with rows, [M, heads, L, head_dim].
          cross: from `cross_keys_values`.
          rows: the M sequences to work on; None: all.
        Returns:
          logits, float32, tokens' shape and V; and the cache for the next position.
        """
        embedding = jax.lax.dynamic_index_in_dim(
            self.pos_embedding_decoder[0], position, keepdims=False
        )
        logits, cache = self.decoder.step(tokens.ravel(), embedding, position, cache, cross, rows)
        return logits.reshape(*tokens.shape, -1), cache


def init_params(config: ModelConfig, seed: int) -> Params:
    """Fresh float32 parameters: a pure function of config and seed."""
    return jax.jit(_init, static_argnums=0)(config, jax.random.key(seed))


def abstract_params(config: ModelConfig) -> Params:
    """The parameters' shapes and types, without allocating them."""
    return jax.eval_shape(lambda key: _init(config, key), jax.random.key(0))


def _init(config: ModelConfig, key: Array) -> Params:
    images = jnp.zeros((1, *config.image_size, 3), jnp.float32)
    tokens = jnp.zeros((1, 1, config.max_length), jnp.int32)
    return SequenceModel(config).init(key, images, tokens)["params"]


def _initial_encoder_positions(key: Array, config: ModelConfig) -> Array:
    width = config.encoder.width
    if config.positions == "sincos":
        return jnp.asarray(sincos_2d(config.grid, width))[None]
    return jax.random.normal(key, (1, config.patches, width)) * width**-0.5


def _initial_decoder_positions(key: Array, config: ModelConfig) -> Array:
    width = config.decoder.width
    if config.positions == "sincos":
        return jnp.asarray(sincos_1d(config.max_length, width))[None]
    return jax.random.normal(key, (1, config.max_length, width)) * width**-0.5
