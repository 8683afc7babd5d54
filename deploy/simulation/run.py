"""A simulated run: roles, controller and faults, from a seed to a verdict."""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from deploy.simulation.ledger import check_places
from deploy.simulation.roles import Roles, Work
from deploy.simulation.servers import SimulatedQueue, SimulatedWeights
from deploy.simulation.world import Call, Coroutine, Network, Process, Violation, World
from replay.config import QueueConfig
from replay.queue import Frontier, QueueUnavailable
from replay.state import QueueState

SPARE_VERSIONS = 2
STUCK_SECONDS = 20_000.0
NOTICED_WITHIN = 2.0
STARTS_WITHIN = 8.0


@dataclass(frozen=True)
class Simulation:
    """One simulated run.

    Attributes:
      learner_connected: the learner's calls arrive at most once, and none after its death, as on
        Ray. `restart` and `ack` rely on it: without it, the simulation finds what goes wrong.
      worker_mtbf, service_mtbf: mean virtual seconds between two faults of one worker, and of the
        rest (learner, queue, weight store, network, the whole run); 0: none.
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
    learner_connected: bool = True
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


class SimulationFailed(RuntimeError):
    """An invariant was broken: what, the last events and how to see it again."""


def simulate(simulation: Simulation, rules: type[QueueState] = QueueState) -> dict[str, Any]:
    """Runs to the last step and judges what was trained; returns what happened, in figures.

    Raises:
      SimulationFailed: an invariant was broken, or nothing moved any more.
    """
    run = _Run(simulation, rules)
    began = time.perf_counter()
    try:
        run.to_the_end()
        run.judge()
    except Exception as error:
        recent = "\n".join(f"  {entry[0]:.3f} {entry[1:]}" for entry in run.world.recent)
        raise SimulationFailed(
            f"after {run.world.events} events: {type(error).__name__}: {error}\n"
            f"the last events (virtual seconds, what):\n{recent}\nagain: {simulation.command}"
        ) from error
    return run.figures(time.perf_counter() - began)


class _Run:
    def __init__(self, simulation: Simulation, rules: type[QueueState]):
        self._simulation = simulation
        self.world = World(simulation.seed, simulation.network)
        config = QueueConfig(
            groups_per_step=simulation.groups_per_step,
            block=simulation.block,
            mode=simulation.mode,
            lag=simulation.policy_lag,
            sample_ttl=30.0,
            score_ttl=10.0,
            train_ttl=40.0,
            total_groups=simulation.steps * simulation.groups_per_step,
        )
        self._queue = SimulatedQueue(self.world, config, rules)
        versions = simulation.policy_lag + 1 if simulation.mode == "ordered" else 1
        self._weights = SimulatedWeights(self.world, versions + SPARE_VERSIONS)
        self._roles = Roles(
            self.world,
            self._queue,
            self._weights,
            simulation.work,
            simulation.steps,
            simulation.groups_per_lease,
            simulation.checkpoint_every,
        )
        self._learner = Process(
            self.world,
            "learner",
            self._roles.learner,
            self._died,
            connected=simulation.learner_connected,
        )
        self._workers = [
            *self._processes("sampler", simulation.samplers, self._roles.sampler),
            *self._processes("reward", simulation.rewards, self._roles.reward),
        ]
        self._controller = Process(self.world, "controller", self._control, self._died)
        self._expired: dict[str, int] = {}
        self._deaths: list[Process] = []
        self._start_all()
        self._schedule_faults()

    def _processes(self, role: str, count: int, coroutines: Any) -> Iterator[Process]:
        for index in range(count):
            yield Process(self.world, f"{role}-{index}", coroutines, self._died)

    def to_the_end(self) -> None:
        """Lets everything happen until the learner has saved its last step.

        Raises:
          Violation: a rule was broken, or no step was reached for `STUCK_SECONDS`.
        """
        world, roles = self.world, self._roles
        furthest, since = -1, 0.0
        while not roles.finished:
            for _ in range(200):
                world.next_event()
                if roles.finished:
                    break
            if len(roles.history) > furthest:
                furthest, since = len(roles.history), world.now
            if world.now - since > STUCK_SECONDS:
                raise Violation(
                    f"no new step for {STUCK_SECONDS:g} s after step {furthest}: "
                    f"{self._queue.state.stats(world.now)}"
                )

    # -- the controller -------------------------------------------------------------------------

    def _start_all(self) -> None:
        self._controller.start()
        self._learner.start()
        for worker in self._workers:
            self.world.after(self.world.random.uniform(0, STARTS_WITHIN), worker.start)

    def _died(self, process: Process, reason: str) -> None:
        self.world.counts[f"{process.name.split('-')[0]} deaths"] += 1
        if process is not self._controller:
            self._deaths.append(process)

    def _control(self, process: Process) -> list[Coroutine]:
        return [self._replace_dead(), self._replace_silent()]

    def _replace_dead(self) -> Coroutine:
        """Notices deaths, gives their work back and starts them anew."""
        while True:
            yield self.world.random.uniform(0.0, NOTICED_WITHIN)
            deaths, self._deaths = self._deaths, []
            for dead in deaths:
                try:
                    yield Call(self._queue, "release_worker", (dead.name, f"{dead.name} died"))
                except QueueUnavailable:  # its leases expire by themselves
                    self.world.counts["deaths the queue was not told of"] += 1
                self.world.after(self.world.random.uniform(0.5, STARTS_WITHIN), dead.start)

    def _replace_silent(self) -> Coroutine:
        """As `deploy.controller`: what lets leases expire, or does not answer, is ended."""
        while True:
            yield 1.0
            try:
                stats = yield Call(self._queue, "stats", ())
            except QueueUnavailable:
                continue
            for worker in [self._learner, *self._workers]:
                expired = stats.expired_by_worker.get(worker.name, 0)
                if worker.alive and expired > self._expired.get(worker.name, 0):
                    worker.kill("showed no sign of life while it held work")
                elif worker.silent_seconds > 30.0:
                    worker.kill("has not answered")
                self._expired[worker.name] = expired

    # -- faults ---------------------------------------------------------------------------------

    def _schedule_faults(self) -> None:
        simulation = self._simulation
        if simulation.worker_mtbf:
            every = simulation.worker_mtbf / len(self._workers)
            self._faults(every, self._worker_fault)
        if simulation.service_mtbf:
            self._faults(simulation.service_mtbf, self._service_fault)

    def _faults(self, every: float, fault: Any) -> None:
        self.world.after(self.world.random.expovariate(1.0 / every), self._fault, every, fault)

    def _fault(self, every: float, fault: Any) -> None:
        fault()
        self._faults(every, fault)

    def _count(self, fault: str, *what: Any) -> None:
        self.world.counts[f"fault: {fault}"] += 1
        self.world.trace("fault", fault, *what)

    def _worker_fault(self) -> None:
        worker = self.world.random.choice(self._workers)
        if self.world.chance(0.5):
            self._count("worker killed", worker.name)
            worker.kill("SIGKILL")
        else:
            seconds = self.world.random.expovariate(1 / 15.0)
            self._count("worker stopped", worker.name, seconds)
            worker.stop(seconds)

    def _service_fault(self) -> None:
        world, random = self.world, self.world.random
        fault = random.choices(
            ["learner killed", "learner stopped", "queue stopped", "weights stopped", "storm",
             "queue killed", "run killed"],
            [3, 3, 2, 2, 3, 1, 1],
        )[0]  # fmt: skip
        seconds = random.expovariate(1 / 10.0)
        self._count(fault, seconds)
        if fault == "learner killed":
            self._learner.kill("SIGKILL")
        elif fault == "learner stopped":
            self._learner.stop(3 * seconds)
        elif fault == "queue stopped":
            self._queue.resumes_at = world.now + seconds
        elif fault == "weights stopped":
            self._weights.resumes_at = world.now + seconds
        elif fault == "storm":
            world.storm_until = world.now + 3 * seconds
        elif fault == "queue killed":
            self._queue.come_back(seconds)
        else:
            self._kill_run(seconds)

    def _kill_run(self, seconds: float) -> None:
        """Everything dies; an operator starts the run again, which goes on from its checkpoint."""
        for process in [self._controller, self._learner, *self._workers]:
            process.kill("the run was killed")
        self._deaths.clear()
        self._expired.clear()
        self._queue.begin(Frontier())
        self._weights.begin()
        self.world.after(seconds, self._start_all)

    # -- the verdict ----------------------------------------------------------------------------

    def judge(self) -> None:
        """What was trained, as the surviving history of the learner tells it.

        Raises:
          Violation: an ordinal was trained twice or never, out of order, or too late.
        """
        check_places(self._queue.state)
        history, ledger = self._roles.history, self._queue.ledger
        trained = [ordinal for step in history for ordinal, _ in step.groups]
        dropped = [ordinal for step in history for ordinal in step.dropped]
        done = set(trained) | set(dropped)
        if len(done) != len(trained) + len(dropped):
            raise Violation("an ordinal was trained twice")
        if len(history) != self._simulation.steps:
            raise Violation(f"{len(history)} steps were trained")
        for step, entry in enumerate(history):
            self._judge_step(step, entry.groups)
        known = done | ledger.out
        lost = set(range(max(known) + 1)) - known
        acked = {ordinal for ordinal in range(max(known) + 1) if ledger.is_acked(ordinal)}
        if lost or acked != done:
            raise Violation(
                f"lost: {sorted(lost)[:5]}; acked, not done: {sorted(acked ^ done)[:5]}"
            )

    def _judge_step(self, step: int, groups: list[tuple[int, int | None]]) -> None:
        size, lag = self._simulation.groups_per_step, self._simulation.policy_lag
        ordinals = [ordinal for ordinal, _ in groups]
        if len(groups) != size:
            raise Violation(f"step {step} trained {len(groups)} groups")
        ages = [step - version for _, version in groups if version is not None]
        if self._simulation.mode == "async":
            if any(not 0 <= age <= lag for age in ages):
                raise Violation(f"step {step} trained groups of ages {sorted(set(ages))}")
            return
        if ordinals != list(range(step * size, (step + 1) * size)):
            raise Violation(f"step {step} trained the ordinals {ordinals}")
        if any(age != min(step, lag) for age in ages):
            raise Violation(f"step {step} trained groups of ages {sorted(set(ages))}")

    def figures(self, seconds: float) -> dict[str, Any]:
        """What happened."""
        history = self._roles.history
        rows = [version for step in history for _, version in step.groups]
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
            "steps": len(history),
            "trained": sum(version is not None for version in rows),
            "quarantined": sum(version is None for version in rows),
            "dropped": sum(len(step.dropped) for step in history),
            "counts": dict(sorted(self.world.counts.items())),
            "seconds": round(seconds, 2),
            "events_per_second": round(self.world.events / seconds),
        }
