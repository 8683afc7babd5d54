"""The soak's schedule: a pure function of its seed, and every kind gets its turn."""

from collections import Counter

import pytest

from deploy.soak.schedule import (
    HARMLESS,
    KINDS,
    MOST_SECONDS_LATE,
    MOST_STEPS_APART,
    chosen_kinds,
    make_schedule,
)

WORKERS = {"sampler": 3, "reward": 2}


def test_a_seed_is_a_schedule():
    kinds = chosen_kinds(None, redis=False)
    assert make_schedule(kinds, 40, 7, WORKERS) == make_schedule(kinds, 40, 7, WORKERS)
    assert make_schedule(kinds, 40, 7, WORKERS) != make_schedule(kinds, 40, 8, WORKERS)


def test_a_longer_schedule_begins_as_the_shorter_one():
    kinds = chosen_kinds(None, redis=True)
    assert make_schedule(kinds, 50, 1, WORKERS)[:20] == make_schedule(kinds, 20, 1, WORKERS)


def test_every_kind_comes_as_often_as_the_others():
    kinds = chosen_kinds(None, redis=True)
    times = Counter(f.kind.name for f in make_schedule(kinds, 5 * len(kinds), 3, WORKERS))
    assert times == dict.fromkeys(kinds, 5)


def test_faults_hit_workers_that_there_are_and_do_not_wait_long():
    schedule = make_schedule(chosen_kinds(None, redis=False), 300, 5, WORKERS)
    assert [fault.index for fault in schedule] == list(range(300))
    for fault in schedule:
        assert 0 <= fault.worker < WORKERS.get(fault.kind.victim, 1)
        assert 1 <= fault.steps <= MOST_STEPS_APART
        assert 0 <= fault.late <= MOST_SECONDS_LATE
    hit = {(f.kind.victim, f.worker) for f in schedule if f.kind.victim in WORKERS}
    assert hit == {(role, i) for role, count in WORKERS.items() for i in range(count)}


def test_the_kinds_of_a_run_are_those_of_its_queue():
    memory, redis = chosen_kinds(None, redis=False), chosen_kinds(None, redis=True)
    assert set(memory) - set(redis) == {"kill-queue", "stop-queue"}
    assert set(redis) - set(memory) == {"kill-redis", "stop-redis"}
    assert set(memory) | set(redis) == set(KINDS)


def test_harmless_kinds_cost_no_group():
    assert set(KINDS) - set(HARMLESS) == {
        "reward-raises",
        "reward-nan",
        "reward-length",
        "reward-order",
    }


@pytest.mark.parametrize(
    ("wanted", "redis", "message"),
    [
        (["kill-everything"], False, "'kill-everything'; there are kill-sampler"),
        (["kill-redis"], False, "kill-redis, and the queue is in memory: --redis PATH"),
        (["kill-queue"], True, "kill-queue, and the queue is in redis"),
    ],
)
def test_a_kind_that_cannot_be_is_refused(wanted, redis, message):
    with pytest.raises(ValueError, match=message):
        chosen_kinds(wanted, redis)
