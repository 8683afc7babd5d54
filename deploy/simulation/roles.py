"""Sampler and reward worker, as `actors.sampler` and `rewards.worker` behave towards queue and
weight store; the work itself is a wait.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

from deploy.simulation.replay_server import SimulatedQueue
from deploy.simulation.servers import SimulatedWeights
from deploy.simulation.world import FOREVER, Call, Coroutine, Died, Process, Transport, World
from protos.trajectory import FailureKind
from replay.config import QueueConfig
from replay.queue import Lease, QueueUnavailable, Stage
from rewards.worker import FLUSH_SECONDS

WAIT = 1.0
DEADLINES = {Stage.TO_SAMPLE: 60.0, Stage.TO_SCORE: 20.0}
"""Seconds after which a worker's keeper ends it, as `deadline_seconds` of actors and rewards."""


@dataclass(frozen=True)
class Work:
    """How long work takes, in mean seconds, and how often it goes wrong by itself.

    Attributes:
      cursed: share of ordinals whose reward never works: it raises, kills its worker or hangs,
        by ordinal.
      broken_examples: share of ordinals whose example cannot be loaded.
      flaky: chance that scoring a group fails where another worker may manage.
      late: chance that work takes up to 100 times as long.
    """

    sampling: float = 2.0
    scoring: float = 0.1
    training: float = 1.0
    checkpointing: float = 2.0
    cursed: float = 0.01
    broken_examples: float = 0.003
    flaky: float = 0.005
    late: float = 0.002

    def seconds(self, world: World, mean: float) -> float:
        """How long something takes this time."""
        seconds = world.random.uniform(0.5, 1.5) * mean
        late = world.random.random() < self.late
        return seconds * world.random.uniform(1, 100) if late else seconds


