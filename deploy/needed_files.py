"""What a tuning run reads of the working directory that its job gets a copy of."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from deploy.config import REPOSITORY, RunConfig
from deploy.config_file import ConfigError, config_files
from vision.tasks.registry import OwnTaskConfig

# Of a run's config: what it writes, and what only other commands read. A task's stage_one is read.
_NOT_READ = ("runs", "initial_encoder", "pretrain", "stage_one")
_CACHE = "cache_dir"  # of any part, and written


def needed_files(config_path: str, config: RunConfig, working_directory: Path) -> list[str]:
    """Files and directories (these end with /), relative to the working directory.

    Those that the config names by relative paths, itself and what it extends, and the modules of
    its own rewards and task. What absolute paths name is on the nodes already.

    Args:
      config_path: as typed.
      config: what it resolves to; its paths are as they were written.
      working_directory: that would be uploaded.

    Raises:
      ConfigError: a path that leads to something from here only.
    """
    root = working_directory.resolve()
    own = [str(f.relative_to(root)) for f in config_files(config_path) if f.is_relative_to(root)]
    read = {name: value for name, value in config if name not in _NOT_READ}
    named = [found for path in _paths(read) if (found := _there(path, root)) is not None]
    modules = [name for module in _modules(config) for name in _module_files(module, root)]
    return list(dict.fromkeys([*own, *named, *modules]))


def _paths(value: Any) -> Iterator[Path]:
    """Relative ones of a config, and texts in the options of own code that are files."""
    if isinstance(value, BaseModel):
        for name, inner in value:
            if name != _CACHE:
                yield from _paths(inner)
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _paths(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _paths(inner)
    elif isinstance(value, Path) and not value.is_absolute():
        yield value
    elif isinstance(value, str) and "." in value and len(value) < 256 and Path(value).is_file():
        yield Path(value)


def _there(path: Path, root: Path) -> str | None:
    """A path as the copy has it; None where it is of the repository, or there is nothing."""
    if path.is_absolute():
        return None
    if ".." not in path.parts and (root / path).exists():
        return f"{path.as_posix()}/" if (root / path).is_dir() else path.as_posix()
    if path.exists() and not (REPOSITORY / path).exists():
        raise ConfigError(
            f"{path} is not in the working directory {root}, which is all that the head gets; "
            "copy it there, name another with --working-dir, or give an absolute path that all "
            "nodes share"
        )
    return None


def _modules(config: RunConfig) -> Iterator[str]:
    if config.rewards is not None:
        for term in config.rewards.terms:
            yield term.path.partition(":")[0]
    if isinstance(config.task, OwnTaskConfig):
        yield config.task.kind.partition(":")[0]


def _module_files(module: str, root: Path) -> Iterator[str]:
    """A module that the working directory has, and the packages that it is in."""
    parts = module.split(".")
    for count in range(1, len(parts) + 1):
        place = root.joinpath(*parts[:count])
        for file in (place / "__init__.py", place.with_suffix(".py")):
            if file.is_file():
                yield file.relative_to(root).as_posix()
