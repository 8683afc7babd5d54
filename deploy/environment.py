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
