"""The image encoder's layers in torch, for what runs the models without JAX.

A layer's numbers are named tensors, made once of the arrays of a checkpoint or of a published
policy, so that a newer policy can be copied into the same memory.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn import functional

LAYER_NORM_EPSILON = 1e-6


def linear_arrays(
    name: str, kernel: np.ndarray, bias: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """A dense layer as torch keeps it: `NAME/weight` [outputs, inputs] and `NAME/bias`."""
    arrays = {f"{name}/weight": np.ascontiguousarray(kernel.T)}
    return arrays if bias is None else arrays | {f"{name}/bias": bias}


def linear(x: Tensor, tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """[..., inputs] -> [..., outputs]."""
    return functional.linear(x, tensors[f"{name}/weight"], tensors.get(f"{name}/bias"))


def layer_norm(x: Tensor, tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """[..., width] -> [..., width]."""
    scale, bias = tensors[f"{name}/scale"], tensors[f"{name}/bias"]
    return functional.layer_norm(x, x.shape[-1:], scale, bias, LAYER_NORM_EPSILON)


def mlp(x: Tensor, tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """Two dense layers; flax's GELU is the tanh approximation."""
    hidden = functional.gelu(linear(x, tensors, f"{name}/Dense_0"), approximate="tanh")
    return linear(hidden, tensors, f"{name}/Dense_1")


def norm_arrays(params: Mapping[str, Any], name: str) -> dict[str, np.ndarray]:
    """A layer norm's `NAME/scale` and `NAME/bias`."""
    return {f"{name}/{part}": np.asarray(params[f"{name}/{part}"]) for part in ("scale", "bias")}


def mlp_arrays(params: Mapping[str, Any], name: str) -> dict[str, np.ndarray]:
    """The two dense layers of an MLP."""
    arrays: dict[str, np.ndarray] = {}
    for dense in (f"{name}/Dense_0", f"{name}/Dense_1"):
        kernel, bias = (np.asarray(params[f"{dense}/{part}"]) for part in ("kernel", "bias"))
        arrays |= linear_arrays(dense, kernel, bias)
    return arrays


def projection_arrays(
    params: Mapping[str, Any], name: str, parts: tuple[str, ...], fused: str
) -> dict[str, np.ndarray]:
    """Projections of one input as one dense layer, `NAME/FUSED`.

    Args:
      params: with kernels [width, heads, head_dim] and, where there are any, biases
        [heads, head_dim] by path.
      parts: such as query, key, value; their outputs follow each other.
    """
    kernels = [np.asarray(params[f"{name}/{part}/kernel"]) for part in parts]
    kernel = np.concatenate([k.reshape(k.shape[0], -1) for k in kernels], axis=1)
    if f"{name}/{parts[0]}/bias" not in params:
        return linear_arrays(f"{name}/{fused}", kernel)
    biases = [np.asarray(params[f"{name}/{part}/bias"]).reshape(-1) for part in parts]
    return linear_arrays(f"{name}/{fused}", kernel, np.concatenate(biases))


def out_arrays(params: Mapping[str, Any], name: str) -> dict[str, np.ndarray]:
    """The projection [heads, head_dim, width] back, `NAME/out`."""
    kernel, bias = np.asarray(params[f"{name}/out/kernel"]), params.get(f"{name}/out/bias")
    flat = kernel.reshape(-1, kernel.shape[-1])
    return linear_arrays(f"{name}/out", flat, None if bias is None else np.asarray(bias))


def encoder_arrays(params: Mapping[str, Any], name: str, depth: int) -> dict[str, np.ndarray]:
    """All arrays that `encode` needs of the encoder of this name.

    Args:
      params: arrays by their paths with slashes, in big_vision's layout.
    """
    arrays = norm_arrays(params, f"{name}/encoder_norm")
    for i in range(depth):
        block = f"{name}/encoderblock_{i}"
        attention = f"{block}/MultiHeadDotProductAttention_0"
        arrays |= norm_arrays(params, f"{block}/LayerNorm_0")
        arrays |= norm_arrays(params, f"{block}/LayerNorm_1")
        arrays |= projection_arrays(params, attention, ("query", "key", "value"), "qkv")
        arrays |= out_arrays(params, attention)
        arrays |= mlp_arrays(params, f"{block}/MlpBlock_0")
    return arrays


def encode(x: Tensor, tensors: Mapping[str, Tensor], name: str, depth: int, heads: int) -> Tensor:
    """The pre-norm layers and the last norm: [N, P, width] to the same."""
    rows, patches, width = x.shape
    for i in range(depth):
        block = f"{name}/encoderblock_{i}"
        attention = f"{block}/MultiHeadDotProductAttention_0"
        y = linear(layer_norm(x, tensors, f"{block}/LayerNorm_0"), tensors, f"{attention}/qkv")
        # [3, N, heads, P, head_dim]
        split = y.view(rows, patches, 3, heads, -1).permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(split[0], split[1], split[2])
        y = y.transpose(1, 2).reshape(rows, patches, width)
        x = x + linear(y, tensors, f"{attention}/out")
        y = layer_norm(x, tensors, f"{block}/LayerNorm_1")
        x = x + mlp(y, tensors, f"{block}/MlpBlock_0")
    return layer_norm(x, tensors, f"{name}/encoder_norm")
