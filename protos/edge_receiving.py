"""What an edge takes in at once: calls, and the bytes of their requests.

gRPC reads a message whole before a handler of one message is called, as large as the limit of a
message allows. So handlers here are called when a call's headers are there, and read by themselves:
only so much at once as the server has memory for.
"""

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import grpc
from google.protobuf.message import DecodeError

WAIT_SECONDS = 10.0
"""The longest that a call waits for its turn to be read, before it is told to ask again."""

Metadata = tuple[tuple[str, str], ...]


class OpenCalls:
    """How many calls a server has taken and not answered, at most `most`.

    gRPC's own limit would refuse the health check too, and kill a server for being in demand.
    """

    def __init__(self, most: int, busy: Metadata, what: str = "calls"):
        """`busy` is sent with a refusal, which says `what` is open."""
        self._most, self._busy, self._what, self._open = most, busy, what, 0

    @asynccontextmanager
    async def one(self, context: Any) -> AsyncIterator[None]:
        """A call, or its refusal."""
        if self._open >= self._most:
            reason = f"{self._most} {self._what} are open here already: ask again later"
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, reason, self._busy)
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1


class OpenStreams(grpc.aio.ServerInterceptor):
    """Bounds the open calls of methods that stay open for as long as a caller likes.

    It stands before `ReceivingLimit`: who sends no message counts too.
    """

    def __init__(self, calls: Mapping[str, OpenCalls]) -> None:
        """`calls` of each such method, `/service/method`, which answers with a stream."""
        self._calls = calls

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        """See `grpc.aio.ServerInterceptor`."""
        handler, calls = await continuation(details), self._calls.get(details.method)
        if handler is None or calls is None:
            return handler

        async def one(requests: Any, context: Any) -> None:
            async with calls.one(context):
                await handler.stream_stream(requests, context)

        return _method(handler, one)


class ByteBudget:
    """Bytes that may be held at once; who finds too few waits, first come, first served.

    Invariant: what is taken and what is left are always the whole.

    Attributes:
      most: bytes in all.
      left: of them.
      seconds: the longest that a message may take to come in, once its turn has come.
      largest: bytes of a message that may stay, when it is there and its size is known.
    """

    def __init__(self, most: int, seconds: float, largest: float = math.inf) -> None:
        self.most = self.left = most
        self.seconds, self.largest = seconds, largest
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def take(self, size: int, seconds: float) -> bool:
        """Waits so long for so many bytes; whether they were there."""
        if not self._waiting and size <= self.left:
            self.left -= size
            return True
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, turn))
        try:
            await asyncio.wait({turn}, timeout=seconds)
            return turn.done()
        except asyncio.CancelledError:
            if turn.done():  # in the moment in which who waits was called off
                self.give_back(size)
            raise
        finally:
            if not turn.done():
                turn.cancel()
                self._hand_out()  # to those behind it

    def give_back(self, size: int) -> None:
        """They are held no more."""
        self.left += size
        self._hand_out()

    def _hand_out(self) -> None:
        while self._waiting:
            size, turn = self._waiting[0]
            if not turn.cancelled():
                if size > self.left:
                    return
                self.left -= size
                turn.set_result(None)
            self._waiting.popleft()


class ReceivingLimit(grpc.aio.ServerInterceptor):
    """Requests of all methods are read within a budget, which they take from until they are done.

    While a message comes in it counts as the largest that may: its size is known afterwards.
    """

    def __init__(self, budget: Callable[[str], ByteBudget], largest: int, busy: Metadata) -> None:
        """Begins.

        Args:
          budget: of a method, `/service/method`.
          largest: bytes that a message may have.
          busy: sent with a refusal.
        """
        self._budget, self._largest, self._busy = budget, largest, busy

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        """See `grpc.aio.ServerInterceptor`."""
        handler = await continuation(details)
        if handler is None:
            return None
        budget = self._budget(details.method)
        parse = handler.request_deserializer or (lambda data: data)
        if handler.request_streaming:
            return self._of_stream(handler, budget, parse)
        return self._of_one(handler, budget, parse)

    def _of_one(self, handler: Any, budget: ByteBudget, parse: Callable[[bytes], Any]) -> Any:
        async def with_request(
            requests: Any, context: Any, answer: Callable[[Any], Awaitable[Any]]
        ) -> Any:
            parts = self._read(requests, context, budget, parse)
            try:
                request = await anext(parts, None)
                if request is None:
                    reason = "the call brought no message"
                    await context.abort(grpc.StatusCode.INVALID_ARGUMENT, reason)
                return await answer(request)
            finally:
                await parts.aclose()

        async def one(requests: Any, context: Any) -> Any:
            return await with_request(requests, context, lambda r: handler.unary_unary(r, context))

        async def several(requests: Any, context: Any) -> None:
            await with_request(
                requests, context, lambda r: _write(handler.unary_stream(r, context), context)
            )

        return _method(handler, several if handler.response_streaming else one)

    def _of_stream(self, handler: Any, budget: ByteBudget, parse: Callable[[bytes], Any]) -> Any:
        async def one(requests: Any, context: Any) -> Any:
            parts = self._read(requests, context, budget, parse)
            try:
                return await handler.stream_unary(parts, context)
            finally:
                await parts.aclose()

        async def several(requests: Any, context: Any) -> None:
            parts = self._read(requests, context, budget, parse)
            try:
                await _write(handler.stream_stream(parts, context), context)
            finally:
                await parts.aclose()

        return _method(handler, several if handler.response_streaming else one)

    async def _read(
        self, requests: Any, context: Any, budget: ByteBudget, parse: Callable[[bytes], Any]
    ) -> Any:
        """The messages of a call; each is held until the next is asked for, or the call ends."""
        incoming = None
        while True:
            if not await budget.take(self._largest, WAIT_SECONDS):
                reason = (
                    f"requests of {budget.most} bytes are held or coming in here already, or were "
                    f"for {WAIT_SECONDS:g} s: ask again later"
                )
                await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, reason, self._busy)
            held = self._largest
            try:
                incoming = incoming or aiter(requests)  # gRPC minds one that is not begun
                try:
                    async with asyncio.timeout(budget.seconds):
                        data = await anext(incoming)
                except StopAsyncIteration:
                    return
                except TimeoutError:
                    reason = f"the message did not come within {budget.seconds:g} s"
                    await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, reason)
                budget.give_back(held - len(data))
                held = len(data)
                if held > budget.largest:
                    reason = f"the message has {held} bytes; at most {budget.largest} are taken"
                    await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, reason)
                try:
                    message = parse(data)
                except DecodeError as error:  # anybody may send it, so it makes no log line
                    reason = f"not a message of this method: {error}"
                    await context.abort(grpc.StatusCode.INVALID_ARGUMENT, reason)
                yield message
            finally:
                budget.give_back(held)


def _method(handler: Any, call: Any) -> Any:
    """gRPC's handler of a call that reads its requests as bytes, and answers as that handler."""
    make = (
        grpc.stream_stream_rpc_method_handler
        if handler.response_streaming
        else grpc.stream_unary_rpc_method_handler
    )
    return make(call, response_serializer=handler.response_serializer)


async def _write(answers: Any, context: Any) -> None:
    """Sends what an iterator brings; other handlers write by themselves."""
    if not hasattr(answers, "__aiter__"):
        await answers
        return
    async for part in answers:
        await context.write(part)
