"""Does one fault to a run and waits until it is mended."""

import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from deploy.soak.ledger import Ledger
from deploy.soak.orders import Claim, Order, Orders
from deploy.soak.process_tree import is_alive, send
from deploy.soak.redis_process import RedisProcess
from deploy.soak.run_process import RunProcess, SoakError
from deploy.soak.schedule import Fault

POLL_SECONDS = 0.05
REDIS_AWAY_SECONDS = 1.0
DELAY_SECONDS = 2.0
HANG_SECONDS = 3600.0
SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}

T = TypeVar("T")


class NotMended(Exception):
    """A run that did not come back from a fault; the message says what was waited for."""


class RunEnded(Exception):
    """The command ended, which a fault should not bring about."""


@dataclass(frozen=True)
class Mended:
    """How a fault went; wall clock.

    Attributes:
      victim: its name.
      pid: of the process that was hit; None: a reward that misbehaved.
      at: when it was hit.
      noticed: when the run noticed; None where there is nothing to notice.
      mended: when the replacement had completed work, or the next step was trained.
      example_id: of the group that was hit, of a reward's misbehaviour.
    """

    victim: str
    pid: int | None
    at: float
    noticed: float | None
    mended: float
    example_id: str | None = None


class Injector:
    """For one run."""

    def __init__(
        self,
        run: RunProcess,
        ledger: Ledger,
        orders: Orders,
        redis: RedisProcess | None,
        patience: float,
    ) -> None:
        self.run, self.ledger, self._orders, self._redis = run, ledger, orders, redis
        self._patience = patience

    def inject(self, fault: Fault) -> Mended:
        """Hits, and waits.

        Raises:
          NotMended: the run did not come back within the patience.
          RunEnded: the command ended.
        """
        victim = fault.kind.victim
        if fault.kind.action == "reward":
            return self._reward(fault)
        if victim == "command":
            return self._command()
        if victim == "redis":
            return self._redis_away(fault)
        if victim in ("queue", "weights"):
            return self._service(fault)
        return self._worker(fault)

    def until(self, what: str, look: Callable[[], T | None]) -> T:
        """Polls until `look` has an answer."""
        deadline = time.monotonic() + self._patience
        while True:
            self.ledger.read()
            found = look()
            if found is not None:
                return found
            if self.run.exit_code() is not None:
                raise RunEnded(f"the command ended while the soak waited for {what}")
            if time.monotonic() > deadline:
                raise NotMended(f"{what}: not within {self._patience:g} s")
            time.sleep(POLL_SECONDS)

    def running(self, section: str, name: str) -> Mapping[str, Any]:
        """The worker or service of that name, once it runs."""

        def look() -> Mapping[str, Any] | None:
            for each in (self.run.status() or {section: []})[section]:
                ready = each["pid"] is not None and each.get("state", "running") == "running"
                if each["name"] == name and ready and is_alive(each["pid"]):
                    return each
            return None

        return self.until(f"{name} to run", look)

    def _hit(self, fault: Fault, pid: int) -> float:
        at = time.time()
        if not send(pid, SIGNALS[fault.kind.action]):
            raise SoakError(f"{fault.kind.name}: process {pid} is not on this machine")
        return at

    def _worker(self, fault: Fault) -> Mended:
        role = fault.kind.victim
        count = {"sampler": self.run.config.actors.count, "learner": 1}
        assert self.run.config.rewards is not None
        several = count.get(role, self.run.config.rewards.count) > 1
        name = f"{role}-{fault.worker}" if several else role
        before = self.running("workers", name)
        at = self._hit(fault, before["pid"])
        return self._replaced(name, role, before, at)

    def _replaced(
        self, name: str, role: str, before: Mapping[str, Any], at: float, example: str | None = None
    ) -> Mended:
        def look() -> tuple[float, float] | None:
            worker = self._named("workers", name)
            if worker is None or worker["pid"] in (before["pid"], None):
                return None
            if not worker["failed_at"] or worker["failed_at"] < at:
                return None
            if role == "learner":
                mended = self.ledger.first_step_after(worker["failed_at"], by_new_learner=True)
            else:
                mended = worker["at_work_at"]
            return None if mended is None else (worker["failed_at"], mended)

        noticed, mended = self.until(f"{name} to be replaced", look)
        self._gone(before["pid"])
        return Mended(name, before["pid"], at, noticed, mended, example)

    def _service(self, fault: Fault) -> Mended:
        name = fault.kind.victim
        before = self.running("services", name)
        at = self._hit(fault, before["pid"])

        def look() -> tuple[float, float] | None:
            service = self._named("services", name)
            if service is None or service["pid"] == before["pid"] or not service["failed_at"]:
                return None
            mended = self.ledger.first_step_after(service["failed_at"], by_new_learner=True)
            return None if mended is None else (service["failed_at"], mended)

        noticed, mended = self.until(f"a step after the {name} died", look)
        self._gone(before["pid"])
        return Mended(name, before["pid"], at, noticed, mended)

    def _named(self, section: str, name: str) -> Mapping[str, Any] | None:
        status = self.run.status()
        every = status[section] if status is not None else []
        return next((each for each in every if each["name"] == name), None)

    def _redis_away(self, fault: Fault) -> Mended:
        assert self._redis is not None
        pid, at = self._redis.pid, time.time()
        if fault.kind.action == "kill":
            self._redis.kill()
            time.sleep(REDIS_AWAY_SECONDS)
            self._redis.start()
        else:
            send(pid, signal.SIGSTOP)
            time.sleep(_stop_seconds(fault))
            send(pid, signal.SIGCONT)
        back = time.time()
        mended = self.until("a step on Redis", lambda: self.ledger.first_step_after(back))
        return Mended("redis", pid, at, back, mended)

    def _command(self) -> Mended:
        pid = self.run.pid
        send(pid, signal.SIGKILL)
        return self.resume(pid)

    def resume(self, pid: int) -> Mended:
        """The same command again, after it ended or was killed, and what that took."""
        at = time.time()
        self.run.wait(self._patience)
        self.run.start()
        mended = self.until(
            "a step of the resumed run",
            lambda: self.ledger.first_step_after(at, by_new_learner=True),
        )
        return Mended("command", pid, at, at, mended)

    def _reward(self, fault: Fault) -> Mended:
        what = fault.kind.victim
        before = {w["name"]: w for w in self._reward_workers()}
        at = time.time()
        seconds = HANG_SECONDS if what == "hangs" else DELAY_SECONDS
        self._orders.give(Order(fault.index, what, seconds))
        claim = self.until(f"a group for {fault.kind.name}", lambda: self._claim(fault))
        if what in ("hangs", "memory"):
            name = next((n for n, w in before.items() if w["pid"] == claim.pid), None)
            if name is None:  # replaced between the two looks: its successor took the order
                raise SoakError(f"no reward worker was process {claim.pid}: {sorted(before)}")
            return self._replaced(name, "reward", before[name], claim.time, claim.example_id)
        over = claim.time
        if what == "delayed":
            over = self.until("the delayed answer", lambda: self._orders.done_at(fault.index))
        mended = self.until("a step", lambda: self.ledger.first_step_after(over))
        return Mended(what, None, min(at, claim.time), None, mended, claim.example_id)

    def _claim(self, fault: Fault) -> Claim | None:
        return self._orders.claim(fault.index)

    def _reward_workers(self) -> list[Mapping[str, Any]]:
        status = self.until("a status", self.run.status)
        names = [w["name"] for w in status["workers"] if w["name"].partition("-")[0] == "reward"]
        return [self.running("workers", name) for name in names]

    def _gone(self, pid: int) -> None:
        self.until(f"process {pid} to be gone", lambda: None if is_alive(pid) else True)


def _stop_seconds(fault: Fault) -> float:
    """Where the index is odd so long that calls time out, and are repeated beside their first."""
    from replay.redis_connection import SOCKET_SECONDS

    return REDIS_AWAY_SECONDS + (SOCKET_SECONDS if fault.index % 2 else 0.0)
