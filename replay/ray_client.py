"""The queue's contract over a Ray actor, `replay.queue_actor.QueueActor`.

The three calls that every group needs go over a direct connection, at a tenth of what they cost
through Ray. Where the actor cannot be reached so, and when a connection breaks, they go through
Ray, which also tells what is wrong.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import ray
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayActorError

from protos.trajectory import FailureKind
from replay.direct_client import DirectConnection
from replay.queue import (
    Completion,
    Frontier,
    Lease,
    Quarantined,
    QueueUnavailable,
    Stats,
)

logger = logging.getLogger(__name__)

T = TypeVar("T")

RETRY_SECONDS = 0.1
UNREACHABLE_SECONDS = 600.0
"""No direct connection is tried for so long after one that could not be made."""


class RayReplayQueue:
    """`ReplayQueue` for any process of the Ray job; no call waits for ever.

    A queue whose process died, and is started anew, is waited for: the call is repeated. What it
    had done before has no effect on the new queue, and is harmless to repeat on the old one.

    A lease that a call made but could not bring home (its timeout ran out) comes back to the queue
    by its ttl.
    """

    def __init__(self, handle: Any, timeout: float = 30.0) -> None:
        """Wraps the actor.

        Args:
          handle: of `ray.remote(QueueActor)`.
          timeout: seconds that the queue may take to answer or to be started anew, beside a
            lease's own `wait`.
        """
        if timeout <= 0:
            raise ValueError(f"timeout is {timeout} s; it must be positive")
        self._handle = handle
        self._timeout = timeout
        self._connections = threading.local()
        self._try_again_at = 0.0

    def lease(
        self,
        stage: str,
        n: int,
        ttl: float | None,
        worker: str,
        wait: float = 0.0,
        epoch: str | None = None,
        first: int | None = None,
    ) -> list[Lease]:
        """See `ReplayQueue.lease`."""
        asked = (stage, n, ttl, worker, wait, epoch, first)
        return self._directly(
            lambda queue: queue.lease(*asked), lambda: self._call("lease", *asked, wait=wait)
        )

    def renew(self, lease_ids: Sequence[str]) -> list[str]:
        """See `ReplayQueue.renew`."""
        return self._call("renew", list(lease_ids))

    def complete(self, items: Sequence[tuple[str, bytes]]) -> list[Completion]:
        """See `ReplayQueue.complete`."""
        return self._directly(
            lambda queue: queue.complete(items), lambda: self._call("complete", list(items))
        )

    def fail(self, items: Sequence[tuple[str, str, FailureKind]]) -> list[Completion]:
        """See `ReplayQueue.fail`."""
        return self._call("fail", list(items))

    def release(self, lease_ids: Sequence[str]) -> None:
        """See `ReplayQueue.release`."""
        self._call("release", list(lease_ids))

    def release_worker(self, worker: str, reason: str) -> int:
        """See `ReplayQueue.release_worker`."""
        return self._call("release_worker", worker, reason)

    def fence(self) -> str:
        """See `ReplayQueue.fence`."""
        return self._call("fence")

    def ack(
        self, ordinals: Sequence[int], dropped: Sequence[int] = (), epoch: str | None = None
    ) -> None:
        """See `ReplayQueue.ack`."""
        self._directly(
            lambda queue: queue.ack(ordinals, dropped, epoch),
            lambda: self._call("ack", list(ordinals), list(dropped), epoch),
        )

    def stats(self) -> Stats:
        """See `ReplayQueue.stats`."""
        return self._call("stats")

    def quarantine(self) -> list[Quarantined]:
        """See `ReplayQueue.quarantine`."""
        return self._call("quarantine")

    def frontier(self) -> Frontier:
        """See `ReplayQueue.frontier`."""
        return self._call("frontier")

    def restart(self, frontier: Frontier, epoch: str | None = None) -> None:
        """See `ReplayQueue.restart`."""
        self._call("restart", frontier, epoch)

    def close(self) -> None:
        """See `ReplayQueue.close`."""
        self._call("close")

    def _directly(self, ask: Callable[[DirectConnection], T], through_ray: Callable[[], T]) -> T:
        """Asks over this thread's connection, or through Ray.

        A connection that breaks may have taken an answer with it. What is asked again has its
        effect once: a lease that nobody knows of comes back by its ttl, a lost outcome is answered
        as too late, an ack may be repeated. A queue that was started anew tells its new address.
        """
        connection = self._connection()
        if connection is not None:
            try:
                return ask(connection)
            except OSError as error:
                connection.close()
                self._connections.own = None
                logger.warning("the direct connection to the queue broke: %s", error)
        return through_ray()

    def _connection(self) -> DirectConnection | None:
        """This thread's, made anew where it has none; None where there is no way to make one."""
        own: DirectConnection | None = getattr(self._connections, "own", None)
        if own is None and time.monotonic() >= self._try_again_at:
            try:
                address = self._call("direct_address")
                own = None if address is None else DirectConnection(address, self._timeout)
            except OSError as error:  # it cannot listen there, or be reached there
                logger.warning("calls to the queue go through Ray: %s", error)
            if own is None:
                self._try_again_at = time.monotonic() + UNREACHABLE_SECONDS
            self._connections.own = own
        return own

    def _call(self, method: str, *arguments: Any, wait: float = 0.0) -> Any:
        give_up = time.monotonic() + self._timeout
        while True:
            try:
                return self._attempt(method, arguments, self._timeout + wait)
            except ActorUnavailableError as error:
                if time.monotonic() > give_up:
                    raise QueueUnavailable(
                        f"replay queue could not do `{method}`: its process died and was not "
                        f"started anew within {self._timeout:g} s. Ray says: {error}"
                    ) from error
                time.sleep(RETRY_SECONDS)

    def _attempt(self, method: str, arguments: Sequence[Any], timeout: float) -> Any:
        try:
            return ray.get(getattr(self._handle, method).remote(*arguments), timeout=timeout)
        except ActorUnavailableError:
            raise
        except GetTimeoutError as error:
            raise QueueUnavailable(
                f"replay queue did not answer `{method}` within {timeout:g} s: its actor "
                f"{self._handle} is still being placed, its node is gone, or it is overloaded. "
                f"Free now: {ray.available_resources()} of {ray.cluster_resources()}"
            ) from error
        except RayActorError as error:
            raise QueueUnavailable(
                f"replay queue could not do `{method}`: its actor {self._handle} died or is out "
                f"of reach. Restart it from the learner's last checkpoint. Ray says: {error}"
            ) from error
