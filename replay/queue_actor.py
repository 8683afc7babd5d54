"""The queue of a run as a Ray actor."""

import asyncio
import os

from ray.util import get_node_ip_address

from replay.direct import DirectAddress
from replay.direct_server import DirectServer
from replay.memory import MemoryReplayQueue


class QueueActor(MemoryReplayQueue):
    """A queue in memory that can be asked through Ray, and directly by who Ray told where.

    `ray.remote(QueueActor)` makes the actor.
    """

    _address: "asyncio.Task[DirectAddress] | None" = None

    async def direct_address(self) -> DirectAddress | None:
        """Where it listens; None where Ray encrypts its calls, which then all go through Ray."""
        if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
            return None
        if self._address is None:
            server = DirectServer(self)
            self._address = asyncio.ensure_future(server.start(get_node_ip_address()))
        return await self._address
