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
from replay.direct_stream import DirectStream
from replay.memory import MemoryReplayQueue
from replay.queue import LearnerFenced, Lease, QueueClosed

logger = logging.getLogger(__name__)

HANDSHAKE_SECONDS = 10.0
MAX_STRANGERS = 256


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
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: DirectStream(self._accept), host, 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return DirectAddress(host, port, self._secret)

    async def _accept(self, stream: DirectStream) -> None:
        try:
            known = await self._greet(stream)
            while known:
                await self._answer_one(stream)
        except BadFrame as error:
            logger.warning("%s says what no worker says: %s", _peer(stream), error)
        except (ConnectionError, TimeoutError):
            pass  # the other end is gone; what it held comes back as from any worker that ends
        except Exception:  # ends this connection, not the server; else nobody would be told
            logger.exception("a direct connection of %s failed", _peer(stream))
        finally:
            stream.transport.close()

    async def _greet(self, stream: DirectStream) -> bool:
        if self._strangers >= MAX_STRANGERS:
            logger.warning("%s is one too many to connect to the queue at once", _peer(stream))
            return False
        self._strangers += 1
        try:
            async with asyncio.timeout(HANDSHAKE_SECONDS):
                return await self._knows_secret(stream)
        finally:
            self._strangers -= 1

    async def _knows_secret(self, stream: DirectStream) -> bool:
        nonce = secrets.token_bytes(NONCE_BYTES)
        await stream.write([nonce])
        said = bytes(await stream.read(PROOF_BYTES + NONCE_BYTES))
        if not hmac.compare_digest(said[:PROOF_BYTES], proof(self._secret, "worker", nonce)):
            logger.warning("%s asks the queue and does not know its secret", _peer(stream))
            return False
        await stream.write([proof(self._secret, "queue", said[PROOF_BYTES:])])
        return True

    async def _answer_one(self, stream: DirectStream) -> None:
        header_bytes, body_bytes = sizes_in(await stream.read(HEAD.size))
        said = await stream.read(header_bytes + body_bytes)
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
                    answer = ["ok", _rows(leases)]
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
            await stream.write(frame(answer, payloads))
        except BaseException:  # nobody will work on them
            await self._queue.release([lease.id for lease in leases])
            raise


def _peer(stream: DirectStream) -> Any:
    return stream.transport.get_extra_info("peername")


def _all(values: list[Any], of: type) -> bool:
    return all(type(value) is of for value in values)


def _rows(leases: Sequence[Lease]) -> list[Any]:
    """Leases of one call, without what they have in common and without their payloads."""
    return [
        (
            *(lease.id, lease.ordinal, lease.ttl, lease.deadline, lease.delivery),
            None if lease.payload is None else len(lease.payload),
            *(lease.reasons, lease.block_start),
        )
        for lease in leases
    ]
