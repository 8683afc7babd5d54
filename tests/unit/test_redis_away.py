"""A Redis that is there and does not serve: a replica without its master, stopped, or full."""

import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from actors.sampler import Sampler
from deploy.queues import RunQueue
from replay import redis_connection
from replay.lease_keeper import LeaseKeeper
from replay.queue import Completion, QueueFull, Stage
from replay.redis_queue import RedisReplayQueue, key_prefix
from replay.tickets import TicketSource
from tests.redis_server import MISSING, redis_server
from tests.unit.test_redis_queue import CONFIG, open_run, pass_stage
from tests.unit.test_sampler import ImageTask, ToyEngine

pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))


@pytest.fixture(scope="module")
def server():
    with redis_server() as running:
        yield running


def until_it_waits(queue, asked):
    """Why the queue's Redis is waited for; `asked` is the call that waits, which must not end."""
    while (why := queue.connection.waiting) is None:
        assert not asked.done() or asked.result()
        time.sleep(0.005)
    return why


@pytest.mark.parametrize(
    ("stale", "said"), [("no", "Link with MASTER is down"), ("yes", "read only replica")]
)
def test_a_replica_is_waited_for_until_it_is_promoted(server, stale, said):
    queue, client = open_run(server, f"replica {stale}"), server.client()
    client.config_set("replica-serve-stale-data", stale)
    client.replicaof("127.0.0.1", "1")  # nobody listens there
    try:
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(queue.lease, "to_sample", 1, None, "s")
            assert said in until_it_waits(queue, waiting)
            client.replicaof("NO", "ONE")
            assert len(waiting.result(timeout=30)) == 2
    finally:
        client.replicaof("NO", "ONE")


def test_the_owner_is_told_that_memory_is_full_and_gives_up_when_nothing_is_trained(server):
    queue = open_run(server, "full", patience=0.2)
    step = CONFIG.groups_per_step
    run_queue = RunQueue(queue, queue.connection)
    status = run_queue.status
    client = server.client()

    def check_after_the_patience():
        run_queue.check_room(queue.stats(), step)
        time.sleep(0.3)
        run_queue.check_room(queue.stats(), step)

    for stage in ("to_sample", "to_score"):
        pass_stage(queue, stage)
    held = queue.lease("to_train", step - 1, None, "learner")
    client.config_set("maxmemory", 1)
    try:
        with pytest.raises(QueueFull, match=r"no room for 0.2 s, in which no group was trained"):
            check_after_the_patience()
        assert status()["waiting"] == (
            f"waiting for Redis at {server.url}: its memory is full: raise maxmemory"
        )
        held += queue.lease("to_train", 1, None, "learner")
        check_after_the_patience()  # a step is at work, however long it takes
        queue.ack([lease.ordinal for lease in held[1:]])
        run_queue.check_room(queue.stats(), step)
        time.sleep(0.3)
        queue.ack([held[0].ordinal])  # training makes room
        run_queue.check_room(queue.stats(), step)
    finally:
        client.config_set("maxmemory", 0)
    check_after_the_patience()
    assert (status()["waiting"], queue.connection.interruptions) == (None, 0)


def test_samples_that_find_no_room_go_back_untried(server):
    client, block = server.client(), 4
    sampling = open_run(server, "no room", CONFIG.model_copy(update={"block": block}), patience=0.1)
    keeper = LeaseKeeper(sampling, 60.0, 60.0, on_stuck=pytest.fail)
    tickets = TicketSource(0, ["0", "1"], "ordered", 0, block)
    sampling._mint = lambda ordinal: tickets.ticket(ordinal).to_bytes()
    arguments = (sampling, keeper, lambda version: (0, {}), tickets.ticket, "s", block, 2)
    sampler = Sampler(ImageTask({}), ToyEngine(), "toy", *arguments)
    try:
        for _ in range(CONFIG.max_deliveries + 1):
            leases = sampling.lease("to_sample", 1, None, "s")
            assert [(lease.ordinal, lease.delivery) for lease in leases] == [
                (ordinal, 1) for ordinal in range(block)
            ]
            client.config_set("maxmemory", 1)
            with pytest.raises(QueueFull, match=r"not do `complete` for 0.1 s: its memory is"):
                sampler._work(leases)
            client.config_set("maxmemory", 0)
    finally:
        client.config_set("maxmemory", 0)
        keeper.close()
    stats = sampling.stats()
    assert (stats.redelivered, stats.quarantined, stats.last_reasons) == (0, 0, ())


