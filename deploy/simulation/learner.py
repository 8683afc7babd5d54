"""The learner, as `learner.tune` behaves towards queue, weights and disk; training is a wait."""

from collections.abc import Generator
from typing import Any

from deploy.simulation.history import Checkpoint, Disk, History, Step
from deploy.simulation.replay_server import SimulatedQueue
from deploy.simulation.roles import Work
from deploy.simulation.servers import SimulatedWeights
from deploy.simulation.world import Call, Coroutine, Died, Process, Violation
from replay.queue import Frontier, Lease, Stage


class Learners:
    """The coroutine of a run's learners, and by their serials what those trained that finished."""

    def __init__(
        self,
        queue: SimulatedQueue,
        weights: SimulatedWeights,
        work: Work,
        steps: int,
        checkpoint_every: int,
    ):
        self._queue, self._weights, self._work = queue, weights, work
        self._steps, self._checkpoint_every = steps, checkpoint_every
        self._config = queue.config
        self._ordered = queue.config.mode == "ordered"
        self._disk = Disk()
        self.furthest = 0
        self.finished: dict[int, History] = {}

    def learner(self, process: Process) -> list[Coroutine]:
        """Trains the run, from the last checkpoint to the last step."""
        return [self._learn(process)]

    def _learn(self, process: Process) -> Coroutine:
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
        while step < self._steps:
            trained = yield from self._collect(step, process.name, epoch, history)
            yield self._work.seconds(world, self._work.training)
            history.do(ordinal for ordinal, _ in trained.groups)
            history.steps.append(trained)
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
        self, step: int, worker: str, epoch: str, history: History
    ) -> Generator[Any, Any, Step]:
        wanted = self._config.groups_per_step
        groups: list[tuple[int, int | None]] = []
        dropped: list[int] = []
        held: dict[int, str] = {}
        while len(groups) < wanted:
            yield Call(self._queue, "renew", (list(held.values()),))
            arguments = (Stage.TO_TRAIN, wanted - len(groups), worker, 0.5, epoch)
            leases = yield Call(self._queue, "lease", arguments, 0.5)
            self._check_in_step(step, leases)
            stale = []
            for lease in leases:
                if lease.ordinal in held:
                    continue
                version = _version_of(lease)
                if self._is_stale(step, version):
                    stale.append(lease.ordinal)
                else:
                    held[lease.ordinal] = lease.id
                    groups.append((lease.ordinal, version))
            if stale:
                dropped += stale
                history.do(stale)
                yield Call(self._queue, "ack", ([], stale, epoch))
        return Step(sorted(groups), dropped)

    def _check_in_step(self, step: int, leases: list[Lease]) -> None:
        """As `learner.tune`: what a lease whose answer was lost has led to."""
        first, end = (number * self._config.groups_per_step for number in (step, step + 1))
        odd = [lease.ordinal for lease in leases if not first <= lease.ordinal < end]
        if self._ordered and odd:
            raise Died(f"step {step} was given the ordinals {odd[:4]}")

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
