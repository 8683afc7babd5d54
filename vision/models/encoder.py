"""The image encoder: a stem that makes patches, and ViT's pre-norm layers."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vision.models.attention import Attention
from vision.models.config import ModelConfig, Trunk

Array = jax.Array
LAYER_NORM_EPSILON = 1e-6


class Mlp(nn.Module):
    """Two dense layers with a GELU between them."""

    hidden: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[..., width] -> [..., width]."""

        def dense(features: int, name: str) -> Any:
            return nn.Dense(
                features,
                dtype=self.dtype,
                kernel_init=nn.initializers.xavier_uniform(),
                bias_init=nn.initializers.normal(stddev=1e-6),
                name=name,
            )

        return dense(x.shape[-1], "Dense_1")(nn.gelu(dense(self.hidden, "Dense_0")(x)))


class EncoderBlock(nn.Module):
    """One pre-norm layer: self-attention, then MLP."""

    trunk: Trunk
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, P, width] -> [B, P, width]."""
        trunk = self.trunk
        attention = Attention(
            trunk.heads,
            trunk.head_dim,
            trunk.width,
            use_bias=True,
            dtype=self.dtype,
            name="MultiHeadDotProductAttention_0",
        )
        y = layer_norm(self.dtype, "LayerNorm_0")(x)
        x = x + attention.attend(attention.queries(y), *attention.keys_values(y), None)
        y = layer_norm(self.dtype, "LayerNorm_1")(x)
        return x + Mlp(trunk.mlp_dim, self.dtype, name="MlpBlock_0")(y)


class Encoder(nn.Module):
    """The stack of layers and a last norm."""

    trunk: Trunk
    dtype: Any
    remat: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, P, width] -> [B, P, width]."""
        block = nn.remat(EncoderBlock) if self.remat else EncoderBlock
        for i in range(self.trunk.depth):
            x = block(self.trunk, self.dtype, name=f"encoderblock_{i}")(x)
        return layer_norm(self.dtype, "encoder_norm")(x)


class ConvStem(nn.Module):
    """Stride-2 convolutions with GELUs between, up to the encoder's width.

    Early convolutions let a small transformer learn from little data (Xiao et al. 2021). The
    channels double from layer to layer; the last layer has no activation, as a patch embedding.
    """

    config: ModelConfig
    dtype: Any

    @nn.compact
    def __call__(self, images: Array) -> Array:
        """[B, H, W, 3] -> [B, H / patch_size, W / patch_size, width]."""
        layers = self.config.patch_size.bit_length() - 1
        x = images
        for i in range(layers):
            kernel = 5 if i == 0 else 3
            channels = max(8, self.config.encoder.width >> (layers - 1 - i))
            x = nn.Conv(
                channels, (kernel, kernel), (2, 2), "SAME", dtype=self.dtype, name=f"stem_{i}"
            )(x)
            if i < layers - 1:
                x = nn.gelu(x)
        return x


def patch_stem(config: ModelConfig, dtype: Any, name: str) -> Any:
    """The module that makes [B, rows, columns, width] of [B, H, W, 3]."""
    if config.stem == "conv":
        return ConvStem(config, dtype, name=name)
    patch = (config.patch_size, config.patch_size)
    return nn.Conv(config.encoder.width, patch, patch, "VALID", dtype=dtype, name=name)


def layer_norm(dtype: Any, name: str | None = None) -> Any:
    """Layer norm as big_vision's models have it."""
    return nn.LayerNorm(epsilon=LAYER_NORM_EPSILON, dtype=dtype, name=name)


def compute_dtype(config: ModelConfig) -> Any:
    """The type of the computation."""
    return jnp.bfloat16 if config.dtype == "bfloat16" else jnp.float32
