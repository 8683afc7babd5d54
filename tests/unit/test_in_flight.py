"""A reward that is computed elsewhere: groups wait without holding up others, and none is lost."""

import threading
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from protos.trajectory import InfrastructureError, RewardAway, Scored, ScoredGroup
from replay.lease_keeper import LeaseKeeper
from rewards.in_flight import Answer, InFlight
from rewards.worker import RewardWorker
from tests.unit.test_reward_worker import (
    GROUPS,
    LONG,
    SAMPLES,
    WAIT,
    FakeTask,
    queue,
)

__all__ = ["queue"]


class Desk:
    """A submitted reward whose groups lie on a desk until a test answers them."""

    provides = ()

    def __init__(self, in_flight=GROUPS):
        self.in_flight = in_flight
        self.open: dict[str, Future] = {}
        self.arrived = threading.Condition()

    def submit(self, group):
        answer: Future = Future()
        with self.arrived:
            self.open[group.request.example_id] = answer
            self.arrived.notify_all()
        return answer

    def wait_for(self, count):
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.open) == count, WAIT), self.open

    def answer(self, example, reward=None):
        with self.arrived:
            answer = self.open.pop(example)
        if isinstance(reward, Exception):
            answer.set_exception(reward)
        else:
            answer.set_result([Scored(reward)] * SAMPLES)


