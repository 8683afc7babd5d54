"""What two processes must agree on for a token sequence to mean the same to both."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from vision.tasks.task import Task, token_names

_ABSENT = "(not there)"


def task_facts(task: Task) -> dict[str, str]:
    """The task's sizes, its training examples and its settings, each by its name.

    A path counts by what the file holds, not by where it lies on this machine; directories do not
    count, the ids of the examples in them do.
    """
    facts = {
        "task": type(task).__name__,
        "vocabulary_size": str(task.vocabulary_size),
        "max_length": str(task.max_length),
        "end_token": str(task.end_token),
        "image_size": str(tuple(task.image_size)),
        "auxiliary_arrays": json.dumps(
            {name: list(shape) for name, shape in sorted(task.auxiliary_arrays.items())}
        ),
    }
    ids = task.example_ids("train")
    facts["training examples"] = f"{len(ids)}, {_digest(json.dumps(list(ids)).encode())}"
    names = token_names(task)
    if names is not None:
        facts["tokens"] = _digest(json.dumps(list(names)).encode())
    config = getattr(task, "config", None)
    if isinstance(config, BaseModel):
        settings = {name: _settings(getattr(config, name)) for name in type(config).model_fields}
        facts |= {f"task.{name}": json.dumps(value) for name, value in settings.items()}
    return facts


def differences(ours: Mapping[str, str], theirs: Mapping[str, str]) -> list[str]:
    """What differs, each as 'name: here X, there Y'; empty: both mean the same."""
    return [
        f"{name}: here {ours.get(name, _ABSENT)}, there {theirs.get(name, _ABSENT)}"
        for name in dict.fromkeys([*ours, *theirs])
        if ours.get(name) != theirs.get(name)
    ]


def _settings(value: Any) -> Any:
    """JSON of a setting, paths replaced by their contents."""
    if isinstance(value, BaseModel):
        return {name: _settings(getattr(value, name)) for name in type(value).model_fields}
    if isinstance(value, Mapping):
        return {str(name): _settings(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_settings(entry) for entry in value]
    if isinstance(value, Path):
        return _contents(value.expanduser())
    return value if value is None or isinstance(value, bool | int | float) else str(value)


def _contents(path: Path) -> str | None:
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, _hash).hexdigest()


def _hash() -> Any:
    return hashlib.blake2b(digest_size=8)


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()
