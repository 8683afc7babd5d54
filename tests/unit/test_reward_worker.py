"""The reward worker on a real queue: scored groups go on, failures stay typed and alone."""

import asyncio
import errno
import threading
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import pytest

from protos.trajectory import (
    Failed,
    FailureKind,
    InfrastructureError,
    Sampled,
    Scored,
    ScoredGroup,
    Ticket,
)
from replay import pulling
from replay.config import QueueConfig
from replay.lease_keeper import LeaseKeeper
from replay.memory import MemoryReplayQueue
from replay.queue import QueueClosed
from replay.tickets import TicketSource
from rewards import worker as worker_module
from rewards.worker import RewardWorker
from vision.tasks.task import Example

GROUPS, SAMPLES, LENGTH = 4, 2, 3
LONG = 600.0
WAIT = 60.0


class ThreadedQueue:
    """The memory queue as roles see it: synchronous, its event loop in a thread of its own."""

    def __init__(self, config: QueueConfig):
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        tickets = TicketSource(0, [str(n) for n in range(GROUPS)], "ordered", 0, GROUPS)
        self._queue = MemoryReplayQueue(config, tickets)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._queue, name)
        return lambda *args, **kwargs: asyncio.run_coroutine_threadsafe(
            method(*args, **kwargs), self._loop
        ).result(WAIT)

    def end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(WAIT)
        self._loop.close()


class FakeTask:
    """An example is its id; a prediction is the sum of its tokens."""

    auxiliary_arrays: ClassVar = {"iou": (2,)}

    def __init__(self):
        self.loaded: list[tuple[str, str, int]] = []

    def load(self, split, example_id, augmentation_seed):
        self.loaded.append((split, example_id, augmentation_seed))
        return Example(example_id, np.zeros((1, 1, 3), np.float32), int(example_id))

    def decode(self, example, tokens, logprobs):
        assert self.loaded[-1][1] == example.example_id
        assert tokens.shape == logprobs.shape == (SAMPLES, LENGTH)
        return [int(row.sum()) for row in tokens]


class FakeReward:
    """Prediction plus target, or on chosen examples what `odd` says."""

    provides = ()

    def __init__(self, odd=None):
        self._odd = odd or {}

    def score(self, examples, predictions):
        odd = self._odd.get(examples[0].example_id)
        if isinstance(odd, Exception):
            raise odd
        if odd is not None:
            return odd
        return [Scored(float(e.target + p)) for e, p in zip(examples, predictions, strict=True)]


@pytest.fixture
def queue() -> Iterator[ThreadedQueue]:
    config = QueueConfig(
        groups_per_step=GROUPS, block=GROUPS, max_deliveries=2, score_ttl=LONG, total_groups=GROUPS
    )
    threaded = ThreadedQueue(config)
    leases = threaded.lease("to_sample", 1, None, "sampler")
    threaded.complete([(lease.id, sampled(lease).to_bytes()) for lease in leases])
    yield threaded
    threaded.end()


def sampled(lease) -> Sampled:
    tokens = np.full((SAMPLES, LENGTH), lease.ordinal, np.int32)
    tokens[1] += 1
    ticket = Ticket.from_bytes(lease.payload)
    return Sampled(ticket, tokens, np.zeros_like(tokens, np.float32), 0, "test")


