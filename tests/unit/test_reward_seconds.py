"""What a group costs a reward worker is told by part, by a clock that only the work moves."""

from concurrent.futures import Future
from types import SimpleNamespace

import pytest

import rewards.reward
from protos.trajectory import Scored
from rewards.combine import SubmittedSum, WeightedSum
from rewards.judge import start
from tests.remote_rewards import StubTask, SumReward, group
from tests.unit.test_reward_worker import GROUPS, FakeReward, FakeTask, example_ids, queue, work

__all__ = ["queue"]

LOADING, DECODING, MERGING, SCORING = 1.0, 2.0, 0.5, 4.0


@pytest.fixture
def clock(monkeypatch) -> SimpleNamespace:
    moved = SimpleNamespace(now=0.0)
    moved.perf_counter = lambda: moved.now
    monkeypatch.setattr(rewards.reward, "time", moved)
    return moved


class SlowTask(FakeTask):
    """Loading and decoding take their time; on chosen examples, decoding then raises."""

    def __init__(self, clock, broken=()):
        super().__init__()
        self._clock, self._broken = clock, broken

    def load(self, split, example_id, augmentation_seed):
        self._clock.now += LOADING
        return super().load(split, example_id, augmentation_seed)

    def decode(self, example, tokens, logprobs):
        self._clock.now += DECODING
        if example.example_id in self._broken:
            raise ValueError("cannot be read")
        return super().decode(example, tokens, logprobs)


class MergingTask(SlowTask):
    """The same, and what it decodes is merged."""

    def __init__(self, clock):
        super().__init__(clock)
        self.decode_seconds = {"merging": 0.0}

    def decode(self, example, tokens, logprobs):
        self._clock.now += MERGING
        self.decode_seconds["merging"] += MERGING
        return super().decode(example, tokens, logprobs)


class SlowReward(FakeReward):
    def __init__(self, clock, odd=None):
        super().__init__(odd)
        self._clock = clock

    def score(self, examples, predictions):
        self._clock.now += SCORING
        return super().score(examples, predictions)


class Elsewhere:
    """Answers at once, and looks at nothing but the sequences."""

    provides = ()
    in_flight = GROUPS

    def submit(self, group):
        answer: Future = Future()
        answer.set_result([Scored(1.0)] * len(group))
        return answer


@pytest.mark.parametrize("groups_per_lease", [1, 3])
def test_the_status_tells_the_parts_of_all_groups(queue, clock, groups_per_lease):
    worker = work(queue, SlowReward(clock), groups_per_lease, MergingTask(clock))
    status = worker.status.to_dict()
    expected = {"loading": LOADING, "decoding": DECODING, "merging": MERGING, "scoring": SCORING}
    assert status["parts"] == {part: GROUPS * seconds for part, seconds in expected.items()}
    assert list(status["parts"]) == list(expected)  # in the order of the work


def test_what_a_task_does_not_tell_apart_is_decoding(queue, clock):
    parts = work(queue, SlowReward(clock), task=SlowTask(clock)).status.parts
    assert parts == {
        "loading": GROUPS * LOADING, "decoding": GROUPS * DECODING, "scoring": GROUPS * SCORING
    }  # fmt: skip


def test_a_group_that_fails_has_cost_what_it_took(queue, clock):
    unreadable, unjudged = example_ids()[1], example_ids()[2]
    reward = SlowReward(clock, {unjudged: KeyError("annotation")})
    worker = work(queue, reward, task=SlowTask(clock, broken=[unreadable]))
    assert worker.status.failed_groups == 2
    assert worker.status.parts == {
        "loading": GROUPS * LOADING,
        "decoding": GROUPS * DECODING,
        "scoring": (GROUPS - 1) * SCORING,  # the unreadable one was not judged
    }


def test_a_reward_that_is_computed_elsewhere_costs_nothing_here(queue, clock):
    task = SlowTask(clock)
    worker = work(queue, Elsewhere(), task=task)
    assert worker.status.groups == GROUPS
    assert worker.status.parts == {}
    assert not task.loaded


def test_of_a_sum_with_a_term_elsewhere_what_is_computed_here_counts(queue, clock):
    reward = SubmittedSum([(Elsewhere(), 1.0), (SlowReward(clock), 1.0), (SlowReward(clock), 2.0)])
    parts = work(queue, reward, task=SlowTask(clock)).status.parts
    # Both terms judge one example and its predictions, which are made once.
    assert parts == {
        "loading": GROUPS * LOADING, "decoding": GROUPS * DECODING, "scoring": 2 * GROUPS * SCORING
    }  # fmt: skip


def test_the_terms_of_a_sum_are_scored_together(clock):
    ours = group(StubTask())
    terms = WeightedSum([(SumReward(), 1.0), (SumReward(), 1.0)])
    assert start(terms, ours).exception() is None
    assert list(ours.seconds) == ["loading", "decoding", "scoring"]


def test_a_status_that_was_given_away_does_not_change(queue, clock):
    """Ray's thread reads it while the worker goes on."""
    worker = work(queue, SlowReward(clock), task=SlowTask(clock))
    before = worker.status.parts
    kept = dict(before)
    worker.status.spent({"loading": 1.0, "merging": 2.0})
    assert before == kept
    assert worker.status.parts == kept | {"loading": kept["loading"] + 1, "merging": 2.0}
