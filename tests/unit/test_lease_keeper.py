"""Leases are renewed while their holder is well, and given up when it is stuck."""

import threading

import pytest

from protos.trajectory import FailureKind
from replay import lease_keeper
from replay.lease_keeper import LeaseKeeper
from replay.queue import Lease, QueueUnavailable, Stage

WAIT = 60.0  # only a broken keeper waits so long
TTL = 0.03


class RecordingQueue:
    """Notes what the keeper asks of a queue; `unreachable` makes renewing fail."""

    def __init__(self):
        self.renewed: list[frozenset[str]] = []
        self.failed: list[tuple[str, str, FailureKind]] = []
        self.released: list[str] = []
        self.unreachable = False
        self._changed = threading.Condition()

    def renew(self, lease_ids):
        with self._changed:
            self.renewed.append(frozenset(lease_ids))
            self._changed.notify_all()
        if self.unreachable:
            raise QueueUnavailable("no answer")
        return list(lease_ids)

    def fail(self, items):
        self.failed.extend(items)
        return []

    def release(self, lease_ids):
        self.released.extend(lease_ids)

    def wait_for_renewals(self, count: int) -> list[frozenset[str]]:
        """The renewals from now on, `count` of them or more."""
        with self._changed:
            start = len(self.renewed)
            assert self._changed.wait_for(lambda: len(self.renewed) >= start + count, WAIT)
            return self.renewed[start:]