class Workers:
    """The coroutines of a run's stateless processes."""

    def __init__(
        self,
        world: World,
        queue: SimulatedQueue,
        weights: SimulatedWeights,
        work: Work,
        groups_per_lease: int,
    ):
        self.world, self.queue, self.weights, self.work = world, queue, weights, work
        self.config: QueueConfig = queue.config
        self.groups_per_lease = groups_per_lease

    def sampler(self, process: Process) -> list[Coroutine]:
        """Samples blocks."""
        keeper = _Keeper(process, self.queue, self.config.sample_ttl, DEADLINES[Stage.TO_SAMPLE])
        return [self._sample(process, keeper), keeper.renew_forever()]

    def reward(self, process: Process) -> list[Coroutine]:
        """Scores groups."""
        keeper = _Keeper(process, self.queue, self.config.score_ttl, DEADLINES[Stage.TO_SCORE])
        return [self._score(process, keeper), keeper.renew_forever()]

    def policy_version(self, ordinal: int) -> int | None:
        """As `replay.tickets.TicketSource.policy_version`."""
        if self.config.mode == "async":
            return None
        return max(0, ordinal // self.config.groups_per_step - self.config.lag)

    # -- workers --------------------------------------------------------------------------------

    def _lease(self, stage: Stage, n: int, worker: str, wait: float) -> Call:
        return Call(self.queue, "lease", (stage, n, worker, wait, None), wait)

    def _begin(self, process: Process) -> Coroutine:
        """As `deploy.work`: what nobody but itself starts gives back what it held before."""
        if process.transport is Transport.REPEATED:
            yield Call(self.queue, "release_worker", (process.name, "it was started anew"))

    def _sample(self, process: Process, keeper: "_Keeper") -> Coroutine:
        yield from self._begin(process)
        ask = self._lease(Stage.TO_SAMPLE, 1, process.name, WAIT)
        while True:
            leases = yield ask
            if not leases:
                continue
            keeper.hold(leases)
            keeper.work_on(leases)
            version = yield Call(
                self.weights, "get", (self.policy_version(leases[0].ordinal),), 0.0
            )
            yield self.work.seconds(self.world, self.work.sampling)
            broken = [lease for lease in leases if self._is(lease.ordinal, "broken_examples")]
            if broken:
                items = [(lease.id, "its example is broken", FailureKind.DATA) for lease in broken]
                yield Call(self.queue, "fail", (items,))
            keeper.work_on([])
            done = [
                (lease.id, b"%d %d" % (lease.ordinal, version))
                for lease in leases
                if lease not in broken
            ]
            yield Call(self.queue, "complete", (done,))
            keeper.drop(leases)

    def _score(self, process: Process, keeper: "_Keeper") -> Coroutine:
        yield from self._begin(process)
        ask = self._lease(Stage.TO_SCORE, self.groups_per_lease, process.name, WAIT)
        while True:
            leases = yield ask
            if not leases:
                continue
            failed = [lease for lease in leases if lease.delivery > 1]
            if failed and len(leases) > 1:  # it may end this process: no others are held meanwhile
                others = [lease.id for lease in leases if lease is not failed[0]]
                yield Call(self.queue, "release", (others,))
                leases = failed[:1]
            keeper.hold(leases)
            done: list[tuple[str, bytes]] = []
            flushed = self.world.now
            for lease in leases:
                keeper.work_on([lease])
                yield self.work.seconds(self.world, self.work.scoring)
                reason, kind = yield from self._judge(lease)
                keeper.work_on([])
                if kind is None:
                    assert lease.payload is not None
                    done.append((lease.id, lease.payload + b" scored"))
                else:
                    yield Call(self.queue, "fail", ([(lease.id, reason, kind)],))
                if done and self.world.now - flushed > FLUSH_SECONDS:
                    yield Call(self.queue, "complete", (done,))
                    done, flushed = [], self.world.now
            if done:
                yield Call(self.queue, "complete", (done,))
            keeper.drop(leases)

    def _judge(self, lease: Lease) -> Generator[Any, Any, tuple[str, FailureKind | None]]:
        """Why the reward of a group fails and how; kind None: it is scored."""
        if self._is(lease.ordinal, "cursed"):
            curse = lease.ordinal % 3
            if curse == 0:
                return "the reward raised", FailureKind.DATA
            if curse == 1:
                raise Died("out of memory in a reward")
            yield FOREVER
        if self.world.chance(self.work.flaky):
            return "the reward's server did not answer", FailureKind.INFRASTRUCTURE
        return "", None

    def _is(self, ordinal: int, what: str) -> bool:
        """Whether an ordinal is one of those, whoever works on it."""
        share: float = getattr(self.work, what)
        scattered = (ordinal + len(what)) * 2654435761 % 2**32
        return scattered < share * 2**32


class _Keeper:
    """As `replay.lease_keeper.LeaseKeeper`, on the worker's own clock."""

    def __init__(self, process: Process, queue: SimulatedQueue, ttl: float, deadline: float):
        self._process, self._queue = process, queue
        self._every, self._deadline = ttl / 3, deadline
        self._held: dict[str, Lease] = {}
        self._working_on: list[Lease] = []
        self._since = 0.0

    def hold(self, leases: Sequence[Lease]) -> None:
        self._held.update({lease.id: lease for lease in leases})

    def drop(self, leases: Sequence[Lease]) -> None:
        for lease in leases:
            self._held.pop(lease.id, None)

    def work_on(self, leases: Sequence[Lease]) -> None:
        self._working_on = list(leases)
        self._since = self._process.clock()

    def renew_forever(self) -> Coroutine:
        process, queue = self._process, self._queue
        while True:
            yield self._every / process.clock_rate
            if self._working_on and process.clock() - self._since > self._deadline:
                stuck = [lease.id for lease in self._working_on]
                items = [
                    (id_, "exceeded its deadline", FailureKind.INFRASTRUCTURE) for id_ in stuck
                ]
                yield Call(queue, "fail", (items,))
                yield Call(queue, "release", ([id_ for id_ in self._held if id_ not in stuck],))
                raise Died("stuck")
            if self._held:
                asked = list(self._held)
                try:
                    held = yield Call(queue, "renew", (asked,))
                except QueueUnavailable:
                    continue
                for lease_id in asked:
                    if lease_id not in held:
                        self._held.pop(lease_id, None)
