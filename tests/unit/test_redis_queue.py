"""What the queue on Redis promises beside the contract: durable, refusing when full, no secrets."""

import logging
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis

from protos.trajectory import FailureKind
from replay.config import QueueConfig
from replay.queue import Completion, Frontier, QueueFull, QueueUnavailable, Stage
from replay.redis_queue import RedisReplayQueue
from tests.redis_server import MISSING, redis_server

pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))

CONFIG = QueueConfig(groups_per_step=4, block=2, lag=1)


def mint(ordinal):
    return b"ticket %d" % ordinal


@pytest.fixture(scope="module")
def server():
    with redis_server() as running:
        yield running


def open_run(server, name, config=CONFIG, patience=20.0):
    queue = RedisReplayQueue(server.connect(patience), name, mint)
    queue.open(config, "here", "a run")
    return queue


def pass_stage(queue, stage, n=9, payload=b"payload"):
    leases = queue.lease(stage, n, None, "worker")
    completions = queue.complete([(lease.id, payload) for lease in leases])
    assert set(completions) <= {Completion.DONE}
    return [lease.ordinal for lease in leases]


# -- durability ---------------------------------------------------------------------------------


def test_nothing_acknowledged_is_lost_and_nothing_trained_twice_over_kills_of_the_server():
    """Workers and a learner go on through five SIGKILLs at moments that nothing chose."""
    config = QueueConfig(groups_per_step=4, block=2, lag=2, total_groups=200)
    trained, answered = [], set()
    with redis_server() as server:
        open_run(server, "killed", config)
        over = threading.Event()

        def work(stage, n):
            queue = RedisReplayQueue(server.connect(60.0), "killed", mint)
            while not over.is_set():
                leases = queue.lease(stage, n, None, stage, wait=0.05)
                items = [(lease.id, b"%s %d" % (stage.encode(), lease.ordinal)) for lease in leases]
                assert all(c is Completion.DONE for c in queue.complete(items))
                answered.update((stage, lease.ordinal) for lease in leases)

        def learn():
            queue = RedisReplayQueue(server.connect(60.0), "killed", mint)
            while not queue.stats().finished:
                leases = queue.lease("to_train", 4, None, "learner", wait=0.05)
                assert all(g.payload == b"to_score %d" % g.ordinal for g in leases)
                trained.extend(lease.ordinal for lease in leases)
                queue.ack([lease.ordinal for lease in leases])
            over.set()
            return queue.stats()

        with ThreadPoolExecutor(3) as pool:
            workers = [pool.submit(work, "to_sample", 1), pool.submit(work, "to_score", 3)]
            learner = pool.submit(learn)
            for kills in range(1, 6):
                while len(trained) < 30 * kills and not learner.done():
                    time.sleep(0.001)
                server.kill(signal.SIGKILL)
                server.start()
            stats = learner.result(timeout=60)
            for worker in workers:
                worker.result(timeout=60)
        assert trained == list(range(200))
        assert answered == {(s, o) for s in ("to_sample", "to_score") for o in range(200)}
        assert (stats.acked, stats.redelivered, stats.too_late, stats.expired) == (200, 0, 0, 0)


def test_everything_is_as_it_was_after_a_kill():
    with redis_server() as server:
        queue = open_run(server, "kept", QueueConfig(groups_per_step=4, block=2, lag=1))
        pass_stage(queue, "to_sample", payload=b"\x00\xff" * 5000)
        (held, bad, *_) = queue.lease("to_score", 3, None, "scorer")
        queue.fail([(bad.id, "bröken", FailureKind.DATA)])
        before = (queue.frontier(), queue.quarantine(), queue.stats().out)
        server.kill()
        server.start()
        assert (queue.frontier(), queue.quarantine(), queue.stats().out) == before
        assert held.payload == b"\x00\xff" * 5000
        assert queue.complete([(held.id, b"scored")]) == [Completion.DONE]
        assert queue.stats().last_reasons == ("ordinal 1, to_score: bröken",)


