"""Queues and weight stores behind gRPC on loopback, which the tests of the edges share."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from learner.packed_weights import Manifest, VersionNotHeld
from protos.edge import EdgeOptions
from replay.fence import fenced
from replay.queue import ReplayQueue
from replay.service import ReplayService
from tests.remote_rewards import Server


def serving_queue(
    queue: ReplayQueue, options: EdgeOptions | None = None, **settings: Any
) -> tuple[Server, ReplayService]:
    """A server to be entered, and its service to be closed after it."""
    service = ReplayService(queue, "run", **settings)
    return Server(service.services, options), service


class MemoryWeights:
    """What `learner.weights_service` serves, without Ray: holds every version."""

    def __init__(self) -> None:
        self.versions: dict[int, tuple[Manifest, Mapping[str, np.ndarray]]] = {}
        self.last: list[int] = []
        self.waiting: list[int] = []
        self.epoch: str | None = None

    def fence(self, epoch: str) -> None:
        self.epoch = epoch

    def publish_packed(self, manifest, arrays, last, epoch) -> None:
        if epoch is not None and epoch != self.epoch:
            raise fenced(epoch)
        self.versions[manifest.version] = (manifest, arrays)
        if last:
            self.last.append(manifest.version)
        self.waiting.append(manifest.version)

    def newest_version(self) -> int | None:
        return max(self.versions, default=None)

    def manifest(self, version: int | None) -> Manifest:
        return self.packed(version)[0]

    def packed(self, version: int | None) -> tuple[Manifest, Mapping[str, np.ndarray]]:
        chosen = self.newest_version() if version is None else version
        if chosen not in self.versions:
            raise VersionNotHeld(f"version {version} is not held; there are {list(self.versions)}")
        return self.versions[chosen]

    def next_to_evaluate(self, wait: float) -> int | None:
        return min(self.waiting, default=None)

    def evaluated(self, version: int) -> None:
        self.waiting.remove(version)

    def to_evaluate(self) -> list[int]:
        return self.waiting
