"""The reward worker: leases sampled groups, decodes and judges them, completes them.

Invariant: every leased group gets one outcome from this worker, or its lease runs out. Failures
stay typed: a group whose reward raised goes to quarantine, one sample without a number is `Failed`
inside its group.

A reward that is computed elsewhere (`rewards.reward.SubmittedReward`) answers later: its groups
wait in `rewards.in_flight.InFlight` with their leases renewed, and the worker goes on with others.
"""

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from protos.reward import ScoreRequest
from protos.trajectory import (
    Failed,
    FailureKind,
    Outcome,
    RewardAway,
    Sampled,
    Scored,
    ScoredGroup,
    Ticket,
)
from replay.lease_keeper import LeaseKeeper
from replay.pulling import LOAD_SECONDS, WAIT_SECONDS, PullingWorker, WorkerStatus
from replay.queue import Lease, QueueClosed, ReplayQueue, Stage
from rewards.in_flight import Answer, InFlight
from rewards.judge import LARGEST, GroupFailure, group_failure, start
from rewards.judge import failed as raising
from rewards.reward import AnyReward, Group, is_submitted
from vision.tasks.task import Task

logger = logging.getLogger(__name__)

FLUSH_SECONDS = 0.05


@dataclass
class RewardStatus(WorkerStatus):
    """What a reward worker has done so far; times in seconds.

    Attributes:
      parts: what its groups cost in this process: see `rewards.reward.Group.seconds`. Of a reward
        that is computed elsewhere, only what was computed here.
      in_flight: groups that wait for an answer from elsewhere.
      last_failures: the newest reasons.
    """

    parts: Mapping[str, float] = field(default_factory=dict)
    failed_groups: int = 0
    failed_samples: int = 0
    in_flight: int = 0
    last_failures: list[str] = field(default_factory=list)

    def failure(self, reason: str) -> None:
        """Remembers the newest reasons."""
        self.last_failures = [*self.last_failures[-4:], reason]

    def spent(self, seconds: Mapping[str, float]) -> None:
        """Adds what a group cost. Another thread may be reading, so nothing is changed in place."""
        total = {part: self.parts.get(part, 0.0) + more for part, more in dict(seconds).items()}
        self.parts = {**self.parts, **total}


