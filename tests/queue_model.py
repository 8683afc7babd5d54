"""The simplest account of the queue's rules, which its answers are compared with.

Live leases with deadlines, failed deliveries, tombstones, what is acked, what survives a restart.
"""

from dataclasses import dataclass

from protos.trajectory import FailureKind
from replay.config import QueueConfig
from replay.queue import Lease, Stage

NEXT = {Stage.TO_SAMPLE: Stage.TO_SCORE, Stage.TO_SCORE: Stage.TO_TRAIN}


def mint(ordinal: int) -> bytes:
    return f"ticket {ordinal}".encode()


def acked_in(frontier):
    return set(range(frontier.next_unacked)) | set(frontier.acked_above)


@dataclass
class Group:
    """What the model knows of a group that is out."""

    stage: Stage
    payload: bytes | None
    failed: int = 0
    tombstone: bool = False
    sampled_at: int = 0


class QueueModel:
    """What a queue of a config must hold, given all that was asked of it."""

    config: QueueConfig
    now: float

    def model_begins(self):
        self.live: dict[str, tuple[Lease, float]] = {}
        self.newest: dict[str, list[Lease]] = {}
        self.groups: dict[int, Group] = {}
        self.parked: dict[int, Group] = {}
        self.given_up: set[int] = set()
        self.acked: set[int] = set()
        self.dropped = 0

    def model_expire(self):
        for lease, deadline in list(self.live.values()):
            if deadline <= self.now:
                self.model_take_back(lease)

    def model_take_back(self, lease):
        if lease.stage is not Stage.TO_TRAIN and lease in self.newest[lease.worker]:
            self.model_fail(lease, FailureKind.INFRASTRUCTURE)
        else:
            del self.live[lease.id]

    def model_fail(self, lease, kind):
        del self.live[lease.id]
        group = self.groups[lease.ordinal]
        group.failed += 1
        give_up = kind is FailureKind.DATA or group.failed == self.config.max_deliveries
        if give_up and not group.tombstone:
            self.groups[lease.ordinal] = Group(Stage.TO_TRAIN, None, tombstone=True)
            self.given_up.add(lease.ordinal)

    def model_complete(self, lease, payload):
        sampled = lease.stage is Stage.TO_SAMPLE
        at = len(self.acked) if sampled else self.groups[lease.ordinal].sampled_at
        self.groups[lease.ordinal] = Group(NEXT[lease.stage], payload, sampled_at=at)

    def model_mint(self):
        """The next block; what of it is to be sampled, or None where there is no room."""
        size, number = self.config.block, 0
        while not (fresh := self.not_out(range(number * size, (number + 1) * size))):
            number += 1
        total = self.config.total_groups
        end = total is not None and total + (
            -(-self.dropped // size) * size if self.config.mode == "async" else 0
        )
        if len(self.groups) + len(fresh) > self.config.window or (total and fresh[0] >= end):
            return None
        for ordinal in fresh:
            new = Group(Stage.TO_SAMPLE, mint(ordinal))
            self.groups[ordinal] = self.parked.pop(ordinal, new)
        return [o for o in fresh if self.groups[o].stage is Stage.TO_SAMPLE]

    def not_out(self, ordinals):
        return [o for o in ordinals if o not in self.acked and o not in self.groups]

    def is_live(self, lease):
        self.model_expire()
        return lease.id in self.live

    def ready(self, stage):
        held = self.held()
        return sorted(o for o, g in self.groups.items() if g.stage is stage and o not in held)

    def held(self):
        return {lease.ordinal for lease, _ in self.live.values()}

    def model_ack(self, ordinals, dropped):
        for ordinal in ordinals:
            del self.groups[ordinal]
            self.acked.add(ordinal)
            self.dropped += dropped
        for lease, _ in list(self.live.values()):
            if lease.ordinal in ordinals:
                del self.live[lease.id]

    def model_blocks(self, n, ready):
        """What is ready of the lowest blocks, then new blocks."""
        blocks = sorted({ordinal // self.config.block for ordinal in ready})[:n]
        wanted = [ordinal for ordinal in ready if ordinal // self.config.block in blocks]
        found = len(blocks)
        while found < n and (minted := self.model_mint()) is not None:
            wanted += minted
            found += bool(minted)
        return wanted

    def model_restart(self, frontier):
        acked = acked_in(frontier)
        before = {o: Group(Stage.TO_TRAIN, None, tombstone=True) for o in self.given_up}
        before |= self.parked | self.groups
        self.parked = {
            ordinal: group
            for ordinal, group in before.items()
            if ordinal not in acked and self.survives(group, len(acked))
        }
        self.groups, self.acked, self.dropped = {}, acked, frontier.dropped
        while self.parked and self.model_mint() is not None:
            pass
        self.live = {
            lease_id: (lease, deadline)
            for lease_id, (lease, deadline) in self.live.items()
            if self.groups.get(lease.ordinal) is before[lease.ordinal]
            and lease.stage is not Stage.TO_TRAIN
        }

    def survives(self, group, acked):
        if self.config.mode == "ordered" or group.tombstone:
            return True
        return group.stage is not Stage.TO_SAMPLE and group.sampled_at < acked
