"""A simulated run: roles, controller and faults, from a seed to a verdict."""

import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from deploy.config_file import ConfigError, validate_config
from deploy.simulation.faults import Faults
from deploy.simulation.history import History, judge
from deploy.simulation.learner import Learners
from deploy.simulation.replay_server import SimulatedQueue
from deploy.simulation.roles import Work, Workers
from deploy.simulation.servers import SimulatedWeights
from deploy.simulation.world import (
    Call,
    Coroutine,
    Network,
    Process,
    Transport,
    Violation,
    World,
)
from replay.config import QueueConfig
from replay.queue import Frontier, QueueUnavailable
from replay.state import QueueState

SPARE_VERSIONS = 2
STUCK_SECONDS = 4_000.0
NOTICED_WITHIN = 2.0
STARTS_WITHIN = 8.0
SILENT_SECONDS = 30.0
FULL_CHECK_EVERY = 1000
TOLD_EVERY = 5.0


@dataclass(frozen=True)
class Simulation:
    """One simulated run.

    Attributes:
      learner_hosts: that lease a share of each step.
      learner_connected: the learner's calls arrive at most once, as on Ray; else it is outside,
        and its calls are numbered and repeated as by an edge's client.
      outside_workers: share of samplers and of reward workers whose calls are so, too, and which
        no controller sees.
      worker_mtbf, service_mtbf: mean virtual seconds between two faults of one worker, and of the
        rest (learner, queue, weight store, network, the whole run); 0: none.
      message_faults: so many times as often as `network` says messages are slow, lost or doubled.
        A learner on Ray dies of a call that is lost, and the larger a step, the more calls it is.
    """

    seed: int = 0
    mode: Literal["ordered", "async"] = "ordered"
    policy_lag: int = 1
    steps: int = 20
    groups_per_step: int = 16
    block: int = 8
    samplers: int = 4
    rewards: int = 4
    groups_per_lease: int = 4
    checkpoint_every: int = 5
    worker_mtbf: float = 200.0
    service_mtbf: float = 60.0
    message_faults: float = 1.0
    learner_hosts: int = 1
    learner_connected: bool = True
    outside_workers: float = 0.25
    network: Network = field(default_factory=Network)
    work: Work = field(default_factory=Work)

    @property
    def command(self) -> str:
        """What simulates it again."""
        default = Simulation()
        options = [f"--seed={self.seed}"]
        for name in (each.name for each in fields(self)):
            value = getattr(self, name)
            if name in ("seed", "network", "work") or value == getattr(default, name):
                continue
            option = name.replace("_", "-")
            if isinstance(value, bool):
                options.append(f"--{option}" if value else f"--no-{option}")
            else:
                options.append(f"--{option}={value}")
        return " ".join(["rewardtune simulate", *options])

    def queue_config(self) -> QueueConfig:
        """Of its queue.

        Raises:
          ConfigError: the sizes do not fit each other.
        """
        if self.groups_per_step % self.learner_hosts:
            raise ConfigError(
                f"learner_hosts is {self.learner_hosts} and groups_per_step "
                f"{self.groups_per_step}: the hosts must divide it, as each leases an equal share"
            )
        settings = {
            "groups_per_step": self.groups_per_step,
            "block": self.block,
            "mode": self.mode,
            "lag": self.policy_lag,
            "sample_ttl": 30.0,
            "score_ttl": 10.0,
            "train_ttl": 40.0,
            "total_groups": self.steps * self.groups_per_step,
        }
        return validate_config(settings, [], QueueConfig, "simulate")


class SimulationFailed(RuntimeError):
    """An invariant was broken: what, the last events and how to see it again."""


