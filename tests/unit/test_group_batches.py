"""Scored groups become arrays row by row, and what was not scored is masked."""

import threading

import numpy as np
import pytest

from learner.group_batches import GroupShapeError, TrainingGroup, group_batch, reward_sums
from protos.trajectory import Abstained, Failed, FailureKind, Sampled, Scored, ScoredGroup, Ticket
from vision.tasks.task import Example

SAMPLES, LENGTH, BOXES = 3, 4, 2


class FakeTask:
    """An image full of a number that says which example and seed were asked for."""

    image_size = (2, 3)
    max_length = LENGTH

    def __init__(self, auxiliary=None):
        self.auxiliary_arrays = {"match_iou": (BOXES,)} if auxiliary is None else auxiliary

    def load(self, split, example_id, augmentation_seed):
        value = float(example_id) + augmentation_seed / 1000 + (100 if split != "train" else 0)
        return Example(example_id, np.full((2, 3, 3), value, np.float32), None)


def group(ordinal: int, outcomes, shape=(SAMPLES, LENGTH)) -> TrainingGroup:
    ticket = Ticket(ordinal, str(ordinal), augmentation_seed=7, sampling_seed=0, policy_version=0)
    tokens = np.arange(np.prod(shape), dtype=np.int32).reshape(shape) + ordinal
    sampled = Sampled(ticket, tokens, -tokens.astype(np.float32), policy_version=0, engine="test")
    return TrainingGroup(ordinal, ScoredGroup(sampled, tuple(outcomes)))


def scored(reward: float) -> Scored:
    return Scored(reward, {"match_iou": np.full(BOXES, reward / 10, np.float32)})


def test_groups_are_rows_in_their_order():
    groups = [group(5, map(scored, (1, 2, 3))), group(2, map(scored, (4, 5, 6)))]
    batch = group_batch(FakeTask(), groups, SAMPLES)
    assert batch.images.shape == (2, 2, 3, 3)
    np.testing.assert_allclose(batch.images[:, 0, 0, 0], [5.007, 2.007], rtol=1e-6)
    for row, one in enumerate(groups):
        np.testing.assert_array_equal(batch.tokens[row], one.scored.sampled.tokens)
        np.testing.assert_array_equal(batch.behaviour_logprobs[row], one.scored.sampled.logprobs)
    np.testing.assert_array_equal(batch.rewards, [[1, 2, 3], [4, 5, 6]])
    assert batch.scored.all()
    np.testing.assert_allclose(batch.auxiliary["match_iou"][1, 2], [0.6, 0.6])
    assert batch.auxiliary["match_iou"].shape == (2, SAMPLES, BOXES)


def test_a_quarantined_group_is_a_row_without_scored_samples():
    groups = [group(0, map(scored, (1, 2, 3))), TrainingGroup(1, None)]
    batch = group_batch(FakeTask(), groups, SAMPLES)
    np.testing.assert_array_equal(batch.scored, [[True] * 3, [False] * 3])
    for array in (batch.images, batch.tokens, batch.behaviour_logprobs, batch.rewards):
        assert not array[1].any()
    assert not batch.auxiliary["match_iou"][1].any()


def test_a_batch_is_the_same_whatever_the_number_of_threads():
    groups = [group(ordinal, map(scored, (ordinal, 0, 1))) for ordinal in range(9)]
    groups[4] = TrainingGroup(4, None)
    one = group_batch(FakeTask(), groups, SAMPLES, threads=1)
    many = group_batch(FakeTask(), groups, SAMPLES, threads=5)
    for array, other in zip(one[:-1], many[:-1], strict=True):
        np.testing.assert_array_equal(array, other)
    np.testing.assert_array_equal(one.auxiliary["match_iou"], many.auxiliary["match_iou"])


class MeetingTask(FakeTask):
    """Loads nothing until so many threads load at once."""

    def __init__(self, threads: int):
        super().__init__()
        self.barrier = threading.Barrier(threads, timeout=60)

    def load(self, split, example_id, augmentation_seed):
        self.barrier.wait()
        return super().load(split, example_id, augmentation_seed)


