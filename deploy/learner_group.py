"""The learner's processes, one a host, which begin and fail together.

Invariant: they all train, or none does. JAX processes that have found each other cannot take a new
one in: when one ends, the others are ended too, and all begin anew from the last checkpoint.
"""

import time
from collections import deque
from collections.abc import Callable
from typing import Any

from deploy.workers import Worker
from replay.resources import Resources

TPU_WORKER = "ray.io/tpu-worker-id"
"""Ray's label of a TPU slice's nodes: their order, from 0."""


def resources_of_host(resources: Resources, index: int, hosts: int) -> Resources:
    """What one of a learner's processes asks for.

    On a TPU slice that is one certain node. JAX numbers the processes there as the slice's hosts
    are, whatever they are told, and the first of ours must be the first of JAX's.
    """
    if hosts == 1 or "TPU" not in resources.custom:
        return resources
    return resources.model_copy(update={"labels": resources.labels | {TPU_WORKER: str(index)}})


class LearnerGroup:
    """What the hosts of a learner have in common."""

    def __init__(self) -> None:
        """Without hosts: each adds itself."""
        self.hosts: list[LearnerHost] = []
        # One death of the group is one failure, whichever host it was.
        self.failures: deque[tuple[float, str]] = deque()

    def train_when_complete(self) -> None:
        """Starts to train once the process of each host is there."""
        if not all(host.waits for host in self.hosts):
            return
        # A reference: the others get it when the first has answered.
        several = len(self.hosts) > 1
        coordinator = self.hosts[0].handle.coordinator.remote() if several else None
        for index, host in enumerate(self.hosts):
            host.train(index, coordinator)

    def end_others(self, failed: "LearnerHost") -> None:
        """Ends the processes that trained with one that has ended."""
        for host in self.hosts:
            if host is not failed and host.running is not None:
                host.ends_with_another = True
                host.replace(f"trained with {failed.name}")


class LearnerHost(Worker):
    """The learner's process on one host."""

    def __init__(
        self, name: str, start: Callable[[str], Any], group: LearnerGroup, failures_allowed: int
    ) -> None:
        """Adds itself to its group, the next index."""
        super().__init__(name, "learner", start, failures_allowed=failures_allowed)
        self.failures = group.failures
        self._group = group
        self.ends_with_another = False
        group.hosts.append(self)

    @property
    def waits(self) -> bool:
        """Whether its process is there, and waits for the others."""
        return bool(self.where) and self.running is None and self.finished is None

    def train(self, index: int, coordinator: Any) -> None:
        """Starts to train as one of the group."""
        self.running = self.handle.run.remote(index, coordinator)
        self.ready_at = time.time()

    def _run(self) -> None:
        self._group.train_when_complete()

    def _failed(self, reason: str, on_death: Callable[[Worker, str], None]) -> None:
        done = next((host.finished for host in self._group.hosts if host.finished), None)
        if done is not None:
            # A host ends when all are done: this one was lost on its way out.
            self.finished = done
        elif self.ends_with_another:
            self.ends_with_another = False
            self._start_again(reason, on_death)
        else:
            super()._failed(reason, on_death)
            self._group.end_others(self)
