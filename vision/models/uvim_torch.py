"""Stage I's decoder in torch, for reward workers on CPUs; `benchmarks/uvim_decode.py` is why.

Torch is imported with this module: import it only where something is decoded.
"""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from vision.models.arrays import flatten
from vision.models.encoder_torch import encode, encoder_arrays, linear, linear_arrays
from vision.models.resample import linear_weights
from vision.models.uvim_config import HEAD, UvimConfig

CONTEXT = "ctx_dec_embedding"


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
        arrays = encoder_arrays(params, "decoder", config.decoder.depth)
        if config.with_decoder_ctx:
            kernel = params["ctx_dec_embedding/kernel"].reshape(-1, width)
            arrays |= linear_arrays(CONTEXT, kernel, params["ctx_dec_embedding/bias"])
        for plane in config.planes:
            kernel, bias = (params[f"{HEAD}{plane.name}/{part}"] for part in ("kernel", "bias"))
            arrays |= linear_arrays(
                f"{HEAD}{plane.name}", kernel.reshape(width, -1), bias.reshape(-1)
            )
        self._tensors = {name: self._tensor(array) for name, array in arrays.items()}

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
                embedded = linear(self._patches(context), self._tensors, CONTEXT)
                x = x + embedded.repeat_interleave(len(codes) // len(context), dim=0)
            trunk = config.decoder
            x = encode(x, self._tensors, "decoder", trunk.depth, trunk.heads)
            outputs = {}
            for plane in config.planes:
                flat = linear(x, self._tensors, f"{HEAD}{plane.name}").float()
                outputs[plane.name] = flat.view(
                    len(codes), config.patches, plane.channels, config.patch_pixels
                ).numpy()
        return outputs

    def _patches(self, context: np.ndarray) -> Tensor:
        """[M, H, W, 3] to [M, P, patch_size * patch_size * 3]."""
        (rows, columns), size = self._config.grid, self._config.patch_size
        patches = context.reshape(-1, rows, size, columns, size, 3).swapaxes(2, 3)
        return self._tensor(patches.reshape(-1, rows * columns, size * size * 3))

    def _tensor(self, array: np.ndarray | None) -> Any:
        if array is None:
            return None
        return torch.tensor(np.asarray(array, np.float32)).to(self._dtype)


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
