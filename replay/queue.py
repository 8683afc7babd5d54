"""The replay queue's contract: what roles may ask of it, whatever holds it.

Stages are `to_sample -> to_score -> to_train`. A worker leases items of a stage, renews while it
works, and completes (the item enters the next stage), fails or releases them. The learner acks.
All calls are batched, because a call costs about as much as its contents.
"""

import enum
import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from protos.trajectory import FailureKind

SEEN_SECONDS = 60.0
"""A worker that has asked for no work for so long, and holds none, is not there any more."""

END_OF_ORDINALS = 2**52
"""Every ordinal that is asked for is below. Redis counts in doubles, which are exact up to 2^53:
what is left between has room for every window."""


class Stage(enum.StrEnum):
    """Where a group waits, and for whom."""

    TO_SAMPLE = "to_sample"
    TO_SCORE = "to_score"
    TO_TRAIN = "to_train"


class Completion(enum.StrEnum):
    """What became of a `complete` or `fail`."""

    DONE = "done"
    TOO_LATE = "too_late"
    """The lease is not held any more: nothing changed, the outcome is someone else's to give."""


class QueueClosed(Exception):
    """The run is over: there will be nothing more to lease."""


class MustResume(RuntimeError):
    """The learner has lost its place in the queue: it goes on from its last checkpoint."""


class LearnerFenced(MustResume):
    """Another learner has taken the queue over: what this one asks has no effect; it must end."""


class QueueWentBack(MustResume):
    """The queue has forgotten what it was told, as a Redis does that has lost its last writes."""


class QueueUnavailable(RuntimeError):
    """The queue did not answer; the message says what was asked and what is known."""


class QueueFull(QueueUnavailable):
    """The queue had no room for a payload for as long as was waited; nothing was dropped."""


class Lease(NamedTuple):
    """One group, held by one worker for a while.

    Attributes:
      id: to name it in renew, complete, fail and release.
      ordinal: the group.
      stage: where it waits meanwhile.
      worker: who holds it.
      ttl: seconds within which to renew, complete, fail or release.
      deadline: when it ends on the queue's own clock, unless it is renewed.
      delivery: 1, and one more for each delivery in this stage that failed.
      payload: `Ticket`, `Sampled` or `ScoredGroup` bytes by stage; None for a tombstone, a
        quarantined group whose masked row the learner must still count.
      reasons: why deliveries failed, oldest first.
      block_start: for `to_sample` the first ordinal of its block, else None. Where the leases do
        not cover the block, the sampler redoes the whole batch (any ordinal's ticket comes from a
        `TicketSource`) and completes what it holds.
    """

    id: str
    ordinal: int
    stage: Stage
    worker: str
    ttl: float
    deadline: float
    delivery: int
    payload: bytes | None
    reasons: tuple[str, ...] = ()
    block_start: int | None = None

    @property
    def tombstone(self) -> bool:
        """Whether the group is quarantined."""
        return self.payload is None


def make_lease_id(incarnation: str, count: int, stage: Stage, ordinal: int) -> str:
    """The id of a queue's lease number `count`; it says what it is of, see `read_lease_id`."""
    return f"{incarnation}.{count}.{_NUMBERS[stage]}.{ordinal}"


def read_lease_id(lease_id: str) -> tuple[Stage, int] | None:
    """Stage and ordinal of a lease, by its id; None: no queue makes such an id.

    An id that was made up may say anything, but nobody holds it.
    """
    *_, number, ordinal = ["", *lease_id.split(".")]
    stage = _STAGES.get(number)
    if stage is None or not ordinal.isascii() or not ordinal.isdecimal() or len(ordinal) > 20:
        return None
    return stage, int(ordinal)


_NUMBERS = {stage: str(number) for number, stage in enumerate(Stage, 1)}
_STAGES = {number: stage for stage, number in _NUMBERS.items()}


def check_ordinals(ordinals: Iterable[int]) -> None:
    """Raises `ValueError` for a number that is no group's."""
    for ordinal in ordinals:
        if not 0 <= ordinal < END_OF_ORDINALS:
            raise ValueError(f"ordinal {ordinal} is none: they go from 0 to 2^52 - 1")


