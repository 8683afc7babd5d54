"""The tasks there are, by the `kind` of their config."""

import difflib
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, Field

from vision.tasks.captioning import CaptioningConfig, CaptioningTask
from vision.tasks.colorization import ColorizationConfig, ColorizationTask
from vision.tasks.detection import DetectionConfig, DetectionTask
from vision.tasks.panoptic import PanopticConfig, PanopticTask
from vision.tasks.task import Task

# A kind of task that is added here is what the config, the CLI and the workers then know.
TaskConfig = Annotated[
    DetectionConfig | PanopticConfig | ColorizationConfig | CaptioningConfig,
    Field(discriminator="kind"),
]
KINDS: Mapping[str, tuple[type[BaseModel], type[Any]]] = {
    "detection": (DetectionConfig, DetectionTask),
    "panoptic": (PanopticConfig, PanopticTask),
    "colorization": (ColorizationConfig, ColorizationTask),
    "captioning": (CaptioningConfig, CaptioningTask),
}


class UnknownTaskError(ValueError):
    """A config names a kind of task that does not exist."""


def build_task(config: TaskConfig | Mapping[str, Any]) -> Task:
    """The task of a config, which may still be plain values as read from YAML.

    Raises:
      UnknownTaskError: no task of that kind.
      pydantic.ValidationError: a value that the task's config does not take.
    """
    kind = str(config.get("kind") if isinstance(config, Mapping) else config.kind)
    if kind not in KINDS:
        near = difflib.get_close_matches(kind, KINDS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UnknownTaskError(f"unknown kind of task {kind!r}: one of {', '.join(KINDS)}{hint}")
    config_class, task_class = KINDS[kind]
    checked = config_class.model_validate(dict(config)) if isinstance(config, Mapping) else config
    task: Task = task_class(checked)
    return task
