"""The run's services, queue and weight store, as Ray actors that may die.

Ray starts a dead one anew, under the same handle, and callers wait for that. Its memory is gone, so
it is of no use before a learner has told it from where the run goes on: the queue hands out nothing
until then, the store makes readers wait. The controller sees to it that the learner does. One that
lives and does not answer, such as a stopped process, is ended: Ray would not notice.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError

from deploy.kill import kill_process, this_process
from deploy.looking import look_again_and_again
from deploy.workers import FAILURE_WINDOW_SECONDS, WorkerError
from learner.weight_store import WeightStore
from replay.queue_actor import QueueActor

logger = logging.getLogger(__name__)

LOOK_SECONDS = 1.0


class QueueProcess(QueueActor):
    """The queue in memory, of one Ray actor."""

    async def describe(self) -> dict[str, Any]:
        """Where it is."""
        return this_process()


class WeightsProcess(WeightStore):
    """The weight store."""

    async def describe(self) -> dict[str, Any]:
        """Where it is."""
        return this_process()


class Service:
    """A service as the controller sees it: watched, and counted when Ray starts it anew."""

    def __init__(
        self,
        name: str,
        handle: Any,
        failures_allowed: int,
        on_start: Callable[[], None] = lambda: None,
    ) -> None:
        """Watches.

        Args:
          name: of the service.
          handle: of its actor.
          failures_allowed: within `FAILURE_WINDOW_SECONDS`.
          on_start: called for each process of it, the first one included.
        """
        self._on_start = on_start
        self.name, self.handle = name, handle
        self.where: Mapping[str, Any] = {}
        self.restarts = 0
        self.failed_at: float | None = None
        self._down = False
        self._call: Any = None
        self._allowed = failures_allowed
        self._failures: deque[float] = deque()

    def check(self) -> bool:
        """Looks after it; whether it has been started anew since the last look.

        Raises:
          WorkerError: it dies again and again.
          RayActorError: Ray does not start it any more.
        """
        if self._call is None:
            self._call = self.handle.describe.remote()
            return False
        if not ray.wait([self._call], timeout=0)[0]:
            return False
        call, self._call = self._call, None
        try:
            where = ray.get(call, timeout=0)
        except ActorUnavailableError as error:
            self._noticed(str(error).strip().splitlines()[0])
            return False
        if self.where == where:
            self._down = False
            return False
        self._on_start()
        if not self.where:
            self.where, self._down = where, False
            return False
        self._noticed("its process is another one now")
        self.where, self._down = where, False
        self.restarts += 1
        logger.warning("the %s runs as process %s now, and is empty", self.name, where["pid"])
        return True

    def _noticed(self, reason: str) -> None:
        """Once a death: until it is there again, every look says the same."""
        if self._down:
            return
        self._down, self.failed_at = True, time.time()
        self._failures.append(self.failed_at)
        while self.failed_at - self._failures[0] > FAILURE_WINDOW_SECONDS:
            self._failures.popleft()
        if len(self._failures) > self._allowed:
            raise WorkerError(
                f"the {self.name} died {len(self._failures)} times within "
                f"{FAILURE_WINDOW_SECONDS:g} s; the last reason: {reason}"
            )
        logger.warning("the %s died: %s; it is started again", self.name, reason)

    def status(self) -> dict[str, Any]:
        """For `rewardtune status`."""
        return {
            "name": self.name,
            "pid": self.where.get("pid"),
            "node": self.where.get("node"),
            "restarts": self.restarts,
            "failed_at": self.failed_at,
        }


@contextmanager
def silent_ones_ended(services: Sequence[Service], patience: float) -> Iterator[None]:
    """Ends, while the block runs, each service that has not answered for `patience` seconds.

    In a thread of its own, since the controller may itself be waiting for its answer.
    """
    over = threading.Event()

    def look() -> None:
        calls = {service.handle.describe.remote(): service for service in services}
        _, silent = ray.wait(list(calls), num_returns=len(calls), timeout=patience)
        failed: Exception | None = None
        for service in [calls[call] for call in silent]:
            # Where it is not known yet, or no more, it is starting.
            if service.where and not over.is_set():
                logger.warning("the %s has not answered for %g s", service.name, patience)
                try:
                    kill_process(service.where)
                except Exception as error:  # noqa: BLE001  # raised when the others had their turn
                    failed = error
        if failed is not None:
            raise failed

    thread = look_again_and_again(look, LOOK_SECONDS, "silent services", over)
    try:
        yield
    finally:
        over.set()
        thread.join(patience)