def test_calls_that_time_out_on_a_stopped_server_have_their_effect_once(server, monkeypatch):
    monkeypatch.setattr(redis_connection, "SOCKET_SECONDS", 0.3)
    sampler, scorer = open_run(server, "stopped"), RedisReplayQueue(server.connect(), "stopped")
    sampled = sampler.lease("to_sample", 1, None, "s")
    sampler.complete([(lease.id, b"sampled") for lease in sampled])
    scoring = scorer.lease("to_score", 2, None, "r")
    server.signal(signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(2) as pool:
            leasing = pool.submit(sampler.lease, "to_sample", 1, None, "s")
            completing = pool.submit(scorer.complete, [(g.id, b"scored") for g in scoring])
            for queue, asked in ((sampler, leasing), (scorer, completing)):
                assert "Timeout" in until_it_waits(queue, asked)
            server.signal(signal.SIGCONT)
            leases = leasing.result(timeout=30)
            assert completing.result(timeout=30) == [Completion.DONE] * 2
    finally:
        server.signal(signal.SIGCONT)
    assert [lease.ordinal for lease in leases] == [2, 3]
    stats = sampler.stats()
    stages = {stage: (of.ready, of.leased) for stage, of in stats.stages.items()}
    assert stages == {Stage.TO_SAMPLE: (0, 2), Stage.TO_SCORE: (0, 0), Stage.TO_TRAIN: (2, 0)}
    assert (stats.out, stats.too_late, stats.redelivered) == (4, 0, 0)
    assert sampler.complete([(g.id, b"sampled") for g in leases]) == [Completion.DONE] * 2


@pytest.mark.parametrize(("slow", "counted"), [(0.0, 1), (float("inf"), 0)])
def test_an_answer_that_took_long_counts_as_an_interruption(server, monkeypatch, slow, counted):
    queue = open_run(server, f"slow {slow}")
    before = queue.connection.interruptions
    monkeypatch.setattr(redis_connection, "SLOW_SECONDS", slow)
    queue.stats()
    assert queue.connection.interruptions - before == counted
    assert queue.connection.waiting is None


def test_leases_last_for_longer_while_nobody_can_renew_them():
    with redis_server() as server:
        held = open_run(server, "outage", CONFIG.model_copy(update={"score_ttl": 2.0}))
        dead = RedisReplayQueue(server.connect(), "outage")
        pass_stage(held, "to_sample")
        renewed = held.lease("to_score", 2, None, "lives")
        lost = dead.lease("to_score", 1, None, "dies")
        server.kill()
        time.sleep(3.5)  # longer than the leases, and than a run is not asked for anything
        server.start()
        assert held.renew([lease.id for lease in renewed]) == [lease.id for lease in renewed]
        while dead.renew([]) or (stats := held.stats()).expired == 0:
            time.sleep(0.2)
            held.renew([lease.id for lease in renewed])
        assert stats.expired_by_worker == {"dies": 1}
        assert [lease.ordinal for lease in held.lease("to_score", 1, None, "lives")] == [
            lease.ordinal for lease in lost
        ]


def test_a_clock_that_steps_back_leaves_the_time_of_the_last_call_right(server):
    queue, connection = open_run(server, "stepped", CONFIG), server.connect()
    queue.stats()
    meta = f"{key_prefix('stepped')}meta"

    def served():
        return float(connection.run("hget", lambda client, again: client.hget(meta, "served")))

    ahead = served() + 600
    connection.run("hset", lambda client, again: client.hset(meta, "served", ahead))
    queue.stats()
    assert served() < ahead - 300
