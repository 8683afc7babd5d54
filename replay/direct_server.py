"""The queue's end of direct connections: three calls, which workers make for every group."""

import asyncio
import hmac
import logging
import secrets
from collections.abc import Sequence
from typing import Any

from replay.direct import (
    HEAD,
    NONCE_BYTES,
    PROOF_BYTES,
    BadFrame,
    DirectAddress,
    cut,
    frame,
    proof,
    read_header,
    sizes_in,
)
from replay.memory import MemoryReplayQueue
from replay.queue import LearnerFenced, Lease, QueueClosed

logger = logging.getLogger(__name__)

HANDSHAKE_SECONDS = 10.0
MAX_STRANGERS = 256
BUFFER_BYTES = 2**18


class DirectServer:
    """Listens, and answers those who know the secret.

    Invariant: of who has not proved to know it nothing is looked at but its proof. It has some
    seconds for that, and some buffered bytes; only so many may try at once.
    """

    def __init__(self, queue: MemoryReplayQueue) -> None:
        """Prepares; `start` listens."""
        self._queue = queue
        self._secret = secrets.token_bytes(32)
        self._strangers = 0

    async def start(self, host: str) -> DirectAddress:
        """Listens on a free port of this host's address, as long as the process lives."""
        self._server = await asyncio.start_server(self._accept, host, 0, limit=BUFFER_BYTES)
        port: int = self._server.sockets[0].getsockname()[1]
        return DirectAddress(host, port, self._secret)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            known = await self._greet(reader, writer)
            while known:
                await self._answer_one(reader, writer)
        except BadFrame as error:
            logger.warning("%s says what no worker says: %s", _peer(writer), error)
        except (asyncio.IncompleteReadError, ConnectionError, TimeoutError):
            pass  # the other end is gone; what it held comes back as from any worker that ends
        finally:
            writer.close()

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        if self._strangers >= MAX_STRANGERS:
            logger.warning("%s is one too many to connect to the queue at once", _peer(writer))
            return False
        self._strangers += 1
        try:
            async with asyncio.timeout(HANDSHAKE_SECONDS):
                return await self._knows_secret(reader, writer)
        finally:
            self._strangers -= 1

    async def _knows_secret(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        nonce = secrets.token_bytes(NONCE_BYTES)
        writer.write(nonce)
        said = await reader.readexactly(PROOF_BYTES + NONCE_BYTES)
        if not hmac.compare_digest(said[:PROOF_BYTES], proof(self._secret, "worker", nonce)):
            logger.warning("%s asks the queue and does not know its secret", _peer(writer))
            return False
        writer.write(proof(self._secret, "queue", said[PROOF_BYTES:]))
        return True

    async def _answer_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        header_bytes, body_bytes = sizes_in(await reader.readexactly(HEAD.size))
        said = memoryview(await reader.readexactly(header_bytes + body_bytes))
        header = read_header(said[:header_bytes])
        leases: list[Lease] = []
        payloads: list[bytes] = []
        answer: list[Any]
        try:
            match header:
                case [
                    "lease",
                    str() as stage,
                    int() as n,
                    int() | float() | None as ttl,
                    str() as worker,
                    int() | float() as wait,
                    str() | None as epoch,
                    int() | None as first,
                ]:
                    leases = await self._queue.lease(stage, n, ttl, worker, wait, epoch, first)
                    payloads = [lease.payload for lease in leases if lease.payload is not None]
                    answer = ["ok", _columns(leases)]
                case ["complete", list() as ids, list() as sizes] if _all(ids, str) and _all(
                    sizes, int
                ):
                    bodies = [payload or b"" for payload in cut(said[header_bytes:], sizes)]
                    if len(ids) != len(bodies):
                        raise BadFrame(f"{len(ids)} leases with {len(bodies)} payloads")
                    answer = ["ok", await self._queue.complete(list(zip(ids, bodies, strict=True)))]
                case ["ack", list() as acked, list() as dropped, str() | None as epoch] if _all(
                    acked, int
                ) and _all(dropped, int):
                    await self._queue.ack(acked, dropped, epoch)
                    answer = ["ok", None]
                case _:
                    raise BadFrame(f"no call that is made directly: {str(header)[:100]}")
        except QueueClosed as error:
            answer = ["closed", str(error)]
        except LearnerFenced as error:
            answer = ["fenced", str(error)]
        except ValueError as error:  # the queue's refusals, which name what was asked
            answer = ["invalid", str(error)]
        try:
            if reader.at_eof():
                raise ConnectionResetError("it did not wait for its answer")
            writer.writelines(frame(answer, payloads))
            await writer.drain()
        except ConnectionError:  # nobody will work on them
            await self._queue.release([lease.id for lease in leases])
            raise


def _peer(writer: asyncio.StreamWriter) -> Any:
    return writer.get_extra_info("peername")


def _all(values: list[Any], of: type) -> bool:
    return all(type(value) is of for value in values)


def _columns(leases: Sequence[Lease]) -> dict[str, Any]:
    """Leases of one call, which have ttl and deadline in common, without their payloads."""
    return {
        "ids": [lease.id for lease in leases],
        "ordinals": [lease.ordinal for lease in leases],
        "deliveries": [lease.delivery for lease in leases],
        "sizes": [None if lease.payload is None else len(lease.payload) for lease in leases],
        "reasons": [lease.reasons for lease in leases],
        "starts": [lease.block_start for lease in leases],
        "until": [(lease.ttl, lease.deadline) for lease in leases[:1]],
    }
