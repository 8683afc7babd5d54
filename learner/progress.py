"""Shows how far a long job is: a live bar on a terminal, an occasional line elsewhere."""

import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class ProgressDisplay:
    """Progress of one job of a known number of steps; use as a context manager.

    Where the console is not a terminal (a log file, CI) it prints one line at most every
    `seconds_between_lines`, and one at the end.
    """

    def __init__(
        self,
        description: str,
        total: int,
        *,
        seconds_between_lines: float = 15.0,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._description, self._total = description, total
        self._console = console or Console(stderr=True)
        self._pause, self._clock = seconds_between_lines, clock
        self._last_line = self._started = clock()
        self._first_step: int | None = None
        self._pending: str | None = None
        self._bar = (
            Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=self._console,
                transient=False,
            )
            if self._console.is_terminal
            else None
        )
        if self._bar is not None:
            self._task = self._bar.add_task(description, total=total, note="")

    def update(
        self, step: int, metrics: Mapping[str, float] | None = None, *, begun: bool = True
    ) -> None:
        """Says that `step` of the steps are done, with a few numbers to show beside.

        The rate counts from the first step that is told as `begun`: the job may be one resumed.
        """
        note = "  ".join(f"{name} {value:.4g}" for name, value in (metrics or {}).items())
        if self._bar is not None:
            fields = {"note": note} if note else {}
            self._bar.update(self._task, completed=step, **fields)  # type: ignore[arg-type]
            return
        now = self._clock()
        if self._first_step is None and begun:
            self._first_step, self._started = step, now
        self._pending = self._line(step, note, now)
        if now - self._last_line >= self._pause:
            self._flush(now)

    def say(self, message: str) -> None:
        """Prints a line above the bar."""
        self._console.print(message, highlight=False)

    def _line(self, step: int, note: str, now: float) -> str:
        done = 0 if self._first_step is None else step - self._first_step
        elapsed = now - self._started
        rate = f"{done / elapsed:.3g}/s" if done and elapsed > 0 else ""
        parts = (f"{self._description} {step}/{self._total}", rate, note)
        return "  ".join(part for part in parts if part)

    def _flush(self, now: float) -> None:
        if self._pending is not None:
            self.say(self._pending)
        self._pending, self._last_line = None, now

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        else:
            self._flush(self._clock())
