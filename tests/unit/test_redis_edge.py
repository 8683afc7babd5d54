"""A server of a queue on Redis lives on when a command of its run ends, and serves the next."""

import pytest

from protos.edge_client import Peer
from replay.queue import QueueClosed, QueueUnavailable
from replay.remote_queue import RemoteReplayQueue
from tests.edges import serving_queue
from tests.redis_server import MISSING, redis_server
from tests.unit.test_redis_queue import open_run

pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))


def test_a_redis_that_is_away_does_not_end_a_run_that_has_been_resumed():
    with redis_server() as redis:
        queue = open_run(redis, "resumed", patience=0.1)
        server, service = serving_queue(queue)
        with server:
            client = RemoteReplayQueue(Peer(server.address, patience=0.5))
            queue.close()
            with pytest.raises(QueueClosed):
                client.lease("to_sample", 1, None, "s")
            open_run(redis, "resumed")
            assert len(client.lease("to_sample", 1, None, "s")) == 2
            redis.kill()
            with pytest.raises(QueueUnavailable, match=r"could not do `lease` for 0\.1 s"):
                client.lease("to_sample", 1, None, "s")
            client.disconnect()
        service.close()
