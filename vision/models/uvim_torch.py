"""Stage I's decoder in torch, for reward workers on CPUs; `benchmarks/uvim_decode.py` is why.

Torch is imported with this module: import it only where something is decoded.
"""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from vision.models.resample import linear_weights
from vision.models.uvim_checkpoint import flatten
from vision.models.uvim_config import HEAD, UvimConfig

LAYER_NORM_EPSILON = 1e-6


class TorchStageOneDecoder:
    """The twin of `StageOne.decode`: equal within rounding."""

    def __init__(
        self,
        config: UvimConfig,
        variables: Mapping[str, Any],
        dtype: Literal["float32", "bfloat16"] = "float32",
        threads: int | None = None,
    ) -> None:
        """Takes over the weights.

        Args:
          variables: of `load_stage_one`.
          dtype: of weights and computation.
          threads: of torch, for this whole process; None: leave them as they are
            (OMP_NUM_THREADS).
        """
        if threads is not None:
            torch.set_num_threads(threads)
        self._config = config
        self._dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[dtype]
        params = flatten(variables["params"])
        width = config.width
        # A code word is looked up after its projection: the projection of each is always the same.
        words = _unit_words(variables["state"])
        self._stems = self._tensor(
            words @ params["decoder_stem/kernel"] + params["decoder_stem/bias"]
        )
        self._upsample = self._tensor(_upsample_weights(config, params))
        self._positions = self._tensor(params["pos_embedding_decoder"])
        if config.with_decoder_ctx:
            kernel = params["ctx_dec_embedding/kernel"].reshape(-1, width)
            self._context = self._linear(kernel, params["ctx_dec_embedding/bias"])
        self._layers = [
            self._layer(params, f"decoder/encoderblock_{i}/") for i in range(config.decoder.depth)
        ]
        self._norm = self._norm_of(params, "decoder/encoder_norm")
        self._heads = {
            plane.name: self._linear(
                params[f"{HEAD}{plane.name}/kernel"].reshape(width, -1),
                params[f"{HEAD}{plane.name}/bias"].reshape(-1),
            )
            for plane in config.planes
        }

    def decode(self, codes: np.ndarray, context: np.ndarray) -> dict[str, np.ndarray]:
        """The maps of codes; see `StageOne.decode`.

        Args:
          codes: [N, T] integers in 0 .. codes - 1.
          context: [M, H, W, 3] float32 in [-1, 1]; each image is that of N / M consecutive rows.
        Returns:
          by plane, [N, P, channels, patch_size^2] float32.
        Raises:
          ValueError: shapes do not fit, or a code is not in the dictionary.
        """
        config = self._config
        _check(codes, context, config)
        with torch.inference_mode():
            x = self._stems[torch.as_tensor(np.asarray(codes, np.int64))]
            if self._upsample is not None:
                x = self._upsample @ x
            x = x + self._positions
            if config.with_decoder_ctx:
                embedded = functional.linear(self._patches(context), *self._context)
                x = x + embedded.repeat_interleave(len(codes) // len(context), dim=0)
            for layer in self._layers:
                x = layer(x)
            x = functional.layer_norm(x, x.shape[-1:], *self._norm, LAYER_NORM_EPSILON)
            outputs = {}
            for plane in config.planes:
                flat = functional.linear(x, *self._heads[plane.name]).float()
                outputs[plane.name] = flat.view(
                    len(codes), config.patches, plane.channels, config.patch_pixels
                ).numpy()
        return outputs

    def _patches(self, context: np.ndarray) -> Tensor:
        """[M, H, W, 3] to [M, P, patch_size * patch_size * 3]."""
        (rows, columns), size = self._config.grid, self._config.patch_size
        patches = context.reshape(-1, rows, size, columns, size, 3).swapaxes(2, 3)
        return self._tensor(patches.reshape(-1, rows * columns, size * size * 3))

    def _layer(self, params: Mapping[str, Any], prefix: str) -> "_Layer":
        attention = f"{prefix}MultiHeadDotProductAttention_0/"
        width = self._config.width
        kernels, biases = zip(
            *(
                (
                    params[f"{attention}{name}/kernel"].reshape(width, width),
                    params[f"{attention}{name}/bias"].reshape(width),
                )
                for name in ("query", "key", "value")
            ),
            strict=True,
        )
        return _Layer(
            heads=self._config.decoder.heads,
            first_norm=self._norm_of(params, f"{prefix}LayerNorm_0"),
            second_norm=self._norm_of(params, f"{prefix}LayerNorm_1"),
            projections=self._linear(np.concatenate(kernels, 1), np.concatenate(biases)),
            out=self._linear(
                params[f"{attention}out/kernel"].reshape(width, width),
                params[f"{attention}out/bias"],
            ),
            mlp=[
                self._linear(
                    params[f"{prefix}MlpBlock_0/Dense_{i}/kernel"],
                    params[f"{prefix}MlpBlock_0/Dense_{i}/bias"],
                )
                for i in range(2)
            ],
        )

    def _norm_of(self, params: Mapping[str, Any], name: str) -> tuple[Tensor, Tensor]:
        return self._tensor(params[f"{name}/scale"]), self._tensor(params[f"{name}/bias"])

    def _linear(self, kernel: np.ndarray, bias: np.ndarray) -> tuple[Tensor, Tensor]:
        """Weights as torch keeps them: [outputs, inputs]."""
        return self._tensor(np.ascontiguousarray(kernel.T)), self._tensor(bias)

    def _tensor(self, array: np.ndarray | None) -> Any:
        if array is None:
            return None
        return torch.tensor(np.asarray(array, np.float32)).to(self._dtype)


class _Layer:
    """One pre-norm transformer layer."""

    def __init__(
        self,
        heads: int,
        first_norm: tuple[Tensor, Tensor],
        second_norm: tuple[Tensor, Tensor],
        projections: tuple[Tensor, Tensor],
        out: tuple[Tensor, Tensor],
        mlp: list[tuple[Tensor, Tensor]],
    ) -> None:
        self._heads, self._first_norm, self._second_norm = heads, first_norm, second_norm
        self._projections, self._out, self._mlp = projections, out, mlp

    def __call__(self, x: Tensor) -> Tensor:
        """[N, P, width] to the same."""
        rows, patches, width = x.shape
        y = functional.layer_norm(x, (width,), *self._first_norm, LAYER_NORM_EPSILON)
        projected = functional.linear(y, *self._projections)
        # [3, N, heads, P, head_dim]
        split = projected.view(rows, patches, 3, self._heads, -1).permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(split[0], split[1], split[2])
        y = y.transpose(1, 2).reshape(rows, patches, width)
        x = x + functional.linear(y, *self._out)
        y = functional.layer_norm(x, (width,), *self._second_norm, LAYER_NORM_EPSILON)
        # flax's GELU is the tanh approximation.
        y = functional.gelu(functional.linear(y, *self._mlp[0]), approximate="tanh")
        return x + functional.linear(y, *self._mlp[1])


def _unit_words(state: Mapping[str, Any]) -> np.ndarray:
    """The dictionary's words, [codes, codeword_dim] float32 of unit length."""
    words = np.asarray(state["dictionary"], np.float32) / np.asarray(state["counts"])[:, None]
    return words / np.linalg.norm(words, axis=-1, keepdims=True)


def _upsample_weights(config: UvimConfig, params: Mapping[str, Any]) -> np.ndarray | None:
    """[P, T], from code words to patches; None where each patch has its own code word."""
    if not config.bottleneck_resize:
        return np.ascontiguousarray(np.asarray(params["bottleneck_upsample"]).T)
    old, new = config.code_grid, config.grid
    if old == new:
        return None
    return np.kron(linear_weights(old[0], new[0]), linear_weights(old[1], new[1]))


def _check(codes: np.ndarray, context: np.ndarray, config: UvimConfig) -> None:
    if codes.ndim != 2 or codes.shape[1] != config.tokens:
        raise ValueError(f"codes of shape {codes.shape}, but stage I reads [N, {config.tokens}]")
    if codes.size and not 0 <= int(codes.min()) <= int(codes.max()) < config.codes:
        raise ValueError(
            f"codes from {codes.min()} to {codes.max()}, but the dictionary has {config.codes}"
        )
    if context.shape[1:] != (*config.image_size, 3):
        raise ValueError(
            f"context images of shape {context.shape}, but stage I takes "
            f"[N, {config.image_size[0]}, {config.image_size[1]}, 3]"
        )
    if not len(context) or len(codes) % len(context):
        raise ValueError(f"{len(codes)} rows of codes do not divide over {len(context)} images")
