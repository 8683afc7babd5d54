"""What samplers and reward workers have in common: they pull, work and pull again."""

import time
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any

from replay.queue import Lease, QueueClosed, ReplayQueue, Stage

WAIT_SECONDS = 1.0


@dataclass
class WorkerStatus:
    """What a worker has done so far; times in seconds."""

    worker: str
    groups: int = 0
    working: float = 0.0
    waiting: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """For the status page."""
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

    def stop(self) -> None:
        """Ends `run` after the work at hand."""
        self._stopping = True

    def run(self) -> dict[str, Any]:
        """The worker's life; returns its status when the queue has closed."""
        status = self._status
        while not self._stopping:
            began = time.monotonic()
            try:
                wanted = self._wanted()
                leases = (
                    self._queue.lease(self._stage, wanted, None, status.worker, wait=WAIT_SECONDS)
                    if wanted
                    else []
                )
                leased = time.monotonic()
                status.waiting += leased - began
                if leases:
                    self._work(leases)
            except QueueClosed:
                break
            status.working += time.monotonic() - leased
        return status.to_dict()
