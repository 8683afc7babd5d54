"""What survives when a learner resumes, in every backend of the replay queue: `tests.queues`."""

import pytest

from protos.trajectory import FailureKind
from replay.queue import Completion, Frontier, Stage
from tests.queues import advance, config, ordinals


def test_a_restart_keeps_what_is_at_hand_and_mints_anew_what_came_after(open_queue):
    queue = open_queue(config(lag=2))
    advance(queue, "to_sample", 6, b"sampled")
    advance(queue, "to_score", 10, b"scored")
    queue.lease("to_train", 4, None, "l")
    queue.ack([0, 1, 2, 3])
    frontier = queue.frontier()
    queue.lease("to_train", 4, None, "l")
    queue.ack([4, 5])
    (scoring,) = queue.lease("to_score", 1, None, "r")
    queue.restart(frontier, queue.fence())
    assert queue.frontier() == frontier
    assert ordinals(queue.lease("to_sample", 9, None, "s")) == [4, 5, 12, 13, 14, 15]
    assert queue.complete([(scoring.id, b"scored too")]) == [Completion.DONE]
    training = queue.lease("to_train", 4, None, "l")
    assert training == []  # 4 and 5 must come first
    assert ordinals(queue.lease("to_score", 9, None, "r")) == [11]
    stats = queue.stats()
    assert (stats.out, stats.room, stats.stages[Stage.TO_TRAIN].ready) == (12, 0, 5)
    # Such as from a checkpoint that Redis lost the last second of.
    queue.restart(Frontier(6), queue.fence())
    training = queue.lease("to_train", 4, None, "l")
    assert [(g.ordinal, g.payload, g.delivery) for g in training] == [
        (ordinal, b"scored", 1) for ordinal in (6, 7, 8, 9)
    ]


def test_a_restart_gives_back_what_the_dead_learner_held_however_often(open_queue):
    queue = open_queue(config(max_deliveries=1))
    advance(queue, "to_sample", 2)
    advance(queue, "to_score", 4, b"scored")
    for _ in range(5):
        old = queue.lease("to_train", 4, None, "learner")
        assert [g.payload for g in old] == [b"scored"] * 4
        queue.release_worker("learner", "SIGKILL")
        queue.lease("to_train", 4, None, "learner")
        queue.restart(Frontier(), queue.fence())
        assert queue.renew([lease.id for lease in old]) == []
    assert queue.stats().quarantined == 0


def test_survivors_that_the_window_has_no_room_for_come_back_with_their_ordinals(open_queue):
    queue = open_queue(config(lag=0))
    for _ in range(2):
        advance(queue, "to_sample", 2, b"sampled")
        advance(queue, "to_score", 4, b"scored")
        queue.ack(ordinals(queue.lease("to_train", 4, None, "l")))
    advance(queue, "to_sample", 1, b"survives")
    (held,) = queue.lease("to_score", 1, None, "r")
    queue.restart(Frontier(), queue.fence())
    assert queue.complete([(held.id, b"scored")]) == [Completion.TOO_LATE]
    assert queue.lease("to_score", 9, None, "r") == []
    queue.restart(Frontier(), queue.fence())  # again, before they came back
    for step in range(2):
        assert advance(queue, "to_sample", 9) == [4 * step + i for i in range(4)]
        advance(queue, "to_score", 9)
        queue.ack(ordinals(queue.lease("to_train", 4, None, "l")))
    assert advance(queue, "to_sample", 9) == [10, 11]
    leases = queue.lease("to_score", 9, None, "r")
    assert [g.payload for g in leases] == [b"survives"] * 2 + [b"payload"] * 2


def test_what_was_quarantined_stays_so_over_a_restart(open_queue):
    queue = open_queue(config())
    advance(queue, "to_sample", 2)
    for lease in queue.lease("to_score", 2, None, "r"):
        queue.fail([(lease.id, f"{lease.ordinal} is broken", FailureKind.DATA)])
    queue.ack([0])
    queue.restart(Frontier(), queue.fence())
    advance(queue, "to_score", 9)
    training = queue.lease("to_train", 4, None, "l")
    assert [g.tombstone for g in training] == [True, True, False, False]
    assert [g.reasons for g in training[:2]] == [("0 is broken",), ("1 is broken",)]
    assert queue.stats().quarantined == 2


def test_in_async_mode_only_samples_from_before_the_frontier_survive(open_queue):
    queue = open_queue(config(mode="async", lag=3))
    before = advance(queue, "to_sample", 3, b"of a policy before")
    late = queue.lease("to_sample", 1, None, "late")
    advance(queue, "to_score", 4, b"scored")
    (scoring, _) = queue.lease("to_score", 2, None, "r")
    queue.ack(ordinals(queue.lease("to_train", 4, None, "l")))
    frontier = queue.frontier()
    assert advance(queue, "to_sample", 1, b"of a policy that was lost") == [8, 9]
    queue.restart(frontier, queue.fence())
    assert queue.complete([(scoring.id, b"scored")]) == [Completion.DONE]
    assert queue.complete([(late[0].id, b"of who knows")]) == [Completion.TOO_LATE]
    (survivor,) = queue.lease("to_train", 9, None, "l")
    assert survivor.ordinal == before[4]
    assert [g.payload for g in queue.lease("to_score", 9, None, "r")] == []
    queue.release_worker("r", "it died")
    queue.restart(frontier, queue.fence())
    assert [g.payload for g in queue.lease("to_score", 9, None, "r")] == [b"of a policy before"]
    assert ordinals(queue.lease("to_sample", 2, None, "s")) == [6, 7, 8, 9]


@pytest.mark.parametrize("numbers", [(2**52 + 1,), (2**60, (), 9), (0, (5, 2**60)), (2**64 - 2,)])
def test_a_frontier_beyond_all_groups_is_none_and_changes_nothing(open_queue, numbers):
    queue = open_queue(config())
    advance(queue, "to_sample", 1)
    with pytest.raises(ValueError, match=r"ordinals go to 2\^52"):
        queue.restart(Frontier(*numbers), queue.fence())
    assert queue.stats().out == 2


def test_a_restart_at_the_last_frontier_ends_and_the_window_holds(open_queue):
    queue = open_queue(config())
    queue.restart(Frontier(2**52 - 4), queue.fence())
    assert ordinals(queue.lease("to_sample", 1, None, "s")) == [2**52 - 4, 2**52 - 3]
    advance(queue, "to_sample", 9)
    assert queue.stats().out == 8


def test_a_restart_further_on_forgets_what_is_acked_there(open_queue):
    queue = open_queue(config(mode="async"))
    old = queue.lease("to_sample", 1, None, "s")
    queue.restart(Frontier(0, (1, 5)), queue.fence())
    assert queue.complete([(old[1].id, b"late")]) == [Completion.TOO_LATE]
    assert ordinals(queue.lease("to_sample", 9, None, "s"))[:5] == [0, 2, 3, 4, 6]
