"""Ctrl-C and SIGTERM as a request to stop after the step at hand, not in the middle of one."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self


class TrainingInterrupted(KeyboardInterrupt):
    """Training stopped because it was asked to; what it left can be resumed."""


class StopRequest:
    """Whether training was asked to stop; a context manager that listens to signals.

    The first SIGINT or SIGTERM sets `requested`; a second one raises KeyboardInterrupt at once.
    Outside the main thread no signal can be caught, and only `request` sets it.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self._event = threading.Event()
        self._before: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        """Someone asked to stop."""
        return self._event.is_set()

    def request(self) -> None:
        """Asks to stop."""
        self._event.set()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.request()

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {s: signal.signal(s, self._on_signal) for s in self.SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
