"""One direct connection in an event loop: bytes come straight into the buffer they are read from.

asyncio's own streams copy what comes in three times, which for payloads costs more than the queue.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast

FIRST_BYTES = 1024
"""Of the buffer, until more is asked for: who is not known yet fills no more."""
SLACK_BYTES = 4096
"""What a buffer has beyond what was asked for: the next head is read along with its frame."""
KEPT_BYTES = 2**23
"""A buffer that has grown beyond goes when it is empty."""


class DirectStream(asyncio.BufferedProtocol):
    """Reads and writes for one coroutine, `serve`, which is started with the connection.

    What was read stays as it is until the next is read. No more is taken from the other end than
    the buffer holds, and no more is written than it takes.
    """

    transport: asyncio.Transport

    def __init__(self, serve: Callable[["DirectStream"], Awaitable[None]]) -> None:
        """Prepares; the connection starts it."""
        self._serve = serve
        self._buffer = bytearray(FIRST_BYTES)
        self._start = self._end = 0
        self._wanted = 0
        self._full = False
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self.ended = False
        """Whether the other end says no more."""

    async def read(self, size: int) -> memoryview:
        """The next `size` bytes, until the next are read.

        Raises:
          ConnectionError: the other end ended before it had said so much.
        """
        self._make_room(size)
        if self._full and self._end < len(self._buffer):
            self._full = False
            self.transport.resume_reading()
        if self._end - self._start < size:
            if self.ended:
                raise ConnectionResetError("the other end is gone")
            self._wanted = size
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        view = memoryview(self._buffer)[self._start : self._start + size]
        self._start += size
        return view

    async def write(self, parts: Sequence[bytes]) -> None:
        """Sends them, and waits while too much is on its way already.

        Raises:
          ConnectionError: the other end is gone.
        """
        if self.ended:
            raise ConnectionResetError("the other end did not wait for its answer")
        self.transport.writelines(parts)
        if self._writer is not None:
            await self._writer

    def _make_room(self, size: int) -> None:
        left = self._end - self._start
        if not left and len(self._buffer) > max(KEPT_BYTES, size):
            self._buffer = bytearray(FIRST_BYTES)
        if not left:
            self._start = self._end = 0
        elif self._start + size > len(self._buffer):
            said = self._buffer[self._start : self._end]
            self._buffer[:left] = said
            self._start, self._end = 0, left
        if size > len(self._buffer):
            self._buffer = self._buffer[: self._end] + bytearray(size + SLACK_BYTES - self._end)

    # -- told by asyncio ------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It begins."""
        # uvloop's, which Ray's actors run on, is none by its type.
        self.transport = cast(asyncio.Transport, transport)
        self._serving = asyncio.ensure_future(self._serve(self))

    def get_buffer(self, sizehint: int) -> Any:
        """Where the next bytes go."""
        return memoryview(self._buffer)[self._end :]

    def buffer_updated(self, nbytes: int) -> None:
        """So many came."""
        self._end += nbytes
        if self._end == len(self._buffer):
            self._full = True
            self.transport.pause_reading()
        if self._end - self._start >= self._wanted:
            _wake(self._reader)

    def eof_received(self) -> bool:
        """The other end says no more; what is being done for it goes on to its end."""
        self._end_with(ConnectionResetError("the other end is gone"))
        return True

    def connection_lost(self, error: Exception | None) -> None:
        """It is over."""
        self._end_with(ConnectionResetError(f"the connection broke: {error}"))

    def pause_writing(self) -> None:
        """The other end does not take what is written."""
        self._writer = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        """It does again."""
        _wake(self._writer)
        self._writer = None

    def _end_with(self, error: ConnectionError) -> None:
        self.ended = True
        for waiting in (self._reader, self._writer):
            if waiting is not None and not waiting.done():
                waiting.set_exception(error)


def _wake(waiting: "asyncio.Future[None] | None") -> None:
    if waiting is not None and not waiting.done():
        waiting.set_result(None)
