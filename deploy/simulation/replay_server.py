"""The queue of a simulated run: the real rules and the real fence, as a process with a clock.

Its shell does in virtual time what `replay.memory` does in asyncio. Every answer goes through the
ledger.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from deploy.simulation.history import History
from deploy.simulation.ledger import Ledger, ticket
from deploy.simulation.servers import Reply, Server
from deploy.simulation.world import Request, Violation, World
from protos.trajectory import FailureKind
from replay.config import QueueConfig
from replay.fence import Fence
from replay.queue import Completion, Frontier, LearnerFenced, Lease, Stage, Stats
from replay.state import QueueState

_TO_SAMPLE = Stage.TO_SAMPLE


@dataclass(eq=False, slots=True)
class _Waiter:
    """A lease call that found nothing ready."""

    n: int
    worker: str
    epoch: str | None
    first: int | None
    reply: Reply
    waits: bool = True

    def answer(self, value: object) -> None:
        """It waits no more, and whoever calls takes it out of the row."""
        self.waits = False
        self.reply(value)


class SimulatedQueue(Server):
    """A `QueueState`, those who wait, and the ledger.

    Attributes:
      clock_offset: what its clock shows beyond the world's time.
      changed: a call or an alarm has reached the rules since the last check.
      histories: what each learner says that it has trained, by its epoch.
    """

    def __init__(self, world: World, config: QueueConfig, rules: type[QueueState] = QueueState):
        super().__init__(world)
        self.config, self._rules = config, rules
        self.incarnation = 0
        self.clock_offset = 0.0
        self.leases = self.calls = 0
        self.histories: dict[str, History] = {}
        self.ledger = Ledger(config, Frontier())
        self.begin(Frontier())

    def begin(self, frontier: Frontier) -> None:
        """A new process of the queue, which knows nothing but a frontier."""
        self.incarnation += 1
        self.state = self._rules(self.config, ticket, frontier, str(self.incarnation))
        self._fence = Fence(str(self.incarnation))
        self._last = ""
        self._waiters: dict[Stage, deque[_Waiter]] = {stage: deque() for stage in Stage}
        self._alarm: float | None = None
        # False: blocks were asked for in vain, and nothing has been acked since.
        self._room = True
        self.ledger.begin(frontier)
        self.lose_connections()
        self.changed = True

    def check(self) -> None:
        """Both invariants, after an event that has `changed` anything; see `Ledger.check`."""
        self.changed = False
        self.ledger.check(self.state)

    def come_back(self, seconds: float) -> None:
        """Dies, and is there again after so many seconds from the frontier that it kept."""
        frontier = Frontier.from_json(self.state.frontier().to_json())
        self.ledger.came_back(frontier)
        self.begin(frontier)
        self.down_until = self.world.now + seconds

    def step_clock(self, seconds: float) -> None:
        """Somebody sets its clock."""
        self.clock_offset += seconds
        self._alarm = None
        self._set_alarm()

    def clock(self) -> float:
        """The time by which leases end: the queue's own."""
        return self.world.now + self.clock_offset

    def answer(self, request: Request, reply: Reply) -> None:
        """See `Server`; a lease may have to wait."""
        self.calls += 1
        self.changed = True
        if request.method == "lease":
            self._lease(reply, *request.arguments)
        else:
            super().answer(request, reply)

    # -- the calls ------------------------------------------------------------------------------

    def renew(self, lease_ids: Sequence[str]) -> list[str]:
        """See `ReplayQueue.renew`."""
        held = self.state.renew(lease_ids, self._time())
        self.ledger.renewed(lease_ids, held, self.world.now + self.clock_offset)
        self._serve()
        return held

    def complete(self, items: Sequence[tuple[str, bytes]]) -> list[Completion]:
        """See `ReplayQueue.complete`."""
        answers, now = [], self._time()
        for lease_id, payload in items:
            answers.append(self.state.complete(lease_id, payload, now))
            self.ledger.completed(lease_id, payload, answers[-1])
        self._trace_outcomes("complete", [lease_id for lease_id, _ in items], answers)
        self._serve()
        return answers

    def fail(self, items: Sequence[tuple[str, str, FailureKind]]) -> list[Completion]:
        """See `ReplayQueue.fail`."""
        answers, now = [], self._time()
        for lease_id, reason, kind in items:
            answers.append(self.state.fail(lease_id, reason, kind, now))
            self.ledger.failed(lease_id, kind, answers[-1])
        self._trace_outcomes("fail", [item[:2] for item in items], answers)
        self._serve()
        return answers

    def release(self, lease_ids: Sequence[str]) -> None:
        """See `ReplayQueue.release`."""
        self.state.release(lease_ids, self._time())
        self.ledger.released(lease_ids)
        self.world.trace("release", *lease_ids)
        self._serve()

    def release_worker(self, worker: str, reason: str) -> int:
        """See `ReplayQueue.release_worker`."""
        for waiters in self._waiters.values():
            for waiter in [waiter for waiter in waiters if waiter.worker == worker]:
                waiters.remove(waiter)
                waiter.answer([])
        released = self.state.release_worker(worker, reason, self._time())
        self.ledger.released_worker(worker, released)
        self.world.trace("release_worker", worker, released)
        self._serve()
        return released

    def fence(self) -> str:
        """See `ReplayQueue.fence`."""
        self._last = epoch = self._fence.advance()
        self.world.trace("fence", epoch)
        for waiters in self._waiters.values():
            for waiter in [waiter for waiter in waiters if waiter.epoch is not None]:
                waiters.remove(waiter)
                waiter.answer(self.refused("lease", LearnerFenced(f"epoch {waiter.epoch}")))
        return epoch

    def _history(self) -> History:
        """Of the run's learner, whoever asked."""
        try:
            return self.histories[self._last]
        except KeyError:
            raise Violation(f"learner {self._last} has asked for nothing yet") from None

    def check_epoch(self, epoch: str | None) -> None:
        """Lets the last learner pass, and who is none."""
        self._fence.check(epoch)

    def ack(self, ordinals: Sequence[int], dropped: Sequence[int], epoch: str) -> None:
        """See `ReplayQueue.ack`."""
        self.check_epoch(epoch)
        self._room = True
        self.state.ack(ordinals, self._time())
        self.state.ack(dropped, self._time(), dropped=True)
        self.ledger.acked([*ordinals, *dropped], self._history())
        self.world.trace("ack", *ordinals, "dropped", *dropped)
        self._serve()

    def stats(self) -> Stats:
        """See `ReplayQueue.stats`."""
        stats = self.state.stats(self._time())
        self._serve()
        return stats

    def frontier(self) -> Frontier:
        """See `ReplayQueue.frontier`."""
        return self.state.frontier()

    def restart(self, frontier: Frontier, epoch: str) -> None:
        """See `ReplayQueue.restart`."""
        self.check_epoch(epoch)
        if not self._fence.begins(epoch):
            return
        self._room = True
        self.state.restart(frontier, self._time())
        self.ledger.restarted(frontier, self._history())
        self.world.trace("restart", frontier.next_unacked, *frontier.acked_above)
        self._serve()

    # -- those who wait -------------------------------------------------------------------------

    def _lease(
        self,
        reply: Reply,
        stage: Stage,
        n: int,
        worker: str,
        wait: float,
        epoch: str | None,
        first: int | None = None,
    ) -> None:
        try:
            self.check_epoch(epoch)
            leases = self._hand_out(stage, n, worker, first)
        except (ValueError, LearnerFenced) as error:
            reply(self.refused("lease", error))
            return
        if leases or wait <= 0:
            reply(leases)
        else:
            waiter = _Waiter(n, worker, epoch, first, reply)
            self._waiters[stage].append(waiter)
            self.world.after(wait, self._give_up, stage, waiter, self.incarnation)
        self._serve()

    def _give_up(self, stage: Stage, waiter: _Waiter, incarnation: int) -> None:
        if waiter.waits and incarnation == self.incarnation:
            self._waiters[stage].remove(waiter)
            waiter.answer([])

    def _hand_out(self, stage: Stage, n: int, worker: str, first: int | None) -> list[Lease]:
        leases = self.state.lease(stage, n, None, worker, self._time(), first)
        now = self.world.now + self.clock_offset
        self.ledger.leased(stage, worker, leases, now, anew=first is not None)
        if stage is _TO_SAMPLE:
            self._room = bool(leases)
        if leases:
            self.leases += len(leases)
            named = [f"{lease.ordinal}={lease.id}" for lease in (leases[0], leases[-1])]
            self.world.trace("lease", worker, len(leases), *named)
        return leases

    def _trace_outcomes(
        self, method: str, items: Sequence[object], answers: Sequence[Completion]
    ) -> None:
        late = sum(answer is Completion.TOO_LATE for answer in answers)
        self.world.counts["outcomes too late"] += late
        self.world.trace(method, *items, "too late", late)

    def _serve(self) -> None:
        """Gives those who wait what is ready, first come first served, and sets the alarm."""
        for stage, waiters in self._waiters.items():
            passed = 0  # hosts of a learner, of which each waits for groups of its own
            while passed < len(waiters) and self._may_have(stage, waiters[passed]):
                waiter = waiters[passed]
                leases = self._hand_out(stage, waiter.n, waiter.worker, waiter.first)
                if leases:
                    del waiters[passed]
                    waiter.answer(leases)
                elif waiter.first is None:
                    break
                else:
                    passed += 1
        self._set_alarm()

    def _time(self) -> float:
        """What the rules are told, which then end leases, as the ledger does by the true time."""
        self.ledger.expire(self.world.now + self.clock_offset)
        return self.clock()

    def _may_have(self, stage: Stage, waiter: _Waiter) -> bool:
        """False: asking is in vain, as it mostly is, and not worth the time."""
        ready = self.state._ready[stage].since
        if waiter.first is not None:
            return len(ready) >= waiter.n
        return bool(ready) or (stage is _TO_SAMPLE and self._room)

    def _set_alarm(self) -> None:
        deadline = self.state.next_deadline()
        if deadline is None or not any(self._waiters.values()):
            return
        # A little later than due, which rounding may put before the deadline.
        due = max(deadline - self.clock_offset, self.world.now) + 1e-6
        if self._alarm is None or due < self._alarm:
            self._alarm = due
            self.world.at(due, self._wake, self.incarnation)

    def _wake(self, incarnation: int) -> None:
        """What has expired may be for those who wait."""
        if incarnation == self.incarnation:
            self._alarm = None
            self.changed = True
            self.state.expire(self._time())
            self._serve()
