"""A trained model as the start of one with other classes, or of another image size."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from vision.models.checkpoint import (
    TOKEN_NAMES,
    CheckpointMismatch,
    check_token_names,
    read_arrays,
)
from vision.models.config import ModelConfig
from vision.models.resample import resample_positions
from vision.models.sequence import Params, abstract_params, init_params

# The parameters with one slice a token of the vocabulary, and the axis of the tokens.
_VOCABULARY = {
    "decoder/EmbedTargets/embedding": 0,
    "decoder/LogitsDense/kernel": 1,
    "decoder/LogitsDense/bias": 0,
}


def transfer_npz(
    path: str | Path, config: ModelConfig, seed: int, token_names: Sequence[str] | None = None
) -> Params:
    """Parameters of a `SequenceModel` from a checkpoint of another task of the same kind.

    The encoder's position embeddings are resampled to the model's grid. Of the vocabulary, the
    tokens up to the last ordered one (padding, confidence, coordinates) are taken over, so both
    tasks need the same number of coordinate buckets; those after it (classes) start anew. Without
    ordered tokens all are taken over, and must be the same.

    Args:
      token_names: as of `load_npz`.
    Raises:
      CheckpointError: the file cannot be read.
      CheckpointMismatch: it differs in more than classes and grid.
    """
    arrays = read_arrays(path)
    shapes = flatten_dict(abstract_params(config), sep="/")
    shared = sum(config.ordered_tokens) if config.ordered_tokens else 0
    fitted: dict[str, np.ndarray] = {}
    for name, expected in shapes.items():
        if name not in arrays:
            raise CheckpointMismatch(f"{path} lacks parameter {name}: another kind of model")
        value, needed = arrays[name], list(expected.shape)
        if name == "pos_embedding_encoder" and value.ndim == 3:
            value = resample_positions(value, config.grid)
        elif shared and name in _VOCABULARY and value.ndim == len(needed):
            value = np.take(
                value, range(min(shared, value.shape[_VOCABULARY[name]])), _VOCABULARY[name]
            )
            needed[_VOCABULARY[name]] = shared
        if list(value.shape) != needed:
            raise CheckpointMismatch(
                f"{path}: parameter {name} has shape {arrays[name].shape}, the model needs "
                f"{expected.shape}; only classes and image size may differ between the two"
            )
        fitted[name] = value
    if not shared:
        check_token_names(path, arrays.get(TOKEN_NAMES), token_names)
    else:
        fresh = flatten_dict(init_params(config, seed), sep="/")
        for name, axis in _VOCABULARY.items():
            classes = np.take(np.asarray(fresh[name]), range(shared, fresh[name].shape[axis]), axis)
            fitted[name] = np.concatenate([fitted[name], classes], axis)
    return unflatten_dict(fitted, sep="/")
