"""The interleavings of `test_replay_interleavings`, with the queue on a real redis-server.

The rules and the model are the same; only how one looks inside the queue differs. Time is the
model's, handed to the scripts in place of Redis's own.
"""

import itertools

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import rule, run_state_machine_as_test

from replay.queue import Stage
from replay.redis_queue import RedisReplayQueue, key_prefix
from tests.queue_model import mint
from tests.redis_server import MISSING, redis_server
from tests.unit.test_replay_interleavings import Interleavings

pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))

RUNS = itertools.count()
OWNER = "the model"


class _Ready:
    def __init__(self, since):
        self.since = since


class _Held:
    def __init__(self, ordinal):
        self.ordinal = ordinal

    def __eq__(self, other):
        return self.ordinal == other.ordinal


class StateOnRedis:
    """`QueueState`'s methods, the time an argument, over `RedisReplayQueue`."""

    def __init__(self, connection, config):
        self.now = 0.0
        self.config = config
        self.name = f"run{next(RUNS)}"
        self.client = connection._client
        self.queue = RedisReplayQueue(connection, self.name, mint, lambda: self.now)
        self.queue.open(config, OWNER, "run 0")

    def __deepcopy__(self, memo):
        return self  # stats changes nothing that the next call at the same time would not

    def at(self, now):
        self.now = now
        return self.queue

    def lease(self, stage, n, ttl, worker, now, first=None):
        return self.at(now).lease(stage, n, ttl, worker, first=first)

    def renew(self, ids, now):
        return self.at(now).renew(ids)

    def complete(self, lease_id, payload, now):
        return self.at(now).complete([(lease_id, payload)])[0]

    def fail(self, lease_id, reason, kind, now):
        return self.at(now).fail([(lease_id, reason, kind)])[0]

    def release(self, ids, now):
        self.at(now).release(ids)

    def release_worker(self, worker, reason, now):
        return self.at(now).release_worker(worker, reason)

    def expire(self, now):
        self.at(now).stats()

    def ack(self, ordinals, now, dropped=False):
        self.at(now).ack([] if dropped else ordinals, ordinals if dropped else [])

    def stats(self, now):
        return self.at(now).stats()

    def frontier(self):
        return self.queue.frontier()

    def restart(self, frontier, now):
        self.at(now).restart(frontier)

    def is_acked(self, ordinal):
        frontier = self.frontier()
        return ordinal < frontier.next_unacked or ordinal in frontier.acked_above

    # What the invariants look at.

    def _key(self, name):
        return key_prefix(self.name) + name

    @property
    def _items(self):
        items = self.client.hgetall(self._key("items"))
        payloads = self.client.hgetall(self._key("payloads"))
        parked = self.client.hkeys(self._key("parked"))
        assert payloads.keys() <= {*items, *parked}, "no payload outlives its group"
        return {int(ordinal): (packed, payloads.get(ordinal)) for ordinal, packed in items.items()}

    @property
    def _leases(self):
        ids = self.client.hkeys(self._key("leases"))
        ends = [self.client.zrange(self._key(f"{stage}:deadlines"), 0, -1) for stage in Stage]
        assert sorted(ids) == sorted(itertools.chain(*ends)), "every lease ends"
        holders = self.client.eval(
            "local o = {} for _, p in ipairs(redis.call('HVALS', KEYS[1])) do "
            "o[#o + 1] = cmsgpack.unpack(p)[1] end return o",
            1,
            self._key("leases"),
        )
        return dict(enumerate(map(_Held, sorted(holders))))

    @property
    def _ready(self):
        ready = {}
        for stage in Stage:
            members = self.client.zrange(self._key(f"{stage}:ready"), 0, -1)
            since = dict(self.client.zrange(self._key(f"{stage}:since"), 0, -1, withscores=True))
            assert sorted(members) == sorted(since)
            ready[stage] = _Ready({int(ordinal): time for ordinal, time in since.items()})
        return ready


def test_any_interleaving_keeps_the_invariants_on_redis():
    with redis_server("--appendfsync", "no") as server:
        connection = server.connect()

        class OnRedis(Interleavings):
            def make_queue(self, frontier=None):
                if frontier is None:
                    return StateOnRedis(connection, self.config)
                # Of a run that started over: another identity.
                assert not self.queue.at(self.now).open(
                    self.config, OWNER, f"run {self.incarnations}"
                )
                self.queue.restart(frontier, self.now)
                return self.queue

            @rule()
            def command_resumes(self):
                """Who held leases ended with the last command; the rest is as it was."""
                identity = f"run {self.incarnations}"
                assert self.queue.at(self.now).open(self.config, OWNER, identity)
                self.live.clear()

        run_state_machine_as_test(
            OnRedis,
            settings=settings(
                max_examples=60,
                stateful_step_count=40,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
        connection.close()
