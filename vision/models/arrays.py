"""Named arrays in `.npz` files in big_vision's layout: read, written whole or not at all, checked.

One array a parameter, named by its path ("params/encoder/encoderblock_0/..."; the prefix may be
missing; what is no parameter has another, such as "state/"). Needs no JAX: reward workers read
their decoder's weights with it.
"""

import os
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np

PREFIX = "params/"
# numpy cannot name bfloat16 in a file: such arrays are stored as their bits under this suffix.
BFLOAT16_SUFFIX = ":bfloat16"
Dtype = Literal["float32", "bfloat16", "float16"]


class CheckpointError(ValueError):
    """A checkpoint file that cannot be read or written."""


class CheckpointMismatch(CheckpointError):
    """A checkpoint that does not fit the model."""


def write_arrays(
    path: str | Path, arrays: Mapping[str, Any], dtype: Dtype, exact: tuple[str, ...] = ()
) -> None:
    """Writes arrays by their full names, whole or not at all; bytes (uint8) stay as they are.

    Args:
      exact: prefixes of names that stay float32, whatever the dtype.
    Raises:
      CheckpointError: an unknown dtype, a value that overflows it, or a file that cannot be
        written; what was at the path before is still there.
    """
    path = Path(path)
    encoded: dict[str, Any] = {}
    for name, value in arrays.items():
        if getattr(value, "dtype", None) == np.uint8:
            encoded[name] = value
            continue
        kept = "float32" if name.startswith(exact) else dtype
        encoded.update(_encode(name, np.asarray(value, np.float32), kept, path))
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".partial", delete=False) as file:
            temporary = file.name
            np.savez(file, **encoded)
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


def read_arrays(
    path: str | Path, wanted: Callable[[str], bool] = lambda name: True
) -> dict[str, np.ndarray]:
    """Every array of a file by its name without the prefix, floats widened to float32.

    Args:
      wanted: of a name without the prefix, whether to read that array at all.
    Raises:
      CheckpointError: the file is missing, truncated or no `.npz`.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}")
    try:
        with np.load(path, allow_pickle=False) as file:
            names = [name for name in file.files if wanted(name.removeprefix(PREFIX))]
            arrays = dict(_decode(name, file[name]) for name in names)
    except (zipfile.BadZipFile, OSError, ValueError, EOFError, KeyError) as error:
        raise CheckpointError(
            f"{path} is not a readable .npz checkpoint, perhaps truncated: {error}"
        ) from error
    if not arrays:
        raise CheckpointError(f"{path} holds no arrays")
    return arrays


def fit_arrays(
    path: Path,
    arrays: Mapping[str, np.ndarray],
    shapes: Mapping[str, tuple[int, ...]],
    remedy: Callable[[str], str],
) -> dict[str, np.ndarray]:
    """The arrays in the order of `shapes`, when they are exactly those expected.

    Args:
      remedy: what would make an array of that name fit, for the message.
    Raises:
      CheckpointMismatch: an array is missing, unexpected or of another shape.
    """
    for name, shape in shapes.items():
        if name in arrays and arrays[name].shape != shape:
            raise CheckpointMismatch(
                f"{path}: parameter {name} has shape {arrays[name].shape}, the model needs "
                f"{shape}; {remedy(name)}"
            )
    missing = sorted(set(shapes) - set(arrays))
    unexpected = sorted(set(arrays) - set(shapes))
    if missing:
        name = missing[0]
        raise CheckpointMismatch(
            f"{path} lacks parameter {name} (the model needs shape {shapes[name]})"
            f"{_and_more(missing)}; {remedy(name)}"
        )
    if unexpected:
        name = unexpected[0]
        raise CheckpointMismatch(
            f"{path} has parameter {name} of shape {arrays[name].shape}, the model has none"
            f"{_and_more(unexpected)}; {remedy(name)}"
        )
    return {name: arrays[name] for name in shapes}


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


def _and_more(names: list[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested dict as one dict of paths with slashes."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}/")
        else:
            flat[prefix + name] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The reverse of `flatten`."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return tree
