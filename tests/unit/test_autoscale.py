"""The pool's size follows its load, on a simulated one that rises and falls."""

import math
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.autoscale import Autoscaler, Throughput
from deploy.config_file import ConfigError, read_config
from rewards.config import AutoscaleConfig, RewardsConfig

RATE = 2.0  # groups that one worker scores in a second


@dataclass
class Pool:
    """Workers that score `RATE` groups a second each, and start some seconds after they are asked
    for."""

    config: AutoscaleConfig
    start_seconds: float = 3.0
    now: float = 0.0
    target: int = 1
    backlog: float = 0.0
    ready_at: list[float] = field(default_factory=lambda: [0.0])
    done: dict[str, tuple[int, float]] = field(default_factory=dict)
    scored: float = 0.0
    busy: float = 0.0
    targets: list[int] = field(default_factory=list)

    def __post_init__(self):
        self.autoscaler = Autoscaler(self.config)
        self.throughput = Throughput()

    def run(self, seconds, arrivals):
        """Lets time pass, with so many groups sampled a second."""
        for _ in range(int(seconds)):
            self.now += 1
            self.backlog += arrivals
            running = sum(ready <= self.now for ready in self.ready_at)
            scored = min(self.backlog, RATE * running)
            self.backlog -= scored
            self.scored += scored
            self.busy += scored / RATE
            self.throughput.observe(self.now, {"all": (int(self.scored), self.busy)})
            self.target = self.autoscaler.decide(
                self.now,
                self.target,
                round(self.backlog),
                self.throughput.per_worker,
                self.throughput.busy,
            )
            while len(self.ready_at) < self.target:
                self.ready_at.append(self.now + self.start_seconds)
            del self.ready_at[self.target :]
            self.targets.append(self.target)


def make_pool(**changes):
    return Pool(AutoscaleConfig(**({"max": 20, "target_wait": 5, "settle_seconds": 30} | changes)))


def test_the_pool_grows_with_the_load_and_shrinks_after_it():
    pool = make_pool()
    pool.run(60, arrivals=1)
    assert pool.target == 1
    pool.run(120, arrivals=12)  # six workers keep up with it
    assert 6 <= pool.target <= 12
    assert pool.backlog <= 12 * 5
    pool.run(200, arrivals=1)
    assert pool.target == 1


def test_a_steady_load_is_given_workers_that_keep_up_within_the_wait():
    pool = make_pool(settle_seconds=20)
    pool.run(600, arrivals=12)
    pool.targets.clear()
    pool.run(300, arrivals=12)
    assert min(pool.targets) >= 6
    assert len(set(pool.targets)) == 1
    assert pool.backlog <= 2 * 12 * 5


def test_a_load_in_waves_does_not_start_and_end_workers_in_waves():
    pool = make_pool()
    for _ in range(6):
        pool.run(10, arrivals=12)
        pool.run(10, arrivals=0)
    pool.targets.clear()
    for _ in range(10):
        pool.run(10, arrivals=12)
        pool.run(10, arrivals=0)
    changes = sum(a != b for a, b in zip(pool.targets, pool.targets[1:], strict=False))
    assert changes < 10  # fewer than waves
    assert max(pool.targets) - min(pool.targets) <= 2


def test_an_idle_pool_goes_to_its_minimum_and_no_further():
    pool = make_pool(min=2)
    pool.run(60, arrivals=12)
    pool.run(300, arrivals=0)
    assert pool.target == 2


def test_fewer_must_have_sufficed_for_settle_seconds():
    pool = make_pool(settle_seconds=100)
    pool.run(60, arrivals=12)
    before = pool.target
    pool.run(60, arrivals=0)
    assert pool.target == before
    pool.run(120, arrivals=0)
    assert pool.target == 1


