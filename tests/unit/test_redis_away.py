"""A Redis that is there and does not serve: a replica without its master, stopped, or full."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from deploy.queues import RunQueue
from tests.redis_server import MISSING, redis_server
from tests.unit.test_redis_queue import open_run

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


def test_the_owners_status_says_that_memory_is_full(server):
    queue = open_run(server, "full")
    status = RunQueue(queue, queue.connection).status
    client = server.client()
    client.config_set("maxmemory", 1)
    try:
        queue.stats()
        assert status()["waiting"] == (
            f"waiting for Redis at {server.url}: its memory is full: raise maxmemory"
        )
    finally:
        client.config_set("maxmemory", 0)
    queue.stats()
    assert (status()["waiting"], queue.connection.interruptions) == (None, 0)
