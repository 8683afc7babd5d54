"""How a step's groups come from the queue: each host leases its share of them.

Host h of N has the rows `[h G/N, (h+1) G/N)` of a step's G. In ordered mode they are the ordinals
`[sG + h G/N, sG + (h+1) G/N)`: the batch is that of one host. In async mode a host takes what is
ready, oldest first.

The hosts wait in rounds: after each they tell one another what they have, and whether one of them
was asked to stop. So all leave the wait together, with the step or without.

Invariant: a step trains a group once. In async mode a group whose lease one host has lost may be
handed to another, while the first still holds it: the first of them keeps it.

Invariant: no group is trained twice, and none is waited for that cannot come, where the queue
forgets what it has acknowledged, as a Redis may that lost its last writes. Host 0 knows what it has
trained, and says `QueueWentBack`; the learner then sets the queue right by its `restart`.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from learner.group_batches import TrainingGroup, reward_sums
from learner.hosts import Hosts
from learner.ordinals import Account, account
from learner.stop import StopRequest
from protos.trajectory import ScoredGroup
from replay.queue import Frontier, Lease, QueueWentBack, ReplayQueue, Stage

ROUND_SECONDS = 0.5
LOOK_SECONDS = 5.0
"""While a host waits, it looks so often whether the queue still knows what it was told."""
REASONS_TOLD = 3
SHOWN = 10
_AGAIN = "What was trained is saved: a learner that is started again sets the queue right"


@dataclass(frozen=True)
class StepGroups:
    """The groups of a step.

    Attributes:
      groups: this host's, by their ordinal: its rows.
      ordinals: of all hosts' rows.
      versions: of the policies that sampled them; None for a quarantined group.
      accounts: of each host, what becomes of its groups.
      reasons: the latest of those why groups were given up.
      reward_parts: what the reward tells beside its number, as 'reward/NAME': means over all.
      dropped: groups that were too old to train when this step's were collected.
    """

    groups: list[TrainingGroup]
    ordinals: list[int]
    versions: list[int | None]
    accounts: list[Account]
    reasons: list[str]
    reward_parts: dict[str, float]
    dropped: list[int]


class Collector:
    """Leases this host's share of each step."""

    def __init__(
        self,
        queue: ReplayQueue,
        hosts: Hosts,
        worker: str,
        groups_per_step: int,
        max_staleness: int | None,
    ) -> None:
        """Prepares.

        Args:
          queue: of the run.
          hosts: this one and the others.
          worker: this host's name in the queue.
          groups_per_step: G, of all hosts; a multiple of their number.
          max_staleness: groups of an older policy are dropped (async mode); None: ordered mode.
        """
        self._queue, self._hosts, self._worker = queue, hosts, worker
        self._groups_per_step, self._max_staleness = groups_per_step, max_staleness
        self._epoch: str | None = None
        # Of all hosts: another one may not have acked them yet.
        self._step_before: frozenset[int] = frozenset()
        self._acked: Frontier | None = None
        self._looked = 0.0

    def begin(self, epoch: str, frontier: Frontier | None = None) -> None:
        """From now on it asks as the learner of this epoch; see `ReplayQueue.fence`.

        Args:
          epoch: as it says.
          frontier: that the queue was restarted from; None on hosts that do not speak for it.
        """
        self._epoch, self._acked = epoch, frontier
        self._looked = time.monotonic()

    def ack(self, ordinals: Sequence[int], dropped: Sequence[int] = ()) -> None:
        """Tells the queue what was trained, and what was too old.

        Raises:
          QueueWentBack: the queue does not know that they were there to be trained.
          LearnerFenced: another learner has taken over.
        """
        try:
            self._queue.ack(ordinals, dropped, epoch=self._epoch)
        except ValueError as error:  # it has handed out each of them
            raise QueueWentBack(
                "the queue has gone back behind what it had handed out for training: "
                f"{error}. {_AGAIN}"
            ) from error
        self._note(ordinals)

    def collect(self, step: int, stop: StopRequest) -> StepGroups | None:
        """The groups of a step; None when a host was asked to stop.

        Raises:
          LearnerFenced: another learner has taken over.
          HostLost: a host of this one is gone.
        """
        wanted = self._groups_per_step // self._hosts.count
        held: dict[str, TrainingGroup] = {}
        dropped: list[int] = []
        while True:
            if len(held) < wanted and not stop.requested:
                dropped += self._lease_more(step, wanted, held)
            groups = sorted(held.values(), key=lambda group: group.ordinal)
            told = self._hosts.gather(
                {
                    "stop": stop.requested,
                    "missing": wanted - len(held),
                    "dropped": dropped,
                    "rows": [(group.ordinal, group.version) for group in groups],
                    "account": account(groups),
                    "reasons": _last_reasons(groups),
                    "parts": reward_sums(groups),
                }
            )
            if any(host["stop"] for host in told):
                return None
            shared = self._give_up_shared([host["rows"] for host in told], held)
            if not shared and not any(host["missing"] for host in told):
                break
            self._queue.renew(list(held))
            if time.monotonic() - self._looked >= LOOK_SECONDS:
                self._check_queue()
        rows = [row for host in told for row in host["rows"]]
        all_dropped = sorted({ordinal for host in told for ordinal in host["dropped"]})
        self._check_new([*(ordinal for ordinal, _ in rows), *all_dropped])
        self._note(dropped=all_dropped)
        self._step_before = frozenset(ordinal for ordinal, _ in rows)
        return StepGroups(
            groups=groups,
            ordinals=[ordinal for ordinal, _ in rows],
            versions=[version for _, version in rows],
            accounts=[host["account"] for host in told],
            reasons=[reason for host in told for reason in host["reasons"]][-REASONS_TOLD:],
            reward_parts=_means([host["parts"] for host in told]),
            dropped=all_dropped,
        )

    def _lease_more(self, step: int, wanted: int, held: dict[str, TrainingGroup]) -> list[int]:
        """Adds to what is held by lease; returns what was too old."""
        first = None
        if self._max_staleness is None:
            # What is held already are the first ones: a message holds as many as fit.
            first = step * self._groups_per_step + self._hosts.index * wanted + len(held)
        leases = self._queue.lease(
            Stage.TO_TRAIN,
            wanted - len(held),
            None,
            self._worker,
            wait=ROUND_SECONDS,
            epoch=self._epoch,
            first=first,
        )
        known = {group.ordinal for group in held.values()} | self._step_before
        stale = []
        for lease in leases:
            if lease.ordinal in known:  # its lease ran out here: it is in the batch already
                continue
            group = _training_group(lease)
            if self._is_stale(step, group):
                stale.append(group.ordinal)
            else:
                held[lease.id] = group
        if stale:
            self.ack([], dropped=stale)
        return stale

    def _give_up_shared(
        self, rows: Sequence[Sequence[tuple[int, int | None]]], held: dict[str, TrainingGroup]
    ) -> bool:
        """Gives up groups that a host before this one holds; whether any is held by two."""
        ordinals = [[ordinal for ordinal, _ in of_host] for of_host in rows]
        before = {ordinal for of_host in ordinals[: self._hosts.index] for ordinal in of_host}
        for lease_id in [each for each, group in held.items() if group.ordinal in before]:
            del held[lease_id]
        return len(set().union(*ordinals)) < sum(map(len, ordinals))

    def _note(self, ordinals: Sequence[int] = (), dropped: Sequence[int] = ()) -> None:
        """These are acknowledged."""
        if self._acked is not None:
            self._acked = self._acked.with_acked(ordinals, dropped)

    def _check_new(self, ordinals: Sequence[int]) -> None:
        """Raises `QueueWentBack` where one of these was acknowledged before."""
        again = [o for o in ordinals if self._acked is not None and o in self._acked]
        if again:
            raise QueueWentBack(
                f"the queue has gone back: it hands out {again[:SHOWN]} again, which it was told "
                f"are trained. {_AGAIN}"
            )

    def _check_queue(self) -> None:
        """Raises `QueueWentBack` where the queue knows other groups as trained than this learner.

        What it has forgotten would never come: in its window there is no room for what follows. A
        `restart` of which it has forgotten the end is ended here; else that changes nothing.
        """
        self._looked = time.monotonic()
        if self._acked is None:
            return
        self._queue.restart(self._acked, self._epoch)
        theirs, ours = self._queue.frontier(), self._acked
        known, trained = theirs.acked - theirs.dropped, ours.acked - ours.dropped
        if known == trained:
            return
        self._queue.ack([], epoch=self._epoch)  # else it may be another learner's by now
        raise QueueWentBack(
            f"the queue has gone back: it knows {known} groups as trained, this learner has "
            f"trained {trained}. {_AGAIN}"
        )

    def _is_stale(self, step: int, group: TrainingGroup) -> bool:
        if self._max_staleness is None or group.version is None:
            return False
        # A version after this learner's own is of one that has gone back to a checkpoint since.
        return not 0 <= step - group.version <= self._max_staleness


def _training_group(lease: Lease) -> TrainingGroup:
    scored = None if lease.payload is None else ScoredGroup.from_bytes(lease.payload)
    return TrainingGroup(lease.ordinal, scored, lease.reasons)


def _last_reasons(groups: Sequence[TrainingGroup]) -> list[str]:
    return [reason for group in groups for reason in group.reasons][-REASONS_TOLD:]


def _means(parts: Sequence[dict[str, tuple[float, int]]]) -> dict[str, float]:
    names = sorted({name for of_host in parts for name in of_host})
    means = {}
    for name in names:
        sums = [of_host[name] for of_host in parts if name in of_host]
        means[name] = sum(total for total, _ in sums) / sum(count for _, count in sums)
    return means
