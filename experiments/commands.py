"""What the experiments share: the command line in its own process, and results in JSON files."""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def rewardtune(arguments: Sequence[str]) -> float:
    """Runs the command line; returns the seconds that it took."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "deploy.cli", *arguments], check=True)
    return round(time.monotonic() - began, 1)


def evaluate(arguments: Sequence[str]) -> dict[str, Any]:
    """What `rewardtune evaluate --json` prints."""
    command = [sys.executable, "-m", "deploy.cli", "evaluate", *arguments, "--json"]
    metrics: dict[str, Any] = json.loads(subprocess.check_output(command))
    return metrics


def write_result(folder: Path, name: str, result: Mapping[str, Any]) -> None:
    """One result with the machine it comes from."""
    machine = {"cpus": os.cpu_count(), "platform": platform.platform(), "python": sys.version[:6]}
    folder.mkdir(exist_ok=True)
    text = json.dumps({"name": name, "machine": machine, **result}, indent=1)
    (folder / f"{name}.json").write_text(text + "\n")
