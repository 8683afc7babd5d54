"""Threads that look after something again and again, whose own faults must be seen."""

import logging
import threading
from collections.abc import Callable

logger = logging.getLogger(__name__)


def look_again_and_again(
    look: Callable[[], None], seconds: float, what: str, over: threading.Event
) -> threading.Thread:
    """Calls `look` every so many seconds in a daemon thread, until `over` is set.

    What it raises is logged with its traceback, once for each in a row, and it goes on: a thread
    that ended would leave what it looks after to itself, unnoticed.
    """

    def life() -> None:
        told: str | None = None
        while not over.wait(seconds):
            try:
                look()
                told = None
            except Exception as error:
                said = f"{type(error).__name__}: {error}"
                if said != told:
                    logger.exception("the thread '%s' failed, and goes on", what)
                told = said

    thread = threading.Thread(target=life, name=what, daemon=True)
    thread.start()
    return thread
