"""What the process of a command is given before it does anything; imports nothing heavy."""

import os
import sys
from pathlib import Path


def compilation_cache() -> dict[str, str]:
    """Where JAX keeps compiled programs, for all processes of a machine and the next run."""
    variable = "JAX_COMPILATION_CACHE_DIR"
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "rewardtune" / "xla"
    return {variable: os.environ.get(variable, str(default))}


def add_working_directory_to_path() -> None:
    """Lets a user's own reward stand in the directory where the command is typed."""
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)


def use_token_of_this_machine() -> None:
    """A Ray that a run has started here wants the token of ~/.ray.

    Ray reads the variable that says so when it is imported, so this process begins again with it.
    """
    if "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
