"""The sequence model in torch, for sampling: the twin of `vision.models.sequence`.

Equal within rounding, from the same parameters. A step is written so that it can be a CUDA graph:
the position is a tensor, shapes depend on nothing that is computed, and everything stays where it
is in memory, the parameters too when a newer policy is loaded.

Torch is imported with this module: import it only where something is sampled.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from vision.models.arrays import flatten
from vision.models.config import ModelConfig
from vision.models.encoder_torch import (
    encode,
    encoder_arrays,
    layer_norm,
    linear,
    linear_arrays,
    mlp,
    mlp_arrays,
    norm_arrays,
    out_arrays,
    projection_arrays,
)

# Keys and values of one layer, each [..., heads, positions, head_dim].
KeysValues = tuple[Tensor, Tensor]


class Rows(NamedTuple):
    """Which of the B x K sequences a decoding step works on, when not on all.

    Attributes:
      place: [M] int64, where each is in the flattened [B * K]; all different.
      samples: K.
    """

    place: Tensor
    samples: int


class TorchSequenceModel:
    """p(tokens | image), one token after the other; see `SequenceModel`.

    Args:
      config: of the model; its dtype is that of weights and computation, logits are float32.
      device: where it is computed.
    """

    def __init__(self, config: ModelConfig, device: torch.device) -> None:
        self.config, self._device = config, device
        self._dtype = torch.bfloat16 if config.dtype == "bfloat16" else torch.float32
        self._tensors: dict[str, Tensor] = {}

    def load(self, params: Mapping[str, Any]) -> None:
        """Takes over parameters, a nested dict of arrays; later ones into the same memory.

        Raises:
          KeyError: a parameter is missing.
          ValueError: one has another shape than before; nothing has been taken over then.
        """
        arrays = _arrays(self.config, flatten(params))
        for name, array in arrays.items():
            before = self._tensors.get(name)
            if before is not None and before.shape != array.shape:
                raise ValueError(f"{name} is {list(array.shape)}, before {list(before.shape)}")
        for name, array in arrays.items():
            # A copy: what comes from an object store is read-only.
            value = torch.tensor(array, dtype=self._dtype)
            if name in self._tensors:
                self._tensors[name].copy_(value)
            else:
                self._tensors[name] = value.to(self._device)

    def encode(self, images: Tensor) -> Tensor:
        """Images [B, H, W, 3] float32 in [-1, 1] to memory [B, P, encoder width]."""
        config = self.config
        # By default convolutions, other than products, would be rounded to TF32.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            x = self._stem(images.to(self._device, self._dtype).permute(0, 3, 1, 2))
        x = x.flatten(2).transpose(1, 2) + self._tensors["pos_embedding_encoder"]
        return encode(x, self._tensors, "encoder", config.encoder.depth, config.encoder.heads)

    def cross_keys_values(self, memory: Tensor) -> list[KeysValues]:
        """For each decoder layer, the image's keys and values [B, heads, P, head_dim]."""
        batch, patches, _ = memory.shape
        heads = self.config.decoder.heads
        layers = []
        for i in range(self.config.decoder.depth):
            projected = linear(memory, self._tensors, f"decoder/EncDecBlock{i}/CrossAttn/kv")
            # [2, B, heads, P, head_dim]
            split = projected.view(batch, patches, 2, heads, -1).permute(2, 0, 3, 1, 4)
            layers.append((split[0].contiguous(), split[1].contiguous()))
        return layers

    def empty_cache(self, rows: int) -> list[KeysValues]:
        """The self-attention caches before the first position: [rows, heads, L, head_dim]."""
        trunk = self.config.decoder
        shape = (rows, trunk.heads, self.config.max_length, trunk.head_dim)

        def zeros() -> Tensor:
            return torch.zeros(shape, dtype=self._dtype, device=self._device)

        return [(zeros(), zeros()) for _ in range(trunk.depth)]

    def decode_step(
        self,
        tokens: Tensor,
        position: Tensor,
        span: int,
        cache: list[KeysValues],
        cross: list[KeysValues],
        rows: Rows | None = None,
    ) -> Tensor:
        """Logits of one position of M sequences; writes the position into the cache.

        Args:
          tokens: [M] int64, the tokens at position - 1 (0 at the first position).
          position: [1] int64.
          span: how many positions of the cache to look at: position + 1, or more, when those
            after the position are masked.
          cache: from `empty_cache`, M rows; changed in place.
          cross: from `cross_keys_values`, of B images.
          rows: the M sequences to work on; None: all, K for each of the B images.
        Returns:
          [M, V] float32.
        """
        tensors, depth = self._tensors, self.config.decoder.depth
        x = tensors["decoder/EmbedTargets"].index_select(0, tokens)
        x = x + tensors["pos_embedding_decoder"].index_select(0, position)
        seen = (torch.arange(span, device=self._device) <= position)[None]
        for i in range(depth):
            block = f"decoder/EncDecBlock{i}"
            y = layer_norm(x, tensors, f"{block}/LayerNorm1")
            x = x + self._self_attention(y, f"{block}/SelfAttn", position, seen, cache[i])
            y = layer_norm(x, tensors, f"{block}/LayerNorm2")
            x = x + self._cross_attention(y, f"{block}/CrossAttn", cross[i], rows)
            x = x + mlp(layer_norm(x, tensors, f"{block}/LayerNorm3"), tensors, f"{block}/MLP")
        x = layer_norm(x, tensors, "decoder/LayerNorm")
        return linear(x, tensors, "decoder/LogitsDense").float()

    def _self_attention(
        self, x: Tensor, name: str, position: Tensor, seen: Tensor, cache: KeysValues
    ) -> Tensor:
        trunk, rows = self.config.decoder, len(x)
        projected = linear(x, self._tensors, f"{name}/qkv").view(
            rows, 3, trunk.heads, trunk.head_dim
        )
        for kept, new in zip(cache, (projected[:, 1], projected[:, 2]), strict=True):
            kept.index_copy_(2, position, new.unsqueeze(2))
        keys, values = (kept[:, :, : seen.shape[1]] for kept in cache)
        queries = projected[:, 0].unsqueeze(2)
        attended = functional.scaled_dot_product_attention(queries, keys, values, seen)
        return linear(attended.reshape(rows, -1), self._tensors, f"{name}/out")

    def _cross_attention(
        self, x: Tensor, name: str, cross: KeysValues, rows: Rows | None
    ) -> Tensor:
        """The K sequences of an image are the queries of one attention."""
        trunk, batch = self.config.decoder, len(cross[0])
        queries = linear(x, self._tensors, f"{name}/query")
        if rows is not None:
            grid = queries.new_zeros(batch * rows.samples, trunk.width)
            queries = grid.index_copy_(0, rows.place, queries)
        queries = queries.view(batch, -1, trunk.heads, trunk.head_dim).transpose(1, 2)
        attended = functional.scaled_dot_product_attention(queries, *cross)
        attended = attended.transpose(1, 2).reshape(-1, trunk.width)
        if rows is not None:
            attended = attended.index_select(0, rows.place)
        return linear(attended, self._tensors, f"{name}/out")

    def _stem(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, width, H / patch_size, W / patch_size]."""
        tensors, config = self._tensors, self.config
        if config.stem == "patch":
            weight, bias = tensors["EmbedPatches/weight"], tensors["EmbedPatches/bias"]
            return functional.conv2d(images, weight, bias, stride=config.patch_size)
        x, layers = images, conv_layers(config)
        for i, name in enumerate(layers):
            weight, bias = tensors[f"{name}/weight"], tensors[f"{name}/bias"]
            # flax's SAME at stride 2 and an even size: one more on the far side.
            near, far = (weight.shape[-1] - 2) // 2, (weight.shape[-1] - 1) // 2
            x = functional.pad(x, (near, far, near, far))
            x = functional.conv2d(x, weight, bias, stride=2)
            if i < len(layers) - 1:
                x = functional.gelu(x, approximate="tanh")
        return x


def conv_layers(config: ModelConfig) -> list[str]:
    """The names of the stem's convolutions; each halves the image."""
    if config.stem == "patch":
        return ["EmbedPatches"]
    return [f"EmbedPatches/stem_{i}" for i in range(config.patch_size.bit_length() - 1)]