@dataclass(frozen=True)
class Frontier:
    """What has been trained: enough to restart the queue, and the same as rewinding it.

    Attributes:
      next_unacked: every ordinal below is acked.
      acked_above: the acked ordinals above, ascending.
      dropped: how many of the acked were dropped instead of trained.
    """

    next_unacked: int = 0
    acked_above: tuple[int, ...] = ()
    dropped: int = 0

    def __post_init__(self) -> None:
        above = self.acked_above
        ascending = all(a < b for a, b in itertools.pairwise(above))
        if self.next_unacked < 0 or not ascending or (above and above[0] <= self.next_unacked):
            raise ValueError(
                f"frontier {self}: acked_above must ascend above next_unacked, which is at least 0"
            )
        if max([self.next_unacked, *above[-1:]]) > END_OF_ORDINALS:
            raise ValueError(f"frontier {self}: ordinals go to 2^52 - 1")
        if not 0 <= self.dropped <= self.next_unacked + len(above):
            raise ValueError(f"frontier {self}: more dropped than acked")

    def with_acked(self, ordinals: Iterable[int], dropped: Collection[int] = ()) -> "Frontier":
        """What it is after an `ack` of these, none of which it has acked yet."""
        above = {*self.acked_above, *ordinals, *dropped}
        next_unacked = self.next_unacked
        while next_unacked in above:
            above.remove(next_unacked)
            next_unacked += 1
        return Frontier(next_unacked, tuple(sorted(above)), self.dropped + len(dropped))

    def __contains__(self, ordinal: int) -> bool:
        return ordinal < self.next_unacked or ordinal in self.acked_above

    @property
    def acked(self) -> int:
        """How many are acked."""
        return self.next_unacked + len(self.acked_above)

    def to_json(self) -> dict[str, Any]:
        """As JSON values, for a checkpoint."""
        return {
            "next_unacked": self.next_unacked,
            "acked_above": list(self.acked_above),
            "dropped": self.dropped,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Frontier":
        """From `to_json`'s values; `ValueError` where they are not a frontier."""
        try:
            above = tuple(int(ordinal) for ordinal in values["acked_above"])
            return cls(int(values["next_unacked"]), above, int(values.get("dropped", 0)))
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a queue frontier: {values!r} ({error!r})") from error


@dataclass(frozen=True)
class StageStats:
    """One stage now. Waits are seconds between entering the stage and being leased."""

    ready: int
    leased: int
    oldest_wait: float
    wait_p50: float
    wait_p95: float


@dataclass(frozen=True)
class Quarantined:
    """A group that was given up, in which stage and why."""

    ordinal: int
    stage: Stage
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Stats:
    """The queue now, and what it has counted.

    Attributes:
      stages: by stage.
      out: groups handed out and not acked; never above `window`.
      room: groups that could be handed out at once.
      acked: groups trained or dropped, over the whole run.
      dropped: of these, too stale to train.
      finished: the run's `total_groups` are trained.
      quarantined, redelivered, expired, too_late: events since this queue started.
      expired_by_worker: expired leases by their worker: one that rises is dead, stopped or stuck.
        Of very many workers the latest; what the rest had stands under "(others)".
      held_by_worker: leases that each worker holds; 0 for one that has none, but has asked within
        the last `SEEN_SECONDS`.
      last_reasons: why the latest deliveries failed, newest last.
      closed: the run is over.
    """

    stages: Mapping[Stage, StageStats]
    out: int
    window: int
    room: int
    acked: int
    dropped: int
    finished: bool
    quarantined: int
    redelivered: int
    expired: int
    expired_by_worker: Mapping[str, int]
    too_late: int
    last_reasons: tuple[str, ...]
    closed: bool = False
    held_by_worker: Mapping[str, int] = field(default_factory=dict)


class ReplayQueue(Protocol):
    """A queue as the roles see it; synchronous. Every call may raise `QueueUnavailable`."""

    def lease(
        self,
        stage: str,
        n: int,
        ttl: float | None,
        worker: str,
        wait: float = 0.0,
        epoch: str | None = None,
        first: int | None = None,
    ) -> list[Lease]:
        """Leases up to `n` groups (`to_sample`: `n` blocks), lowest ordinals first.

        In ordered mode `to_train` gives exactly the ordinals `[first, first + n)`, or none. So
        each host of a learner names its share of a step, and one may be a step ahead of another.
        Without `first` they are the next `n` that are neither acked nor leased for training.

        Args:
          stage: a `Stage`, or its value.
          n: at least 1.
          ttl: seconds until the leases expire; None: the stage's setting.
          worker: a name that tells this worker from all others.
          wait: seconds to wait where nothing is ready; then the list is empty.
          epoch: of the learner that asks, see `fence`; None: not checked.
          first: of a `to_train` lease in ordered mode, else not looked at. What the worker holds
            of these ordinals is leased to it anew: an answer that was lost costs nothing.

        Raises:
          QueueClosed: the run is over.
          LearnerFenced: the epoch is not the last one.
        """
        ...

    def renew(self, lease_ids: Sequence[str]) -> list[str]:
        """Gives each lease its ttl anew; returns those that are still held."""
        ...

    def complete(self, items: Sequence[tuple[str, bytes]]) -> list[Completion]:
        """Moves each (lease id, payload) to its next stage, unless the lease is lost.

        Raises:
          ValueError: one is of `to_train`; then nothing has changed.
        """
        ...

    def fail(self, items: Sequence[tuple[str, str, FailureKind]]) -> list[Completion]:
        """Returns each (lease id, reason, kind): `DATA` to quarantine, else to be tried again.

        Raises:
          ValueError: one is of `to_train`; then nothing has changed.
        """
        ...

    def release(self, lease_ids: Sequence[str]) -> None:
        """Returns the groups untried: counts no delivery."""
        ...

    def release_worker(self, worker: str, reason: str) -> int:
        """Takes everything from a dead worker; returns how many.

        What its last `lease` call was given counts as failed deliveries. What it held from before
        goes back untried: a worker asks for more when it is done with that, or when that waits
        for an answer from elsewhere, so it did not kill the worker. So does what a learner held:
        the next one trains the same groups. Leases that expire are told apart in the same way.
        """
        ...

    def fence(self) -> str:
        """A learner takes over: from now on earlier ones are refused. Returns its epoch.

        An earlier learner may be alive, stopped or cut off, when its place is taken. What it still
        asks with its own epoch raises `LearnerFenced` and changes nothing.
        """
        ...

    def ack(
        self, ordinals: Sequence[int], dropped: Sequence[int] = (), epoch: str | None = None
    ) -> None:
        """The learner has trained `ordinals` and dropped `dropped`; repeating it is harmless.

        Raises:
          LearnerFenced: the epoch is given, and not the last one.
        """
        ...

    def stats(self) -> Stats:
        """The queue now."""
        ...

    def quarantine(self) -> list[Quarantined]:
        """The latest groups that were given up, acked or not, oldest first."""
        ...

    def frontier(self) -> Frontier:
        """What has been acked, for a checkpoint."""
        ...

    def restart(self, frontier: Frontier, epoch: str | None = None) -> None:
        """Goes back (or forth) to what `frontier` says is acked; for a learner that resumes.

        Groups at hand that are not acked in it survive, with their samples, scores and failures;
        leases of `to_train` are given back, others go on. What was acked after the frontier is
        minted anew, but what was quarantined stays so. The window holds: survivors that it has no
        room for yet come back, without their leases, when their ordinals are handed out.

        In async mode only those groups survive whose samples came in before the last ack of the
        frontier. They are of policies that the resumed learner has had, too. What came later may be
        of a policy that will be made again with other weights and the same number, so nobody could
        tell how old the samples are: they are made again. In ordered mode every policy is made
        again to the same bits.

        An epoch goes back once: a repetition, which may arrive when its learner has trained since,
        changes nothing.

        Raises:
          LearnerFenced: the epoch is given, and not the last one.
        """
        ...

    def close(self) -> None:
        """Ends the run: waiting and later leases raise `QueueClosed`; the rest still works."""
        ...
