"""What the commands have in common: how they print, and how they end."""

import json
import logging
import sys
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Annotated, Any, ParamSpec, TypeVar

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

P = ParamSpec("P")
R = TypeVar("R")

console = Console()

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def friendly(command: Callable[P, R]) -> Callable[P, R]:
    """Ends with one clear message for what a user can mend, and with a traceback for our bugs."""

    @wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except typer.Exit:  # a command's own exit code
            raise
        except KeyboardInterrupt as error:
            print(f"rewardtune: {error or 'interrupted'}", file=sys.stderr)
            raise typer.Exit(130) from None
        except (ValueError, OSError, RuntimeError, ArithmeticError, TimeoutError) as error:
            if isinstance(error, ValidationError) or logging.getLogger().isEnabledFor(
                logging.DEBUG
            ):
                raise
            print(f"rewardtune: {type(error).__name__}: {error}", file=sys.stderr)
            print("(`rewardtune --debug ...` shows where it was raised)", file=sys.stderr)
            raise typer.Exit(1) from None

    return wrapped


def print_metrics(title: str, metrics: Mapping[str, Any], as_json: bool = False) -> None:
    """A table of metrics, or JSON."""
    if as_json:
        print(json.dumps(dict(metrics), indent=1))
        return
    table = Table(title=title, title_justify="left", show_header=False)
    for name, value in metrics.items():
        table.add_row(name, f"{value:.4f}" if isinstance(value, float) else str(value))
    console.print(table)
