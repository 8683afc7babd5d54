"""Stage I to and from `.npz` files in big_vision's layout; needs no JAX.

Its variables are {"params": nested dict, "state": {"dictionary", "counts"}} of float32 arrays.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vision.models.arrays import (
    PREFIX,
    CheckpointMismatch,
    Dtype,
    fit_arrays,
    flatten,
    read_arrays,
    unflatten,
    write_arrays,
)
from vision.models.uvim_config import UvimConfig, is_of_decoder, stage_one_shapes

STATE = "state/"
# How the first published stage-I checkpoints name the trunks.
_OLD_TRUNKS = {"Encoder/": "encoder/", "Decoder/": "decoder/"}


def save_stage_one(
    path: str | Path, variables: Mapping[str, Any], dtype: Dtype = "float32"
) -> None:
    """Writes parameters and state, whole or not at all; the state stays float32.

    Raises:
      CheckpointError: a value that overflows the dtype, or a file that cannot be written.
    """
    arrays = {PREFIX + name: value for name, value in flatten(variables["params"]).items()}
    arrays |= {STATE + name: value for name, value in variables["state"].items()}
    # The counts of common words exceed float16.
    write_arrays(path, arrays, dtype, exact=(STATE,))


def load_stage_one(
    path: str | Path, config: UvimConfig, decoder_only: bool = False
) -> dict[str, Any]:
    """The variables of a stage I, float32.

    Args:
      decoder_only: leave out, unread and unchecked, what decoding does not need.
    Raises:
      CheckpointError: the file is missing, truncated or no such file.
      CheckpointMismatch: a parameter or the dictionary is missing, unexpected or of another shape
        (of other codes, tokens or image size), or the dictionary holds a word of no direction.
    """
    path = Path(path)

    def wanted(name: str) -> bool:
        return not decoder_only or is_of_decoder(_present_name(name))

    shapes = {name: shape for name, shape in stage_one_shapes(config).items() if wanted(name)}
    arrays = {_present_name(name): value for name, value in read_arrays(path, wanted).items()}
    if not any(name.startswith(STATE) for name in arrays):
        raise CheckpointMismatch(
            f"{path} has no dictionary (state/dictionary): it is no stage-I checkpoint. Stage II, "
            "the sequence model, goes to `initial`"
        )
    fitted = fit_arrays(path, arrays, shapes, _remedy)
    state = {n.removeprefix(STATE): v for n, v in fitted.items() if n.startswith(STATE)}
    sound = (state["counts"] > 0) & np.isfinite(state["dictionary"]).all(1)
    sound &= (state["dictionary"] != 0).any(1)
    if not sound.all():
        word = int(np.argmin(sound))
        raise CheckpointMismatch(
            f"{path}: word {word} of the dictionary has count {state['counts'][word]:g} and no "
            "direction; the file is damaged: train stage I anew"
        )
    params = {name: value for name, value in fitted.items() if not name.startswith(STATE)}
    return {"params": unflatten(params), "state": state}


def _present_name(name: str) -> str:
    for old, new in _OLD_TRUNKS.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def _remedy(name: str) -> str:
    """What would make an array of stage I fit."""
    if name.startswith(STATE):
        return "use the codes and codeword_dim of the stage-I checkpoint's run"
    if name.startswith(("encoder_head", "decoder_stem")):
        return "use the codeword_dim and width of the stage-I checkpoint's run"
    if name.startswith("pos_embedding"):
        return "use the image_size and patch_size of the stage-I checkpoint's run"
    if name.startswith("bottleneck"):
        return "use the tokens and bottleneck_resize of the stage-I checkpoint's run"
    if name.startswith(("embedding_", "head_")):
        return (
            "use the planes (classes, instances), patch_size and width of the stage-I "
            "checkpoint's run"
        )
    if name.startswith("ctx_"):
        return "use the patch_size, width and image context of the stage-I checkpoint's run"
    return "use the stage-I preset of the checkpoint's run: its depth, width, heads, mlp_dim"