def test_as_many_examples_are_loaded_at_once_as_there_are_threads():
    groups = [group(ordinal, map(scored, (1, 2, 3))) for ordinal in range(6)]
    batch = group_batch(MeetingTask(3), groups, SAMPLES, threads=3)
    np.testing.assert_allclose(batch.images[:, 0, 0, 0], np.arange(6) + 0.007, rtol=1e-5)


class BrokenTask(FakeTask):
    """Has no examples from 3 on; the third takes longer to find that out than the others."""

    def __init__(self):
        super().__init__()
        self.later_failed = threading.Event()

    def load(self, split, example_id, augmentation_seed):
        if example_id == "3":
            assert self.later_failed.wait(60)
        if int(example_id) > 3:
            self.later_failed.set()
        if int(example_id) >= 3:
            raise FileNotFoundError(f"no image of example {example_id}")
        return super().load(split, example_id, augmentation_seed)


def test_of_several_faults_that_of_the_first_row_is_raised():
    groups = [group(ordinal, map(scored, (1, 2, 3))) for ordinal in range(6)]
    with pytest.raises(FileNotFoundError, match="example 3"):
        group_batch(BrokenTask(), groups, SAMPLES, threads=3)


def test_samples_that_failed_or_abstained_are_masked_in_their_place():
    outcomes = [Failed("broken", FailureKind.DATA), scored(-2.0), Abstained("no opinion")]
    batch = group_batch(FakeTask(), [group(0, outcomes)], SAMPLES)
    np.testing.assert_array_equal(batch.scored, [[False, True, False]])
    np.testing.assert_array_equal(batch.rewards, [[0, -2, 0]])
    assert not batch.auxiliary["match_iou"][0, [0, 2]].any()


def test_a_batch_of_quarantined_groups_alone_has_the_usual_shapes():
    full = group_batch(FakeTask(), [group(0, map(scored, (1, 2, 3)))] * 2, SAMPLES)
    empty = group_batch(FakeTask(), [TrainingGroup(0, None), TrainingGroup(1, None)], SAMPLES)
    assert not empty.scored.any()
    for one, other in zip(full[:-1], empty[:-1], strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)


def test_arrays_that_the_task_does_not_want_are_left_out():
    batch = group_batch(FakeTask(auxiliary={}), [group(0, map(scored, (1, 2, 3)))], SAMPLES)
    assert batch.auxiliary == {}


def test_an_array_that_a_reward_does_not_give_stays_zero():
    batch = group_batch(FakeTask(), [group(0, [Scored(1.0)] * SAMPLES)], SAMPLES)
    assert batch.scored.all()
    assert not batch.auxiliary["match_iou"].any()


@pytest.mark.parametrize("shape", [(SAMPLES + 1, LENGTH), (SAMPLES, LENGTH - 1)])
def test_tokens_of_another_shape_are_refused_naming_ordinal_and_both_shapes(shape):
    odd = group(9, [scored(1.0)] * shape[0], shape)
    with pytest.raises(GroupShapeError) as caught:
        group_batch(FakeTask(), [odd], SAMPLES)
    message = str(caught.value)
    assert "ordinal 9" in message
    assert str(list(shape)) in message
    assert str([SAMPLES, LENGTH]) in message


def test_parts_of_a_reward_are_summed_over_the_samples_that_carry_them():
    def parts(**numbers) -> Scored:
        arrays = {name: np.asarray(value, np.float32) for name, value in numbers.items()}
        return Scored(1.0, arrays | {"match_iou": np.ones(BOXES, np.float32)})

    failed = Failed("broken", FailureKind.DATA)
    groups = [
        group(0, [parts(vivid=0.5, entropy=1.0), parts(vivid=0.25, entropy=2.0), failed]),
        TrainingGroup(1, None),
        group(2, [parts(vivid=0.75), Abstained("no"), scored(1)]),
    ]
    assert reward_sums(groups) == {"reward/vivid": (1.5, 3), "reward/entropy": (3.0, 2)}
    assert reward_sums([group(0, map(scored, (1, 2, 3)))]) == {}
    assert reward_sums([TrainingGroup(1, None)]) == {}
