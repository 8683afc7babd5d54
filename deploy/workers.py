"""Worker processes as the controller sees them: started, watched, replaced.

Invariant: a worker has one actor and at most one `run` call. When its process ends, its leases
expire or it no longer answers, its work is given back, and the same actor is started again by Ray.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import (
    ActorUnavailableError,
    RayActorError,
    RayError,
    RayTaskError,
)

from deploy.kill import kill_process
from replay.queue import MustResume

logger = logging.getLogger(__name__)

ASK_SECONDS = 0.25
MOST_ASKED = 8
STATUS_SECONDS = 0.5
NEW_SECONDS = 15.0
FAILURE_WINDOW_SECONDS = 120.0


class WorkerError(RuntimeError):
    """A worker that cannot be kept running, and why."""


@dataclass
class Worker:
    """One worker process.

    `asked_where` are pending calls `describe` of its actor while its process is waited for,
    `running` is the pending call `run`; `finished` is what `run` returned; `draining`: it was told
    to end after the work at hand, since fewer are wanted; `removed`: the actor has been ended for
    good.

    `failed_at` (wall clock) is when its last failure was noticed, `ready_at` when its process was
    there again, `at_work_at` when that had completed work.
    """

    name: str
    role: str
    start: Callable[[str], Any]
    handle: Any = None
    asked_where: list[Any] = field(default_factory=list)
    running: Any = None
    where: Mapping[str, Any] = field(default_factory=dict)
    finished: dict[str, Any] | None = None
    draining: bool = False
    removed: bool = False
    restarts: int = 0
    since: float = 0.0
    status: Mapping[str, Any] = field(default_factory=dict)
    status_call: Any = None
    asked: float = 0.0
    failures_allowed: int = 5
    failures: deque[tuple[float, str]] = field(default_factory=deque)
    failed_at: float | None = None
    ready_at: float | None = None
    at_work_at: float | None = None
    _asked_where_at: float = 0.0
    _gone: Mapping[str, Any] | None = None  # the process that failed: it is never run again
    _groups_before: int = 0  # that this process had completed when it failed

    @property
    def _about(self) -> dict[str, str]:
        """For the log."""
        return {"subject": self.name}

    @property
    def state(self) -> str:
        """pending, running, draining or ended."""
        if self.finished is not None or self.removed:
            return "ended"
        if self.draining:
            return "draining"
        return "running" if self.running is not None else "pending"

    def begin(self) -> None:
        """Starts the actor."""
        name = self.name if not self.restarts else f"{self.name}.{self.restarts}"
        self.handle = self.start(name)
        self.since = time.monotonic()
        self._ask_where()

    def check(self, on_death: Callable[["Worker", str], None]) -> None:
        """Moves on from what has happened since the last check.

        Raises:
          WorkerError: it failed too often.
          Exception: what the role's `run` raised, where retrying cannot help.
        """
        if self.finished is not None:
            return
        if self.asked_where:
            self._look_for_process(on_death)
        elif self.running is not None and _ready(self.running):
            self._after_run(on_death)
        self._refresh_status()

    def _ask_where(self) -> None:
        self.asked_where.append(self.handle.describe.remote())
        self._asked_where_at = time.monotonic()

    def _look_for_process(self, on_death: Callable[["Worker", str], None]) -> None:
        """Goes on once its process answers.

        It is asked again and again: Ray lets a call to a process that has just died wait for one or
        two seconds before it fails, and its successor may be there by then.
        """
        asked = self.asked_where
        answered, self.asked_where = ray.wait(asked, num_returns=len(asked), timeout=0)
        for call in answered:
            try:
                where = ray.get(call, timeout=0)
            except ActorUnavailableError:
                continue  # Ray is still starting it again after a death: that was counted then
            except RayActorError as error:
                # An actor whose constructor raised is not started again by Ray.
                ray.kill(self.handle, no_restart=True)
                self._gone = None
                self._failed(f"did not start: {error}", on_death)
                self.asked_where = []
                self.begin()
                return
            if where == self._gone:  # it answers still: not killed yet, or only out of reach
                kill_process(where)
                continue
            logger.info("%s runs as process %s", self.name, where["pid"], extra=self._about)
            self.where, self.asked_where, self._gone = where, [], None
            self._run()
            return
        if not self.asked_where or (
            len(self.asked_where) < MOST_ASKED
            and time.monotonic() - self._asked_where_at >= ASK_SECONDS
        ):
            self._ask_where()

    def _run(self) -> None:
        """Begins the role's work, now that the process is there."""
        self.running = self.handle.run.remote()
        self.ready_at = time.time()

    def _after_run(self, on_death: Callable[["Worker", str], None]) -> None:
        call, self.running = self.running, None
        try:
            self.finished = ray.get(call, timeout=0)
        except RayTaskError as error:
            cause = error.cause if isinstance(error.cause, Exception) else error
            if self.role == "learner" and not isinstance(cause, MustResume):
                raise cause from error
            groups = self.status.get("groups", 0)
            self._failed(f"{type(cause).__name__}: {cause}", on_death)
            self._groups_before = groups  # the process lives on
        except RayActorError as error:
            where = self.where
            self._failed(f"process {where.get('pid')} died: {_first_line(error)}", on_death)
            self._gone = where  # Ray says the same of one that it could not reach for a moment
        except RayError as error:
            self._failed(f"{type(error).__name__}: {_first_line(error)}", on_death)

    def _failed(self, reason: str, on_death: Callable[["Worker", str], None]) -> None:
        now = time.monotonic()
        self.failures.append((now, reason))
        while self.failures and now - self.failures[0][0] > FAILURE_WINDOW_SECONDS:
            self.failures.popleft()
        if len(self.failures) > self.failures_allowed:
            raise WorkerError(
                f"{self.name} failed {len(self.failures)} times within "
                f"{FAILURE_WINDOW_SECONDS:g} s; the last reason: {reason}"
            )
        self._start_again(reason, on_death)

    def _start_again(self, reason: str, on_death: Callable[["Worker", str], None]) -> None:
        """Gives its work to others and waits for the process that Ray starts in its place."""
        logger.warning("%s: %s; it is started again", self.name, reason, extra=self._about)
        if self._gone is None:
            self.failed_at = time.time()
        self._groups_before = 0
        self.ready_at = self.at_work_at = None
        on_death(self, reason)
        self.restarts += 1
        self.where, self.status, self.status_call = {}, {}, None
        self.since = time.monotonic()
        self._ask_where()

    def _refresh_status(self) -> None:
        if self.running is None:
            return
        if self.status_call is not None and _ready(self.status_call):
            call, self.status_call = self.status_call, None
            try:
                self.status = ray.get(call, timeout=0)
            except RayError as error:
                logger.debug("no status of %s: %s", self.name, error)
            if self.at_work_at is None and self.status.get("groups", 0) > self._groups_before:
                self.at_work_at = time.time()
        now = time.monotonic()
        # Of a successor it should show at once that it is at work.
        new = self.restarts > 0 and now - self.since < NEW_SECONDS
        pause = 0.0 if new else STATUS_SECONDS
        if self.status_call is None and now - self.asked >= pause:
            self.status_call, self.asked = self.handle.status.remote(), now

    @property
    def silent_seconds(self) -> float:
        """How long it has not answered a question; 0 when none is open.

        An answer may have come that nobody has looked at: who looks may have waited for the queue.
        """
        if self.status_call is None or _ready(self.status_call):
            return 0.0
        return time.monotonic() - self.asked

    def replace(self, reason: str) -> None:
        """Ends the process, which may be stopped or stuck; Ray then starts it anew."""
        pid = self.where.get("pid")
        logger.warning("%s: %s; its process %s is ended", self.name, reason, pid, extra=self._about)
        if self._gone is None:
            self._gone, self.failed_at = self.where, time.time()
        if self.where:
            kill_process(self.where)

    def ask_to_stop(self) -> None:
        """Asks the role to end after the work at hand."""
        if self.handle is not None:
            self.handle.stop.remote()

    def drain(self) -> None:
        """Has it end after the work at hand, as fewer are wanted."""
        self.draining = True
        self.ask_to_stop()

    def remove(self) -> Mapping[str, Any]:
        """Ends the actor for good; tells where its process is, if it may still be at work.

        Ray asks that process to end. One that is stopped would not hear it: kill it, too.
        """
        self.removed = True
        if self.handle is None:
            return {}
        ray.kill(self.handle, no_restart=True)
        done = self.finished is not None or (self.running is not None and _ready(self.running))
        return {} if done else self.where


def _ready(call: Any) -> bool:
    return bool(ray.wait([call], timeout=0)[0])


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0]