def simulate(
    simulation: Simulation,
    rules: type[QueueState] = QueueState,
    server: type[SimulatedQueue] = SimulatedQueue,
    learners: type[Learners] = Learners,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Runs to the last step and judges what was trained; returns what happened, in figures.

    Args:
      simulation: what to run.
      rules, server, learners: the queue and the learner, which tests replace by broken ones.
      progress: told every `TOLD_EVERY` seconds how far it is.

    Raises:
      ConfigError: its sizes do not fit each other.
      SimulationFailed: an invariant was broken, or nothing moved any more.
    """
    run = _Run(simulation, rules, server, learners)
    began = time.process_time()
    collecting = gc.isenabled()
    gc.disable()  # there are next to no cycles, and a collection looks at millions of objects
    try:
        run.to_the_end(progress)
        run.judge()
    except Exception as error:
        recent = "\n".join(f"  {entry[0]:.3f} {entry[1:]}" for entry in run.world.recent)
        raise SimulationFailed(
            f"after {run.world.events} events: {type(error).__name__}: {error}\n"
            f"the last events (virtual seconds, what):\n{recent}\nagain: {simulation.command}"
        ) from error
    finally:
        if collecting:
            gc.enable()
    return run.figures(time.process_time() - began)


class _Run:
    def __init__(
        self,
        simulation: Simulation,
        rules: type[QueueState],
        server: type[SimulatedQueue],
        learners: type[Learners],
    ):
        self._simulation = simulation
        self.world = World(simulation.seed, simulation.network.times(simulation.message_faults))
        config = simulation.queue_config()
        self._queue = server(self.world, config, rules)
        versions = simulation.policy_lag + 1 if simulation.mode == "ordered" else 1
        self._weights = SimulatedWeights(self.world, versions + SPARE_VERSIONS)
        work = simulation.work
        workers = Workers(self.world, self._queue, self._weights, work, simulation.groups_per_lease)
        self._learners = learners(
            self._queue,
            self._weights,
            work,
            simulation.steps,
            simulation.checkpoint_every,
            simulation.learner_hosts,
        )
        self._learner = self._new_learner()
        self._workers = [
            *self._processes("sampler", simulation.samplers, workers.sampler),
            *self._processes("reward", simulation.rewards, workers.reward),
        ]
        self._controller = Process(self.world, "controller", self._control, self._died)
        self._expired: dict[str, int] = {}
        self._deaths: list[Process] = []
        self._start_all()
        self._faults = Faults(
            self.world,
            self._queue,
            self._weights,
            self._workers,
            lambda: self._learner,
            self._kill_run,
            self._replace_learner,
            self._controller,
        )
        self._faults.schedule(simulation.worker_mtbf, simulation.service_mtbf)

    def _processes(self, role: str, count: int, coroutines: Any) -> Iterator[Process]:
        outside = round(self._simulation.outside_workers * count)
        for index in range(count):
            transport = Transport.REPEATED if index < outside else Transport.LOOSE
            yield Process(self.world, f"{role}-{index}", coroutines, self._died, transport)

    def _is_outside(self, process: Process) -> bool:
        """Whether it is a worker that nobody but itself ends and starts."""
        return process.name != "learner" and process.transport is Transport.REPEATED

    def _names(self, process: Process) -> list[str]:
        """What the queue knows it by."""
        learning = process.name == "learner"
        return self._learners.names(process.name) if learning else [process.name]

    def _new_learner(self) -> Process:
        connected = self._simulation.learner_connected
        transport = Transport.ONCE if connected else Transport.REPEATED
        return Process(self.world, "learner", self._learners.learner, self._died, transport)

    @property
    def _finished(self) -> History | None:
        """What the run's learner has trained; one whose place was taken may finish too."""
        return self._learners.finished.get(self._learner.serial)

    def to_the_end(self, progress: Callable[[str], None] | None) -> None:
        """Lets everything happen until the learner has saved its last step.

        Raises:
          Violation: a rule was broken, or no step was reached for `STUCK_SECONDS`.
        """
        world, queue, learners = self.world, self._queue, self._learners
        furthest, since, told = -1, 0.0, time.monotonic()
        every = FULL_CHECK_EVERY + 10 * queue.config.window  # a tenth of the rest
        while self._finished is None:
            for _ in range(every):
                world.next_event()
                if queue.changed:
                    queue.check()
                if learners.finished and self._finished is not None:
                    break
            queue.ledger.check_all(queue.state)
            if learners.furthest > furthest:
                furthest, since = learners.furthest, world.now
            if world.now - since > STUCK_SECONDS:
                raise Violation(
                    f"no new step for {STUCK_SECONDS:g} s after step {furthest}: "
                    f"{queue.state.stats(queue.clock())}"
                )
            if progress is not None and time.monotonic() - told > TOLD_EVERY:
                told = time.monotonic()
                progress(
                    f"{world.events:,} events, {queue.leases:,} leases, step {furthest} of "
                    f"{self._simulation.steps}, {world.now:,.0f} virtual seconds, "
                    f"{world.counts['learner deaths']:,} deaths of learners"
                )

    # -- the controller -------------------------------------------------------------------------

    def _start_all(self) -> None:
        self._controller.start()
        self._learner.start()
        for worker in self._workers:
            self.world.after(self.world.random.uniform(0, STARTS_WITHIN), worker.start)

    def _died(self, process: Process, reason: str) -> None:
        self.world.counts[f"{process.name.split('-')[0]} deaths"] += 1
        if process is self._controller or self._is_outside(process):
            self.world.after(self.world.random.uniform(0.5, STARTS_WITHIN), process.start)
        elif process.name != "learner" or process is self._learner:
            self._deaths.append(process)

    def _control(self, process: Process) -> list[Coroutine]:
        return [self._replace_dead(), self._replace_silent()]

    def _replace_dead(self) -> Coroutine:
        """Notices deaths, gives their work back and starts them anew."""
        while True:
            yield self.world.random.uniform(0.0, NOTICED_WITHIN)
            while self._deaths:
                dead = self._deaths[0]
                try:
                    for name in self._names(dead):
                        yield Call(self._queue, "release_worker", (name, f"{name} died"))
                except QueueUnavailable:  # its leases expire by themselves
                    self.world.counts["deaths the queue was not told of"] += 1
                if self._deaths and self._deaths[0] is dead:
                    self._deaths.pop(0)
                if dead.name != "learner" or dead is self._learner:
                    self.world.after(self.world.random.uniform(0.5, STARTS_WITHIN), dead.start)

    def _replace_silent(self) -> Coroutine:
        """As `deploy.controller`: what lets leases expire, or does not answer, is ended."""
        inside = [worker for worker in self._workers if not self._is_outside(worker)]
        while True:
            yield 1.0
            try:
                stats = yield Call(self._queue, "stats", ())
            except QueueUnavailable:
                continue
            for worker in [self._learner, *inside]:
                expired = 0
                for name in self._names(worker):
                    expired += stats.expired_by_worker.get(name, 0)
                silent = worker.silent_seconds > SILENT_SECONDS
                if worker is self._learner and worker.cut_until > self.world.now and silent:
                    self._replace_learner()
                elif worker.alive and expired > self._expired.get(worker.name, 0):
                    worker.kill("showed no sign of life while it held work")
                elif silent:
                    worker.kill("has not answered")
                self._expired[worker.name] = expired

    def _replace_learner(self) -> None:
        """Another takes the place of a learner that cannot be ended, and may live on."""
        self._learner = self._new_learner()
        self._learner.start()

    def _kill_run(self, seconds: float) -> None:
        """All in Ray dies; an operator starts the run again, which goes on from its checkpoint.

        A learner that was cut off may be left.
        """
        for process in [self._learner, *self._workers]:
            if not self._is_outside(process):
                process.kill("the run was killed")
        self._controller.kill("the run was killed")
        self._deaths.clear()
        self._expired.clear()
        self._queue.begin(Frontier())
        self._weights.begin()
        self._queue.down_until = self._weights.down_until = self.world.now + seconds
        self.world.after(seconds, self._start_all)

    # -- the verdict ----------------------------------------------------------------------------

    def judge(self) -> None:
        """What was trained, as the learner tells it that has finished.

        Raises:
          Violation: an ordinal was trained twice or never, out of order, or too late.
        """
        simulation, ledger = self._simulation, self._queue.ledger
        history = self._finished
        if history is None or len(history.steps) != simulation.steps:
            raise Violation(f"not all of {simulation.steps} steps were trained: {history}")
        judge(history, simulation.mode, simulation.groups_per_step, simulation.policy_lag)
        again = History()  # what it has done, told by its steps alone
        for step in history.steps:
            again.do(ordinal for ordinal, _ in step.groups)
            again.do(step.dropped)
        if again.done != ledger.acked_ordinals:
            raise Violation(f"trained: {again.done}; acked: {ledger.acked_ordinals}")
        lost = [
            ordinal
            for ordinal in range(again.done.below, max(again.done.above, default=0))
            if ordinal not in again.done and ordinal not in ledger.out
        ]
        if lost:
            raise Violation(f"lost: {lost[:5]}")

    def figures(self, seconds: float) -> dict[str, Any]:
        """What happened."""
        history = self._finished or History()
        rows = [version for step in history.steps for _, version in step.groups]
        return {
            "simulation": {
                k: v for k, v in asdict(self._simulation).items() if k not in ("network", "work")
            },
            "command": self._simulation.command,
            "trace": f"{self.world.hash:08x}",
            "virtual_seconds": round(self.world.now, 1),
            "events": self.world.events,
            "calls": self._queue.calls,
            "leases": self._queue.leases,
            "steps": len(history.steps),
            "trained": sum(version is not None for version in rows),
            "quarantined": sum(version is None for version in rows),
            "dropped": sum(len(step.dropped) for step in history.steps),
            "counts": dict(sorted(self.world.counts.items())),
            "cpu_seconds": round(seconds, 2),
            "events_per_cpu_second": round(self.world.events / seconds),
        }
