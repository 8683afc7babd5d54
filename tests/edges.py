"""Queues and weight stores behind gRPC on loopback, which the tests of the edges share."""

from typing import Any

from protos.edge import EdgeOptions
from replay.queue import ReplayQueue
from replay.service import ReplayService
from tests.remote_rewards import Server


def serving_queue(
    queue: ReplayQueue, options: EdgeOptions | None = None, **settings: Any
) -> tuple[Server, ReplayService]:
    """A server to be entered, and its service to be closed after it."""
    service = ReplayService(queue, "run", **settings)
    return Server(service.services, options), service
