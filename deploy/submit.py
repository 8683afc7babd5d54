"""A run as a Ray job: what is uploaded and how it starts on the head."""

import contextlib
import logging
import os
import shlex
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import yaml
from ray._private.runtime_env.packaging import GCS_STORAGE_MAX_SIZE, create_package
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient
from ray.runtime_env import RuntimeEnv

from deploy.config import RunConfig
from deploy.config_file import PRESETS, ConfigError, yaml_fault
from deploy.needed_files import needed_files

# Beside what .gitignore and .rayignore name, in directories that have neither.
IGNORED = (".git", ".venv", "venv", "__pycache__", "*.egg-info", ".*_cache", "/runs")
LARGEST_SHOWN = 8
# Beside the learner's own stop_seconds: the driver ends its actors and tells the last status.
LAST_WORDS_SECONDS = 15
# What a head says in its first seconds.
NO_AGENT, AGENT_SECONDS = "No available agent", 120.0
LOOK_SECONDS = 0.5


logger = logging.getLogger(__name__)


class SubmitError(RuntimeError):
    """A job that the cluster did not take, or that cannot be followed."""


@dataclass(frozen=True)
class Job:
    """What is submitted.

    Attributes:
      name: unique among the cluster's jobs.
      entrypoint: the command line that the head runs in its copy of the working directory.
      metadata: shown in Ray's dashboard and by `ray job list`.
      runtime_env: Ray's, without the working directory.
      files: what the command reads of the working directory, relative to it.
    """

    name: str
    entrypoint: str
    metadata: Mapping[str, str]
    runtime_env: Mapping[str, Any]
    files: Sequence[str]


def describe_job(
    config_path: str,
    overrides: Sequence[str],
    config: RunConfig,
    working_directory: Path,
    runtime_env: Path | None,
    overwrite: bool,
) -> Job:
    """The job of a config that was read here, for the head to read again.

    Args:
      config_path: as typed; overrides: too.
      config: what they resolve to.
      working_directory: what is uploaded.
      runtime_env: a YAML file with Ray's runtime environment.
      overwrite: as for `rewardtune tune`.

    Raises:
      ConfigError: the head could not read the config, or the run would be lost with the job.
    """
    if not config.runs.is_absolute():
        raise ConfigError(
            f"runs is {str(config.runs)!r}, a relative path: a job works in a temporary copy of "
            "this directory on the head, and what it wrote there would be lost. Give --runs PATH, "
            "absolute, on a file system that all nodes share"
        )
    arguments = [_path_there(config_path, working_directory), *overrides]
    arguments += ["--overwrite"] if overwrite else []
    directory = config.runs / config.name
    metadata = {"run": config.name, "config": config_path, "directory": str(directory)}
    if commit := _git_commit(working_directory):
        metadata["commit"] = commit
    return Job(
        name=f"{config.name}-{time.strftime('%Y%m%d-%H%M%S')}",
        # Ray signals the shell and the driver alike; with exec there is no shell.
        entrypoint=shlex.join(["exec", "python", "-m", "deploy.cli", "tune", *arguments]),
        metadata=metadata,
        runtime_env=_runtime_env(runtime_env, config),
        files=needed_files(config_path, config, working_directory),
    )


def _path_there(config_path: str, working_directory: Path) -> str:
    here = Path(config_path)
    if not here.exists():
        return config_path  # a preset, which is there as well
    for root in (working_directory, PRESETS.parent):
        if here.resolve().is_relative_to(root.resolve()):
            return str(here.resolve().relative_to(root.resolve()))
    raise ConfigError(
        f"{config_path} is not in the working directory {working_directory}, which is all that "
        "the head gets; copy it there, or name another with --working-dir"
    )


def _git_commit(directory: Path) -> str | None:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(directory), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        commit, changes = git("rev-parse", "HEAD"), git("status", "--porcelain")
    except (OSError, subprocess.CalledProcessError):
        return None  # no git, or no repository
    return f"{commit} with changes" if changes else commit


def _runtime_env(path: Path | None, config: RunConfig) -> dict[str, Any]:
    values = {} if path is None else _read_runtime_env(path)
    # The time between SIGTERM and SIGKILL when the job is stopped; 3 s by default.
    patience = int(config.cluster.stop_seconds) + LAST_WORDS_SECONDS
    variables = {"RAY_JOB_STOP_WAIT_TIME_S": str(patience)}
    return values | {"env_vars": variables | (values.get("env_vars") or {})}


