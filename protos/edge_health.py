"""Health of an edge, `grpc.health.v1`: told to anybody, until the server ends.

gRPC's own servicer holds a lock while it writes to one that watches: who does not read would hold
up the end of the server. And it forgets the others of a service when one of them leaves.
"""

import asyncio
from collections.abc import Iterable
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

CHECK, WATCH = (f"/{health.SERVICE_NAME}/{method}" for method in ("Check", "Watch"))
"""The methods, which need no token."""

_Answer = health_pb2.HealthCheckResponse


class Health(health_pb2_grpc.HealthServicer):
    """All services of a server serve, until `end`; the service "" is the server itself."""

    def __init__(self, services: Iterable[str]) -> None:
        self._services = {"", *services}
        self._ending = asyncio.Event()

    def end(self) -> None:
        """Says NOT_SERVING, to those that watch too, whose calls end by it."""
        self._ending.set()

    async def Check(self, request: Any, context: Any) -> Any:
        """The status of a service now."""
        if request.service not in self._services:
            await context.abort(grpc.StatusCode.NOT_FOUND, "the server has no such service")
        return self._answer()

    async def Watch(self, request: Any, context: Any) -> None:
        """The status of a service, and what it changes to."""
        known = request.service in self._services
        answer = self._answer() if known else _Answer(status=_Answer.SERVICE_UNKNOWN)
        await context.write(answer)
        await self._ending.wait()
        if answer.status == _Answer.SERVING:  # also where the end came during that write
            await context.write(self._answer())

    def _answer(self) -> Any:
        ends = self._ending.is_set()
        return _Answer(status=_Answer.NOT_SERVING if ends else _Answer.SERVING)
