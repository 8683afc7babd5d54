"""Long waits of many callers of a service on few threads.

What is asked blocks a thread while it waits, so each wait is cut into slices, and those who wait
take turns: the more there are, the shorter the slices. A server that stops takes nothing with it
either, since it can say no between two slices.
"""

import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

THREADS = 64
SLICE_SECONDS = 1.0

Ask = Callable[[Callable[[], T], ThreadPoolExecutor], Awaitable[T]]


class Waits:
    """The threads on which a service waits; in one event loop."""

    def __init__(self, name: str) -> None:
        self._threads = ThreadPoolExecutor(THREADS, name)
        self._waiting = 0

    async def until_found(
        self, seconds: float, look: Callable[[float], T], ask: Ask[T], found: Callable[[T], bool]
    ) -> T:
        """What `look` has found, or at the end of the wait has not.

        Args:
          seconds: to wait.
          look: waits for as many seconds as it is told, in a thread.
          ask: runs it in one of these threads.
          found: whether that ends the wait.
        """
        until = time.monotonic() + seconds
        self._waiting += 1
        try:
            while True:
                left = max(0.0, until - time.monotonic())
                piece = min(left, SLICE_SECONDS * min(1.0, THREADS / self._waiting))
                answer = await ask(lambda piece=piece: look(piece), self._threads)  # type: ignore[misc]
                if found(answer) or left <= piece:
                    return answer
        finally:
            self._waiting -= 1

    def close(self) -> None:
        """Ends the threads; one that hangs is not waited for."""
        self._threads.shutdown(wait=False, cancel_futures=True)
