"""The learner, as `learner.tune` behaves towards queue, weights and disk; training is a wait.

Its hosts are the coroutines of one process: they begin and end together.
"""

from collections.abc import Generator
from typing import Any

from deploy.simulation.history import Checkpoint, Disk, History, Step
from deploy.simulation.replay_server import SimulatedQueue
from deploy.simulation.roles import Work
from deploy.simulation.servers import SimulatedWeights
from deploy.simulation.world import Call, Coroutine, Process, Violation
from replay.queue import Frontier, Lease, Stage

LOOK_SECONDS = 0.05


class _Meeting:
    """Where the hosts tell each other something, as `learner.hosts.Hosts.gather`."""

    def __init__(self, hosts: int):
        self.hosts, self._rounds = hosts, 0
        self._said: dict[int, Any] = {}
        self._told: list[Any] = []

    def gather(self, host: int, value: Any) -> Generator[Any, Any, list[Any]]:
        """What every host says, once all have."""
        mine, self._said[host] = self._rounds, value
        if len(self._said) == self.hosts:
            self._told = [self._said[each] for each in range(self.hosts)]
            self._said, self._rounds = {}, mine + 1
        while self._rounds == mine:
            yield LOOK_SECONDS
        return self._told


class Learners:
    """The coroutine of a run's learners, and by their serials what those trained that finished."""

    def __init__(
        self,
        queue: SimulatedQueue,
        weights: SimulatedWeights,
        work: Work,
        steps: int,
        checkpoint_every: int,
        hosts: int = 1,
    ):
        self._queue, self._weights, self._work = queue, weights, work
        self._steps, self._checkpoint_every = steps, checkpoint_every
        self._config, self._hosts = queue.config, hosts
        self._ordered = queue.config.mode == "ordered"
        self._disk = Disk()
        self.furthest = 0
        self.finished: dict[int, History] = {}

    def learner(self, process: Process) -> list[Coroutine]:
        """Trains the run, from the last checkpoint to the last step."""
        meeting = _Meeting(self._hosts)
        others = [self._help(process, meeting, host) for host in range(1, self._hosts)]
        return [self._learn(process, meeting), *others]

    def names(self, name: str) -> list[str]:
        """What the queue knows the hosts by."""
        return [name] if self._hosts == 1 else [f"{name}-{host}" for host in range(self._hosts)]

    def _help(self, process: Process, meeting: _Meeting, host: int) -> Coroutine:
        """Another host: it leases its share of each step, and trains it with the first."""
        step, epoch, history = (yield from meeting.gather(host, None))[0]
        trained = Step([], [])
        while step < self._steps:
            trained = yield from self._collect(
                step, process, meeting, host, epoch, history, trained
            )
            yield from meeting.gather(host, None)
            step += 1

    def _learn(self, process: Process, meeting: _Meeting) -> Coroutine:
        queue, weights, world = self._queue, self._weights, process.world
        step, checkpoint = self._disk.latest()
        history = checkpoint.history.copy()
        kept = self._config.lag if self._ordered else 0
        world.trace("learner starts at", step)
        epoch = yield Call(queue, "fence", ())
        queue.histories[epoch] = history
        yield Call(weights, "fence", (epoch,))
        for version in range(max(0, step - kept), step + 1):
            yield Call(weights, "publish", (version, epoch))
        yield from self._rewind(checkpoint.frontier, epoch)
        yield from meeting.gather(0, (step, epoch, history))
        trained = Step([], [])
        while step < self._steps:
            trained = yield from self._collect(step, process, meeting, 0, epoch, history, trained)
            yield self._work.seconds(world, self._work.training)
            yield from meeting.gather(0, None)
            history.finish(trained)
            step += 1
            self.furthest = max(self.furthest, step)
            yield Call(weights, "publish", (step, epoch))
            yield Call(queue, "ack", ([ordinal for ordinal, _ in trained.groups], [], epoch))
            if step == self._steps or step % self._checkpoint_every == 0:
                saved = Checkpoint((yield from self._frontier(history)), history.copy())
                yield self._work.seconds(world, self._work.checkpointing)
                self._disk.save(step, saved)
                world.trace("checkpoint", step)
        self.finished[process.serial] = history

    def _rewind(self, frontier: Frontier, epoch: str) -> Coroutine:
        yield Call(self._queue, "restart", (frontier, epoch))

    def _frontier(self, history: History) -> Generator[Any, Any, Frontier]:
        """Its own account: the queue's may be of another learner by now."""
        yield from ()
        return history.frontier()

    def _collect(
        self,
        step: int,
        process: Process,
        meeting: _Meeting,
        host: int,
        epoch: str,
        history: History,
        last: Step,
    ) -> Generator[Any, Any, Step]:
        """As `learner.collect.Collector`: the step's groups, of which this host leases a share."""
        known = {ordinal for ordinal, _ in last.groups}
        wanted = self._config.groups_per_step // self._hosts
        worker = self.names(process.name)[host]
        dropped: list[int] = []
        held: dict[int, tuple[str, int | None]] = {}
        while True:
            if len(held) < wanted:
                dropped += yield from self._lease_more(
                    step, worker, host, epoch, history, held, known
                )
            rows = [(ordinal, version) for ordinal, (_, version) in sorted(held.items())]
            told = yield from meeting.gather(host, (rows, dropped))
            ordinals = [[ordinal for ordinal, _ in rows] for rows, _ in told]
            before = {ordinal for of_host in ordinals[:host] for ordinal in of_host}
            for ordinal in before & held.keys():
                del held[ordinal]
            if len(set().union(*ordinals)) == self._config.groups_per_step:
                break
            yield Call(self._queue, "renew", ([lease_id for lease_id, _ in held.values()],))
        return Step(
            [row for rows, _ in told for row in rows],
            sorted({ordinal for _, dropped in told for ordinal in dropped}),
        )

    def _lease_more(
        self,
        step: int,
        worker: str,
        host: int,
        epoch: str,
        history: History,
        held: dict[int, tuple[str, int | None]],
        known: set[int],
    ) -> Generator[Any, Any, list[int]]:
        """Adds to what is held; returns what was too old."""
        share, first = self._config.groups_per_step // self._hosts, None
        missing = share - len(held)
        if self._ordered:
            first = step * self._config.groups_per_step + host * share + len(held)
        arguments = (Stage.TO_TRAIN, missing, worker, 0.5, epoch, first)
        leases = yield Call(self._queue, "lease", arguments, 0.5)
        given = [lease.ordinal for lease in leases]
        if first is not None and leases and given != list(range(first, first + missing)):
            raise Violation(f"{worker} asked for {missing} from {first} on and was given {given}")
        stale = []
        for lease in leases:
            if lease.ordinal in held or lease.ordinal in known:
                continue
            version = _version_of(lease)
            if self._is_stale(step, version):
                stale.append(lease.ordinal)
            else:
                held[lease.ordinal] = (lease.id, version)
        if stale:
            history.do(ordinal for ordinal in stale if ordinal not in history.done)
            yield Call(self._queue, "ack", ([], stale, epoch))
        return stale

    def _is_stale(self, step: int, version: int | None) -> bool:
        if self._ordered or version is None:
            return False
        return not 0 <= step - version <= self._config.lag


def _version_of(lease: Lease) -> int | None:
    """The policy version in a scored group; None for a quarantined one."""
    if lease.payload is None:
        return None
    ordinal, version, scored = lease.payload.split()
    if int(ordinal) != lease.ordinal or scored != b"scored":
        raise Violation(f"ordinal {lease.ordinal} came to the learner as {lease.payload!r}")
    return int(version)
