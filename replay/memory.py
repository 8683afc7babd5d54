"""The in-memory backend: the state machine behind asyncio.

`replay.queue_actor` makes a Ray actor of it; the class itself knows nothing of Ray. Waiting leases
are served in the order they came, as soon as a call or an expiry makes something ready.
"""

import asyncio
import secrets
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace

from protos.trajectory import FailureKind, utf8
from replay.config import QueueConfig
from replay.fence import Fence, fenced
from replay.queue import (
    Completion,
    Frontier,
    Lease,
    Quarantined,
    QueueClosed,
    Stage,
    Stats,
)
from replay.state import QueueState
from replay.tickets import TicketSource


class _Waiter:
    """A lease call that found nothing ready."""

    def __init__(
        self, n: int, ttl: float | None, worker: str, epoch: str | None, first: int | None
    ) -> None:
        self.n, self.ttl, self.worker, self.epoch, self.first = n, ttl, worker, epoch, first
        self.answer: asyncio.Future[list[Lease]] = asyncio.get_running_loop().create_future()


class MemoryReplayQueue:
    """`ReplayQueue` with async methods. All calls must come from one event loop."""

    def __init__(
        self,
        config: QueueConfig,
        tickets: TicketSource | None,
        frontier: Frontier | None = None,
        clock: Callable[[], float] = time.monotonic,
        begun: bool = True,
    ) -> None:
        """Makes a queue.

        Args:
          config: window, order and patience.
          tickets: of the run; None: `supply` brings them, and until then nothing is leased.
          frontier: what is already acked.
          clock: seconds.
          begun: False: nothing is leased before a learner says by `restart` from where it goes on.
            A process that was started anew knows nothing of what its predecessor had acked.
        """
        self._begun = begun
        self._tickets = tickets
        self._clock = clock
        incarnation = secrets.token_hex(4)
        self._state = QueueState(config, self._mint, frontier, incarnation)
        self._fence = Fence(incarnation)
        self._waiters: dict[Stage, deque[_Waiter]] = {stage: deque() for stage in Stage}
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    async def lease(
        self,
        stage: str,
        n: int,
        ttl: float | None,
        worker: str,
        wait: float = 0.0,
        epoch: str | None = None,
        first: int | None = None,
    ) -> list[Lease]:
        """See `ReplayQueue.lease`. Raises `QueueClosed`, or `ValueError` for an unknown stage."""
        if self._closed:
            raise QueueClosed("the replay queue is closed: the run is over")
        stage = Stage(stage)
        self._fence.check(epoch)
        leases = self._leases(stage, n, ttl, worker, self._clock(), first)
        if leases or wait <= 0:
            self._serve()  # what expired meanwhile may be for others
            return leases
        waiter = _Waiter(n, ttl, worker, epoch, first)
        self._waiters[stage].append(waiter)
        self._serve()
        try:
            await asyncio.wait({waiter.answer}, timeout=wait)
        except asyncio.CancelledError:
            if waiter.answer.done() and waiter.answer.exception() is None:  # nobody will work on it
                await self.release([lease.id for lease in waiter.answer.result()])
            raise
        finally:
            if not waiter.answer.done():
                waiter.answer.cancel()
                self._waiters[stage].remove(waiter)
        return [] if waiter.answer.cancelled() else waiter.answer.result()

    async def supply(self, tickets: TicketSource) -> None:
        """Brings the tickets, which may be too large for a constructor's arguments in Ray."""
        self._tickets = tickets
        self._serve()

    async def renew(self, lease_ids: Sequence[str]) -> list[str]:
        """See `ReplayQueue.renew`."""
        held = self._state.renew(lease_ids, self._clock())
        self._serve()
        return held

    async def complete(self, items: Sequence[tuple[str, bytes]]) -> list[Completion]:
        """See `ReplayQueue.complete`."""
        now = self._clock()
        try:
            self._state.check_outcomes([lease_id for lease_id, _ in items], now)  # all or nothing
            return [self._state.complete(lease_id, payload, now) for lease_id, payload in items]
        finally:
            self._serve()

    async def fail(self, items: Sequence[tuple[str, str, FailureKind]]) -> list[Completion]:
        """See `ReplayQueue.fail`."""
        now = self._clock()
        try:
            self._state.check_outcomes([lease_id for lease_id, *_ in items], now)
            return [
                self._state.fail(lease_id, utf8(reason), kind, now)
                for lease_id, reason, kind in items
            ]
        finally:
            self._serve()

    async def release(self, lease_ids: Sequence[str]) -> None:
        """See `ReplayQueue.release`."""
        self._state.release(lease_ids, self._clock())
        self._serve()

    async def release_worker(self, worker: str, reason: str) -> int:
        """See `ReplayQueue.release_worker`; a wait of that worker ends empty-handed."""
        for waiters in self._waiters.values():
            for waiter in [waiter for waiter in waiters if waiter.worker == worker]:
                waiters.remove(waiter)
                waiter.answer.set_result([])
        released = self._state.release_worker(worker, reason, self._clock())
        self._serve()
        return released

    async def fence(self) -> str:
        """See `ReplayQueue.fence`; a wait of an earlier learner ends."""
        epoch = self._fence.advance()
        for waiters in self._waiters.values():
            for waiter in [waiter for waiter in waiters if waiter.epoch is not None]:
                waiters.remove(waiter)
                waiter.answer.set_exception(fenced(str(waiter.epoch)))
        return epoch

    async def ack(
        self, ordinals: Sequence[int], dropped: Sequence[int] = (), epoch: str | None = None
    ) -> None:
        """See `ReplayQueue.ack`."""
        self._fence.check(epoch)
        now = self._clock()
        try:
            self._state.check_ack([*ordinals, *dropped], now)  # all of it or nothing
            self._state.ack(ordinals, now)
            self._state.ack(dropped, now, dropped=True)
        finally:
            self._serve()

    async def stats(self) -> Stats:
        """See `ReplayQueue.stats`."""
        stats = self._state.stats(self._clock())
        self._serve()
        return replace(stats, closed=self._closed)

    async def quarantine(self) -> list[Quarantined]:
        """See `ReplayQueue.quarantine`."""
        return self._state.quarantine()

    async def frontier(self) -> Frontier:
        """See `ReplayQueue.frontier`."""
        return self._state.frontier()

    async def restart(self, frontier: Frontier, epoch: str | None = None) -> None:
        """See `ReplayQueue.restart`."""
        if not self._fence.begins(epoch):
            return
        self._state.restart(frontier, self._clock())
        self._begun = True
        self._serve()

    async def close(self) -> None:
        """See `ReplayQueue.close`."""
        self._closed = True
        for waiters in self._waiters.values():
            while waiters:
                waiters.popleft().answer.set_exception(
                    QueueClosed("the replay queue was closed while waiting: the run is over")
                )
        if self._timer is not None:
            self._timer.cancel()

    def _leases(
        self, stage: Stage, n: int, ttl: float | None, worker: str, now: float, first: int | None
    ) -> list[Lease]:
        if not self._begun or self._tickets is None:
            return []
        return self._state.lease(stage, n, ttl, worker, now, first)

    def _mint(self, ordinal: int) -> bytes:
        assert self._tickets is not None  # nothing is leased before
        return self._tickets.ticket(ordinal).to_bytes()

    def _serve(self) -> None:
        """Gives waiting leases what is ready, first come first served, and sets the alarm."""
        now = self._clock()
        self._state.expire(now)
        for stage, waiters in self._waiters.items():
            for waiter in list(waiters):
                leases = self._leases(stage, waiter.n, waiter.ttl, waiter.worker, now, waiter.first)
                if leases:
                    waiters.remove(waiter)
                    waiter.answer.set_result(leases)
                elif waiter.first is None:  # there is nothing for those behind it either
                    break
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        deadline = self._state.next_deadline()
        if deadline is not None and any(self._waiters.values()):
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(max(0.0, deadline - now), self._serve)