@given(apart=st.floats(0.2, 30), settle=st.floats(0.1, 60))
def test_an_idle_pool_shrinks_however_far_apart_the_looks_are(apart, settle):
    autoscaler = Autoscaler(AutoscaleConfig(max=9, settle_seconds=settle))
    looks = math.ceil((settle + 1) / apart) + 2
    targets = [autoscaler.decide(look * apart, 3, 0, 1.0, 0.0) for look in range(looks)]
    assert targets[-1] == 1
    assert all(target == 3 for look, target in enumerate(targets) if look * apart < settle)


def test_nothing_changes_before_a_group_has_been_scored():
    autoscaler = Autoscaler(AutoscaleConfig(max=9))
    assert [autoscaler.decide(t, 3, 1000, None, 0.0) for t in range(100)] == [3] * 100


def test_there_are_never_more_workers_than_groups_to_score():
    autoscaler = Autoscaler(AutoscaleConfig(max=100, target_wait=1))
    assert autoscaler.decide(0.0, 1, 7, per_worker=0.001, busy=1) == 7


@given(
    low=st.integers(1, 10),
    more=st.integers(0, 50),
    moments=st.lists(
        st.tuples(
            st.floats(0.1, 20),
            st.integers(0, 10**6),
            st.none() | st.floats(1e-6, 1e6),
            st.floats(0, 100),
        ),
        max_size=60,
    ),
    current=st.integers(1, 200),
)
def test_the_target_stays_between_min_and_max(low, more, moments, current):
    autoscaler = Autoscaler(AutoscaleConfig(min=low, max=low + more, settle_seconds=10))
    now = 0.0
    for passed, backlog, per_worker, busy in moments:
        now += passed
        current = autoscaler.decide(now, current, backlog, per_worker, busy)
        assert low <= current <= low + more


@given(
    backlog=st.integers(0, 10**4),
    more=st.integers(0, 10**4),
    rate=st.floats(1e-3, 1e3),
)
def test_more_backlog_never_asks_for_fewer(backlog, more, rate):
    def first(amount):
        return Autoscaler(AutoscaleConfig(max=1000)).decide(0.0, 1, amount, rate, 1.0)

    assert first(backlog) <= first(backlog + more)


def test_throughput_counts_work_and_not_waiting():
    throughput = Throughput()
    throughput.observe(0.0, {"a": (0, 0.0)})
    assert throughput.per_worker is None
    throughput.observe(10.0, {"a": (4, 2.0), "b": (2, 1.0)})
    assert throughput.per_worker == 2.0
    assert math.isclose(throughput.busy, 0.3)


def test_a_worker_that_starts_again_counts_from_nothing():
    throughput = Throughput()
    throughput.observe(0.0, {"a": (100, 50.0)})
    throughput.observe(1.0, {"a": (2, 1.0)})
    throughput.observe(2.0, {"a": (4, 2.0)})
    assert throughput.per_worker == 2.0


def test_a_reward_that_becomes_slower_is_noticed_and_an_idle_pool_forgets_nothing():
    throughput = Throughput()
    for second in range(100):
        throughput.observe(second, {"a": (second * 10, float(second))})
    for second in range(100, 300):
        throughput.observe(second, {"a": (1000 + (second - 100), float(second))})
    assert math.isclose(throughput.per_worker, 1.0, rel_tol=0.1)
    for second in range(300, 1000):
        throughput.observe(second, {"a": (1200, 300.0)})
    assert math.isclose(throughput.per_worker, 1.0, rel_tol=0.1)


def test_the_range_must_not_be_empty(tmp_path):
    path = tmp_path / "rewards.yaml"
    path.write_text("terms: [{path: 'a:B'}]\nautoscale: {min: 3, max: 2}\n")
    with pytest.raises(ConfigError, match="min is 3 and max 2"):
        read_config(path, [], RewardsConfig)


@pytest.mark.parametrize(("count", "begins_with"), [(1, 2), (3, 3), (9, 4)])
def test_a_pool_begins_with_count_within_its_range(count, begins_with):
    rewards = RewardsConfig.model_validate(
        {"terms": [{"path": "a:B"}], "count": count, "autoscale": {"min": 2, "max": 4}}
    )
    assert rewards.initial_count == begins_with
