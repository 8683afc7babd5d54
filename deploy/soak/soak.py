"""`rewardtune soak`: a real run, faults by a schedule, and what became of every ordinal.

The run is the config's own, by the command that an operator types, on a Ray cluster of its own on
this machine. After each fault the soak waits until it is mended, and judges what the learner wrote.
"""

import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from deploy.checks import check_tune
from deploy.config import RunConfig
from deploy.processes import ticket_source
from deploy.run_directory import open_run_directory
from deploy.runs import prepare_data
from deploy.soak.explained import Explained
from deploy.soak.injector import Injector, NotMended, RunEnded
from deploy.soak.ledger import Ledger, Verdict, verify
from deploy.soak.orders import Orders
from deploy.soak.process_tree import adopt_orphans
from deploy.soak.redis_process import RedisProcess
from deploy.soak.report import FaultRecord, machine
from deploy.soak.run_process import AGENTS_SECONDS, RunProcess, SoakError
from deploy.soak.schedule import KINDS, Fault, make_schedule
from learner.tune import FINAL_FILE
from vision.tasks.task import Task

ENDLESS = 1_000_000
FIRST_STEP_SECONDS = 300.0
SETTLE_SECONDS = 60.0
LEARNER_LEASES = 6
"""A learner holds its leases for a step, which may begin with a compilation: it has longer."""
Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What to do.

    Attributes:
      kinds: names of `KINDS`.
      faults: how many.
      seed: of the schedule.
      redis: path of a redis-server for the queue; None: it is in memory.
      lease_seconds: how long a stopped process goes unnoticed.
      patience_seconds: the longest that a fault may take to be mended.
      compare: run the same steps undisturbed, and compare the weights where they must be equal.
    """

    kinds: tuple[str, ...]
    faults: int
    seed: int
    redis: Path | None
    lease_seconds: float
    patience_seconds: float
    compare: bool


@dataclass
class Soak:
    """A soak at work, and its results."""

    config: RunConfig
    plan: Plan
    say: Say
    records: list[FaultRecord] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)

    def run(self) -> dict[str, Any]:
        """All faults, one after the other; returns the results.

        Raises:
          SoakError: it cannot be done, as without a first step.
        """
        began = time.time()
        adopt_orphans()
        # So that the run ends with the soak, whoever ends it.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with ExitStack() as stack:
            redis = None
            if self.plan.redis is not None:
                redis = RedisProcess(self.plan.redis)
                stack.callback(redis.close)
                redis.start()
            directory = self.config.runs / f"{self.config.name}.soak"
            directory.mkdir(parents=True, exist_ok=True)
            orders = Orders(directory / f"orders-{int(began)}")
            soaked = soaked_config(self.config, self.plan, redis, directory, orders)
            task = _prepare(soaked)
            run = _run_process(soaked, directory)
            stack.callback(run.end)
            ledger = Ledger(soaked.directory)
            explained = Explained(ticket_source(soaked, task).ticket)
            run.start()
            injector = Injector(run, ledger, orders, redis, self.plan.patience_seconds)
            self._await_first_step(run, ledger)
            try:
                for fault in schedule(soaked, self.plan):
                    self._one(fault, injector, explained, began)
                self._finish(run, ledger, injector)
            except (NotMended, RunEnded) as error:
                self.violations.append(f"{error}. The command's last lines: {run.tail(5)}")
            run.end()
            verdict = self._judge(ledger, explained)
            equal = self._compare(soaked, verdict, directory, ledger.step)
        return {
            "plan": asdict(self.plan) | {"redis": self.plan.redis and str(self.plan.redis)},
            "config": self.config.model_dump(mode="json"),
            "machine": machine(),
            "seconds": round(time.time() - began, 1),
            "faults": [asdict(record) for record in self.records],
            "verdict": asdict(verdict),
            "learner_began": ledger.resumed,
            "steps_redone": ledger.redone,
            "weights_equal_undisturbed": equal,
            "violations": self.violations,
        }

    def _await_first_step(self, run: RunProcess, ledger: Ledger) -> None:
        deadline = time.monotonic() + FIRST_STEP_SECONDS
        while ledger.step < 1:
            ledger.read()
            if run.exit_code() is not None or time.monotonic() > deadline:
                raise SoakError(f"the run does not begin: {run.tail()}")
            time.sleep(0.1)

    def _one(self, fault: Fault, injector: Injector, explained: Explained, began: float) -> None:
        ledger, run = injector.ledger, injector.run
        due = ledger.step + fault.steps
        injector.until(f"step {due}", lambda: True if ledger.step >= due else None)
        time.sleep(fault.late)
        step = ledger.step
        ended = None
        try:
            mended = injector.inject(fault)
        except RunEnded:
            ended = run.tail(3)
            self.violations.append(
                f"fault {fault.index + 1}, {fault.kind.name}, ended the run: {ended}"
            )
            mended = injector.resume(run.pid)
        explained.note(fault, mended)
        surplus = self._settle(injector)
        verdict = self._judge(ledger, explained)
        record = FaultRecord.of(fault, mended, step, began, ended, surplus, verdict)
        self.records.append(record)
        self.say(record.line(self.plan.faults))

    def _settle(self, injector: Injector) -> list[str]:
        """Worker processes that are not the run's any more, and did not go away."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while True:
            status = injector.until("a status", injector.run.status)
            surplus = injector.run.surplus(status)
            if not surplus or time.monotonic() > deadline:
                break
            time.sleep(0.2)
        left = [f"{process.pid} {process.command[:40]}" for process in surplus]
        if left:
            self.violations.append(f"processes left: {left}")
        return left

    def _judge(self, ledger: Ledger, explained: Explained) -> Verdict:
        ledger.read()
        config = self.config
        verdict = verify(
            ledger.steps,
            config.learner.groups_per_step,
            config.replay.mode == "ordered",
            config.learner.groups_per_step * (1 + config.lag),
            explained.fresh(),
        )
        self.violations += [each for each in verdict.faults if each not in self.violations]
        return verdict

    def _finish(self, run: RunProcess, ledger: Ledger, injector: Injector) -> None:
        """Asks it to stop, and lets it be finished where it stopped."""
        run.ask_to_stop()
        code = run.wait(self.plan.patience_seconds)
        ledger.read()
        if code != 130:
            self.violations.append(f"asked to stop, the command exited with {code}: {run.tail(5)}")
        run.start(f"learner.steps={ledger.step}")
        if (code := run.wait(self.plan.patience_seconds)) != 0:
            self.violations.append(f"the last command exited with {code}: {run.tail(5)}")
        if left := run.left_after(AGENTS_SECONDS, agents=True):
            self.violations.append(f"the run ended and left {left}")

    def _compare(
        self, soaked: RunConfig, verdict: Verdict, directory: Path, steps: int
    ) -> bool | None:
        """Whether the weights are those of a run without faults; None: they need not be."""
        reordered = any(record.kind == "reward-order" for record in self.records)
        cost = verdict.quarantined or verdict.unscored or reordered
        if not self.plan.compare or self.config.replay.mode != "ordered" or cost:
            return None
        if self.violations:
            return None
        self.say(f"the same {steps} steps without faults ...")
        updates: dict[str, Any] = {"name": f"{soaked.name}-undisturbed"}
        undisturbed = soaked.model_copy(
            update=updates
            | {
                "rewards": self.config.rewards,
                "replay": self.config.replay,
                "learner": soaked.learner.model_copy(update={"steps": steps}),
            }
        )
        run = _run_process(undisturbed, directory)
        try:
            run.start()
            if (code := run.wait(FIRST_STEP_SECONDS + steps)) != 0:
                raise SoakError(f"the undisturbed run exited with {code}: {run.tail()}")
        finally:
            run.end()
        equal = equal_weights(soaked.directory / FINAL_FILE, undisturbed.directory / FINAL_FILE)
        if not equal:
            self.violations.append(
                f"the weights after {steps} steps differ from those of an undisturbed run"
            )
        return equal