def work(
    queue: ThreadedQueue, reward: Any, groups_per_lease: int = 3, task: FakeTask | None = None
) -> RewardWorker:
    """Runs a worker until the queue has nothing left to score; then closes it."""
    keeper = LeaseKeeper(queue, LONG, LONG, on_stuck=pytest.fail)
    task = task or FakeTask()
    worker = RewardWorker(task, reward, queue, keeper, "reward-0", groups_per_lease)

    def close_when_scored() -> None:
        while not queue.lease("to_train", GROUPS, None, "learner", WAIT):
            pass
        trained.set()
        queue.close()

    # Ordered mode gives the learner the whole step, tombstones too, or nothing.
    trained = threading.Event()
    watcher = threading.Thread(target=close_when_scored, daemon=True)
    got: list[Any] = []
    lease = queue.lease

    def remember(*args, **kwargs):
        leases = lease(*args, **kwargs)
        if args[0] == "to_train":
            got.extend(leases)
        return leases

    queue.lease = remember
    watcher.start()
    worker.run()
    watcher.join(WAIT)
    keeper.close()
    assert trained.is_set()
    worker.trained = sorted(got, key=lambda one: one.ordinal)  # type: ignore[attr-defined]
    return worker


def outcomes(worker) -> dict[int, Any]:
    """Ordinal -> its outcomes, or the reasons of a quarantined group."""
    return {
        lease.ordinal: lease.reasons
        if lease.tombstone
        else ScoredGroup.from_bytes(lease.payload).outcomes
        for lease in worker.trained
    }


def expected(ordinal: int, example_id: str) -> tuple[Scored, ...]:
    return tuple(Scored(float(int(example_id) + LENGTH * (ordinal + k))) for k in range(SAMPLES))


def example_ids() -> dict[int, str]:
    tickets = TicketSource(0, [str(n) for n in range(GROUPS)], "ordered", 0, GROUPS)
    return {ordinal: tickets.ticket(ordinal).example_id for ordinal in range(GROUPS)}


@pytest.mark.parametrize("groups_per_lease", [1, 3, 16])
def test_every_group_is_scored_with_its_own_example(queue, groups_per_lease):
    worker = work(queue, FakeReward(), groups_per_lease)
    assert outcomes(worker) == {n: expected(n, example) for n, example in example_ids().items()}
    assert (worker.status.groups, worker.status.failed_groups) == (GROUPS, 0)


def test_the_sampled_group_travels_on_unchanged_and_seeds_the_augmentation(queue):
    worker = work(queue, FakeReward())
    tickets = TicketSource(0, [str(n) for n in range(GROUPS)], "ordered", 0, GROUPS)
    for lease in worker.trained:
        group = ScoredGroup.from_bytes(lease.payload).sampled
        assert group.ticket == tickets.ticket(lease.ordinal)
        np.testing.assert_array_equal(group.tokens[:, 0], [lease.ordinal, lease.ordinal + 1])
    wanted = {("train", t.example_id, t.augmentation_seed) for t in map(tickets.ticket, range(4))}
    assert set(worker._task.loaded) == wanted


@pytest.mark.parametrize(
    ("odd", "reason"),
    [
        (KeyError("annotation"), "KeyError: 'annotation'"),
        ([Scored(1.0)], "1 outcomes for 2 predictions"),
        ([1.0, 2.0], "expected Scored, Abstained or Failed"),
        ([Scored(1.0, {"iou": np.zeros(3, np.float32)})] * 2, "iou of shape (3,)"),
        ([Scored(1.0, {"iou": np.full(2, -1e30)})] * 2, "iou with numbers beyond 1,000,000"),
    ],
)
def test_a_broken_reward_quarantines_its_own_group_only(queue, odd, reason):
    ill, bad_example = 1, example_ids()[1]
    worker = work(queue, FakeReward({bad_example: odd}))
    result = outcomes(worker)
    (why,) = result.pop(ill)
    assert reason in why
    assert result == {n: expected(n, e) for n, e in example_ids().items() if n != ill}
    assert worker.status.failed_groups == 1
    assert f"ordinal {ill}, example {bad_example}" in worker.status.last_failures[-1]
    (quarantined,) = queue.quarantine()
    assert (quarantined.ordinal, quarantined.stage) == (ill, "to_score")