def lose_answers(queue, times=1):
    """The next answers are lost on the way, after Redis has done what was asked."""
    run, left = queue.connection.run, [times]

    def losing(what, attempt):
        def once(client, again):
            answer = attempt(client, again)
            if left[0]:
                left[0] -= 1
                raise redis.ConnectionError("Connection closed by server.")
            return answer

        return run(what, once)

    queue.connection.run = losing


def test_a_call_whose_answer_was_lost_has_its_effect_once(server):
    queue = open_run(server, "lost")
    lose_answers(queue)
    leases = queue.lease("to_sample", 1, None, "s")
    assert [lease.ordinal for lease in leases] == [0, 1]
    lose_answers(queue, 2)
    assert queue.complete([(g.id, b"p") for g in leases]) == [Completion.DONE] * 2
    (lease,) = queue.lease("to_score", 1, None, "r")
    lose_answers(queue)
    failed = queue.fail([(lease.id, "no memory", FailureKind.INFRASTRUCTURE)])
    assert failed == [Completion.DONE]
    stats = queue.stats()
    assert stats.too_late == 0
    assert len(stats.last_reasons) == 1
    assert [lease.ordinal for lease in queue.lease("to_sample", 1, None, "s")] == [2, 3]


def overtaken(queue, call):
    """The answer to the second attempt of a call, and the first one, which is still on its way."""
    run, late = queue.connection.run, []

    def second_only(what, attempt):
        late.append(attempt)
        return run(what, lambda client, again: attempt(client, True))

    queue.connection.run = second_only
    answer = call()
    queue.connection.run = run
    return answer, lambda: run("late", lambda client, again: late[0](client, False))


def test_an_attempt_that_comes_after_its_repetition_leases_nothing(server):
    queue = open_run(server, "late lease")
    leases, late = overtaken(queue, lambda: queue.lease("to_sample", 1, None, "s"))
    late()
    assert queue.stats().stages[Stage.TO_SAMPLE].leased == len(leases) == 2
    queue.release([lease.id for lease in leases])
    late()
    assert queue.stats().stages[Stage.TO_SAMPLE].leased == 0
    nothing, late = overtaken(queue, lambda: queue.lease("to_score", 1, None, "r"))
    pass_stage(queue, "to_sample")
    late()  # a later call of this thread was handled meanwhile
    assert nothing == queue.lease("to_score", 1, None, "r")[1:] == []
    assert queue.stats().stages[Stage.TO_SCORE].leased == 1


def test_an_attempt_that_comes_after_its_repetition_decides_nothing(server):
    queue = open_run(server, "late outcome")
    pass_stage(queue, "to_sample")
    for outcome in (
        lambda lease_id: queue.fail([(lease_id, "no", FailureKind.INFRASTRUCTURE)]),
        lambda lease_id: queue.complete([(lease_id, b"scored")]),
    ):
        (lease,) = queue.lease("to_score", 1, None, "r")
        answer, late = overtaken(queue, lambda: outcome(lease.id))  # noqa: B023  # called at once
        late()
        assert answer == [Completion.DONE]
    assert queue.stats().too_late == 0
    queue.lease("to_score", 1, None, "dies")
    released, late = overtaken(queue, lambda: queue.release_worker("dies", "SIGKILL"))
    queue.lease("to_score", 1, None, "dies")  # started again
    late()
    assert queue.stats().held_by_worker["dies"] == released == 1


def test_an_attempt_that_comes_after_its_repetition_takes_nobody_back(server):
    queue = open_run(server, "late learner")
    pass_stage(queue, "to_sample")
    pass_stage(queue, "to_score")
    epoch, late = overtaken(queue, queue.fence)
    late()
    _, late = overtaken(queue, lambda: queue.restart(Frontier(), epoch))
    queue.ack([g.ordinal for g in queue.lease("to_train", 4, None, "l", epoch=epoch)], epoch=epoch)
    late()
    assert queue.frontier() == Frontier(4)
    _, late = overtaken(queue, queue.close)
    late()
    queue.open(CONFIG, "here", "a run")
    late()
    assert not queue.stats().closed


def test_another_request_is_not_answered_from_memory(server):
    queue = open_run(server, "requests")
    first = queue.lease("to_sample", 1, None, "s")
    lose_answers(queue)
    assert [lease.ordinal for lease in queue.lease("to_sample", 1, None, "s")] == [2, 3]
    assert queue.complete([(g.id, b"p") for g in first]) == [Completion.DONE] * 2


