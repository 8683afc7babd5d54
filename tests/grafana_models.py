"""Dashboards against Grafana's own models (grafana-foundation-sdk): what they would not take."""

import enum
import json
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.cog.runtime import panelcfg_config
from grafana_foundation_sdk.models.dashboard import Dashboard

register_default_plugins()


def faults(dashboard: Mapping[str, Any]) -> list[str]:
    """Fields that the models do not know, unknown kinds of panels, and values of another type."""
    unknown = [
        f"$.panels[{index}].type: no panel {panel['type']!r}"
        for index, panel in enumerate(dashboard["panels"])
        if panelcfg_config(panel["type"]) is None
    ]
    model = Dashboard.from_json(dict(dashboard))
    known = json.loads(JSONEncoder().encode(model))
    return [*unknown, *_lost(dashboard, known, "$"), *_mistyped(model, Dashboard, "$")]


def _lost(given: Any, known: Any, path: str) -> Iterator[str]:
    """What was given and does not come back out of the models."""
    if isinstance(given, dict) and isinstance(known, dict):
        for name, value in given.items():
            if name in known:
                yield from _lost(value, known[name], f"{path}.{name}")
            else:
                yield f"{path}.{name}: unknown"
    elif isinstance(given, list) and isinstance(known, list) and len(given) == len(known):
        for index, (one, other) in enumerate(zip(given, known, strict=True)):
            yield from _lost(one, other, f"{path}[{index}]")
    elif given != known:
        yield f"{path}: {given!r} became {known!r}"


def _mistyped(value: Any, hint: Any, path: str) -> Iterator[str]:
    """Where a model holds another type than it declares: it does not look by itself."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint in (Any, object):
        # Options and fields of a kind of panel: its plugin's model, where it has one.
        if type(value).__module__.startswith("grafana_foundation_sdk"):
            yield from _mistyped(value, type(value), path)
    elif origin in (typing.Union, types.UnionType):
        found = [list(_mistyped(value, each, path)) for each in arguments]
        if all(found):
            yield from min(found, key=len)
    elif origin is typing.Literal:
        if value not in arguments:
            yield f"{path}: {value!r} is none of {arguments}"
    elif origin in (list, dict):
        if not isinstance(value, origin):
            yield f"{path}: {value!r} is no {origin.__name__}"
        else:
            items = value.items() if isinstance(value, dict) else enumerate(value)
            for key, item in items:
                yield from _mistyped(item, arguments[-1], f"{path}[{key}]")
    elif isinstance(hint, type) and issubclass(hint, enum.Enum):
        if value not in list(hint) and value not in [each.value for each in hint]:
            yield f"{path}: {value!r} is none of {[each.value for each in hint]}"
    elif not _is_a(value, hint):
        yield f"{path}: {value!r} is no {hint.__name__}"
    elif hasattr(value, "from_json"):
        for name, inner in typing.get_type_hints(type(value)).items():
            yield from _mistyped(getattr(value, name), inner, f"{path}.{name}")


def _is_a(value: Any, kind: type) -> bool:
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)
