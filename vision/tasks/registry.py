"""The tasks there are, by the `kind` of their config."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from vision.tasks.captioning import CaptioningConfig, CaptioningTask
from vision.tasks.colorization import ColorizationConfig, ColorizationTask
from vision.tasks.detection import DetectionConfig, DetectionTask
from vision.tasks.errors import describe
from vision.tasks.import_path import ImportPathError, check_options, find_class
from vision.tasks.panoptic import PanopticConfig, PanopticTask
from vision.tasks.task import Task

# Stands for every kind that is an import path.
OWN = "module:Class"


class OwnTaskConfig(BaseModel):
    """A task of one's own: `kind: module:Class`, built as `Class(**options)`."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    kind: str = Field(default=OWN, pattern=r"^[\w.]+:\w+$")
    """The import path of a class that is a `vision.tasks.task.Task`."""
    options: dict[str, Any] = {}
    """What the class is built with."""


# A kind of task that is added here is what the config, the CLI and the workers then know.
KINDS: Mapping[str, tuple[type[BaseModel], type[Any]]] = {
    "detection": (DetectionConfig, DetectionTask),
    "panoptic": (PanopticConfig, PanopticTask),
    "colorization": (ColorizationConfig, ColorizationTask),
    "captioning": (CaptioningConfig, CaptioningTask),
}


def _tag(config: Any) -> str | None:
    """Which member of the union a config is of."""
    kind = config.get("kind") if isinstance(config, Mapping) else getattr(config, "kind", None)
    return OWN if isinstance(kind, str) and ":" in kind else kind


TaskConfig = Annotated[
    Annotated[DetectionConfig, Tag("detection")]
    | Annotated[PanopticConfig, Tag("panoptic")]
    | Annotated[ColorizationConfig, Tag("colorization")]
    | Annotated[CaptioningConfig, Tag("captioning")]
    | Annotated[OwnTaskConfig, Tag(OWN)],
    Discriminator(_tag),
]


class UnknownTaskError(ValueError):
    """A config names a kind of task that does not exist."""


class OwnTaskError(ValueError):
    """A task of one's own raised where it is made ready; names it, what it raised and where."""


def build_task(config: TaskConfig | Mapping[str, Any]) -> Task:
    """The task of a config, which may still be plain values as read from YAML.

    Raises:
      UnknownTaskError: no task of that kind.
      ImportPathError: the class of an own task cannot be had, or does not take the options.
      OwnTaskError: its constructor raised.
      pydantic.ValidationError: a value that the task's config does not take.
    """
    kind = str(config.get("kind") if isinstance(config, Mapping) else config.kind)
    if ":" in kind:
        return _build_own(OwnTaskConfig.model_validate(config))
    if kind not in KINDS:
        near = difflib.get_close_matches(kind, KINDS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UnknownTaskError(
            f"unknown kind of task {kind!r}: one of {', '.join(KINDS)}, or 'module:Class'{hint}"
        )
    config_class, task_class = KINDS[kind]
    checked = config_class.model_validate(dict(config)) if isinstance(config, Mapping) else config
    task: Task = task_class(checked)
    return task


def prepare_task(config: TaskConfig, progress: Callable[[str, int, int], None]) -> None:
    """Makes what a task's data needs at first use; see `Task.prepare`.

    Raises:
      ImportPathError: the class of an own task cannot be had, or has no `prepare`.
      OwnTaskError: that raised.
    """
    if not isinstance(config, OwnTaskConfig):
        KINDS[config.kind][1].prepare(config, progress)
        return
    task_class = _own_class(config.kind)
    if not callable(getattr(task_class, "prepare", None)):
        raise ImportPathError(_lacks(config.kind, task_class.__name__, ["prepare"]))
    try:
        task_class.prepare(config, progress)
    except Exception as error:
        raise OwnTaskError(f"task {config.kind!r}, prepare: {describe(error)}") from error


def _own_class(kind: str) -> Any:
    return find_class("task", kind, "target_tokens", "my_module:MyTask")


def _build_own(config: OwnTaskConfig) -> Task:
    task_class = _own_class(config.kind)
    check_options("task", config.kind, task_class, config.options)
    try:
        task: Task = task_class(**config.options)
    except Exception as error:
        raise OwnTaskError(
            f"task {config.kind!r} with options {config.options}: {describe(error)}"
        ) from error
    missing = sorted(name for name in _task_members() if not hasattr(task, name))
    if missing:
        raise ImportPathError(_lacks(config.kind, type(task).__name__, missing))
    return task


def _lacks(kind: str, name: str, missing: Sequence[str]) -> str:
    return (
        f"task {kind!r}: {name} has no {', '.join(missing)}; "
        "`vision.tasks.task.Task` says what they are"
    )


def _task_members() -> set[str]:
    return {*Task.__annotations__, *(name for name in vars(Task) if not name.startswith("_"))}
