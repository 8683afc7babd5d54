"""The memory backend's waiting: in order, woken by expiry, and nothing lost when a call dies."""

import asyncio

import pytest

from protos.trajectory import FailureKind
from replay.config import QueueConfig
from replay.memory import MemoryReplayQueue
from replay.queue import Stage
from replay.state import QueueState
from replay.tickets import TicketSource

LONG = 20.0


def queue(**changes) -> MemoryReplayQueue:
    config = QueueConfig(**{"groups_per_step": 4, "block": 4, "lag": 0, **changes})
    return MemoryReplayQueue(config, TicketSource(0, ["a", "b"], "ordered", 0, 4))


async def sampled(replay: MemoryReplayQueue) -> None:
    leases = await replay.lease("to_sample", 1, None, "s")
    await replay.complete([(lease.id, b"sampled") for lease in leases])


async def started(coroutine):
    """A task that has run up to its first wait."""
    task = asyncio.create_task(coroutine)
    await asyncio.sleep(0)
    return task


def test_waiting_workers_are_served_in_the_order_they_came():
    async def run():
        replay = queue()
        waits = [await started(replay.lease("to_score", 1, None, w, LONG)) for w in "abcd"]
        await sampled(replay)
        return [(await wait)[0] for wait in waits]

    leases = asyncio.run(run())
    assert [lease.worker for lease in leases] == list("abcd")
    assert [lease.ordinal for lease in leases] == [0, 1, 2, 3]


def test_a_ticket_that_cannot_be_made_leaves_its_block_where_it_was(monkeypatch):
    made = TicketSource.ticket

    def fails_once(self, ordinal):
        if ordinal == 2:
            monkeypatch.setattr(TicketSource, "ticket", made)
            raise MemoryError("no ticket")
        return made(self, ordinal)

    monkeypatch.setattr(TicketSource, "ticket", fails_once)

    async def run():
        replay = queue()
        with pytest.raises(MemoryError, match="no ticket"):
            await replay.lease("to_sample", 1, None, "s")
        assert (await replay.stats()).stages["to_sample"].ready == 4
        return await replay.lease("to_sample", 1, None, "s")

    assert [lease.ordinal for lease in asyncio.run(run())] == [0, 1, 2, 3]


def test_of_very_many_names_the_latest_are_kept_and_no_expiry_is_uncounted(monkeypatch):
    monkeypatch.setattr("replay.seen.MOST_EXPIRED", 3)
    state = QueueState(QueueConfig(groups_per_step=1, block=1, max_deliveries=100), lambda o: b"")
    for now, worker in enumerate(("first", "second", "first", "third", "fourth", "fifth")):
        state.lease(Stage.TO_SAMPLE, 1, 1.0, worker, float(now))
    stats = state.stats(9.0)
    assert stats.expired_by_worker == {"third": 1, "fourth": 1, "fifth": 1, "(others)": 3}
    assert stats.expired == 6


def test_expiry_wakes_a_wait_without_any_other_call():
    async def run():
        replay = queue()
        await sampled(replay)
        await replay.lease("to_score", 3, LONG, "fine")
        await replay.lease("to_score", 1, 0.03, "stuck")
        waiting = await started(replay.lease("to_score", 1, LONG, "next", LONG))
        return await waiting

    (lease,) = asyncio.run(run())
    assert (lease.ordinal, lease.delivery) == (3, 2)


def test_a_lease_made_after_the_wait_began_wakes_it_too():
    async def run():
        replay = queue()
        await sampled(replay)
        first = await replay.lease("to_score", 4, LONG, "fine")
        waiting = await started(replay.lease("to_score", 1, LONG, "next", LONG))
        await replay.release([first[0].id])
        (stuck,) = await waiting
        waiting = await started(replay.lease("to_score", 1, LONG, "third", LONG))
        await replay.fail([(stuck.id, "lost", FailureKind.INFRASTRUCTURE)])
        return await waiting

    (lease,) = asyncio.run(run())
    assert lease.reasons == ("lost",)


def test_a_cancelled_wait_takes_nothing_with_it():
    async def run():
        replay = queue()
        waiting = await started(replay.lease("to_score", 4, None, "dies", LONG))
        leases = await replay.lease("to_sample", 1, None, "s")
        await replay.complete([(lease.id, b"sampled") for lease in leases])
        waiting.cancel()  # it has its answer, and nobody to bring it to
        await asyncio.wait({waiting})
        assert waiting.cancelled()
        early = await started(replay.lease("to_train", 1, None, "dies", LONG))
        early.cancel()
        await asyncio.wait({early})
        return await replay.lease("to_score", 4, None, "next")

    leases = asyncio.run(run())
    assert [lease.ordinal for lease in leases] == [0, 1, 2, 3]
    assert {lease.delivery for lease in leases} == {1}


def test_a_dead_worker_waits_for_nothing():
    async def run():
        replay = queue()
        waiting = await started(replay.lease("to_score", 4, None, "dead", LONG))
        assert await replay.release_worker("dead", "SIGKILL") == 0
        assert await waiting == []
        await sampled(replay)
        return await replay.lease("to_score", 4, None, "next")

    assert len(asyncio.run(run())) == 4


def test_two_queues_of_one_run_have_no_lease_in_common():
    async def run():
        dead, alive = queue(), queue()
        old = await dead.lease("to_sample", 1, None, "s")
        await alive.lease("to_sample", 1, None, "s")
        return await alive.complete([(lease.id, b"late") for lease in old])

    assert set(asyncio.run(run())) == {"too_late"}


def test_a_worker_that_holds_nothing_leaves_nothing_behind():
    async def run():
        replay = queue(lag=15)
        for number in range(4):  # each under a name of its own
            assert await replay.lease("to_train", 8, None, f"idle{number}") == []
            leases = await replay.lease("to_sample", 1, None, f"sampler{number}")
            await replay.complete([(lease.id, b"sampled") for lease in leases])
            first, *others = await replay.lease("to_score", 4, None, f"scorer{number}")
            await replay.complete([(first.id, b"scored")])
            assert set(replay._state._leases._newest) == {f"scorer{number}"}
            await replay.release([lease.id for lease in others[:-1]])
            await replay.release_worker(f"scorer{number}", "gone")
            assert replay._state._leases._newest == {}
        (step,) = await replay.lease("to_train", 1, None, "learner")
        await replay.ack([step.ordinal])
        return replay._state._leases._newest

    assert asyncio.run(run()) == {}


def test_a_lease_that_is_renewed_by_a_clock_that_was_set_back_ends_by_that_clock():
    state = QueueState(QueueConfig(groups_per_step=4, block=4, lag=0), lambda ordinal: b"")
    leases = state.lease(Stage.TO_SAMPLE, 1, 10.0, "s", now=100.0)
    assert len(state.renew([lease.id for lease in leases], now=50.0)) == 4
    assert state.next_deadline() == 60.0
    assert len(state.lease(Stage.TO_SAMPLE, 1, 10.0, "other", now=61.0)) == 4
