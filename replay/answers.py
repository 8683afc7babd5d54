"""The last answer to each caller of a service, so that a repeated call has its effect once."""

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from protos.trajectory import WireError

MAX_CALLERS = 4096
MAX_BYTES = 256 * 2**20
MAX_CALLER = 100


@dataclass
class _Answer:
    """To a call, which may still be at work."""

    number: int
    digest: bytes
    task: "asyncio.Task[bytes]"
    size: int = 0


class Answers:
    """Remembers by caller; in one event loop.

    Invariant: a call of one number is computed at most once while it is remembered, which it is as
    long as it is at work. One that failed is forgotten, so that it can be tried again.
    """

    def __init__(self) -> None:
        self._by_caller: OrderedDict[str, _Answer] = OrderedDict()
        self._size = 0

    async def once(
        self, caller: str, number: int, request: bytes, compute: Callable[[], Awaitable[bytes]]
    ) -> bytes:
        """The answer to this call: the one that was given before, if it is a repetition.

        Raises:
          WireError: no caller or number, an earlier number than the last one, or the last one's
            with another request.
        """
        if not 0 < len(caller) <= MAX_CALLER or number < 1:
            raise WireError(f"call {number} of {caller[:MAX_CALLER]!r}: no caller, or no number")
        last = self._by_caller.get(caller)
        digest = hashlib.blake2b(request, digest_size=16).digest()
        if last is not None and number <= last.number:
            if number < last.number or digest != last.digest:
                raise WireError(f"call {number} of {caller}: its last was {last.number}")
            return await asyncio.shield(last.task)
        answer = _Answer(number, digest, asyncio.ensure_future(compute()))
        if last is not None:
            self._forget(caller, last)
        self._by_caller[caller] = answer
        answer.task.add_done_callback(lambda _: self._done(caller, answer))
        # The call goes on though its connection breaks: the repetition joins it.
        return await asyncio.shield(answer.task)

    def _done(self, caller: str, answer: _Answer) -> None:
        if self._by_caller.get(caller) is not answer:
            return
        if answer.task.cancelled() or answer.task.exception() is not None:
            self._forget(caller, answer)
            return
        answer.size = len(answer.task.result())
        self._size += answer.size
        self._by_caller.move_to_end(caller)
        self._evict()

    def _evict(self) -> None:
        """Forgets the oldest answers beyond what may be kept; a call at work is not one yet."""
        if self._size <= MAX_BYTES and len(self._by_caller) <= MAX_CALLERS:
            return
        for oldest, answer in list(self._by_caller.items()):
            if answer.task.done():
                self._forget(oldest, answer)
            if self._size <= MAX_BYTES and len(self._by_caller) <= MAX_CALLERS:
                return

    def _forget(self, caller: str, answer: _Answer) -> None:
        del self._by_caller[caller]
        self._size -= answer.size