def soaked_config(
    config: RunConfig, plan: Plan, redis: RedisProcess | None, directory: Path, orders: Orders
) -> RunConfig:
    """The run that is soaked: the config with what a soak needs; no number of a step changes."""
    assert config.rewards is not None
    values = config.model_dump(mode="json")
    values["name"] = f"{config.name}.soaked"
    values["learner"] |= {"steps": ENDLESS, "lease_seconds": LEARNER_LEASES * plan.lease_seconds}
    values["learner"]["optimizer"] |= {"schedule": "constant"}
    values["actors"]["lease_seconds"] = plan.lease_seconds
    values["rewards"]["lease_seconds"] = plan.lease_seconds
    values["cluster"]["reply_seconds"] = LEARNER_LEASES * plan.lease_seconds
    values["cluster"]["failures_allowed"] = plan.faults + 5
    if any(KINDS[name].action == "reward" for name in plan.kinds):
        options = {"terms": values["rewards"]["terms"], "orders": str(orders.directory)}
        path = "deploy.soak.reward:UnreliableReward"
        values["rewards"]["terms"] = [{"path": path, "options": options}]
    if redis is not None:
        values["replay"]["url"] = redis.url
    return RunConfig.model_validate(values)


def schedule(config: RunConfig, plan: Plan) -> list[Fault]:
    """The faults of a plan."""
    assert config.rewards is not None
    workers = {"sampler": config.actors.count, "reward": config.rewards.count}
    return make_schedule(plan.kinds, plan.faults, plan.seed, workers)


def equal_weights(one: Path, other: Path) -> bool:
    """Whether two checkpoints are the same, bit for bit."""
    with np.load(one) as first, np.load(other) as second:
        return set(first) == set(second) and all(
            first[name].tobytes() == second[name].tobytes() for name in first
        )


def _prepare(config: RunConfig) -> Task:
    prepare_data(config)
    return check_tune(config)


def _run_process(config: RunConfig, directory: Path) -> RunProcess:
    with open_run_directory(config, overwrite=True):
        pass
    path = directory / f"{config.name}.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    return RunProcess(config, path, directory / f"{config.name}.log")