class Clock:
    """Moves when told."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def lease(ordinal: int) -> Lease:
    return Lease(f"lease-{ordinal}", ordinal, Stage.TO_SCORE, "w", TTL, 0.0, 1, b"payload")


@pytest.fixture
def kept():
    """(queue, keeper, clock, event that is set with the reason when stuck)."""
    queue, clock, stuck = RecordingQueue(), Clock(), threading.Event()
    reasons: list[str] = []

    def on_stuck(reason):
        reasons.append(reason)
        stuck.set()

    keeper = LeaseKeeper(queue, TTL, deadline=10.0, on_stuck=on_stuck, clock=clock)
    stuck.reasons = reasons  # type: ignore[attr-defined]
    yield queue, keeper, clock, stuck
    keeper.close()


def test_held_leases_are_renewed_again_and_again(kept):
    queue, keeper, _, stuck = kept
    keeper.hold([lease(1), lease(2)])
    for renewed in queue.wait_for_renewals(3):
        assert renewed == {"lease-1", "lease-2"}
    assert not stuck.is_set()


def test_a_dropped_lease_is_not_renewed_any_more(kept):
    queue, keeper, _, _ = kept
    keeper.hold([lease(1), lease(2)])
    queue.wait_for_renewals(1)
    keeper.drop([lease(1)])
    # One renewal may have been on its way.
    assert queue.wait_for_renewals(3)[1:][-1] == {"lease-2"}


def test_nothing_is_renewed_after_close(kept):
    queue, keeper, _, _ = kept
    keeper.hold([lease(1)])
    queue.wait_for_renewals(1)
    keeper.close()
    count = len(queue.renewed)
    assert not threading.Event().wait(TTL * 5)
    assert len(queue.renewed) == count


def test_past_the_deadline_the_stuck_one_fails_and_the_others_go_back(kept):
    queue, keeper, clock, stuck = kept
    keeper.hold([lease(1), lease(2), lease(3)])
    with keeper.working_on([lease(2)]):
        queue.wait_for_renewals(1)
        assert not stuck.is_set()
        clock.now = 10.5
        assert stuck.wait(WAIT)
    ((lease_id, reason, kind),) = queue.failed
    assert lease_id == "lease-2"
    assert kind is FailureKind.INFRASTRUCTURE
    assert "deadline of 10 s on ordinals [2]" in reason
    assert sorted(queue.released) == ["lease-1", "lease-3"]
    assert stuck.reasons == [reason]


def test_a_stuck_block_fails_whole(kept):
    queue, keeper, clock, stuck = kept
    block = [lease(ordinal) for ordinal in range(4)]
    keeper.hold(block)
    with keeper.working_on(block):
        clock.now = 11.0
        assert stuck.wait(WAIT)
    assert [lease_id for lease_id, _, _ in queue.failed] == [one.id for one in block]
    assert queue.released == []


def test_what_hangs_beside_all_groups_fails_none_of_them(kept):
    queue, keeper, clock, stuck = kept
    keeper.hold([lease(1), lease(2)])
    with keeper.working_on([]):
        clock.now = 11.0
        assert stuck.wait(WAIT)
    assert (queue.failed, sorted(queue.released)) == ([], ["lease-1", "lease-2"])
    assert stuck.reasons == ["exceeded its deadline of 10 s, at work on no group"]


def test_nothing_is_renewed_once_given_up(kept):
    queue, keeper, clock, stuck = kept
    keeper.hold([lease(1)])
    with keeper.working_on([lease(1)]):
        clock.now = 11.0
        assert stuck.wait(WAIT)
        count = len(queue.renewed)
        assert not threading.Event().wait(TTL * 5)
    assert len(queue.renewed) == count


def test_the_deadline_runs_for_each_item_anew(kept):
    queue, keeper, clock, stuck = kept
    keeper.hold([lease(1), lease(2)])
    for ordinal in (1, 2):
        with keeper.working_on([lease(ordinal)]):
            queue.wait_for_renewals(2)
            clock.now += 9.0
            queue.wait_for_renewals(2)
    clock.now += 100.0  # between items no deadline runs
    queue.wait_for_renewals(2)
    assert not stuck.is_set()
    assert queue.failed == []


def test_an_unreachable_queue_is_asked_again(kept):
    queue, keeper, _, stuck = kept
    queue.unreachable = True
    keeper.hold([lease(1)])
    queue.wait_for_renewals(3)
    queue.unreachable = False
    queue.wait_for_renewals(2)
    assert not stuck.is_set()


def test_a_queue_that_refuses_the_failure_does_not_save_a_stuck_worker(kept, caplog):
    queue, keeper, clock, stuck = kept

    def refuse(items):
        raise QueueUnavailable("no answer")

    queue.fail = refuse
    keeper.hold([lease(1)])
    with keeper.working_on([lease(1)]):
        clock.now = 11.0
        assert stuck.wait(WAIT)
    assert "QueueUnavailable: no answer" in caplog.text


@pytest.mark.parametrize("hanging", [("renew",), ("renew", "fail"), ("fail",)])
def test_a_queue_that_is_away_does_not_save_a_stuck_worker(kept, hanging, monkeypatch):
    queue, keeper, clock, stuck = kept
    monkeypatch.setattr(lease_keeper, "LAST_WORDS_SECONDS", 0.05)
    asked, over = threading.Event(), threading.Event()

    def hang(items):
        asked.set()
        over.wait(WAIT)
        return []

    for method in hanging:
        setattr(queue, method, hang)
    try:
        keeper.hold([lease(1)])
        with keeper.working_on([lease(1)]):
            assert "renew" not in hanging or asked.wait(WAIT)
            clock.now = 11.0
            assert stuck.wait(WAIT)
    finally:
        over.set()
    (reason,) = stuck.reasons
    assert "deadline of 10 s on ordinals [1]" in reason


def test_a_deadline_that_is_shorter_than_a_lease_is_kept():
    clock, stuck = Clock(), threading.Event()
    keeper = LeaseKeeper(RecordingQueue(), 9 * WAIT, TTL, lambda reason: stuck.set(), clock)
    with keeper.working_on([lease(1)]):
        clock.now = 2 * TTL
        assert stuck.wait(WAIT)
    keeper.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_keeper_that_fails_ends_its_process():
    queue, stuck, reasons = RecordingQueue(), threading.Event(), []

    def on_stuck(reason):
        reasons.append(reason)
        stuck.set()

    def renew(lease_ids):
        raise KeyError("an answer of another form")

    queue.renew = renew
    keeper = LeaseKeeper(queue, TTL, WAIT, on_stuck)
    keeper.hold([lease(1)])
    assert stuck.wait(WAIT)
    assert reasons == ["could not keep its leases: KeyError: 'an answer of another form'"]
    keeper.close()
