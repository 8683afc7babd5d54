"""Writes `docs/configuration.md` from the config models: `python -m docs.generate_reference`.

It writes `docs/metrics.md` too (`docs.metrics_reference`).

Keys, types, defaults and ranges come from the models themselves, meanings from the docstrings under
the fields, so the page cannot say otherwise than the code. A test holds that it is fresh.
"""

import inspect
import types
import typing
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from deploy.config import RunConfig
from docs.metrics_reference import METRICS_PAGE, metrics_reference

PAGE = Path(__file__).resolve().parent / "configuration.md"

PREAMBLE = """\
# Configuration

<!-- Written by `python -m docs.generate_reference`; edit the docstrings in the code instead. -->

A config is a YAML file. `rewardtune config CONFIG` prints it resolved and checked, and starts
nothing.

- `extends: other.yaml`, a path relative to the file, starts from another config: sections are
  merged, values and lists replaced.
- Overrides on the command line come last: `rewardtune tune CONFIG learner.steps=100
  rewards.terms.0.weight=0.5`. A number names a position in a list; values are YAML.
- A path that does not exist is looked for among the presets: `quickstart/detection_map.yaml`.
- An unknown key names the nearest known one, a value out of range the range; all faults are
  reported at once.
- When a run is resumed, everything that its numbers depend on must be as it was: all but
  `cluster`, `evaluation`, `logging`, `tracing`, `runs`, the number and resources of workers,
  deadlines, leases, where the queue is, `actors.cuda_graphs`, and the learner's `steps`,
  `checkpoint_every`, `keep_checkpoints`, `loading_threads` and `mismatch_every`.

"""

# What annotated_types calls the bounds, as people write them.
_BOUNDS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}


def reference() -> str:
    """The page, as text."""
    shown: dict[type[BaseModel], str] = {}
    parts = []
    for model, prefix, note in _sections(RunConfig, ""):
        parts.append(_section(model, prefix, note, shown.get(model)))
        shown.setdefault(model, prefix.removesuffix("."))
    return PREAMBLE + "\n".join(parts)


def _sections(
    model: type[BaseModel], prefix: str, note: str = ""
) -> Iterator[tuple[type[BaseModel], str, str]]:
    """(model, dotted prefix, note) of a model and all models in it, in the order of their keys."""
    yield model, prefix, note
    for name, field in model.model_fields.items():
        nested = list(_models(field.annotation))
        key = f"{prefix}{name}" + (".N" if typing.get_origin(field.annotation) is list else "")
        for option in nested:
            yield from _sections(option, f"{key}.", _kind(option) if len(nested) > 1 else "")


def _kind(model: type[BaseModel]) -> str:
    return f" (`kind: {model.model_fields['kind'].default}`)"


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif typing.get_origin(annotation) in (typing.Union, types.UnionType, typing.Annotated, list):
        for argument in typing.get_args(annotation):
            yield from _models(argument)


def _section(model: type[BaseModel], prefix: str, note: str, same_as: str | None) -> str:
    title = f"## `{prefix.removesuffix('.')}`{note}" if prefix else "## The top level"
    if same_as is not None:
        return f"{title}\n\nThe keys of `{same_as}`.\n"
    lines = [title, "", inspect.cleandoc(model.__doc__ or ""), ""]
    lines += ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    for name, field in model.model_fields.items():
        meaning = field.description or ("Tells the kinds apart." if name == "kind" else "")
        if not meaning:
            raise ValueError(f"{model.__name__}.{name} has no docstring under it")
        cells = (f"`{name}`", _type(field), _default(field), " ".join(meaning.split()))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _type(field: FieldInfo) -> str:
    named, null, _ = _type_name(field.annotation).partition(" or null")
    bounds = ", ".join(_bounds(field.metadata))
    return f"{named} {bounds}".strip() + null


def _bounds(metadata: Any) -> Iterator[str]:
    for item in metadata:
        if isinstance(item, FieldInfo):
            yield from _bounds(item.metadata)
        for name, sign in _BOUNDS.items():
            if getattr(item, name, None) is not None:
                yield f"{sign} {_number(getattr(item, name))}"
        if getattr(item, "min_length", None):
            yield f"at least {item.min_length}"
        if getattr(item, "pattern", None):
            yield f"matching `{item.pattern}`"


def _number(value: Any) -> str:
    return "2⁶³" if value == 2**63 else f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _type_name(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return " ".join([_type_name(arguments[0]), ", ".join(_bounds(arguments[1:]))]).strip()
    if origin is typing.Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(_type_name(argument) for argument in arguments))
    if origin is list:
        return f"list of {_type_name(arguments[0])}".replace("section", "sections,")
    if origin is tuple:
        return f"[{', '.join(_type_name(argument) for argument in arguments)}]"
    if origin is dict:
        return f"{_type_name(arguments[0])} → {_type_name(arguments[1])}"
    if annotation is type(None):
        return "null"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    if isinstance(annotation, type) and issubclass(annotation, PurePath):
        return "path"
    return {"str": "text", "Any": "anything"}.get(annotation.__name__, annotation.__name__)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    assert value is not PydanticUndefined
    return f"`{_plain(value)}`" if not isinstance(value, BaseModel) else _changed(value)


def _changed(value: BaseModel) -> str:
    """A section's default: what in it differs from the section's own defaults."""
    own = type(value).model_fields
    changed = {
        name: set_to
        for name, set_to in value
        if own[name].is_required() or set_to != own[name].get_default(call_default_factory=True)
    }
    return f"`{_plain(changed)}`" if changed else "see below"


def _plain(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_plain(of_key)}" for key, of_key in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_plain(item) for item in value) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    for page, text in ((PAGE, reference()), (METRICS_PAGE, metrics_reference())):
        page.write_text(text)
        print(f"wrote {page}")
