"""The two services of a simulated run: the queue's real rules, and a weight store's account.

The queue's shell does in virtual time what `replay.memory` does in asyncio; every answer goes
through the ledger, and the invariants are checked after every call.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from deploy.simulation.ledger import Ledger, check_places, check_sums
from deploy.simulation.world import RemoteError, World
from protos.trajectory import FailureKind
from replay.config import QueueConfig
from replay.queue import Completion, Frontier, Lease, Stage, Stats
from replay.state import QueueState

FULL_CHECK_EVERY = 2000

Reply = Callable[[Any], None]


class _Server:
    """Answers calls one after the other, while it is neither stopped nor down."""

    def __init__(self, world: World):
        self.world = world
        self.resumes_at = 0.0
        self.down_until = 0.0

    def receive(self, method: str, arguments: tuple[Any, ...], reply: Reply) -> None:
        """See `Endpoint`; what arrives while it is down is lost."""
        now = self.world.now
        if now < self.down_until:
            return
        if now < self.resumes_at:
            self.world.at(self.resumes_at, self.receive, method, arguments, reply)
            return
        try:
            answer = getattr(self, method)(*arguments)
        except ValueError as error:
            self.world.trace("refused", method, str(error))
            answer = RemoteError(str(error))
        reply(answer)


@dataclass(eq=False, slots=True)
class _Waiter:
    """A lease call that found nothing ready."""

    n: int
    worker: str
    reply: Reply


class SimulatedQueue(_Server):
    """The queue of a run, as a process: a `QueueState`, those who wait, and the ledger."""

    def __init__(self, world: World, config: QueueConfig, rules: type[QueueState] = QueueState):
        super().__init__(world)
        self.config, self._rules = config, rules
        self.incarnation = 0
        self.leases = self.calls = 0
        self.ledger = Ledger(config, Frontier())
        self.begin(Frontier())

    def begin(self, frontier: Frontier) -> None:
        """A new process of the queue, which knows nothing but a frontier."""
        self.incarnation += 1
        self.state = self._rules(self.config, _ticket, frontier, str(self.incarnation))
        self._waiters: dict[Stage, deque[_Waiter]] = {stage: deque() for stage in Stage}
        self._alarm: float | None = None
        self.ledger.begin(frontier)

    def come_back(self, seconds: float) -> None:
        """Dies, and is there again after so many seconds from the frontier that it kept."""
        frontier = Frontier.from_json(self.state.frontier().to_json())
        self.ledger.came_back(frontier)
        self.begin(frontier)
        self.down_until = self.world.now + seconds

    def receive(self, method: str, arguments: tuple[Any, ...], reply: Reply) -> None:
        """See `Endpoint`."""
        if method == "lease" and self.world.now >= max(self.resumes_at, self.down_until):
            stage, n, worker, wait = arguments
            self._lease(stage, n, worker, wait, reply)
        else:
            super().receive(method, arguments, reply)
        self.calls += 1
        check_sums(self.state)
        if self.calls % FULL_CHECK_EVERY == 0:
            check_places(self.state)

    # -- the calls ------------------------------------------------------------------------------

    def renew(self, lease_ids: Sequence[str]) -> list[str]:
        """See `ReplayQueue.renew`."""
        held = self.state.renew(lease_ids, self.world.now)
        self.ledger.renewed(lease_ids, held, self.world.now)
        self._serve()
        return held

    def complete(self, items: Sequence[tuple[str, bytes]]) -> list[Completion]:
        """See `ReplayQueue.complete`."""
        now, answers = self.world.now, []
        for lease_id, payload in items:
            answers.append(self.state.complete(lease_id, payload, now))
            self.ledger.completed(lease_id, payload, answers[-1], now)
            self.world.trace("complete", lease_id, str(answers[-1]))
            self.world.counts["outcomes too late"] += answers[-1] is Completion.TOO_LATE
        self._serve()
        return answers

    def fail(self, items: Sequence[tuple[str, str, FailureKind]]) -> list[Completion]:
        """See `ReplayQueue.fail`."""
        now, answers = self.world.now, []
        for lease_id, reason, kind in items:
            answers.append(self.state.fail(lease_id, reason, kind, now))
            self.ledger.failed(lease_id, kind, answers[-1], now)
            self.world.trace("fail", lease_id, reason, str(answers[-1]))
        self._serve()
        return answers

    def release(self, lease_ids: Sequence[str]) -> None:
        """See `ReplayQueue.release`."""
        self.state.release(lease_ids, self.world.now)
        self.ledger.released(lease_ids, self.world.now)
        self.world.trace("release", *lease_ids)
        self._serve()

    def release_worker(self, worker: str, reason: str) -> int:
        """See `ReplayQueue.release_worker`."""
        for waiters in self._waiters.values():
            for waiter in [waiter for waiter in waiters if waiter.worker == worker]:
                waiters.remove(waiter)
                waiter.reply([])
        released = self.state.release_worker(worker, reason, self.world.now)
        self.ledger.released_worker(worker, released, self.world.now)
        self.world.trace("release_worker", worker, released)
        self._serve()
        return released

    def ack(self, ordinals: Sequence[int], dropped: Sequence[int] = ()) -> None:
        """See `ReplayQueue.ack`."""
        now = self.world.now
        self.state.ack(ordinals, now)
        self.ledger.acked(ordinals, now)
        self.state.ack(dropped, now, dropped=True)
        self.ledger.acked(dropped, now)
        self.world.trace("ack", *ordinals, "dropped", *dropped)
        self._serve()

    def stats(self) -> Stats:
        """See `ReplayQueue.stats`."""
        stats = self.state.stats(self.world.now)
        self._serve()
        return stats

    def frontier(self) -> Frontier:
        """See `ReplayQueue.frontier`."""
        return self.state.frontier()

    def restart(self, frontier: Frontier) -> None:
        """See `ReplayQueue.restart`."""
        self.state.restart(frontier, self.world.now)
        self.ledger.restarted(frontier)
        self.world.trace("restart", frontier.next_unacked, *frontier.acked_above)
        self._serve()

    # -- those who wait -------------------------------------------------------------------------

    def _lease(self, stage: Stage, n: int, worker: str, wait: float, reply: Reply) -> None:
        try:
            leases = self._hand_out(stage, n, worker)
        except ValueError as error:
            reply(RemoteError(str(error)))
            return
        if leases or wait <= 0:
            reply(leases)
        else:
            waiter = _Waiter(n, worker, reply)
            self._waiters[stage].append(waiter)
            self.world.after(wait, self._give_up, stage, waiter)
        self._serve()

    def _give_up(self, stage: Stage, waiter: _Waiter) -> None:
        if waiter in self._waiters[stage]:
            self._waiters[stage].remove(waiter)
            waiter.reply([])

    def _hand_out(self, stage: Stage, n: int, worker: str) -> list[Lease]:
        now = self.world.now
        leases = self.state.lease(stage, n, None, worker, now)
        self.ledger.leased(stage, worker, leases, now)
        if leases:
            self.leases += len(leases)
            self.world.trace("lease", worker, *[f"{lease.ordinal}={lease.id}" for lease in leases])
        return leases

    def _serve(self) -> None:
        """Gives those who wait what is ready, first come first served, and sets the alarm."""
        for stage, waiters in self._waiters.items():
            while waiters:
                leases = self._hand_out(stage, waiters[0].n, waiters[0].worker)
                if not leases:
                    break
                waiters.popleft().reply(leases)
        deadline = self.state.next_deadline()
        if deadline is None or not any(self._waiters.values()):
            return
        if self._alarm is None or deadline < self._alarm:
            self._alarm = max(deadline, self.world.now)
            self.world.at(self._alarm, self._wake, self.incarnation)

    def _wake(self, incarnation: int) -> None:
        """What has expired may be for those who wait."""
        if incarnation == self.incarnation:
            self._alarm = None
            self.state.expire(self.world.now)
            self._serve()
            check_sums(self.state)


class SimulatedWeights(_Server):
    """Which versions of the policy there are."""

    def __init__(self, world: World, keep: int):
        super().__init__(world)
        self._keep = keep
        self._versions: list[int] = []
        self.published = False

    def begin(self) -> None:
        """A new process, which holds nothing."""
        self._versions = []
        self.published = False

    def publish(self, version: int) -> None:
        """Takes a version over; a learner that went back makes the later ones anew."""
        held = [held for held in self._versions if held < version]
        self._versions = [*held, version][-self._keep :]
        self.published = True
        self.world.trace("publish", version)

    def get(self, version: int | None) -> int:
        """A version, None for the newest; `ValueError` where it is not held."""
        if self._versions and version is None:
            return self._versions[-1]
        if version is None or version not in self._versions:
            raise ValueError(f"weights version {version} is not held; there are {self._versions}")
        return version


def _ticket(ordinal: int) -> bytes:
    return b"ticket %d" % ordinal