# -- out of reach, or full ----------------------------------------------------------------------


def test_a_lost_server_is_waited_for_and_told(caplog):
    told = []
    with redis_server() as server:
        queue = open_run(server, "waits")
        connection = queue.connection
        connection.on_waiting = lambda: told.append(connection.waiting)
        server.kill()
        with ThreadPoolExecutor(1) as pool, caplog.at_level(logging.WARNING):
            waiting = pool.submit(queue.lease, "to_sample", 1, None, "s")
            while not told:
                time.sleep(0.005)
            server.start()
            assert len(waiting.result(timeout=30)) == 2
    assert "waiting for Redis at unix://" in told[0]
    assert connection.waiting is None
    assert connection.interruptions == 1
    messages = [record.message for record in caplog.records]
    assert messages[0].startswith("waiting for Redis")
    assert messages[-1].endswith("answers again")


def test_a_server_that_stays_away_is_unavailable_after_the_patience():
    with redis_server() as server:
        queue = open_run(server, "gone", patience=0.3)
        server.kill()
        with pytest.raises(QueueUnavailable, match=r"could not do `frontier` for 0.3 s: no answer"):
            queue.frontier()
        server.start()
        assert queue.frontier() == Frontier()


def test_a_server_that_lost_its_replicas_is_waited_for(server):
    queue = open_run(server, "no replicas")
    server.client().config_set("min-replicas-to-write", 1)
    try:
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(queue.lease, "to_sample", 1, None, "s")
            while queue.connection.waiting is None:
                assert not waiting.done() or waiting.result()
                time.sleep(0.005)
            assert "NOREPLICAS" in queue.connection.waiting
            server.client().config_set("min-replicas-to-write", 0)
            assert len(waiting.result(timeout=30)) == 2
    finally:
        server.client().config_set("min-replicas-to-write", 0)


def test_a_queue_that_redis_lost_is_not_made_anew_in_silence(server):
    queue = open_run(server, "flushed")
    server.client().delete("rewardtune:{flushed}:meta")
    with pytest.raises(QueueUnavailable, match="no queue of the run flushed"):
        queue.lease("to_sample", 1, None, "s")


def test_full_memory_refuses_samples_and_drops_nothing():
    megabyte = b"x" * 2**20
    config = QueueConfig(groups_per_step=8, block=1, lag=1)
    with redis_server("--maxmemory", "12mb", "--maxmemory-policy", "noeviction") as server:
        queue = open_run(server, "full", config, patience=0.2)
        done, refused = [], None
        while refused is None:
            leases = queue.lease("to_sample", 1, None, "s")
            if not leases:
                break
            try:
                queue.complete([(leases[0].id, megabyte)])
            except QueueFull as error:
                refused = (leases[0], str(error))
            else:
                done.append(leases[0].ordinal)
        held, message = refused
        assert "raise maxmemory" in message
        assert len(done) >= 2
        # Scored groups are no larger than they were: they pass, are trained, and make room.
        for lease in queue.lease("to_score", 9, None, "r"):
            assert lease.payload == megabyte
            assert queue.complete([(lease.id, b"scored")]) == [Completion.DONE]
        assert queue.complete([(held.id, megabyte)]) == [Completion.DONE]
        assert queue.stats().out == len(done) + 1
        assert queue.stats().quarantined == 0


def test_while_memory_is_full_no_work_is_begun_and_what_is_done_waits_for_room():
    with redis_server("--maxmemory-policy", "noeviction") as server:
        queue = open_run(server, "room", QueueConfig(groups_per_step=8, block=1, lag=1))
        (lease,) = queue.lease("to_sample", 1, None, "s")
        server.client().config_set("maxmemory", 1)
        assert queue.lease("to_sample", 9, None, "s") == []
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(queue.complete, [(lease.id, b"sample")])
            while queue.connection.waiting is None:
                time.sleep(0.005)
            server.client().config_set("maxmemory", 0)
            assert waiting.result(timeout=30) == [Completion.DONE]
        assert len(queue.lease("to_sample", 9, None, "s")) == 9
