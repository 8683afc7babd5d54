"""Parameters to and from `.npz` files in big_vision's layout.

A file holds one array a parameter, named by its path ("params/encoder/encoderblock_0/..."; the
prefix may be missing). Published UViM and ViT checkpoints load as they are.
"""

import os
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from vision.models.config import ModelConfig
from vision.models.resample import resample_positions
from vision.models.sequence import Params, abstract_params

PREFIX = "params/"
# numpy cannot name bfloat16 in a file: such arrays are stored as their bits under this suffix.
BFLOAT16_SUFFIX = ":bfloat16"
# The names of the first published ViTs, and those that followed.
_OLD_NAMES = {
    "Transformer/posembed_input/pos_embedding": "pos_embedding",
    "/LayerNorm_2/": "/LayerNorm_1/",
    "/MultiHeadDotProductAttention_1/": "/MultiHeadDotProductAttention_0/",
    "/MlpBlock_3/": "/MlpBlock_0/",
}
Dtype = Literal["float32", "bfloat16", "float16"]


class CheckpointError(ValueError):
    """A checkpoint file that cannot be read or written."""


class CheckpointMismatch(CheckpointError):
    """A checkpoint that does not fit the model."""


def save_npz(path: str | Path, params: Params, dtype: Dtype = "float32") -> None:
    """Writes parameters, whole or not at all.

    Raises:
      CheckpointError: an unknown dtype, a value that overflows it, or a file that cannot be
        written; what was at the path before is still there.
    """
    path = Path(path)
    arrays: dict[str, Any] = {}
    for name, value in flatten_dict(params, sep="/").items():
        arrays.update(_encode(PREFIX + name, np.asarray(value, np.float32), dtype, path))
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".partial", delete=False) as file:
            temporary = file.name
            np.savez(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise CheckpointError(f"cannot write checkpoint {path}: {error}") from error
    finally:
        if temporary is not None:
            os.unlink(temporary)


def load_npz(path: str | Path, expected: ModelConfig | Mapping[str, Any]) -> Params:
    """Parameters of a `SequenceModel`, float32.

    Args:
      path: the file.
      expected: the model's config, or a nested dict of arrays or shapes (`abstract_params`).
    Raises:
      CheckpointError: the file is missing, truncated or no such file.
      CheckpointMismatch: a parameter is missing, unexpected or of another shape.
    """
    tree = abstract_params(expected) if isinstance(expected, ModelConfig) else expected
    shapes = {name: tuple(leaf.shape) for name, leaf in flatten_dict(tree, sep="/").items()}
    return _fit(Path(path), read_arrays(path), shapes)


def load_encoder_npz(path: str | Path, config: ModelConfig) -> Params:
    """The encoder's part of a `SequenceModel`'s parameters, from a ViT in big_vision's layout.

    Position embeddings of another grid are resampled bilinearly. A class token's position, the
    pooling head and the classifier are left out: this model has none.

    Returns:
      `EmbedPatches`, `encoder` and `pos_embedding_encoder`, float32, to merge into the
      parameters of `init_params`.
    """
    arrays = {}
    for name, value in read_arrays(path).items():
        renamed = _encoder_name(name)
        if renamed is not None:
            arrays[renamed] = value
    positions = arrays.get("pos_embedding_encoder")
    if positions is not None and positions.ndim == 3:
        arrays["pos_embedding_encoder"] = resample_positions(positions, config.grid)
    shapes = {
        name: tuple(leaf.shape)
        for name, leaf in flatten_dict(abstract_params(config), sep="/").items()
        if not name.startswith(("decoder/", "pos_embedding_decoder"))
    }
    return _fit(Path(path), arrays, shapes)


def read_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """Every array of a file by its name without the prefix, floats widened to float32.

    Raises:
      CheckpointError: the file is missing, truncated or no `.npz`.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(_decode(name, file[name]) for name in file.files)
    except (zipfile.BadZipFile, OSError, ValueError, EOFError, KeyError) as error:
        raise CheckpointError(
            f"{path} is not a readable .npz checkpoint, perhaps truncated: {error}"
        ) from error
    if not arrays:
        raise CheckpointError(f"{path} holds no arrays")
    return arrays


def _encode(name: str, value: np.ndarray, dtype: str, path: Path) -> dict[str, np.ndarray]:
    if dtype == "float32":
        return {name: value}
    if dtype == "bfloat16":
        return {name + BFLOAT16_SUFFIX: value.astype(ml_dtypes.bfloat16).view(np.uint16)}
    if dtype != "float16":
        raise CheckpointError(f"{path}: dtype {dtype!r} is not one of float32, bfloat16, float16")
    largest = float(np.max(np.abs(value), initial=0))
    if largest > float(np.finfo(np.float16).max):
        raise CheckpointError(
            f"{path}: {name} reaches {largest:g}, beyond float16; save as bfloat16 or float32"
        )
    return {name: value.astype(np.float16)}


def _decode(name: str, value: np.ndarray) -> tuple[str, np.ndarray]:
    if name.endswith(BFLOAT16_SUFFIX):
        name, value = name.removesuffix(BFLOAT16_SUFFIX), value.view(ml_dtypes.bfloat16)
    elif value.dtype == np.dtype("V2"):
        # What numpy reads of a bfloat16 array that was saved without its type.
        value = value.view(ml_dtypes.bfloat16)
    if value.dtype.kind == "f" or value.dtype == ml_dtypes.bfloat16:
        value = value.astype(np.float32)
    return name.removeprefix(PREFIX), value


def _encoder_name(name: str) -> str | None:
    """big_vision's ViT name -> ours; None for parts that this model does not have."""
    for old, new in _OLD_NAMES.items():
        name = name.replace(old, new)
    if name.startswith("embedding/"):
        return "EmbedPatches/" + name.removeprefix("embedding/")
    if name.startswith("Transformer/"):
        return "encoder/" + name.removeprefix("Transformer/")
    if name == "pos_embedding":
        return "pos_embedding_encoder"
    return None


def _fit(path: Path, arrays: Mapping[str, np.ndarray], shapes: Mapping[str, Any]) -> Params:
    """The arrays as a tree, when they are exactly those expected."""
    for name, shape in shapes.items():
        if name in arrays and arrays[name].shape != shape:
            raise CheckpointMismatch(
                f"{path}: parameter {name} has shape {arrays[name].shape}, the model needs "
                f"{shape}; {_remedy(name)}"
            )
    missing = sorted(set(shapes) - set(arrays))
    unexpected = sorted(set(arrays) - set(shapes))
    if missing:
        name = missing[0]
        raise CheckpointMismatch(
            f"{path} lacks parameter {name} (the model needs shape {shapes[name]})"
            f"{_and_more(missing)}; {_remedy(name)}"
        )
    if unexpected:
        name = unexpected[0]
        raise CheckpointMismatch(
            f"{path} has parameter {name} of shape {arrays[name].shape}, the model has none"
            f"{_and_more(unexpected)}; {_remedy(name)}"
        )
    return unflatten_dict({name: arrays[name] for name in shapes}, sep="/")


def _and_more(names: list[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


def _remedy(name: str) -> str:
    """What would make a parameter fit."""
    if name.startswith("pos_embedding_encoder"):
        return "use the image_size and patch_size of the checkpoint's run"
    if name.startswith("pos_embedding_decoder"):
        return "use the max_length (tokens of a sequence) of the checkpoint's run"
    if name.startswith(("decoder/EmbedTargets", "decoder/LogitsDense")):
        return (
            "use the vocabulary of the checkpoint's run (coordinate buckets and classes of the "
            "task), and its decoder width"
        )
    if name.startswith("EmbedPatches"):
        return "use the stem, patch_size and encoder width of the checkpoint's run"
    part = "decoder" if name.startswith("decoder") else "encoder"
    return f"use the model preset of the checkpoint's run: its {part} depth, width, heads, mlp_dim"
