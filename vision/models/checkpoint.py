"""Parameters to and from `.npz` files in big_vision's layout.

A file holds one array a parameter, named by its path ("params/encoder/encoderblock_0/..."; the
prefix may be missing). Published UViM and ViT checkpoints load as they are.

Where tokens mean what the training data says, such as words, a file also holds their names: the
same sizes with other words would load and speak nonsense. A file without names is believed.
"""

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from vision.models.arrays import (
    PREFIX,
    CheckpointError,
    CheckpointMismatch,
    Dtype,
    fit_arrays,
    read_arrays,
    write_arrays,
)
from vision.models.config import ModelConfig
from vision.models.resample import resample_positions
from vision.models.sequence import Params, abstract_params

__all__ = [
    "CheckpointError",
    "CheckpointMismatch",
    "check_token_names",
    "load_encoder_npz",
    "load_npz",
    "read_arrays",
    "save_npz",
]

# Beside the parameters: a JSON list of strings as UTF-8 bytes.
TOKEN_NAMES = "token_names"

# The names of the first published ViTs, and those that followed.
_OLD_NAMES = {
    "Transformer/posembed_input/pos_embedding": "pos_embedding",
    "/LayerNorm_2/": "/LayerNorm_1/",
    "/MultiHeadDotProductAttention_1/": "/MultiHeadDotProductAttention_0/",
    "/MlpBlock_3/": "/MlpBlock_0/",
}


def save_npz(
    path: str | Path,
    params: Params,
    dtype: Dtype = "float32",
    token_names: Sequence[str] | None = None,
) -> None:
    """Writes parameters, whole or not at all.

    Args:
      token_names: what each token stands for, where that is no matter of the config alone.
    Raises:
      CheckpointError: an unknown dtype, a value that overflows it, or a file that cannot be
        written; what was at the path before is still there.
    """
    flat = flatten_dict(params, sep="/")
    arrays = {PREFIX + name: value for name, value in flat.items()}
    if token_names is not None:
        text = json.dumps(list(token_names), ensure_ascii=False)
        arrays[TOKEN_NAMES] = np.frombuffer(text.encode(), np.uint8)
    write_arrays(path, arrays, dtype)


def load_npz(
    path: str | Path,
    expected: ModelConfig | Mapping[str, Any],
    token_names: Sequence[str] | None = None,
) -> Params:
    """Parameters of a `SequenceModel`, float32.

    Args:
      path: the file.
      expected: the model's config, or a nested dict of arrays or shapes (`abstract_params`).
      token_names: what each token must stand for, where the file says what it does.
    Raises:
      CheckpointError: the file is missing, truncated or no such file.
      CheckpointMismatch: a parameter is missing, unexpected or of another shape, or tokens stand
        for something else.
    """
    tree = abstract_params(expected) if isinstance(expected, ModelConfig) else expected
    shapes = {name: tuple(leaf.shape) for name, leaf in flatten_dict(tree, sep="/").items()}
    arrays = read_arrays(path)
    stored = arrays.pop(TOKEN_NAMES, None)
    params = _fit(path, arrays, shapes)
    check_token_names(path, stored, token_names)
    return params


def check_token_names(
    path: str | Path, stored: np.ndarray | None, expected: Sequence[str] | None
) -> None:
    """Raises `CheckpointMismatch` where both are known and differ.

    Args:
      stored: the file's entry `TOKEN_NAMES`, or None.
      expected: what each token stands for now, or None.
    Raises:
      CheckpointError: the entry is none.
    """
    if stored is None or expected is None:
        return
    try:
        names = [str(name) for name in json.loads(stored.tobytes())]
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: {TOKEN_NAMES} is no JSON list: {error}") from error
    if names == list(expected):
        return
    pairs = itertools.zip_longest(names, expected)
    token, (there, here) = next((i, pair) for i, pair in enumerate(pairs) if pair[0] != pair[1])
    raise CheckpointMismatch(
        f"{path}: its tokens stand for something else: token {token} is {there!r} there and "
        f"{here!r} here ({len(names)} and {len(expected)} tokens); use the data and settings that "
        "the checkpoint's run took its words from"
    )


def load_encoder_npz(path: str | Path, config: ModelConfig) -> Params:
    """The encoder's part of a `SequenceModel`'s parameters, from a ViT or another sequence model.

    The file is in big_vision's layout of ViTs, or holds a `SequenceModel`, whose task may have been
    another. Position embeddings of another grid are resampled bilinearly. A class token's position,
    the pooling head, the classifier and a decoder are left out.

    Returns:
      `EmbedPatches`, `encoder` and `pos_embedding_encoder`, float32, to merge into the
      parameters of `init_params`.
    """
    shapes = {
        name: tuple(leaf.shape)
        for name, leaf in flatten_dict(abstract_params(config), sep="/").items()
        if not name.startswith(("decoder/", "pos_embedding_decoder"))
    }
    own = {name.partition("/")[0] for name in shapes}
    arrays = {}
    for name, value in read_arrays(path).items():
        renamed = name if name.partition("/")[0] in own else _encoder_name(name)
        if renamed is not None:
            arrays[renamed] = value
    positions = arrays.get("pos_embedding_encoder")
    if positions is not None and positions.ndim == 3:
        arrays["pos_embedding_encoder"] = resample_positions(positions, config.grid)
    return _fit(path, arrays, shapes)


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


def _fit(path: str | Path, arrays: Mapping[str, np.ndarray], shapes: Mapping[str, Any]) -> Params:
    """The arrays as a tree, when they are exactly those expected."""
    return unflatten_dict(fit_arrays(Path(path), arrays, shapes, _remedy), sep="/")


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
