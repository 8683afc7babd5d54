"""The queue's invariants under any interleaving of everything that can be done to it.

Every answer of the queue is compared with that of `tests.queue_model`.
"""

from copy import deepcopy

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from protos.trajectory import FailureKind
from replay.config import QueueConfig
from replay.queue import Completion, Frontier, Stage
from replay.state import QueueState
from tests.queue_model import NEXT, QueueModel, acked_in, mint

WORKERS = st.sampled_from(["a", "b", "c"])
STAGES = st.sampled_from(Stage)
TTLS = st.sampled_from([1.0, 2.0, 5.0])


class Interleavings(QueueModel, RuleBasedStateMachine):
    leases = Bundle("leases")
    frontiers = Bundle("frontiers")

    @initialize(
        blocks=st.integers(1, 3),
        block=st.integers(1, 3),
        mode=st.sampled_from(["ordered", "async"]),
        lag=st.integers(0, 2),
        max_deliveries=st.integers(1, 3),
        steps=st.none() | st.integers(1, 4),
    )
    def start(self, blocks, block, mode, lag, max_deliveries, steps):
        per_step = blocks * block
        self.config = QueueConfig(
            groups_per_step=per_step,
            block=block,
            mode=mode,
            lag=lag,
            max_deliveries=max_deliveries,
            total_groups=None if steps is None else steps * per_step,
        )
        self.now = 100.0
        self.incarnations = 0
        self.queue = self.make_queue()
        self.model_begins()
        self.payloads = 0

    def make_queue(self, frontier=None):
        """A new queue, or the one that a new process makes of a frontier."""
        return QueueState(self.config, mint, frontier, incarnation=str(self.incarnations))

    def snapshot(self):
        queue = self.queue
        ready = {stage: dict(part.since) for stage, part in queue._ready.items()}
        leases = sorted(lease.ordinal for lease in queue._leases.values())
        return deepcopy((queue._items, leases, ready, queue.frontier()))

    # -- what can happen ------------------------------------------------------------------------

    @rule(target=frontiers)
    def remember_frontier(self):
        return self.queue.frontier()

    @rule(dt=st.sampled_from([0.0, 0.5, 1.0, 3.0, 10.0]))
    def time_passes(self, dt):
        self.now += dt

    @rule(
        target=leases, stage=st.sampled_from(Stage), n=st.integers(1, 5), ttl=TTLS, worker=WORKERS
    )
    def lease(self, stage, n, ttl, worker):
        self.model_expire()
        if stage is Stage.TO_TRAIN and self.config.mode == "ordered":
            n = min(n, self.config.window)
        ready = self.ready(stage)
        leases = self.newest[worker] = self.queue.lease(stage, n, ttl, worker, self.now)
        ordinals = [lease.ordinal for lease in leases]
        assert ordinals == sorted(set(ordinals))
        assert not self.acked & set(ordinals)
        if stage is Stage.TO_SAMPLE:
            assert ordinals == self.model_blocks(n, ready)
        elif stage is Stage.TO_TRAIN and self.config.mode == "ordered":
            self.check_order(n, ready, ordinals)
        else:
            assert ordinals == ready[:n]
        for lease in leases:
            group = self.groups[lease.ordinal]
            assert lease.payload == group.payload
            assert lease.tombstone == group.tombstone
            assert bool(lease.reasons) >= group.tombstone
            assert lease.delivery == group.failed + 1
            assert (lease.stage, lease.worker) == (stage, worker)
            assert lease.id not in self.live
            self.live[lease.id] = (lease, self.now + ttl)
        return multiple(*leases)

    @precondition(lambda self: self.config.mode == "ordered")
    @rule(target=leases, first=st.integers(0, 12), n=st.integers(1, 4), ttl=TTLS, worker=WORKERS)
    def lease_share(self, first, n, ttl, worker):
        self.model_expire()
        n = min(n, self.config.window)
        wanted = range(first, first + n)
        holders = {lease.ordinal: lease for lease, _ in self.live.values()}
        free = all(
            o in self.groups
            and self.groups[o].stage is Stage.TO_TRAIN
            and (o not in holders or holders[o].worker == worker)
            for o in wanted
        )
        leases = self.queue.lease(Stage.TO_TRAIN, n, ttl, worker, self.now, first)
        self.newest[worker] = leases
        assert [lease.ordinal for lease in leases] == (list(wanted) if free else [])
        for lease in leases:
            if lease.ordinal in holders:
                del self.live[holders[lease.ordinal].id]
            group = self.groups[lease.ordinal]
            assert (lease.payload, lease.delivery) == (group.payload, group.failed + 1)
            self.live[lease.id] = (lease, self.now + ttl)
        return multiple(*leases)

    def check_order(self, n, ready, ordinals):
        training = {
            lease.ordinal for lease, _ in self.live.values() if lease.stage is Stage.TO_TRAIN
        }
        start = 0
        while start in self.acked or start in training:
            start += 1
        wanted = []
        while len(wanted) < n:
            if start not in self.acked:
                wanted.append(start)
            start += 1
        assert ordinals == (wanted if set(wanted) <= set(ready) else [])

    @rule(lease=leases)
    def renew(self, lease):
        live = self.is_live(lease)
        assert self.queue.renew([lease.id], self.now) == [lease.id] * live
        if live:
            self.live[lease.id] = (lease, self.now + lease.ttl)

    @rule(lease=leases)
    def complete(self, lease):
        live = self.is_live(lease)
        if lease.stage is Stage.TO_TRAIN:
            return
        self.payloads += 1
        payload = f"{lease.stage} of {lease.ordinal}, {self.payloads}".encode()
        self.queue.expire(self.now)
        before = self.snapshot()
        completion = self.queue.complete(lease.id, payload, self.now)
        assert completion is (Completion.DONE if live else Completion.TOO_LATE)
        if live:
            del self.live[lease.id]
            self.model_complete(lease, payload)
        else:
            assert self.snapshot() == before

    @rule(stage=st.sampled_from(list(NEXT)), keep=st.integers(0, 3))
    def honest_work(self, stage, keep):
        """Carries groups onward, so that runs reach the later stages often."""
        self.model_expire()
        if stage is Stage.TO_SAMPLE:
            self.model_blocks(3, self.ready(stage))
        leases = self.newest["a"] = self.queue.lease(stage, 3, 5.0, "a", self.now)
        for number, lease in enumerate(leases):
            if number < keep:
                self.live[lease.id] = (lease, self.now + 5.0)
            else:
                payload = f"{stage} of {lease.ordinal}, honestly".encode()
                assert self.queue.complete(lease.id, payload, self.now) is Completion.DONE
                self.model_complete(lease, payload)

    @rule(lease=leases, kind=st.sampled_from(FailureKind))
    def fail(self, lease, kind):
        live = self.is_live(lease)
        if lease.stage is Stage.TO_TRAIN:
            return
        self.queue.expire(self.now)
        before = self.snapshot()
        completion = self.queue.fail(lease.id, "broken", kind, self.now)
        assert completion is (Completion.DONE if live else Completion.TOO_LATE)
        if live:
            self.model_fail(lease, kind)
        else:
            assert self.snapshot() == before

    @rule(lease=leases)
    def release(self, lease):
        live = self.is_live(lease)
        self.queue.release([lease.id], self.now)
        if live:
            del self.live[lease.id]

    @rule(worker=WORKERS)
    def worker_dies(self, worker):
        self.model_expire()
        held = [lease for lease, _ in self.live.values() if lease.worker == worker]
        assert self.queue.release_worker(worker, "it died", self.now) == len(held)
        for lease in held:
            self.model_take_back(lease)

    @precondition(lambda self: any(g.stage is Stage.TO_TRAIN for g in self.groups.values()))
    @rule(data=st.data(), dropped=st.booleans())
    def ack(self, data, dropped):
        self.model_expire()
        ackable = sorted(o for o, group in self.groups.items() if group.stage is Stage.TO_TRAIN)
        if not ackable:
            return
        ordinals = data.draw(st.lists(st.sampled_from(ackable), min_size=1, unique=True))
        self.queue.ack(ordinals, self.now, dropped)
        self.model_ack(ordinals, dropped)
        self.queue.ack(ordinals, self.now, dropped)  # a repeated ack is harmless

    @rule(ordinal=st.integers(0, 30))
    def ack_too_early(self, ordinal):
        self.model_expire()
        group = self.groups.get(ordinal)
        if ordinal in self.acked or (group is not None and group.stage is Stage.TO_TRAIN):
            return
        self.queue.expire(self.now)
        before = self.snapshot()
        try:
            self.queue.ack([ordinal], self.now)
        except ValueError as error:
            assert f"ordinal {ordinal}" in str(error)  # noqa: PT017
        else:
            raise AssertionError(f"acked {ordinal}, which is not in to_train")
        assert self.snapshot() == before

    @rule(frontier=consumes(frontiers))
    def learner_resumes(self, frontier):
        self.model_expire()
        self.queue.restart(frontier, self.now)
        self.model_restart(frontier)

    @rule()
    def process_restarts(self):
        """From its frontier as JSON; the leases of the dead process mean nothing to the new one."""
        self.incarnations += 1
        frontier = Frontier.from_json(self.queue.frontier().to_json())
        assert acked_in(frontier) == self.acked
        self.queue = self.make_queue(frontier)
        self.live.clear()
        self.groups.clear()
        self.parked.clear()
        self.given_up.clear()

    # -- what always holds ----------------------------------------------------------------------

    @invariant()
    def an_ordinal_is_in_exactly_one_place(self):
        if not hasattr(self, "queue"):
            return
        queue = self.queue
        places = [o for ready in queue._ready.values() for o in ready.since]
        places += [lease.ordinal for lease in queue._leases.values()]
        acked = acked_in(queue.frontier())
        assert acked == self.acked
        places += acked
        assert len(places) == len(set(places))
        assert set(places) == acked | set(queue._items)
        assert set(queue._items) == set(self.groups)

    @invariant()
    def the_window_is_never_exceeded(self):
        if hasattr(self, "queue"):
            stats = deepcopy(self.queue).stats(self.now)
            assert stats.out == len(self.groups) <= stats.window
            assert stats.room == stats.window - stats.out
            leased_or_ready = sum(s.ready + s.leased for s in stats.stages.values())
            assert leased_or_ready == stats.out

    def teardown(self):
        """No ordinal is lost: whatever happened, honest workers now bring the run forward."""
        if not hasattr(self, "queue"):
            return
        queue = self.queue
        self.now += 1000.0
        target = max(self.groups, default=0) + 2 * self.config.window
        while not queue.stats(self.now).finished and queue.frontier().next_unacked < target:
            before = queue.frontier()
            for stage in NEXT:
                for lease in queue.lease(stage, 1000, None, "honest", self.now):
                    assert queue.complete(lease.id, b"done", self.now) is Completion.DONE
            leases = queue.lease(Stage.TO_TRAIN, self.left_of_step(), None, "learner", self.now)
            queue.ack([lease.ordinal for lease in leases], self.now)
            assert queue.frontier() != before, "the run is stuck"
        stats = queue.stats(self.now)
        if stats.finished and self.config.mode == "ordered":
            assert stats.acked == self.config.total_groups
        if stats.finished and self.config.mode == "async":
            assert stats.acked - stats.dropped >= self.config.total_groups

    def left_of_step(self):
        """What an ordered learner waits for: its step's groups that are not acked yet."""
        size = self.config.groups_per_step
        step = self.queue.frontier().next_unacked // size
        return sum(not self.queue.is_acked(o) for o in range(step * size, (step + 1) * size))


Interleavings.TestCase.settings = settings(max_examples=300, stateful_step_count=50, deadline=None)
test_any_interleaving_keeps_the_invariants = Interleavings.TestCase