class RewardWorker(PullingWorker):
    """Scores groups until the queue closes or it is told to stop."""

    def __init__(
        self,
        task: Task,
        reward: AnyReward,
        queue: ReplayQueue,
        keeper: LeaseKeeper,
        worker: str,
        groups_per_lease: int,
        split: str = "train",
    ):
        self.status = RewardStatus(worker)
        super().__init__(queue, Stage.TO_SCORE, groups_per_lease, self.status)
        self._task = task
        self._reward = reward
        self._keeper = keeper
        self._split = split
        self._flushing = threading.Lock()
        self._in_flight: InFlight | None = None

    def _wanted(self) -> int:
        if self._in_flight is None:
            return self._leases
        self.status.in_flight = len(self._in_flight)
        return min(self._leases, self._in_flight.wait_for_room(WAIT_SECONDS))

    def run(self) -> dict[str, Any]:
        """See `PullingWorker`; groups that nobody has answered by its end go back untried.

        It may run again after it has raised.
        """
        if not is_submitted(self._reward):
            return super().run()
        self._in_flight = InFlight(self._reward.in_flight, self._flush_answers)
        self._keeper.on_lost = self._in_flight.abandon
        try:
            return super().run()
        finally:
            unanswered = self._in_flight.close()
            self._keeper.drop(unanswered)
            with suppress(QueueClosed):  # an edge says so of a run that has ended
                self._queue.release([lease.id for lease in unanswered])

    def _apart_if_failed(self, leases: list[Lease]) -> list[Lease]:
        """A group whose delivery failed may end this process: it is scored with no others held."""
        again = [lease for lease in leases if lease.delivery > 1]
        if not again or len(leases) == 1:
            return leases
        self._queue.release([lease.id for lease in leases if lease is not again[0]])
        return again[:1]

    def _work(self, leases: list[Lease]) -> None:
        leases = self._apart_if_failed(leases)
        self._keeper.hold(leases)
        ours = set(leases)  # whose outcome is given, or whose leases are left to run out, below
        done: list[Answer] = []
        flushed = time.monotonic()
        try:
            for number, lease in enumerate(leases):
                if self._stopping:  # others take what is not begun
                    self._queue.release([left.id for left in leases[number:]])
                    break
                with self._keeper.working_on([lease]):
                    answer = self._begin(lease)
                if answer.outcomes.done() or self._in_flight is None:
                    done.append(answer)
                    if _out_of_memory(answer):
                        self._flush_answers(done)
                        self._queue.release([lease.id for lease in leases])  # what is left of them
                        raise MemoryError("a reward ran out of memory") from (
                            answer.outcomes.exception()
                        )
                else:
                    ours.remove(lease)
                    self._in_flight.add(answer)
                    if not self._keeper.holds(lease):  # lost before it could be called off
                        self._in_flight.abandon({lease.id})
                # A call costs about a millisecond: cheap rewards share one, dear ones do not wait.
                if time.monotonic() - flushed > FLUSH_SECONDS:
                    self._flush_answers(done)
                    done, flushed = [], time.monotonic()
            self._flush_answers(done)
        except RewardAway:
            self._queue.release([lease.id for lease in ours])
            raise
        finally:
            self._keeper.drop(ours)

    def _begin(self, lease: Lease) -> Answer:
        assert lease.payload is not None
        sampled = Sampled.from_bytes(lease.payload)
        ticket = sampled.ticket
        request = ScoreRequest(
            self._split,
            ticket.example_id,
            ticket.augmentation_seed,
            sampled.tokens,
            sampled.logprobs,
        )
        group = Group(self._task, request)
        give_up = time.monotonic() + min(LOAD_SECONDS, self._keeper.deadline / 2)
        try:
            if self._in_flight is None:  # else it may not be loaded here
                self._when_there(lambda: group.example, give_up)
        except Exception as error:  # noqa: BLE001  # costs its own group, typed
            return Answer(lease, sampled, raising(error), group.seconds)
        return Answer(lease, sampled, start(self._reward, group), group.seconds)

    def _flush_answers(self, answers: Sequence[Answer]) -> None:
        """Gives answered groups their outcomes, from whichever thread has them.

        Raises:
          RewardAway: a group could not be judged for it; it goes back untried.
        """
        completed, failed, called_off = [], [], []
        away: RewardAway | None = None
        with self._flushing:
            for answer in answers:
                self.status.spent(answer.seconds)
                if answer.outcomes.cancelled():
                    called_off.append(answer.lease.id)
                    continue
                if isinstance(error := answer.outcomes.exception(), RewardAway):
                    called_off.append(answer.lease.id)
                    away = error
                    continue
                result = self._outcomes(answer)
                if isinstance(result, GroupFailure):
                    failed.append((answer.lease.id, result.reason, result.kind))
                else:
                    group = ScoredGroup(answer.sampled, result)
                    completed.append((answer.lease.id, group.to_bytes()))
        if completed:
            self._queue.complete(completed)
        if failed:
            self._queue.fail(failed)
        if called_off:
            self._queue.release(called_off)
        self._keeper.drop([answer.lease for answer in answers])
        if away is not None:
            raise away

    def _outcomes(self, answer: Answer) -> tuple[Outcome, ...] | GroupFailure:
        ticket = answer.sampled.ticket
        error = answer.outcomes.exception()
        result = self._usable(answer.outcomes.result()) if error is None else group_failure(error)
        self.status.groups += 1
        if isinstance(result, GroupFailure):
            self.status.failed_groups += 1
            self._report(ticket, "", result.reason)
            return result
        for index, outcome in enumerate(result):
            if not isinstance(outcome, Scored):
                self.status.failed_samples += 1
                name, reason = type(outcome).__name__.lower(), getattr(outcome, "reason", "")
                self._report(ticket, f", sample {index}", f"{name}: {reason}")
        return result

    def _usable(self, outcomes: tuple[Outcome, ...]) -> tuple[Outcome, ...] | GroupFailure:
        """The outcomes, if the learner can train with them and no other worker may do better."""
        for sample, outcome in enumerate(outcomes):
            if isinstance(outcome, Failed) and outcome.kind is FailureKind.INFRASTRUCTURE:
                return GroupFailure(outcome.kind, f"sample {sample}: {outcome.reason}")
            for name, array in outcome.auxiliary.items() if isinstance(outcome, Scored) else ():
                expected = self._task.auxiliary_arrays.get(name)
                if expected is None:
                    continue
                if np.shape(array) != tuple(expected):
                    return GroupFailure(
                        FailureKind.DATA,
                        f"sample {sample}: the reward gave {name} of shape {np.shape(array)}, "
                        f"the task's auxiliary loss takes {tuple(expected)}",
                    )
                if np.abs(np.asarray(array, np.float64)).max(initial=0) > LARGEST:
                    return GroupFailure(
                        FailureKind.DATA,
                        f"sample {sample}: the reward gave {name} with numbers beyond "
                        f"{LARGEST:,.0f} in size, which cannot be trained on",
                    )
        return outcomes

    def _report(self, ticket: Ticket, sample: str, reason: str) -> None:
        said = f"ordinal {ticket.ordinal}, example {ticket.example_id}{sample}: {reason}"
        about = {"ordinal": ticket.ordinal, "example": ticket.example_id}
        logger.warning("%s: %s", self.status.worker, said, extra=about)
        self.status.failure(said)


def _out_of_memory(answer: Answer) -> bool:
    """Whether this process had no memory left: what it does next would fail too."""
    outcomes = answer.outcomes
    return not outcomes.cancelled() and isinstance(outcomes.exception(), MemoryError)