def _read_runtime_env(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"--runtime-env {path}: cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"--runtime-env {path}: {yaml_fault(error)}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"--runtime-env {path}: not valid YAML: {error}") from error
    if not isinstance(values, dict) or "working_dir" in values:
        raise ConfigError(
            f"--runtime-env {path}: must be a mapping such as {{env_vars: {{A: b}}, pip: [c]}}, "
            "without working_dir, which --working-dir gives"
        )
    try:
        RuntimeEnv(**values)
    except (TypeError, ValueError) as error:  # such as env_vars: {A: 1}, whose value is no text
        raise ConfigError(f"--runtime-env {path}: Ray does not take it: {error}") from error
    return values


@contextlib.contextmanager
def packed(working_directory: Path, needed: Sequence[str] = ()) -> Iterator[Path]:
    """A zip of what the head gets, by the rules of `ray job submit`.

    Args:
      working_directory: what is packed.
      needed: files that must be among it, relative to it, and directories, which end with /.

    Raises:
      ConfigError: more than Ray takes, with the largest files; or a needed one is left out.
    """
    with tempfile.TemporaryDirectory() as directory:
        package = Path(directory) / "working_dir.zip"
        create_package(
            str(working_directory),
            package,
            include_gitignore=True,
            excludes=list(IGNORED),
            logger=logger,
        )
        size = package.stat().st_size
        if size >= GCS_STORAGE_MAX_SIZE:
            raise ConfigError(_too_large(working_directory, package, size))
        with ZipFile(package) as contents:
            names = contents.namelist()
        left_out = [path for path in needed if not _is_among(names, path)]
        if left_out:
            raise ConfigError(
                f"{', '.join(left_out)} would not be uploaded, and the run reads it: .rayignore or "
                f".gitignore of {working_directory} names it, or it is one of those that always "
                f"stay ({', '.join(IGNORED)}); change that, or give its absolute path on a file "
                "system that all nodes share"
            )
        yield package


def _is_among(names: Sequence[str], path: str) -> bool:
    """Whether a package has a file, or anything of a directory, whose path ends with /."""
    return any(name == path or (path.endswith("/") and name.startswith(path)) for name in names)


def _too_large(working_directory: Path, package: Path, size: int) -> str:
    with ZipFile(package) as contents:
        files = sorted(contents.infolist(), key=lambda file: -file.file_size)
    largest = ", ".join(f"{f.filename} {_mib(f.file_size)}" for f in files[:LARGEST_SHOWN])
    return (
        f"{working_directory} is {_mib(size)} to upload, and Ray takes "
        f"{_mib(GCS_STORAGE_MAX_SIZE)}. The largest files: {largest}. Name what the job does not "
        "need in .rayignore (written as .gitignore is), or put data on a path that all nodes share"
    )


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"


def connect_to_jobs(address: str | None) -> JobSubmissionClient:
    """Ray's job server: of an address (`http://HEAD:8265`), else as Ray finds it itself.

    Raises:
      SubmitError: it does not answer, or does not let us in.
    """
    if address is not None:
        os.environ["RAY_API_SERVER_ADDRESS"] = address  # else RAY_ADDRESS would win over it
    # Which packages go where is for Ray's developers.
    for name in ("dashboard_sdk", "job.sdk"):
        logging.getLogger(f"ray.dashboard.modules.{name}").setLevel(logging.WARNING)
    try:
        return JobSubmissionClient(address)
    except (AuthenticationError, ConnectionError, RuntimeError) as error:
        raise SubmitError(
            f"no job server of Ray at {address or 'the address that Ray finds'}: {error}. Name the "
            "head's dashboard with --address http://HEAD:8265; a cluster with token authentication "
            "wants RAY_AUTH_MODE=token and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH here"
        ) from error


def submit(client: JobSubmissionClient, job: Job, package: Path) -> str:
    """Uploads and starts it; returns its name."""
    environment = dict(job.runtime_env) | {"working_dir": str(package)}
    deadline = time.monotonic() + AGENT_SECONDS
    while True:
        try:
            return client.submit_job(
                entrypoint=job.entrypoint,
                submission_id=job.name,
                metadata=dict(job.metadata),
                runtime_env=environment,
            )
        except (AuthenticationError, ConnectionError, RuntimeError) as error:
            if NO_AGENT in str(error) and time.monotonic() < deadline:
                time.sleep(LOOK_SECONDS)
                continue
            raise SubmitError(f"the cluster did not take the job: {error}") from error
