"""A run's directory: one run at a time, one config, and what a command finds there."""

import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:  # heavy, and not needed to read a status
    from deploy.config import RunConfig
from deploy.uploaded import UPLOADED

CONFIG_FILE = "config.yaml"
STATUS_FILE = "status.json"
EVALUATION_FILE = "evaluation.json"
LOCK_FILE = ".lock"
ID_FILE = ".id"


class RunDirectoryError(RuntimeError):
    """A run directory that cannot be used, and what would help."""


class RunGone(RuntimeError):
    """A run that was at work in a cluster, and is not any more."""


class RunStarting(RuntimeError):
    """A run at work in a cluster that has told no status yet."""


class RunSilent(RuntimeError):
    """A run of a cluster that does not answer for now."""


def check_outlives_job(runs: Path) -> None:
    """Refuses run directories in the working directory of a Ray job.

    Raises:
      RunDirectoryError: `runs` is in it.
    """
    here = Path.cwd()
    if UPLOADED in here.parts and runs.absolute().is_relative_to(here):
        raise RunDirectoryError(
            f"runs is {runs}, in the job's working directory: that is a temporary copy on the "
            "head, and the run would be lost with it. Add runs=PATH, absolute, on a file system "
            "that all nodes share"
        )


@contextmanager
def open_run_directory(config: "RunConfig", overwrite: bool = False) -> Iterator[Path]:
    """Makes runs/NAME or goes on with it, locked against a second run, its config written.

    Raises:
      RunDirectoryError: it cannot be written, is in use, or holds a run of other settings.
    """
    directory = config.directory
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = (directory / LOCK_FILE).open("a+")
    except OSError as error:
        raise RunDirectoryError(
            f"run directory {directory}: {error.strerror}; choose another with runs=PATH"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            raise RunDirectoryError(
                f"run directory {directory} is in use by process {lock.read().strip() or '?'}; "
                "wait for it, or give this run another name with name=NAME"
            ) from error
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        try:
            if overwrite:
                _remove_run(directory)
            _write_config(config, directory)
            if not (directory / ID_FILE).exists():
                write_atomically(directory / ID_FILE, secrets.token_hex(8))
        except OSError as error:
            raise RunDirectoryError(
                f"run directory {directory} cannot be written: {error.strerror}"
            ) from error
        yield directory


def _remove_run(directory: Path) -> None:
    contents = [path for path in directory.iterdir() if path.name != LOCK_FILE]
    if contents and not (directory / CONFIG_FILE).is_file():
        raise RunDirectoryError(
            f"{directory} holds files but no run (no {CONFIG_FILE}): --overwrite removes runs only"
        )
    for path in contents:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _write_config(config: "RunConfig", directory: Path) -> None:
    from deploy.config import RunConfig

    path = directory / CONFIG_FILE
    if path.exists():
        before = RunConfig.model_validate(yaml.safe_load(path.read_text()))
        changed = _differences(before.identity(), config.identity())
        if changed:
            raise RunDirectoryError(
                f"run directory {directory} holds a run of other settings: "
                + "; ".join(changed[:5])
                + ". Give this run another name with name=NAME, or start over with --overwrite"
            )
    write_atomically(path, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))


def _differences(before: Any, now: Any, key: str = "") -> list[str]:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        return [
            line
            for name in sorted(before.keys() | now.keys())
            for line in _differences(before.get(name), now.get(name), f"{key}.{name}".strip("."))
        ]
    return [] if before == now else [f"{key} was {before!r}, now {now!r}"]


def read_run(directory: Path) -> "RunConfig":
    """The config of an existing run.

    Raises:
      RunDirectoryError: there is no run.
    """
    from deploy.config import RunConfig

    path = directory / CONFIG_FILE
    if not path.is_file():
        raise RunDirectoryError(f"{directory}: no run here (no {CONFIG_FILE})")
    return RunConfig.model_validate(yaml.safe_load(path.read_text()))


def run_id(directory: Path) -> str:
    """Tells a run from every other, also of the same name and settings, and from one begun anew."""
    return (directory / ID_FILE).read_text()


def with_run_id(config: "RunConfig") -> "RunConfig":
    """A run's config with what its workers, wherever they are, must know its id for."""
    tracing = config.tracing.model_copy(update={"run_id": run_id(config.directory)})
    return config.model_copy(update={"tracing": tracing})


def write_status(directory: Path, status: Mapping[str, Any]) -> None:
    """What the run is doing now, for `rewardtune status`."""
    write_atomically(directory / STATUS_FILE, json.dumps(status, indent=1, default=str))


def read_status(directory: Path) -> dict[str, Any]:
    """The last status that a run wrote.

    Raises:
      RunDirectoryError: there is none, or the file is another program's.
    """
    try:
        status: dict[str, Any] = json.loads((directory / STATUS_FILE).read_text())
    except FileNotFoundError as error:
        raise RunDirectoryError(
            f"{directory}: no status here; did a `rewardtune tune` run in it?"
        ) from error
    if not isinstance(status, dict) or "run" not in status:
        raise RunDirectoryError(f"{directory / STATUS_FILE} is not the status of a run")
    return status


def write_atomically(path: Path, text: str) -> None:
    """Writes beside and renames, so that a reader sees the old or the new whole."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(text)
    beside.replace(path)