class Running:
    """A worker in a thread of its own."""

    def __init__(self, queue, reward, groups_per_lease=2, ttl=LONG):
        self.keeper = LeaseKeeper(queue, ttl, LONG, on_stuck=pytest.fail)
        self.worker = RewardWorker(
            FakeTask(), reward, queue, self.keeper, "reward-0", groups_per_lease
        )
        self.thread = threading.Thread(target=self.worker.run, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self.worker

    def __exit__(self, *_):
        self.worker.stop()
        self.thread.join(WAIT)
        assert not self.thread.is_alive()
        self.keeper.close()


def train(queue):
    """The whole step: (ordinal, rewards or reasons)."""
    leases = queue.lease("to_train", GROUPS, None, "learner", WAIT)
    return {
        lease.ordinal: lease.reasons
        if lease.tombstone
        else [outcome.reward for outcome in ScoredGroup.from_bytes(lease.payload).outcomes]
        for lease in leases
    }


def wait_until(queue, condition):
    paused = threading.Event()
    for _ in range(int(WAIT / 0.02)):
        if condition(queue.stats()):
            return
        paused.wait(0.02)
    raise AssertionError(queue.stats())


def example_of(queue):
    """Ordinal -> example, as the tickets say."""
    return {ordinal: queue._queue._tickets.ticket(ordinal).example_id for ordinal in range(GROUPS)}


def test_groups_that_wait_do_not_hold_up_others_and_are_answered_in_any_order(queue):
    desk, examples = Desk(), example_of(queue)
    with Running(queue, desk):
        desk.wait_for(GROUPS)  # one worker holds them all, two at a lease
        assert queue.stats().stages["to_score"].leased == GROUPS
        for count, ordinal in enumerate((3, 1, 0), 1):
            desk.answer(examples[ordinal], float(ordinal))
            wait_until(queue, lambda stats, n=count: stats.stages["to_train"].ready == n)
        assert queue.stats().stages["to_score"].leased == 1
        desk.answer(examples[2], 2.0)
        assert train(queue) == {ordinal: [float(ordinal)] * SAMPLES for ordinal in range(GROUPS)}


def test_no_more_groups_are_leased_than_may_be_in_flight(queue):
    desk, examples = Desk(in_flight=1), example_of(queue)
    with Running(queue, desk) as worker:
        for ordinal in range(GROUPS):
            desk.wait_for(1)
            assert queue.stats().stages["to_score"].leased == 1
            desk.answer(examples[ordinal], float(ordinal))
        assert len(train(queue)) == GROUPS
        assert worker.status.groups == GROUPS


def test_groups_without_an_answer_go_back_untried_when_the_worker_stops(queue):
    desk = Desk()
    with Running(queue, desk):
        desk.wait_for(GROUPS)
    stats = queue.stats()
    assert (stats.stages["to_score"].ready, stats.stages["to_score"].leased) == (GROUPS, 0)
    assert stats.redelivered == 0
    assert all(answer.cancelled() for answer in desk.open.values())  # nobody is asked in vain
    desk.open.clear()
    with Running(queue, desk):
        desk.wait_for(GROUPS)
        for example in list(desk.open):
            desk.answer(example, 1.0)
        assert train(queue) == {ordinal: [1.0] * SAMPLES for ordinal in range(GROUPS)}


def test_groups_whose_server_is_away_go_back_untried_and_the_worker_runs_again(queue):
    desk, examples = Desk(), example_of(queue)
    running = Running(queue, desk)
    with ThreadPoolExecutor(1) as pool:
        for _ in range(3):  # more often than a group may be tried
            ended = pool.submit(running.worker.run)
            desk.wait_for(GROUPS)
            desk.answer(examples[0], RewardAway("nobody answers"))
            with pytest.raises(RewardAway, match="nobody answers"):
                ended.result(WAIT)
            stats = queue.stats()
            assert (stats.stages["to_score"].ready, stats.stages["to_score"].leased) == (GROUPS, 0)
            assert (stats.redelivered, stats.quarantined) == (0, 0)
            desk.open.clear()
    with running:  # it is back: the same worker goes on
        desk.wait_for(GROUPS)
        for example in list(desk.open):
            desk.answer(example, 1.0)
        assert train(queue) == {ordinal: [1.0] * SAMPLES for ordinal in range(GROUPS)}


def test_groups_whose_leases_are_lost_are_called_off(queue):
    desk = Desk()
    with Running(queue, desk, ttl=0.1) as worker:
        desk.wait_for(GROUPS)
        first = dict(desk.open)
        desk.open.clear()
        queue.release(list(worker._keeper._held))  # as if they had run out
        paused = threading.Event()
        for _ in range(int(WAIT / 0.02)):
            if all(answer.cancelled() for answer in first.values()):
                break
            paused.wait(0.02)
        assert all(answer.cancelled() for answer in first.values())
        desk.wait_for(GROUPS)  # the same groups, with leases that are held
        for example in list(desk.open):
            desk.answer(example, 1.0)
        assert train(queue) == {ordinal: [1.0] * SAMPLES for ordinal in range(GROUPS)}
    assert worker.status.groups == GROUPS
    assert worker.status.failed_groups == 0


def test_a_group_whose_lease_is_lost_while_it_is_submitted_is_called_off(queue):
    class Slow(Desk):
        def submit(self, group):
            answer = super().submit(group)
            if len(self.open) == 1:
                queue.release(list(running.keeper._held))
                while running.keeper._held:
                    paused.wait(0.01)
            return answer

    desk, paused = Slow(), threading.Event()
    running = Running(queue, desk, groups_per_lease=1, ttl=0.1)
    with running:
        desk.wait_for(1)
        (answer,) = desk.open.values()
        for _ in range(int(WAIT / 0.02)):
            if answer.cancelled():
                break
            paused.wait(0.02)
        assert answer.cancelled()


def test_failures_keep_their_kind(queue):
    desk, examples = Desk(), example_of(queue)
    with Running(queue, desk) as worker:
        desk.wait_for(GROUPS)
        desk.answer(examples[0], InfrastructureError("no network"))
        desk.wait_for(GROUPS)  # tried again
        desk.answer(examples[1], ValueError("nonsense"))
        for ordinal in (0, 2, 3):
            desk.answer(examples[ordinal], 1.0)
        trained = train(queue)
    assert trained[0] == trained[2] == trained[3] == [1.0] * SAMPLES
    assert "nonsense" in trained[1][0]
    assert worker.status.failed_groups == 2


def test_an_error_in_finishing_reaches_the_worker_and_keeps_the_groups():
    def finish(answers):
        raise RuntimeError("the queue is gone")

    in_flight = InFlight(2, finish)
    outcomes: Future = Future()
    lease = type("Lease", (), {"id": "1"})()
    in_flight.add(Answer(lease, None, outcomes))
    assert in_flight.wait_for_room(WAIT) == 1
    outcomes.set_result(())
    in_flight._thread.join(WAIT)
    with pytest.raises(RuntimeError, match="queue is gone"):
        in_flight.wait_for_room(WAIT)
    assert in_flight.close() == [lease]
