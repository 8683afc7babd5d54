"""What a queue's answers must be, kept beside it by the simplest account of its rules.

The ledger sees only questions and answers, so it can judge any queue. It knows of an expiry by the
clock alone: a lease is live until its deadline, however rarely anybody asks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from deploy.simulation.world import Violation
from protos.trajectory import FailureKind
from replay.config import QueueConfig
from replay.queue import Completion, Frontier, Lease, Stage
from replay.state import QueueState

_NEXT = {Stage.TO_SAMPLE: Stage.TO_SCORE, Stage.TO_SCORE: Stage.TO_TRAIN}


@dataclass(slots=True)
class _Group:
    """A group that is out: where it must be."""

    stage: Stage
    payload: bytes | None
    failed: int = 0
    tombstone: bool = False
    sampled_at: int = 0
    lease: Lease | None = None
    deadline: float = 0.0


class Ledger:
    """The groups that are out and what has been acked, by what the queue has answered."""

    def __init__(self, config: QueueConfig, frontier: Frontier):
        self._config = config
        self.quarantined = 0
        self.begin(frontier)

    def begin(self, frontier: Frontier) -> None:
        """A queue began at a frontier, and knows nothing else."""
        self._given_up: set[int] = set()
        self._newest: dict[str, frozenset[str]] = {}
        self._begin(frontier, {})

    def _begin(self, frontier: Frontier, parked: dict[int, _Group]) -> None:
        self._groups: dict[int, _Group] = {}
        self._parked = parked
        self._by_lease: dict[str, int] = {}
        self._next_unacked = frontier.next_unacked
        self._acked_above = set(frontier.acked_above)

    def restarted(self, frontier: Frontier) -> None:
        """The queue was told to go back to a frontier: see `ReplayQueue.restart`."""
        before = {o: _Group(Stage.TO_TRAIN, None, tombstone=True) for o in self._given_up}
        before |= self._parked | self._groups
        above = set(frontier.acked_above)
        parked = {
            ordinal: group
            for ordinal, group in before.items()
            if ordinal >= frontier.next_unacked
            and ordinal not in above
            and self._survives(group, frontier)
        }
        self._begin(frontier, parked)
        self._make_room_for_survivors(frontier)
        for group in self._parked.values():
            group.lease = None
        for ordinal, group in self._groups.items():
            if group.stage is Stage.TO_TRAIN:
                group.lease = None
            if group.lease is not None:
                self._by_lease[group.lease.id] = ordinal

    def _survives(self, group: _Group, frontier: Frontier) -> bool:
        if self._config.mode == "ordered" or group.tombstone:
            return True
        return group.stage is not Stage.TO_SAMPLE and group.sampled_at < frontier.acked

    def _make_room_for_survivors(self, frontier: Frontier) -> None:
        """Blocks come back from the frontier on, as many as the window holds and the run needs."""
        size, room = self._config.block, self._config.window
        total, start = self._config.total_groups, frontier.next_unacked // size * size
        made_up_for = frontier.dropped if self._config.mode == "async" else 0
        end = None if total is None else total + -(-made_up_for // size) * size
        while self._parked and (end is None or start < end):
            block = [o for o in range(start, start + size) if not self.is_acked(o)]
            room, start = room - len(block), start + size
            if room < 0:
                return
            survivors = [o for o in block if o in self._parked]
            self._groups |= {ordinal: self._parked.pop(ordinal) for ordinal in survivors}

    def came_back(self, frontier: Frontier) -> None:
        """The queue started anew from the frontier it had kept, which must be the true one."""
        if (frontier.next_unacked, set(frontier.acked_above)) != (
            self._next_unacked,
            self._acked_above,
        ):
            raise Violation(
                f"the queue came back with {frontier}; acked were all below {self._next_unacked} "
                f"and {sorted(self._acked_above)}"
            )
        self.begin(frontier)

    @property
    def out(self) -> frozenset[int]:
        """Ordinals that were handed out and are not acked."""
        return frozenset(self._groups)

    def is_acked(self, ordinal: int) -> bool:
        """Whether an ack was accepted."""
        return ordinal < self._next_unacked or ordinal in self._acked_above

    def leased(self, stage: Stage, worker: str, leases: Sequence[Lease], now: float) -> None:
        """A worker asked and was handed these."""
        self._settle_all(worker, now)
        self._newest[worker] = frozenset(lease.id for lease in leases)
        for lease in leases:
            ordinal = lease.ordinal
            group = self._groups.get(ordinal)
            if group is None:
                if self.is_acked(ordinal):
                    raise Violation(f"ordinal {ordinal} is handed out again; it has been acked")
                new = _Group(Stage.TO_SAMPLE, lease.payload)
                group = self._groups[ordinal] = self._parked.pop(ordinal, new)
                if len(self._groups) > self._config.window:
                    raise Violation(
                        f"{len(self._groups)} groups are out; the window is {self._config.window}"
                    )
            self._settle(group, now)
            if group.lease is not None:
                raise Violation(
                    f"ordinal {ordinal} is handed to {lease.worker}, while {group.lease.worker} "
                    f"holds it until {group.deadline:.3f}"
                )
            seen = (lease.stage, lease.delivery, lease.tombstone, lease.payload)
            must = (group.stage, group.failed + 1, group.tombstone, group.payload)
            if seen != must or lease.stage is not stage:
                raise Violation(f"ordinal {ordinal} is leased as {seen}; it must be {must}")
            if group.tombstone and not lease.reasons:
                raise Violation(f"ordinal {ordinal} is quarantined without a reason")
            group.lease, group.deadline = lease, now + lease.ttl
            self._by_lease[lease.id] = ordinal

    def renewed(self, asked: Sequence[str], held: Sequence[str], now: float) -> None:
        """Of these, some are still held."""
        for lease_id in asked:
            group = self._live(lease_id, now)
            if (group is not None) != (lease_id in held):
                raise Violation(f"renewing {lease_id} answered {lease_id in held}")
            if group is not None and group.lease is not None:
                group.deadline = now + group.lease.ttl

    def completed(self, lease_id: str, payload: bytes, answer: Completion, now: float) -> None:
        """A worker gave the outcome."""
        group = self._outcome(lease_id, answer, now)
        if group is not None:
            if group.stage is Stage.TO_SAMPLE:
                group.sampled_at = self._next_unacked + len(self._acked_above)
            group.stage, group.payload, group.failed = _NEXT[group.stage], payload, 0
            self._drop(group)

    def failed(self, lease_id: str, kind: FailureKind, answer: Completion, now: float) -> None:
        """A worker gave it back as failed."""
        group = self._outcome(lease_id, answer, now)
        if group is not None:
            self._fail(group, kind)

    def released(self, lease_ids: Sequence[str], now: float) -> None:
        """Workers gave these back untried."""
        for lease_id in lease_ids:
            group = self._live(lease_id, now)
            if group is not None:
                self._drop(group)

    def released_worker(self, worker: str, count: int, now: float) -> None:
        """A dead worker's groups were taken from it."""
        held = self._settle_all(worker, now)
        if len(held) != count:
            raise Violation(f"{count} groups were taken from {worker}; it held {len(held)}")
        for group in held:
            self._take_back(group)

    def acked(self, ordinals: Sequence[int], now: float) -> None:
        """An ack was accepted."""
        for ordinal in ordinals:
            if self.is_acked(ordinal):
                continue
            group = self._groups.pop(ordinal, None) or self._parked.pop(ordinal, None)
            if group is not None:
                self._settle(group, now)
            if group is None or group.stage is not Stage.TO_TRAIN:
                raise Violation(f"ordinal {ordinal} was acked before it was scored")
            self._drop(group)
            self._acked_above.add(ordinal)
        while self._next_unacked in self._acked_above:
            self._acked_above.remove(self._next_unacked)
            self._next_unacked += 1

    # -- inside ---------------------------------------------------------------------------------

    def _live(self, lease_id: str, now: float) -> _Group | None:
        """The group of a lease that is held now."""
        ordinal = self._by_lease.get(lease_id)
        if ordinal is None:
            return None
        group = self._groups[ordinal]
        self._settle(group, now)
        return group if group.lease is not None else None

    def _settle(self, group: _Group, now: float) -> None:
        if group.lease is not None and group.deadline <= now:
            self._take_back(group)

    def _settle_all(self, worker: str, now: float) -> list[_Group]:
        """What the worker still holds."""
        held = [g for g in self._groups.values() if g.lease and g.lease.worker == worker]
        for group in held:
            self._settle(group, now)
        return [group for group in held if group.lease is not None]

    def _take_back(self, group: _Group) -> None:
        """From a worker that died or fell silent: what it was handed last has failed."""
        assert group.lease is not None
        learning = group.stage is Stage.TO_TRAIN
        if not learning and group.lease.id in self._newest[group.lease.worker]:
            self._fail(group, FailureKind.INFRASTRUCTURE)
        else:
            self._drop(group)

    def _outcome(self, lease_id: str, answer: Completion, now: float) -> _Group | None:
        group = self._live(lease_id, now)
        must = Completion.TOO_LATE if group is None else Completion.DONE
        if answer is not must:
            raise Violation(f"the outcome of lease {lease_id} was answered {answer}, not {must}")
        return group

    def _fail(self, group: _Group, kind: FailureKind) -> None:
        assert group.lease is not None
        ordinal = group.lease.ordinal
        self._drop(group)
        group.failed += 1
        give_up = kind is FailureKind.DATA or group.failed >= self._config.max_deliveries
        if give_up and not group.tombstone:
            self.quarantined += 1
            group.stage, group.payload, group.tombstone = Stage.TO_TRAIN, None, True
            group.failed = 0
            self._given_up.add(ordinal)

    def _drop(self, group: _Group) -> None:
        if group.lease is not None:
            del self._by_lease[group.lease.id]
            group.lease = None


def check_sums(state: QueueState) -> None:
    """Both invariants by their sums alone: cheap enough for after every event."""
    items = len(state._items)
    places = len(state._leases) + sum(len(ready.since) for ready in state._ready.values())
    if places != items:
        raise Violation(f"{items} groups are out; {places} are ready or leased")
    if items > state.config.window:
        raise Violation(f"{items} groups are out; the window is {state.config.window}")


def check_places(state: QueueState) -> None:
    """Every group that is out is in exactly one place, and none of them is acked."""
    places = [ordinal for ready in state._ready.values() for ordinal in ready.since]
    places += [lease.ordinal for lease in state._leases.values()]
    if len(set(places)) != len(places) or set(places) != set(state._items):
        odd = sorted(set(state._items) ^ set(places))[:5]
        raise Violation(f"ordinals in two places or in none, such as {odd}")
    again = [ordinal for ordinal in places if state.is_acked(ordinal)]
    if again:
        raise Violation(f"acked and out at once: {sorted(again)[:5]}")
