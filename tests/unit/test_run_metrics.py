"""What the controller exports: totals are counted once, whoever dies, and all is there from 0."""

import asyncio
from collections import Counter

from deploy.config import RunConfig
from deploy.monitoring.catalogue import BY_NAME, METRICS
from deploy.monitoring.exporter import RunMetrics, usual_labels
from deploy.run_status import run_status
from deploy.workers import Worker
from replay.memory import MemoryReplayQueue
from replay.tickets import TicketSource

CONFIG = RunConfig.model_validate(
    {
        "name": "run",
        "task": {"kind": "detection"},
        "model": {"preset": "tiny"},
        "learner": {"groups_per_step": 8},
        "actors": {"groups_per_block": 4},
        "rewards": {"terms": [{"path": "rewards.detection:RecallReward"}]},
    }
)
REWARD = {
    "groups": 3,
    "working": 2.0,
    "waiting": 1.0,
    "parts": {"loading": 0.5, "scoring": 1.0},
    "failed_groups": 1,
    "failed_samples": 2,
}
SAMPLER = {
    "groups": 8,
    "working": 4.0,
    "waiting": 0.5,
    "tokens": 100,
    "loading_weights": 0.25,
    "policy_version": 2,
}


class Recorded:
    """What was exported, by (name, label values)."""

    def __init__(self):
        self.gauges = {}
        self.counters = Counter()

    def set(self, name, value, labels):
        assert BY_NAME[name].kind == "gauge"
        self._check(name, labels)
        self.gauges[(name, *labels.values())] = value

    def add(self, name, value, labels):
        assert BY_NAME[name].kind == "counter"
        assert value >= 0
        self._check(name, labels)
        self.counters[(name, *labels.values())] += value

    @staticmethod
    def _check(name, labels):
        assert tuple(labels) == tuple(BY_NAME[name].labels)


def workers(learner=None, **status):
    roles = ("learner", "sampler", "reward")
    made = [Worker(role, role, lambda name: None) for role in roles]
    for worker in made:
        worker.running = object()
        worker.status = status.get(worker.name, {})
    made[0].status = {"state": "starting", "step": 0, **(learner or {})}
    return made


def status(ours):
    source = TicketSource(0, ["a"], "ordered", 1, CONFIG.learner.groups_per_step)
    stats = asyncio.run(MemoryReplayQueue(CONFIG.queue_config(), source).stats())
    return run_status(CONFIG, ours, stats, None) | {"bottleneck": {"role": "reward"}}


def exported(*pools):
    recorded = Recorded()
    metrics = RunMetrics(CONFIG, recorded)
    for pool in pools:
        metrics.update(status(pool))
    return recorded


def test_every_seeded_series_is_there_before_anything_has_happened():
    recorded = exported(workers())
    there = recorded.gauges.keys() | recorded.counters.keys()
    wanted = {
        (metric.name, *labels.values())
        for metric in METRICS
        if metric.seeded
        for labels in usual_labels(metric)
    }
    assert wanted <= there
    assert set(recorded.counters.values()) == {0}


def test_totals_are_those_of_the_last_status_however_often_it_is_told():
    learner = {"step": 5, "resumed": 0, "state": "training", "seconds": {"training": 3.0}}
    ours = workers(learner | {"dropped": 1}, reward=REWARD, sampler=SAMPLER)
    counters = exported(workers(), ours, ours, ours).counters
    assert counters["steps_total",] == 5
    assert counters["groups_total", "trained"] == 40
    assert counters["groups_total", "dropped"] == 1
    assert counters["learner_seconds_total", "training"] == 3.0
    assert counters["worker_groups_total", "reward"] == 3
    assert counters["worker_seconds_total", "sampler", "working"] == 4.0
    assert counters["reward_seconds_total", "scoring"] == 1.0
    assert counters["reward_failures_total", "sample"] == 2
    assert counters["sampler_tokens_total",] == 100


def test_what_a_dead_worker_did_stays_counted_and_its_successor_adds_to_it():
    before, between, after = (workers(reward=REWARD) for _ in range(3))
    for pool in (between, after):
        pool[2].restarts = 1
    between[2].status = {}
    after[2].status = REWARD | {"groups": 10}  # more than the first had when it was last asked
    counters = exported(before, between, after).counters
    assert counters["worker_groups_total", "reward"] == 13
    assert counters["worker_restarts_total", "reward"] == 1
    assert counters["reward_failures_total", "group"] == 2


def test_a_resumed_learner_does_not_count_the_steps_before_its_checkpoint():
    resumed = workers({"step": 83, "resumed": 80, "state": "waiting"})
    counters = exported(workers(), resumed).counters
    assert counters["steps_total",] == 3
    assert counters["groups_total", "trained"] == 24


def test_two_workers_of_a_role_add_up_to_one_series():
    ours = workers(reward=REWARD)
    another = Worker("reward-1", "reward", lambda name: None, running=object(), status=REWARD)
    recorded = exported([*ours, another])
    assert recorded.counters["worker_groups_total", "reward"] == 6
    assert recorded.gauges["workers", "reward", "running"] == 2
    assert not any("reward-1" in key for key in recorded.gauges.keys() | recorded.counters.keys())


def test_the_state_of_the_run_is_one_of_its_series():
    learner = {"step": 7, "state": "waiting"}
    gauges = exported(workers(), workers(learner, sampler=SAMPLER)).gauges
    states = {key[1]: value for key, value in gauges.items() if key[0] == "run_state"}
    assert [state for state, value in states.items() if value] == ["waiting"]
    assert gauges["sampler_lag_versions",] == 5
    assert gauges["bottleneck", "reward"] == 1
    assert gauges["bottleneck", "learner"] == 0
    assert gauges["step",] == 7


def test_the_end_of_a_run_is_counted_once_however_often_it_is_told():
    ours = workers({"step": 9, "state": "training"})
    ended = workers()
    ended[0].finished = {"step": 9, "state": "stopped"}
    counters = exported(workers(), ours, ended, ended).counters
    counted = {key[1]: value for key, value in counters.items() if key[0] == "ended_total"}
    assert counted == {"finished": 0, "stopped": 1, "failed": 0}


def test_names_are_what_prometheus_wants():
    assert len(BY_NAME) == len(METRICS)
    for metric in METRICS:
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert metric.help.endswith(".")
        assert metric.exported == f"ray_rewardtune_{metric.name}"
