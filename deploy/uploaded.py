"""Paths in the working directory of a Ray job: a copy whose place is another for each upload."""

from pathlib import Path
from typing import Any

UPLOADED = "working_dir_files"
"""Ray unpacks a job's working directory below a directory of this name, a package each."""


def as_uploaded(path: Path) -> Path:
    """A path in a job's working directory, relative to that; another as it is."""
    if UPLOADED not in path.parts:
        return path
    package = path.parts.index(UPLOADED) + 1
    return Path(*path.parts[package + 1 :])


def all_as_uploaded(value: Any) -> Any:
    """The same for all paths in a config's values, as JSON has them."""
    if isinstance(value, dict):
        return {key: all_as_uploaded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [all_as_uploaded(inner) for inner in value]
    if isinstance(value, str) and UPLOADED in value:
        return str(as_uploaded(Path(value)))
    return value
