"""Whether a run in Ray has ended, as a server outside of the run sees it.

A Ray that is slow says nothing. A run has ended when its actor is gone, or when nobody listens any
more where its Ray was: a run that had started its Ray takes it along.
"""

import asyncio
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from ray.exceptions import RayError

from protos.edge import split_address

LOOK_SECONDS = 2.0
"""How often a server looks."""
ANSWER_SECONDS = 10.0
REFUSALS = 2
"""A head that is started again listens again before so many looks have been refused."""
PATIENCE_SECONDS = 300.0


class RunLost(RuntimeError):
    """A run's Ray is out of reach, and nothing says that the run has ended."""


class RunWatch:
    """Looks for a run, in one event loop.

    Attributes:
      over: what it means that the run has ended, for the log.
    """

    def __init__(
        self,
        at_work: Callable[[], bool],
        reach: Callable[[], None],
        answer_seconds: float = ANSWER_SECONDS,
        over: str = "the run has ended",
    ) -> None:
        """Prepares to look.

        Args:
          at_work: asks Ray for the run's actor; may take long, or raise what Ray raises.
          reach: connects to Ray's address; `OSError` where it cannot.
          answer_seconds: after which `at_work` is looked behind.
          over: see the attribute.
        """
        self.over = over
        self._at_work, self._reach, self._answer_seconds = at_work, reach, answer_seconds
        self._thread = ThreadPoolExecutor(1, "run-watch")
        self._look: asyncio.Future[bool] | None = None
        self._refusals = 0
        self._answered = time.monotonic()

    async def has_ended(self) -> bool:
        """Whether it has.

        Raises:
          RunLost: Ray could not be reached for `PATIENCE_SECONDS`.
        """
        loop = asyncio.get_running_loop()
        if self._look is None:
            self._look = loop.run_in_executor(self._thread, self._at_work)
        done, _ = await asyncio.wait({self._look}, timeout=self._answer_seconds)
        if done:
            look, self._look = self._look, None
            if look.exception() is None:
                self._refusals, self._answered = 0, time.monotonic()
                return not look.result()
            if not isinstance(look.exception(), (RayError, RuntimeError, OSError)):
                look.result()
        return await asyncio.to_thread(self._gone)

    def _gone(self) -> bool:
        try:
            self._reach()
        except ConnectionRefusedError:
            self._refusals += 1
            return self._refusals >= REFUSALS
        except OSError as error:
            silent = time.monotonic() - self._answered
            if silent > PATIENCE_SECONDS:
                reason = f"the run's Ray is out of reach since {silent:.0f} s: {error}"
                raise RunLost(reason) from error
            return False
        self._refusals, self._answered = 0, time.monotonic()  # it is only slow
        return False


def reach(address: str) -> None:
    """Connects to HOST:PORT, and leaves; `OSError` where it cannot."""
    socket.create_connection(split_address(address), timeout=5.0).close()