def _arrays(config: ModelConfig, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """All arrays that the model computes with, as torch wants them."""
    arrays = encoder_arrays(params, "encoder", config.encoder.depth)
    for name in conv_layers(config):
        kernel = np.asarray(params[f"{name}/kernel"])  # height, width, in, out
        arrays[f"{name}/weight"] = kernel.transpose(3, 2, 0, 1)
        arrays[f"{name}/bias"] = np.asarray(params[f"{name}/bias"])
    for name in ("pos_embedding_encoder", "pos_embedding_decoder"):
        arrays[name] = np.asarray(params[name])[0]
    arrays["decoder/EmbedTargets"] = np.asarray(params["decoder/EmbedTargets/embedding"])
    for i in range(config.decoder.depth):
        block = f"decoder/EncDecBlock{i}"
        for norm in ("LayerNorm1", "LayerNorm2", "LayerNorm3"):
            arrays |= norm_arrays(params, f"{block}/{norm}")
        own, other = f"{block}/SelfAttn", f"{block}/CrossAttn"
        arrays |= projection_arrays(params, own, ("query", "key", "value"), "qkv")
        arrays |= projection_arrays(params, other, ("query",), "query")
        arrays |= projection_arrays(params, other, ("key", "value"), "kv")
        arrays |= out_arrays(params, own) | out_arrays(params, other)
        arrays |= mlp_arrays(params, f"{block}/MLP")
    arrays |= norm_arrays(params, "decoder/LayerNorm")
    logits = "decoder/LogitsDense"
    kernel, bias = (np.asarray(params[f"{logits}/{part}"]) for part in ("kernel", "bias"))
    return arrays | linear_arrays(logits, kernel, bias)
