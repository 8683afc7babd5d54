"""The reward worker: leases sampled groups, decodes and judges them, completes them.

Invariant: every leased group gets one outcome from this worker, or its lease runs out. Failures
stay typed: a group whose reward raised goes to quarantine, one sample without a number is `Failed`
inside its group.
"""

import logging
import time
from dataclasses import dataclass, field

import numpy as np

from protos.trajectory import Failed, FailureKind, Outcome, Sampled, Scored, ScoredGroup
from replay.lease_keeper import LeaseKeeper
from replay.pulling import PullingWorker, WorkerStatus
from replay.queue import Lease, ReplayQueue, Stage
from rewards.judge import GroupFailure, describe, judge_group
from rewards.reward import Reward
from vision.tasks.task import Task

logger = logging.getLogger(__name__)

FLUSH_SECONDS = 0.05


@dataclass
class RewardStatus(WorkerStatus):
    """What a reward worker has done so far; times in seconds."""

    failed_groups: int = 0
    failed_samples: int = 0
    last_failures: list[str] = field(default_factory=list)

    def failure(self, reason: str) -> None:
        """Remembers the newest reasons."""
        self.last_failures = [*self.last_failures[-4:], reason]


class RewardWorker(PullingWorker):
    """Scores groups until the queue closes or it is told to stop."""

    def __init__(
        self,
        task: Task,
        reward: Reward,
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

    def _apart_if_failed(self, leases: list[Lease]) -> list[Lease]:
        """A group whose delivery failed may end this process: it is scored with no others held."""
        failed = [lease for lease in leases if lease.delivery > 1]
        if not failed or len(leases) == 1:
            return leases
        self._queue.release([lease.id for lease in leases if lease is not failed[0]])
        return failed[:1]

    def _work(self, leases: list[Lease]) -> None:
        leases = self._apart_if_failed(leases)
        self._keeper.hold(leases)
        done: list[tuple[Lease, ScoredGroup | GroupFailure]] = []
        flushed = time.monotonic()
        try:
            for lease in leases:
                with self._keeper.working_on([lease]):
                    done.append((lease, self._score(lease)))
                # A call costs about a millisecond: cheap rewards share one, dear ones do not wait.
                if time.monotonic() - flushed > FLUSH_SECONDS:
                    self._flush(done)
                    done, flushed = [], time.monotonic()
            self._flush(done)
        finally:
            self._keeper.drop(leases)

    def _flush(self, done: list[tuple[Lease, ScoredGroup | GroupFailure]]) -> None:
        completed, failed = [], []
        for lease, result in done:
            if isinstance(result, GroupFailure):
                failed.append((lease.id, result.reason, result.kind))
            else:
                completed.append((lease.id, result.to_bytes()))
        if completed:
            self._queue.complete(completed)
        if failed:
            self._queue.fail(failed)
        self._keeper.drop([lease for lease, _ in done])

    def _score(self, lease: Lease) -> ScoredGroup | GroupFailure:
        assert lease.payload is not None
        sampled = Sampled.from_bytes(lease.payload)
        ticket = sampled.ticket
        result = self._judge(sampled)
        self.status.groups += 1
        if isinstance(result, GroupFailure):
            self.status.failed_groups += 1
            self._report(f"ordinal {ticket.ordinal}, example {ticket.example_id}: {result.reason}")
            return result
        for index, outcome in enumerate(result):
            if not isinstance(outcome, Scored):
                self.status.failed_samples += 1
                self._report(_describe(outcome, index, ticket.ordinal, ticket.example_id))
        return ScoredGroup(sampled, tuple(result))

    def _judge(self, sampled: Sampled) -> tuple[Outcome, ...] | GroupFailure:
        ticket = sampled.ticket
        try:
            example = self._task.load(self._split, ticket.example_id, ticket.augmentation_seed)
            predictions = self._task.decode(example, sampled.tokens, sampled.logprobs)
        except Exception as error:  # noqa: BLE001  # a broken example costs its own group, typed
            return GroupFailure(FailureKind.DATA, describe(error))
        result = judge_group(self._reward, example, predictions)
        return result if isinstance(result, GroupFailure) else self._usable(result)

    def _usable(self, outcomes: tuple[Outcome, ...]) -> tuple[Outcome, ...] | GroupFailure:
        """The outcomes, if the learner can train with them and no other worker may do better."""
        for sample, outcome in enumerate(outcomes):
            if isinstance(outcome, Failed) and outcome.kind is FailureKind.INFRASTRUCTURE:
                return GroupFailure(outcome.kind, f"sample {sample}: {outcome.reason}")
            for name, array in outcome.auxiliary.items() if isinstance(outcome, Scored) else ():
                expected = self._task.auxiliary_arrays.get(name)
                if expected is not None and np.shape(array) != tuple(expected):
                    return GroupFailure(
                        FailureKind.DATA,
                        f"sample {sample}: the reward gave {name} of shape {np.shape(array)}, "
                        f"the task's auxiliary loss takes {tuple(expected)}",
                    )
        return outcomes

    def _report(self, reason: str) -> None:
        logger.warning("%s: %s", self.status.worker, reason)
        self.status.failure(reason)


def _describe(outcome: Outcome, sample: int, ordinal: int, example_id: str) -> str:
    return (
        f"ordinal {ordinal}, example {example_id}, sample {sample}: "
        f"{type(outcome).__name__.lower()}: {getattr(outcome, 'reason', '')}"
    )
