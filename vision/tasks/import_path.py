"""Users' classes by import path, `module:Class`, with errors that say what would be right."""

import difflib
import importlib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from vision.tasks.errors import describe


class ImportPathError(ValueError):
    """A config names a class that cannot be had, or options that it does not take."""


def find_class(what: str, path: str, method: str, example: str) -> Any:
    """The class of 'module:Class'.

    Args:
      what: what is looked for, for the message.
      method: one that such classes have: where the name is not found, the nearest of these.
      example: a path that would be right.
    Raises:
      ImportPathError: the path is malformed, the module does not import or has no such class.
    """
    module_name, colon, class_name = path.partition(":")
    if not (module_name and colon and class_name):
        raise ImportPathError(
            f"{what} path {path!r} is not of the form 'module:Class', such as {example!r}"
        )
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise ImportPathError(
            f"{what} {path!r}: cannot import {module_name!r}: {describe(error)}. It must be "
            "importable where the run is started: a file beside it, or an installed package"
        ) from error
    found = getattr(module, class_name, None)
    if found is None:
        names = [name for name, value in vars(module).items() if hasattr(value, method)]
        raise ImportPathError(
            f"{what} {path!r}: {module_name!r} has no {class_name!r}."
            + _nearest(class_name, [name for name in names if not name.startswith("_")])
        )
    if not callable(found):
        raise ImportPathError(
            f"{what} {path!r}: {class_name!r} is a {type(found).__name__}, not a class"
        )
    return found


def check_options(
    what: str, path: str, found: Any, options: Mapping[str, Any], *leading: Any
) -> None:
    """Raises `ImportPathError` where `found(*leading, **options)` has other parameters."""
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError):  # some built-in callables have none: calling them will tell
        return
    try:
        signature.bind(*leading, **options)
    except TypeError as error:
        accepted = list(signature.parameters)[len(leading) :]
        unknown = next((name for name in options if name not in accepted), None)
        raise ImportPathError(
            f"{what} {path!r} does not take the options {dict(options)}: {error}."
            + (_nearest(unknown, accepted) if unknown else f" It takes {accepted}")
        ) from error


def _nearest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return (f" Did you mean {close[0]!r}?" if close else "") + f" There are {sorted(known)}"
