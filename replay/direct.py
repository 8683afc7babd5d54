"""Frames and handshake of the direct connections between workers and the queue's actor.

A frame is a header, MessagePack, and behind it the payloads as they are. Through Ray a call costs
about a millisecond of CPU and the payloads of 16 groups two more, since they go through its object
store; over a socket it is 25 and 150 microseconds. Ray tells workers where the queue listens, and a
secret that both sides prove to know before anything else is said.
"""

import hmac
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgpack

NONCE_BYTES = PROOF_BYTES = 32
MAX_FRAME = 2**30
"""Bytes. What is larger goes through Ray."""
HEAD = struct.Struct("<II")
"""Bytes of the header and of all payloads."""


class BadFrame(ConnectionError):
    """What cannot be read; nothing that follows on its connection can be, either."""


@dataclass(frozen=True)
class DirectAddress:
    """Where the queue listens, and what those who may ask it know."""

    host: str
    port: int
    secret: bytes

    def __repr__(self) -> str:
        return f"DirectAddress({self.host}:{self.port})"


def proof(secret: bytes, side: str, nonce: bytes) -> bytes:
    """What only who knows the secret can say to a nonce; each side says another thing."""
    return hmac.digest(secret, side.encode() + nonce, "sha256")


def frame(header: Sequence[Any], payloads: Sequence[bytes] = ()) -> list[bytes]:
    """The parts of a frame. Raises `BadFrame` if it is too large."""
    packed = msgpack.packb(header)
    body = sum(map(len, payloads))
    _check_size(len(packed) + body)
    return [HEAD.pack(len(packed), body), packed, *payloads]


def sizes_in(head: bytes | memoryview) -> tuple[int, int]:
    """Bytes of header and payloads. Raises `BadFrame` if they are too many."""
    header, body = HEAD.unpack(head)
    _check_size(header + body)
    return header, body


def read_header(packed: memoryview) -> list[Any]:
    """The header. Raises `BadFrame` if it is none."""
    try:
        header = msgpack.unpackb(packed)
    except ValueError as error:
        raise BadFrame(
            f"a frame's header of {len(packed)} bytes is no MessagePack: {error or type(error)}"
        ) from error
    if not isinstance(header, list):
        raise BadFrame(f"a frame's header is a {type(header).__name__}, not a list")
    return header


def cut(body: memoryview, sizes: Sequence[int | None]) -> list[bytes | None]:
    """The payloads of these sizes that lie one behind the other; None for None.

    Raises:
      BadFrame: together they are not the body.
    """
    payloads: list[bytes | None] = []
    start = 0
    for size in sizes:
        payloads.append(None if size is None else bytes(body[start : start + size]))
        start += size or 0
    if start != len(body) or any(size is not None and size < 0 for size in sizes):
        raise BadFrame(f"payloads of {start} bytes are announced, {len(body)} came")
    return payloads


def _check_size(size: int) -> None:
    if size > MAX_FRAME:
        raise BadFrame(f"a frame of {size} bytes; {MAX_FRAME} is the most")
