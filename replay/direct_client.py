"""A worker's end of a direct connection to the queue's actor."""

import hmac
import secrets
import socket
from collections.abc import Sequence
from typing import Any

from replay.direct import (
    HEAD,
    NONCE_BYTES,
    PROOF_BYTES,
    DirectAddress,
    cut,
    frame,
    proof,
    read_header,
    sizes_in,
)
from replay.queue import Completion, LearnerFenced, Lease, QueueClosed, Stage

CONNECT_SECONDS = 2.0
FIRST_BYTES = 4096
MOST_PARTS = 1000
"""In one call to the system, which takes 1,024."""
_ERRORS = {"closed": QueueClosed, "fenced": LearnerFenced, "invalid": ValueError}


class DirectConnection:
    """One connection, for one thread.

    Every call may raise `OSError` when it breaks. A call that did not bring home its answer, for
    whatever reason, ends the connection: the next would be given that answer.
    """

    def __init__(self, address: DirectAddress, timeout: float) -> None:
        """Connects.

        Args:
          address: of the queue.
          timeout: seconds that an answer may take, beside a lease's own wait.

        Raises:
          OSError: nobody is there, or who is there does not know the secret.
        """
        self._timeout = timeout
        # Kept, since pages that are touched for the first time cost more than a copy.
        self._buffer = bytearray(FIRST_BYTES)
        self._filled = 0
        self._socket = socket.create_connection((address.host, address.port), CONNECT_SECONDS)
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            nonce = secrets.token_bytes(NONCE_BYTES)
            theirs = bytes(self._read(NONCE_BYTES))
            self._send([proof(address.secret, "worker", theirs), nonce])
            if not hmac.compare_digest(
                self._read(PROOF_BYTES), proof(address.secret, "queue", nonce)
            ):
                raise ConnectionError(f"{address.host}:{address.port} is not the run's queue")
        except BaseException:
            self._socket.close()
            raise

    def close(self) -> None:
        """Disconnects."""
        self._socket.close()

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
        rows, body = self._call(["lease", stage, n, ttl, worker, wait, epoch, first], wait=wait)
        of_stage = Stage(stage)
        payloads = cut(body, [size for *_, size, _, _ in rows])
        leases = []
        for row, payload in zip(rows, payloads, strict=True):
            lease_id, ordinal, lasts, until, delivery, _, reasons, start = row
            held = (lease_id, ordinal, of_stage, worker, lasts, until, delivery, payload)
            leases.append(Lease(*held, tuple(reasons), start))
        return leases

    def complete(self, items: Sequence[tuple[str, bytes]]) -> list[Completion]:
        """See `ReplayQueue.complete`."""
        payloads = [payload for _, payload in items]
        header = ["complete", [lease_id for lease_id, _ in items], list(map(len, payloads))]
        return [Completion(told) for told in self._call(header, payloads)[0]]

    def ack(
        self, ordinals: Sequence[int], dropped: Sequence[int] = (), epoch: str | None = None
    ) -> None:
        """See `ReplayQueue.ack`."""
        self._call(["ack", list(ordinals), list(dropped), epoch])

    def _call(
        self, header: list[Any], payloads: Sequence[bytes] = (), wait: float = 0.0
    ) -> tuple[Any, memoryview]:
        said = frame(header, payloads)
        try:
            self._socket.settimeout(self._timeout + wait)
            self._send(said)
            header_bytes, body_bytes = sizes_in(self._read(HEAD.size))
            size = HEAD.size + header_bytes + body_bytes
            rest = self._read(size)[HEAD.size :]
            if self._filled > size:
                raise ConnectionError(f"the queue says {self._filled - size} bytes too many")
            verdict, result = read_header(rest[:header_bytes])
        except BaseException:
            self.close()
            raise
        if verdict != "ok":
            raise _ERRORS[verdict](result)
        return result, rest[header_bytes:]

    def _send(self, parts: list[bytes]) -> None:
        """Says the next; what was read before is gone."""
        self._filled = 0
        sent = self._socket.sendmsg(parts[:MOST_PARTS])
        if sent < sum(map(len, parts)):
            self._socket.sendall(memoryview(b"".join(parts))[sent:])

    def _read(self, size: int) -> memoryview:
        """The first so many bytes of an answer; `ConnectionError` where the other end is gone."""
        if len(self._buffer) < size:
            self._buffer = self._buffer[: self._filled] + bytearray(size - self._filled)
        view = memoryview(self._buffer)
        while self._filled < size:
            more = self._socket.recv_into(view[self._filled :])
            if not more:
                raise ConnectionError("the queue ended the connection")
            self._filled += more
        return view[:size]
