"""Which workers a pool has, before Ray has any."""

import pytest

from deploy.config import RunConfig
from deploy.pool import Pool


class Queue:
    """Workers that never began hold nothing of it."""


def make_pool(**rewards):
    config = RunConfig.model_validate(
        {
            "name": "run",
            "task": {"kind": "detection"},
            "model": {"preset": "tiny"},
            "rewards": {"terms": [{"path": "rewards.detection:RecallReward"}], **rewards},
            "evaluation": {"every": 0},
        }
    )
    pool = Pool(config)
    pool.fill()
    return pool


def names(pool, role="reward"):
    return [worker.name for worker in pool.of_role(role)]


def test_a_pool_begins_with_the_configs_workers():
    pool = make_pool(count=2)
    assert [worker.name for worker in pool.workers] == [
        *("learner", "sampler", "reward-0", "reward-1")
    ]
    assert names(make_pool(count=1, autoscale={"min": 3, "max": 4})) == [
        *("reward-0", "reward-1", "reward-2")
    ]


def test_no_name_is_given_twice():
    pool = make_pool()
    for count in (3, 1, 4, 0, 2):
        pool.scale("reward", count)
        pool.check(Queue())
        assert len(names(pool)) == count
    assert names(pool) == ["reward-6", "reward-7"]


@pytest.mark.parametrize(("count", "left"), [(3, [0, 1, 2]), (2, [0, 1]), (1, [0])])
def test_the_newest_drain_first(count, left):
    pool = make_pool(count=4)
    pool.scale("reward", count)
    assert names(pool) == [f"reward-{number}" for number in left]
    assert [worker.state for worker in pool.workers].count("draining") == 4 - count
    pool.check(Queue())
    assert len(pool.workers) == 2 + count


def test_of_those_the_ones_that_do_not_run_yet():
    pool = make_pool(count=3)
    first, second, third = pool.of_role("reward")
    second.running = third.running = object()
    pool.scale("reward", 2)
    assert first.draining
    assert names(pool) == [second.name, third.name]


def test_other_roles_stay_as_they_are():
    pool = make_pool(count=2)
    pool.scale("sampler", 3)
    assert names(pool, "sampler") == ["sampler", "sampler-1", "sampler-2"]
    assert len(names(pool)) == 2
