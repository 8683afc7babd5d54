"""The replay queue's rules, without I/O and without a clock of its own: `now` is an argument.

Invariant: an ordinal that was handed out is in exactly one place: ready in one stage, held by one
lease, or acked. (A quarantined ordinal is a tombstone in `to_train` until the learner acks it.)
Invariant: groups out, handed out and not acked, never exceed the window.

A worker that dies or falls silent fails what it was handed last, and nothing else: it asks for more
only when it is done with the rest, which merely waits in its hands for an answer from elsewhere. A
learner fails nothing: the next one trains the same groups.

One writer: whoever owns the state calls it from one thread.

    mint ──▶ to_sample ──▶ to_score ──▶ to_train ──▶ acked
                │ fail: back, or       ▲
                └──── quarantine ──────┘ as a tombstone (no payload, reasons kept)
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence

from protos.trajectory import FailureKind
from replay.config import QueueConfig
from replay.groups import Acked, Item, Ready, next_step, survivors_of
from replay.leases import Leases
from replay.queue import (
    Completion,
    Frontier,
    Lease,
    Quarantined,
    Stage,
    Stats,
    check_ordinals,
    make_lease_id,
)
from replay.seen import ExpiredLeases, SeenWorkers

MAX_REASON = 4000
"""Characters kept of a reason: a traceback fits, a dumped array does not."""
KEPT_QUARANTINED = 1000
KEPT_REASONS = 20

_NEXT = {Stage.TO_SAMPLE: Stage.TO_SCORE, Stage.TO_SCORE: Stage.TO_TRAIN}


class QueueState:
    """All groups that are out, and what has been acked.

    Every method first expires what is due at `now`, so an operation sees a lease exactly until
    its deadline, however rarely the owner calls.
    """

    def __init__(
        self,
        config: QueueConfig,
        mint: Callable[[int], bytes],
        frontier: Frontier | None = None,
        incarnation: str = "0",
    ) -> None:
        """Starts from a frontier (None: from ordinal 0).

        Args:
          config: window, order and patience.
          mint: the ticket's bytes of an ordinal; pure.
          frontier: what is already acked.
          incarnation: begins every lease id; must differ between processes that may succeed each
            other, so that a lease of a dead queue is no lease of this one.
        """
        self.config = config
        self._mint = mint
        self._incarnation = incarnation
        self._lease_count = 0
        self._ttl = {
            Stage.TO_SAMPLE: config.sample_ttl,
            Stage.TO_SCORE: config.score_ttl,
            Stage.TO_TRAIN: config.train_ttl,
        }
        self._quarantined: deque[Quarantined] = deque(maxlen=KEPT_QUARANTINED)
        self._last_reasons: deque[str] = deque(maxlen=KEPT_REASONS)
        self._quarantined_count = self._redelivered = self._too_late = 0
        self._expired = ExpiredLeases()
        self._seen = SeenWorkers()
        self._leases = Leases()
        self._begin_at(frontier or Frontier())

    def _begin_at(self, frontier: Frontier) -> None:
        """No group is out, and those of the frontier are acked."""
        self._items: dict[int, Item] = {}
        # Survivors of a restart that the window has no room for yet.
        self._parked: dict[int, Item] = {}
        self._ready = {stage: Ready() for stage in Stage}
        self._acked = Acked(frontier)
        self._next_block = frontier.next_unacked // self.config.block

    # -- leases ---------------------------------------------------------------------------------

    def lease(
        self,
        stage: Stage,
        n: int,
        ttl: float | None,
        worker: str,
        now: float,
        first: int | None = None,
    ) -> list[Lease]:
        """Hands out up to `n` groups (`to_sample`: blocks); see `ReplayQueue.lease`."""
        if n < 1 or (ttl is not None and ttl <= 0):
            raise ValueError(f"{worker} asks {stage} for n={n}, ttl={ttl}: both must be positive")
        if first is not None:
            check_ordinals([first])
        self.expire(now)
        self._seen.asked(worker, now)
        if stage is Stage.TO_SAMPLE:
            ordinals = self._next_blocks(n, now)
        elif stage is Stage.TO_TRAIN and self.config.mode == "ordered":
            if n > self.config.window:
                raise ValueError(
                    f"{worker} asks to_train for n={n} in order; only {self.config.window} fit the "
                    "window, so they would never be ready together"
                )
            if first is None:
                ordinals = next_step(n, self._ready[stage], self._acked, self._items)
            else:
                ordinals = self._share(first, n, worker, now)
        else:
            ordinals = self._ready[stage].lowest(n)
        if not ordinals:  # the usual answer to those who wait for work
            self._leases.hand_out(worker, [])
            return []
        ttl = self._ttl[stage] if ttl is None else ttl
        # Before any of them is held: a ticket that cannot be made leaves all where they are.
        tickets = [self._mint(o) if stage is Stage.TO_SAMPLE else None for o in ordinals]
        leases = [
            self._hold(ordinal, ticket, ttl, worker, now)
            for ordinal, ticket in zip(ordinals, tickets, strict=True)
        ]
        self._leases.hand_out(worker, leases)
        return leases

    def renew(self, lease_ids: Iterable[str], now: float) -> list[str]:
        """Gives each lease its ttl anew; returns the ids that are still held."""
        self.expire(now)
        return self._leases.renew(lease_ids, now)

    def complete(self, lease_id: str, payload: bytes, now: float) -> Completion:
        """Moves the lease's group to its next stage.

        A lease that has expired changes nothing: the group's one outcome is another worker's.

        Raises:
          ValueError: the lease is of `to_train`.
        """
        self.check_outcomes([lease_id], now)
        lease = self._leases.get(lease_id)
        if lease is None:
            self._too_late += 1
            return Completion.TOO_LATE
        item = self._drop_lease(lease)
        if lease.stage is Stage.TO_SAMPLE:
            item.sampled_at = len(self._acked)
        item.stage, item.payload, item.failed = _NEXT[lease.stage], payload, 0
        self._ready[item.stage].add(lease.ordinal, now)
        return Completion.DONE

    def fail(self, lease_id: str, reason: str, kind: FailureKind, now: float) -> Completion:
        """Returns the lease's group to its stage, or gives it up; see `ReplayQueue.fail`.

        Raises:
          ValueError: the lease is of `to_train`.
        """
        self.check_outcomes([lease_id], now)
        lease = self._leases.get(lease_id)
        if lease is None:
            self._too_late += 1
            return Completion.TOO_LATE
        self._fail(lease, reason, kind, now)
        return Completion.DONE

    def check_outcomes(self, lease_ids: Iterable[str], now: float) -> None:
        """Raises what `complete` or `fail` of one of these would; for a caller with several."""
        self.expire(now)
        self._leases.check_outcomes(lease_ids)

    def release(self, lease_ids: Iterable[str], now: float) -> None:
        """Returns the groups to their stage untried: counts no delivery."""
        self.expire(now)
        for lease_id in lease_ids:
            lease = self._leases.get(lease_id)
            if lease is not None:
                self._give_back(lease, now)

    def release_worker(self, worker: str, reason: str, now: float) -> int:
        """Takes everything from a dead worker; see `ReplayQueue.release_worker`."""
        self.expire(now)
        held = self._leases.of_worker(worker)
        for lease in held:
            self._take_back(lease, reason, now)
        return len(held)

    def expire(self, now: float) -> None:
        """Takes back what is past its deadline, as from a dead worker."""
        while (lease := self._leases.next_due(now)) is not None:
            self._expired.add(lease.worker)
            reason = f"lease of {lease.worker} expired: not renewed within {lease.ttl:g} s"
            self._take_back(lease, reason, now)

    def next_deadline(self) -> float | None:
        """No lease expires before; None: nothing is leased."""
        return self._leases.next_deadline()

    # -- the learner's side ---------------------------------------------------------------------

    def ack(self, ordinals: Sequence[int], now: float, dropped: bool = False) -> None:
        """The learner is done with these, whether it still holds their leases or not.

        Raises:
          ValueError: an ordinal is neither acked nor in `to_train`; then nothing is acked.
        """
        self.check_ack(ordinals, now)
        for ordinal in set(ordinals):
            if ordinal in self._acked:
                continue
            item = self._items.pop(ordinal)
            lease = self._leases.get(item.lease_id or "")
            if lease is not None:
                self._leases.drop(lease)
            else:
                del self._ready[Stage.TO_TRAIN].since[ordinal]
            self._acked.add(ordinal, dropped)

    def check_ack(self, ordinals: Sequence[int], now: float) -> None:
        """Raises what `ack` of these would; for a caller that makes two of it."""
        check_ordinals(ordinals)
        self.expire(now)
        for ordinal in ordinals:
            if ordinal in self._acked:
                continue
            item = self._items.get(ordinal)
            if item is None or item.stage is not Stage.TO_TRAIN:
                where = "not handed out" if item is None else f"in {item.stage}"
                raise ValueError(f"cannot ack ordinal {ordinal}: it is {where}, not in to_train")

    def is_acked(self, ordinal: int) -> bool:
        """Whether the learner is done with it."""
        return ordinal in self._acked

    def frontier(self) -> Frontier:
        """What has been acked."""
        return self._acked.frontier()

    def restart(self, frontier: Frontier, now: float) -> None:
        """Goes back to what `frontier` says is acked; see `ReplayQueue.restart`."""
        self.expire(now)
        at_hand = self._parked | self._items
        self._begin_at(frontier)
        self._parked = survivors_of(at_hand, self._quarantined, frontier, self.config.mode)
        while self._parked and self._mint_block(now) is not None:
            pass
        for parked in self._parked.values():
            parked.lease_id = None
        for lease in [*self._leases.values()]:
            item = self._items.get(lease.ordinal)
            if item is None or item.lease_id != lease.id:
                self._leases.drop(lease)

    # -- what one can see -----------------------------------------------------------------------

    def stats(self, now: float) -> Stats:
        """The queue now."""
        self.expire(now)
        held = dict.fromkeys(self._seen.workers(now), 0) | self._leases.held_by_worker()
        total = self.config.total_groups
        return Stats(
            stages={
                stage: ready.stats(self._leases.in_stage[stage], now)
                for stage, ready in self._ready.items()
            },
            out=len(self._items),
            window=self.config.window,
            room=self.config.window - len(self._items),
            acked=len(self._acked),
            dropped=self._acked.dropped,
            finished=total is not None and len(self._acked) - self._made_up_for() >= total,
            quarantined=self._quarantined_count,
            redelivered=self._redelivered,
            expired=self._expired.count,
            expired_by_worker=self._expired.by_worker(),
            too_late=self._too_late,
            last_reasons=tuple(self._last_reasons),
            held_by_worker=held,
        )

    def quarantine(self) -> list[Quarantined]:
        """The latest groups that were given up, acked or not, oldest first."""
        return list(self._quarantined)

    # -- inside ---------------------------------------------------------------------------------

    def _next_blocks(self, n: int, now: float) -> list[int]:
        """The ready ordinals of the lowest `n` blocks that have any, minted where none is left."""
        size = self.config.block
        lowest = self._ready[Stage.TO_SAMPLE].lowest(n * size)
        blocks = sorted({ordinal // size for ordinal in lowest})[:n]
        ordinals = [ordinal for ordinal in lowest if ordinal // size <= blocks[-1]]
        found = len(blocks)
        while found < n and (minted := self._mint_block(now)) is not None:
            ordinals += minted
            found += bool(minted)
        return ordinals

    def _mint_block(self, now: float) -> list[int] | None:
        """Makes the next block; returns what of it is to be sampled, or None without room."""
        size, total = self.config.block, self.config.total_groups
        start = self._next_block * size
        if total is not None and start >= total + -(-self._made_up_for() // size) * size:
            return None
        ordinals = [o for o in range(start, start + size) if o not in self._acked]
        if len(self._items) + len(ordinals) > self.config.window:
            return None
        self._next_block += 1
        for ordinal in ordinals:
            item = self._parked.pop(ordinal, None) or Item(Stage.TO_SAMPLE)
            self._items[ordinal] = item
            if item.lease_id is None:
                self._ready[item.stage].add(ordinal, now)
        to_sample = self._ready[Stage.TO_SAMPLE].since
        return [ordinal for ordinal in ordinals if ordinal in to_sample]

    def _made_up_for(self) -> int:
        """Dropped groups that new ones replace; in ordered mode a step is its ordinals."""
        return self._acked.dropped if self.config.mode == "async" else 0

    def _share(self, first: int, n: int, worker: str, now: float) -> list[int]:
        """`n` ordinals from `first` on; [] unless each is ready or in this worker's hands."""
        ready = self._ready[Stage.TO_TRAIN].since
        ordinals = range(first, first + n)
        held = []
        for ordinal in ordinals:
            if ordinal in ready:
                continue
            item = self._items.get(ordinal)
            lease = None if item is None else self._leases.get(item.lease_id or "")
            if lease is None or lease.worker != worker or lease.stage is not Stage.TO_TRAIN:
                return []
            held.append(lease)
        for lease in held:
            self._give_back(lease, now)
        return list(ordinals)

    def _hold(
        self, ordinal: int, ticket: bytes | None, ttl: float, worker: str, now: float
    ) -> Lease:
        item = self._items[ordinal]
        stage, delivery = item.stage, item.failed + 1
        self._ready[stage].take(ordinal, now)
        self._lease_count += 1
        lease_id = make_lease_id(self._incarnation, self._lease_count, stage, ordinal)
        sampling = stage is Stage.TO_SAMPLE
        payload = ticket if sampling else item.payload
        block_start = ordinal - ordinal % self.config.block if sampling else None
        until, reasons = now + ttl, tuple(item.reasons)
        # By place: names would cost as much as all the rest.
        lease = Lease(
            *(lease_id, ordinal, stage, worker, ttl, until, delivery, payload, reasons, block_start)
        )
        item.lease_id = lease_id
        self._redelivered += delivery > 1
        return lease

    def _drop_lease(self, lease: Lease) -> Item:
        self._leases.drop(lease)
        item = self._items[lease.ordinal]
        item.lease_id = None
        return item

    def _give_back(self, lease: Lease, now: float) -> None:
        item = self._drop_lease(lease)
        self._ready[item.stage].add(lease.ordinal, now)

    def _take_back(self, lease: Lease, reason: str, now: float) -> None:
        # A learner's death says nothing of the groups that it held: the next one trains the same.
        if lease.stage is not Stage.TO_TRAIN and self._leases.is_newest(lease):
            self._fail(lease, reason, FailureKind.INFRASTRUCTURE, now)
        else:
            self._give_back(lease, now)

    def _fail(self, lease: Lease, reason: str, kind: FailureKind, now: float) -> None:
        item = self._drop_lease(lease)
        item.failed += 1
        item.reasons.append(reason[:MAX_REASON])
        del item.reasons[:-KEPT_REASONS]
        self._last_reasons.append(f"ordinal {lease.ordinal}, {lease.stage}: {item.reasons[-1]}")
        give_up = kind is FailureKind.DATA or item.failed >= self.config.max_deliveries
        if give_up and not item.tombstone:
            self._quarantined_count += 1
            self._quarantined.append(Quarantined(lease.ordinal, lease.stage, tuple(item.reasons)))
            item.stage, item.payload, item.tombstone = Stage.TO_TRAIN, None, True
            item.failed = 0
        self._ready[item.stage].add(lease.ordinal, now)
