"""How commands are given a config."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from deploy.config import RunConfig

ConfigPath = Annotated[str, typer.Argument(help="A YAML config, or the path of a preset.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Changes to it, such as learner.steps=100.")
]


def read_config(path: str, overrides: list[str] | None) -> "RunConfig":
    """The config with its paths made absolute, so that it means the same everywhere."""
    # Here, since commands without a config answer faster without numba and the tasks.
    from deploy.config import RunConfig
    from deploy.config_file import read_config as read_file

    return read_file(path, overrides or [], RunConfig).with_absolute_paths()
