"""Reading YAML configs: inheritance, dotted overrides, and errors that say what would be right.

Invariant: no message repeats what could be a password: a text given where one may stand, a line
that is not YAML, an override whose key is none.
"""

import difflib
import re
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

PRESETS = Path(__file__).resolve().parent.parent / "configs"

Model = TypeVar("Model", bound=BaseModel)


class ConfigError(ValueError):
    """A config that cannot be run; the message lists every fault that was found."""


_KEY = re.compile(r"[^:@]+")  # else it is rather a URL, or half of one
_QUOTED = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*\"""")
_HARMLESS = re.compile(r".(<[a-z ]+>|\\?.).")  # the name of a token, or one character


def yaml_fault(error: yaml.YAMLError) -> str:
    """What is wrong with a text that is not YAML, and where, without the text."""
    problem, mark = getattr(error, "problem", None), getattr(error, "problem_mark", None)
    if problem is None or mark is None:
        return "not valid YAML: it holds characters that no YAML may"
    said = _QUOTED.sub(lambda q: q[0] if _HARMLESS.fullmatch(q[0]) else "...", problem)
    return f"not valid YAML: {said} (line {mark.line + 1}, column {mark.column + 1})"


def read_config(path: str | Path, overrides: Sequence[str], model: type[Model]) -> Model:
    """Reads a YAML file, applies `a.b=value` overrides and validates the whole.

    `extends: other.yaml` in a file starts from another one (relative to it). A path that does not
    exist is looked for among the presets that ship with RewardTune.

    Raises:
      ConfigError: with one line for each fault: the dotted key, the value, what would be right.
    """
    source = _locate(Path(path))
    return validate_config(_read_yaml(source), overrides, model, str(source))


def config_files(path: str | Path) -> list[Path]:
    """The file that `read_config` reads for `path`, and those that it extends."""
    files: list[Path] = []
    _read_yaml(_locate(Path(path)), files=files)
    return files


def validate_config(
    values: dict[str, Any], overrides: Sequence[str], model: type[Model], source: str
) -> Model:
    """Applies overrides to what was read from `source`, and validates the whole.

    Raises:
      ConfigError: as `read_config`.
    """
    for override in overrides:
        _apply_override(values, override)
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = [_describe(fault, model) for fault in error.errors()]
        # Not from it: its text repeats what was given.
        raise ConfigError(f"{source}: " + "\n".join(lines)) from None


def _locate(path: Path) -> Path:
    candidates = [path, PRESETS / path, PRESETS.parent / path]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    known = sorted(str(p.relative_to(PRESETS.parent)) for p in PRESETS.rglob("*.yaml"))
    nearest = difflib.get_close_matches(str(path), known, 3, 0.3)
    raise ConfigError(f"{path}: no such config file; presets: {', '.join(nearest or known)}")


def _read_yaml(path: Path, files: list[Path] | None = None) -> dict[str, Any]:
    """Reads it over what it extends, and adds to `files` what was read."""
    files = [] if files is None else files
    if path.resolve() in files:
        raise ConfigError(f"{path}: extends itself through {[str(p) for p in files]}")
    files.append(path.resolve())
    try:
        values = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: {yaml_fault(error)}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: holds {type(values).__name__}, not a mapping of settings")
    parent = values.pop("extends", None)
    if parent is None:
        return values
    return _merge(_read_yaml(path.parent / parent, files), values)


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = _merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not _KEY.fullmatch(key):
        shown = repr(key) if _KEY.fullmatch(key) else "(not shown: it may hold a password)"
        raise ConfigError(f"override {shown}: write key.path=value, such as seed=1")
    *parents, name = key.split(".")
    node: Any = values
    for parent in parents:
        if isinstance(node, list):
            node = node[_index(node, parent, key)]
            continue
        if node.get(parent) is None:
            node[parent] = {}
        node = node[parent]
        if not isinstance(node, (dict, list)):
            raise ConfigError(f"override {key!r}: {parent!r} is a value, not a section")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {key!r}: the value is {yaml_fault(error)}") from None
    if isinstance(node, list):
        node[_index(node, name, key)] = value
    else:
        node[name] = value


def _index(node: list[Any], name: str, key: str) -> int:
    if not name.isdigit() or int(name) >= len(node):
        raise ConfigError(
            f"override {key!r}: {name!r} must be a list position, 0 to {len(node) - 1}"
        )
    return int(name)


def _describe(fault: Any, model: type[BaseModel]) -> str:
    location, models = _place(model, fault["loc"])
    if fault["type"] == "extra_forbidden":
        _, parents = _place(model, fault["loc"][:-1])
        known = sorted({name for parent in parents for name in parent.model_fields})
        last = str(fault["loc"][-1])
        nearest = difflib.get_close_matches(last, known, 1, 0.5)
        elsewhere = [
            key
            for key in dotted_keys(model)
            if key.rpartition(".")[2] == last and key != location  # there for another kind of it
        ]
        if elsewhere:
            return f"{location}: unknown key here; did you mean {elsewhere[0]!r}?"
        if nearest:
            return f"{location}: unknown key; did you mean {nearest[0]!r}?"
        section = location.rpartition(".")[0] or "the top level"
        return f"{location}: unknown key; {section} has {', '.join(known)}"
    if fault["type"] == "union_tag_invalid":
        given_kind = str(fault["ctx"]["tag"])
        kinds = [kind for kind in map(_kind, models) if kind is not None]
        near = difflib.get_close_matches(given_kind, kinds, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return f"{location}.kind: unknown kind {given_kind!r}: one of {', '.join(kinds)}{hint}"
    if fault["type"] == "union_tag_not_found":
        kinds = [kind for kind in map(_kind, models) if kind is not None]
        return f"{location}.kind: Field required: one of {', '.join(kinds)}"
    given = f" (given: {fault['input']!r})"
    if not location or fault["type"] == "missing" or _may_hold_password(fault, model):
        given = ""  # the whole config is told by its faults
    return f"{location or 'config'}: {fault['msg']}{given}"


def _may_hold_password(fault: Any, model: type[BaseModel]) -> bool:
    """Whether what was given is not to be shown: all but numbers, in a section that hides it."""
    number = fault["type"].startswith(("greater_than", "less_than"))
    parts = fault["loc"]
    above = [one for end in range(len(parts) + 1) for one in _place(model, parts[:end])[1]]
    hides = any(one.model_config.get("hide_input_in_errors") for one in above)
    given = repr(fault["input"])
    return (hides and not number) or ("://" in given and ("@" in given or "password" in given))


def _place(model: type[BaseModel], parts: Sequence[str | int]) -> tuple[str, list[type[BaseModel]]]:
    """The dotted key of a fault's place, and the models that may stand there.

    Pydantic names the kind of a section that has several (`task.detection.max_boxes`); the key
    does not.
    """
    path: list[str] = []
    models = [model]
    for part in parts:
        chosen = [option for option in models if _kind(option) == part]
        if chosen and len(models) > 1:
            models = chosen
            continue
        path.append(str(part) if _KEY.fullmatch(str(part)) else "...")
        if isinstance(part, str):
            fields = [m.model_fields[part] for m in models if part in m.model_fields]
            models = [nested for field in fields for nested in _models_in(field.annotation)]
    return ".".join(path), models


def _kind(model: type[BaseModel]) -> str | None:
    """What tells a section's kind from the others that may stand in its place."""
    return model.model_fields["kind"].default if "kind" in model.model_fields else None


def dotted_keys(model: type[BaseModel], prefix: str = "") -> typing.Iterator[str]:
    """Every key of a config model, as `section.key`."""
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}"
        for nested in _models_in(field.annotation):
            yield from dotted_keys(nested, f"{prefix}{name}.")


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, typing.Annotated, list):
        return [m for argument in typing.get_args(annotation) for m in _models_in(argument)]
    return []
