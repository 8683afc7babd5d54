"""Where a run's numbers go: `metrics.jsonl` for programs, TensorBoard events for eyes.

A line's `step` is the number of finished steps, which is also the version of the policy that they
produced. A resumed run forgets what came after the checkpoint it resumes from, so no step occurs
twice.
"""

import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from protos.tensorboard import SummaryWriter

METRICS_FILE = "metrics.jsonl"
EVENTS_DIRECTORY = "tensorboard"
SECONDS_PREFIX = "seconds/"


class MetricsWriter:
    """Appends metrics to a run's directory; every line is on the disk when `write` returns."""

    def __init__(self, run_directory: Path | str, resumed_step: int | None = None) -> None:
        """Opens the files.

        Args:
          run_directory: made when it is missing.
          resumed_step: finished steps of the checkpoint that the run continues from; lines of
            later steps are dropped. None: a new run, whose file must not exist.
        Raises:
          FileExistsError: there are metrics already and `resumed_step` is None.
          OSError: the directory cannot be written.
        """
        directory = Path(run_directory)
        directory.mkdir(parents=True, exist_ok=True)
        self._path = directory / METRICS_FILE
        if resumed_step is not None:
            _keep_up_to(self._path, resumed_step)
        elif self._path.exists() and self._path.stat().st_size:
            raise FileExistsError(
                f"{self._path} exists: another run wrote here. Resume it, or choose another name"
            )
        self._lines = self._path.open("a", encoding="utf-8")
        purge = {} if resumed_step is None else {"purge_step": resumed_step + 1}
        self._events = SummaryWriter(str(directory / EVENTS_DIRECTORY), **purge)

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Adds one line. A value that is NaN or infinite (a mean of nothing) is left out."""
        values = {name: float(value) for name, value in metrics.items()}
        values = {name: value for name, value in values.items() if math.isfinite(value)}
        record = {"step": int(step), "time": round(time.time(), 3)} | values
        self._lines.write(json.dumps(record) + "\n")
        self._lines.flush()
        for name, value in values.items():
            self._events.add_scalar(name, value, int(step))
        self._events.flush()

    def close(self) -> None:
        """Ends both files."""
        self._lines.close()
        self._events.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def read_metrics(run_directory: Path | str) -> Iterator[dict[str, Any]]:
    """The records of a run's `metrics.jsonl`; a last line that a crash cut short is left out."""
    path = Path(run_directory) / METRICS_FILE
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            yield json.loads(line)
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise ValueError(f"{path}, line {number}: not JSON: {line[:80]!r}") from error


def _keep_up_to(path: Path, step: int) -> None:
    """Drops the lines of later steps, atomically."""
    if not path.exists():
        return
    kept = [record for record in read_metrics(path.parent) if record["step"] <= step]
    beside = path.with_suffix(".tmp")
    beside.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
    os.replace(beside, path)


def add_seconds(total: Mapping[str, float], metrics: Mapping[str, float]) -> dict[str, float]:
    """Seconds by part, with those of one more step (`seconds/PART`); `total` stays as it is."""
    step = {
        name.removeprefix(SECONDS_PREFIX): value
        for name, value in metrics.items()
        if name.startswith(SECONDS_PREFIX)
    }
    return {**total, **{part: total.get(part, 0.0) + more for part, more in step.items()}}