@pytest.mark.parametrize(
    "odd",
    [
        InfrastructureError("service is down"),
        [Scored(1.0), Failed("service is down", FailureKind.INFRASTRUCTURE)],
    ],
)
def test_an_infrastructure_failure_is_tried_again_before_quarantine(queue, odd):
    ill = 2
    worker = work(queue, FakeReward({example_ids()[ill]: odd}))
    reasons = outcomes(worker)[ill]
    assert len(reasons) == 2  # max_deliveries
    assert all("service is down" in reason for reason in reasons)
    assert worker.status.failed_groups == 2


def test_a_file_system_that_comes_back_costs_no_delivery(queue, monkeypatch):
    monkeypatch.setattr(pulling, "RETRY_SECONDS", 0.01)
    away = [OSError(errno.ESTALE, "Stale file handle")] * 5

    class Away(FakeTask):
        def load(self, *asked):
            if away:
                raise away.pop()
            return super().load(*asked)

    worker = work(queue, FakeReward(), task=Away())
    assert outcomes(worker) == {n: expected(n, e) for n, e in example_ids().items()}
    assert (away, worker.status.failed_groups) == ([], 0)


def test_a_file_system_that_stays_away_costs_the_groups_tries(queue, monkeypatch):
    monkeypatch.setattr(worker_module, "LOAD_SECONDS", 0.0)
    monkeypatch.setattr(pulling, "RETRY_SECONDS", 0.0)
    ill = 1

    class Away(FakeTask):
        def load(self, split, example_id, augmentation_seed):
            if example_id == example_ids()[ill]:
                raise OSError(errno.ESTALE, "Stale file handle")
            return super().load(split, example_id, augmentation_seed)

    result = outcomes(work(queue, FakeReward(), task=Away()))
    assert ["Stale file handle" in reason for reason in result.pop(ill)] == [True, True]
    assert result == {n: expected(n, e) for n, e in example_ids().items() if n != ill}


def test_a_reward_that_is_not_finite_fails_its_sample_and_the_group_goes_on(queue):
    ill = 0
    worker = work(queue, FakeReward({example_ids()[ill]: [Scored(float("nan")), Scored(3.0)]}))
    first, second = outcomes(worker)[ill]
    assert isinstance(first, Failed)
    assert first.kind is FailureKind.DATA
    assert second == Scored(3.0)
    assert (worker.status.failed_groups, worker.status.failed_samples) == (0, 1)
    assert queue.quarantine() == []


def test_a_stopped_worker_ends_and_leaves_the_rest_to_others(queue):
    keeper = LeaseKeeper(queue, LONG, LONG, on_stuck=pytest.fail)
    worker = RewardWorker(FakeTask(), FakeReward(), queue, keeper, "reward-0", 1)
    worker.stop()
    worker.run()
    keeper.close()
    assert worker.status.groups == 0
    assert len(queue.lease("to_score", GROUPS, None, "reward-1")) == GROUPS


def test_a_closed_queue_ends_the_worker(queue):
    queue.close()
    keeper = LeaseKeeper(queue, LONG, LONG, on_stuck=pytest.fail)
    worker = RewardWorker(FakeTask(), FakeReward(), queue, keeper, "reward-0", 1)
    assert worker.run()["groups"] == 0
    keeper.close()
    with pytest.raises(QueueClosed):
        queue.lease("to_score", 1, None, "reward-0")


def test_a_worker_that_is_told_to_stop_finishes_its_group_and_releases_the_others(queue):
    class StoppingReward(FakeReward):
        def score(self, examples, predictions):
            worker.stop()
            return super().score(examples, predictions)

    keeper = LeaseKeeper(queue, LONG, LONG, on_stuck=pytest.fail)
    worker = RewardWorker(FakeTask(), StoppingReward(), queue, keeper, "reward-0", GROUPS)
    assert worker.run()["groups"] == 1
    keeper.close()
    to_score = queue.stats().stages["to_score"]
    assert (to_score.ready, to_score.leased) == (GROUPS - 1, 0)
    assert queue.stats().redelivered == 0
