"""What samplers and reward workers have in common: they pull, work and pull again."""

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeVar

from protos.trajectory import FailureKind, failure_kind
from replay.queue import Lease, QueueClosed, ReplayQueue, Stage

logger = logging.getLogger(__name__)

T = TypeVar("T")

WAIT_SECONDS = 1.0
LOAD_SECONDS = 10.0
"""The longest that a worker waits for a file system that is away."""
RETRY_SECONDS = 0.5


@dataclass
class WorkerStatus:
    """What a worker has done so far; times in seconds, with that of the spell at hand."""

    worker: str
    groups: int = 0
    working: float = 0.0
    waiting: float = 0.0

    def __post_init__(self) -> None:
        self._booking = threading.Lock()
        self._spell: Literal["working", "waiting"] | None = None
        self._since = 0.0

    def turn_to(self, spell: Literal["working", "waiting"] | None) -> None:
        """Ends the spell at hand and begins another."""
        with self._booking:
            self._book()
            self._spell = spell

    def _book(self) -> None:
        now = time.monotonic()
        if self._spell is not None:
            setattr(self, self._spell, getattr(self, self._spell) + now - self._since)
        self._since = now

    def to_dict(self) -> dict[str, Any]:
        """For the status page, from any thread."""
        with self._booking:
            self._book()
            return asdict(self)


class PullingWorker(ABC):
    """Leases from one stage until the queue closes or it is told to stop; holds no state."""

    def __init__(self, queue: ReplayQueue, stage: Stage, leases: int, status: WorkerStatus):
        """Prepares to lease `leases` groups (`to_sample`: blocks) of `stage` at a time."""
        self._queue, self._stage, self._leases = queue, stage, leases
        self._status = status
        self._stopping = False

    @abstractmethod
    def _work(self, leases: list[Lease]) -> None:
        """Gives every lease its outcome."""

    def _wanted(self) -> int:
        """How many leases to ask for now; a worker whose hands are full waits here, and says 0."""
        return self._leases

    def _when_there(self, load: Callable[[], T], give_up: float) -> T:
        """What `load` brings; a file system that is away is waited for until `give_up`.

        The tries of a queue follow each other at once: without a pause they were used up in one.
        """
        while True:
            try:
                return load()
            except OSError as error:
                away = failure_kind(error) is FailureKind.INFRASTRUCTURE
                if not away or self._stopping or time.monotonic() > give_up:
                    raise
                logger.warning("%s: tries again: %s", self._status.worker, error)
                time.sleep(RETRY_SECONDS)

    def stop(self) -> None:
        """Ends `run` after the work at hand."""
        self._stopping = True

    def run(self) -> dict[str, Any]:
        """The worker's life; returns its status when the queue has closed."""
        status = self._status
        while not self._stopping:
            status.turn_to("waiting")
            try:
                wanted = self._wanted()
                leases = (
                    self._queue.lease(self._stage, wanted, None, status.worker, wait=WAIT_SECONDS)
                    if wanted
                    else []
                )
                if leases:
                    status.turn_to("working")
                    self._work(leases)
            except QueueClosed:
                break
        status.turn_to(None)
        return status.to_dict()
