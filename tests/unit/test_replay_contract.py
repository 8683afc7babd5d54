"""What every backend of the replay queue promises, whatever holds the queue: `tests.queues`."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from protos.trajectory import FailureKind, Ticket
from replay.queue import Completion, Frontier, LearnerFenced, QueueClosed, Stage
from tests.queues import LONG, SHORT, advance, config, ordinals


def test_groups_pass_the_stages_with_their_payloads(open_queue):
    queue = open_queue(config())
    sampling = queue.lease("to_sample", 1, None, "s")
    assert [Ticket.from_bytes(g.payload).ordinal for g in sampling] == [0, 1]
    assert [g.block_start for g in sampling] == [0, 0]
    queue.complete([(g.id, b"sampled %d" % g.ordinal) for g in sampling])
    scoring = queue.lease(Stage.TO_SCORE, 8, None, "r")
    assert [g.payload for g in scoring] == [b"sampled 0", b"sampled 1"]
    queue.complete([(g.id, b"scored %d" % g.ordinal) for g in scoring])
    training = queue.lease(Stage.TO_TRAIN, 2, None, "l")
    assert [g.payload for g in training] == [b"scored 0", b"scored 1"]
    queue.ack([0, 1])
    assert queue.frontier() == Frontier(2)
    assert queue.stats().acked == 2


def test_the_window_holds_back_samplers_until_acks(open_queue):
    queue = open_queue(config())
    assert ordinals(queue.lease("to_sample", 9, None, "s")) == list(range(8))
    queue = open_queue(config())
    advance(queue, "to_sample", 9)
    advance(queue, "to_score", 9)
    assert queue.lease("to_sample", 1, None, "s") == []
    queue.ack([0])
    assert queue.lease("to_sample", 1, None, "s") == []  # a block of two needs two places
    queue.ack([1])
    assert ordinals(queue.lease("to_sample", 1, None, "s")) == [8, 9]


def test_an_ack_that_is_refused_acks_nothing(open_queue):
    queue = open_queue(config())
    advance(queue, "to_sample", 1)
    advance(queue, "to_score", 2)
    for trained, dropped in (([0, 7], [1]), ([0], [1, 7])):
        with pytest.raises(ValueError, match="cannot ack ordinal 7"):
            queue.ack(trained, dropped=dropped)
        assert queue.frontier() == Frontier()


def test_ordered_training_waits_for_the_whole_step(open_queue):
    queue = open_queue(config())
    advance(queue, "to_sample", 4)
    later = queue.lease("to_score", 1, None, "r")
    advance(queue, "to_score", 9)
    assert queue.lease("to_train", 4, None, "l") == []
    queue.complete([(later[0].id, b"scored")])
    assert ordinals(queue.lease("to_train", 4, None, "l")) == [0, 1, 2, 3]
    assert ordinals(queue.lease("to_train", 4, None, "l")) == [4, 5, 6, 7]


def test_hosts_of_a_learner_lease_their_shares_of_a_step_in_any_order(open_queue):
    queue = open_queue(config())
    advance(queue, "to_sample", 4)
    later = queue.lease("to_score", 1, None, "r")
    advance(queue, "to_score", 9)
    assert queue.lease("to_train", 2, None, "host 0", first=0) == []
    assert ordinals(queue.lease("to_train", 2, None, "host 1", first=2)) == [2, 3]
    assert ordinals(queue.lease("to_train", 2, None, "host 1", first=6)) == [6, 7]
    assert queue.lease("to_train", 2, None, "host 0", first=2) == []  # another's
    queue.complete([(later[0].id, b"scored")])
    assert ordinals(queue.lease("to_train", 2, None, "host 0", first=0)) == [0, 1]
    queue.ack([0, 1, 2, 3])
    assert queue.lease("to_train", 2, None, "host 0", first=2) == []
    assert queue.lease("to_train", 8, None, "host 0", first=4) == []


def test_a_share_whose_answer_was_lost_is_leased_anew(open_queue):
    queue = open_queue(config())
    advance(queue, "to_sample", 2)
    advance(queue, "to_score", 9)
    lost = queue.lease("to_train", 2, None, "l", first=0)
    again = queue.lease("to_train", 4, None, "l", first=0)
    assert [(g.ordinal, g.delivery, g.reasons) for g in again] == [(o, 1, ()) for o in range(4)]
    assert queue.renew([g.id for g in (*lost, *again)]) == [g.id for g in again]
    assert queue.lease("to_train", 4, None, "another", first=0) == []


def test_a_host_that_is_ahead_does_not_keep_another_waiting(open_queue):
    queue = open_queue(config())
    advance(queue, "to_sample", 2)
    later = queue.lease("to_score", 4, None, "r")
    with ThreadPoolExecutor(2) as pool:
        ahead = pool.submit(queue.lease, "to_train", 4, None, "host 1", LONG, None, 4)
        while not ahead.running():
            pass
        waiting = pool.submit(queue.lease, "to_train", 4, None, "host 0", LONG, None, 0)
        queue.complete([(g.id, b"scored") for g in later])
        assert ordinals(waiting.result(timeout=2 * LONG)) == [0, 1, 2, 3]
        assert not ahead.done()
        advance(queue, "to_sample", 2)
        advance(queue, "to_score", 4)
        assert ordinals(ahead.result(timeout=2 * LONG)) == [4, 5, 6, 7]


def test_async_training_takes_what_is_ready_oldest_first(open_queue):
    queue = open_queue(config(mode="async"))
    advance(queue, "to_sample", 4)
    queue.lease("to_score", 2, None, "slow")
    advance(queue, "to_score", 9)
    assert ordinals(queue.lease("to_train", 4, None, "l")) == [2, 3, 4, 5]
    assert ordinals(queue.lease("to_train", 4, None, "l")) == [6, 7]


def test_dropped_groups_are_made_up_for_in_async_mode(open_queue):
    queue = open_queue(config(mode="async", total_groups=4))
    assert advance(queue, "to_sample", 9) == [0, 1, 2, 3]
    advance(queue, "to_score", 9)
    queue.ack([1, 2, 3], dropped=[0])
    assert not queue.stats().finished
    assert advance(queue, "to_sample", 9) == [4, 5]
    advance(queue, "to_score", 9)
    queue.ack([4])
    assert queue.stats().finished
    assert queue.stats().dropped == 1


def test_an_expired_lease_is_delivered_again_and_its_outcome_is_too_late(open_queue):
    queue = open_queue(config())
    advance(queue, "to_sample", 1)
    queue.lease("to_score", 1, LONG, "other")
    (first,) = queue.lease("to_score", 1, SHORT, "stuck")
    (again,) = queue.lease("to_score", 1, LONG, "quick", wait=LONG)
    assert (again.ordinal, again.delivery) == (first.ordinal, 2)
    assert "stuck" in again.reasons[0]
    assert f"{SHORT:g} s" in again.reasons[0]
    assert queue.complete([(first.id, b"late")]) == [Completion.TOO_LATE]
    assert queue.fail([(first.id, "late", FailureKind.DATA)]) == [Completion.TOO_LATE]
    assert queue.renew([first.id, again.id]) == [again.id]
    assert queue.complete([(again.id, b"in time")]) == [Completion.DONE]
    assert queue.complete([(again.id, b"twice")]) == [Completion.TOO_LATE]
    stats = queue.stats()
    assert (stats.expired, stats.too_late, stats.redelivered) == (1, 3, 1)
    assert "stuck" in stats.last_reasons[-1]


def test_a_block_that_was_half_done_is_handed_out_for_the_rest_only(open_queue):
    queue = open_queue(config(block=4))
    leases = queue.lease("to_sample", 1, LONG, "dies")
    queue.complete([(g.id, b"sampled") for g in leases[:2]])
    assert queue.release_worker("dies", "SIGKILL") == 2
    again = queue.lease("to_sample", 1, LONG, "next")
    assert ordinals(again) == [2, 3]
    assert [g.block_start for g in again] == [0, 0]
    assert again[0].reasons == ("SIGKILL",)


def test_failures_of_data_leave_a_tombstone_that_is_trained_as_a_masked_row(open_queue):
    queue = open_queue(config())
    advance(queue, "to_sample", 2)
    bad = queue.lease("to_score", 1, None, "r")[0]
    queue.fail([(bad.id, "image is broken", FailureKind.DATA)])
    advance(queue, "to_score", 9)
    training = queue.lease("to_train", 4, None, "l")
    assert [g.tombstone for g in training] == [True, False, False, False]
    assert training[0].reasons == ("image is broken",)
    queue.ack(ordinals(training))
    assert queue.frontier() == Frontier(4)
    (given_up,) = queue.quarantine()
    assert (given_up.ordinal, given_up.stage) == (0, Stage.TO_SCORE)
    assert given_up.reasons == ("image is broken",)


def test_failures_of_infrastructure_are_tried_again_until_the_limit(open_queue):
    queue = open_queue(config(max_deliveries=2, block=1))
    advance(queue, "to_sample", 1)
    for delivery in (1, 2):
        (lease,) = queue.lease("to_score", 1, None, "r")
        assert lease.delivery == delivery
        queue.fail([(lease.id, f"no memory, {delivery}", FailureKind.INFRASTRUCTURE)])
    assert queue.lease("to_score", 1, None, "r") == []
    (tombstone,) = queue.lease("to_train", 1, None, "l")
    assert tombstone.reasons == ("no memory, 1", "no memory, 2")
    assert queue.stats().quarantined == 1


def test_released_groups_count_no_delivery(open_queue):
    queue = open_queue(config(max_deliveries=1))
    for _ in range(3):
        leases = queue.lease("to_sample", 1, None, "s")
        assert [g.delivery for g in leases] == [1, 1]
        queue.release([g.id for g in leases])
    assert queue.stats().quarantined == 0


def test_a_death_counts_against_what_was_handed_out_last_alone(open_queue):
    queue = open_queue(config(max_deliveries=2))
    advance(queue, "to_sample", 2)
    for _ in range(3):  # 0 waits for a person, say, while 1 and 2 kill the worker
        (waits,) = queue.lease("to_score", 1, LONG, "dies")
        last = queue.lease("to_score", 2, LONG, "dies")
        assert queue.release_worker("dies", "SIGKILL") == 1 + len(last)
        assert (waits.ordinal, waits.delivery, waits.reasons) == (0, 1, ())
    assert sorted(g.ordinal for g in queue.quarantine()) == [1, 2]
    assert queue.quarantine()[0].reasons == ("SIGKILL", "SIGKILL")


def test_a_death_counts_against_nothing_when_the_worker_had_found_nothing_more_to_do(open_queue):
    queue = open_queue(config(max_deliveries=1))
    advance(queue, "to_sample", 1)
    for _ in range(2):
        assert ordinals(queue.lease("to_score", 2, LONG, "waits")) == [0, 1]
        assert queue.lease("to_score", 2, LONG, "waits") == []
        assert queue.release_worker("waits", "SIGKILL") == 2
    assert queue.quarantine() == []
    (busy,) = queue.lease("to_score", 1, LONG, "busy")
    assert queue.release_worker("busy", "SIGKILL") == 1
    assert [g.ordinal for g in queue.quarantine()] == [busy.ordinal]


def test_an_expiry_counts_against_what_was_handed_out_last_alone(open_queue):
    queue = open_queue(config(max_deliveries=1))
    advance(queue, "to_sample", 2)
    queue.lease("to_score", 1, 1.0, "stuck")
    queue.lease("to_score", 1, SHORT, "stuck")
    queue.lease("to_score", 2, LONG, "other")
    (again,) = queue.lease("to_score", 1, LONG, "quick", wait=LONG)
    assert (again.ordinal, again.delivery, again.reasons) == (0, 1, ())
    assert [g.ordinal for g in queue.quarantine()] == [1]
    assert queue.stats().expired == 2


def test_a_wait_ends_when_something_is_ready(open_queue):
    queue = open_queue(config())
    sampling = queue.lease("to_sample", 1, None, "s")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(queue.lease, "to_score", 4, None, "r", LONG)
        queue.complete([(g.id, b"sampled") for g in sampling])
        assert ordinals(waiting.result(timeout=LONG)) == [0, 1]


def test_a_wait_in_vain_returns_nothing_and_takes_nothing(open_queue):
    queue = open_queue(config())
    assert queue.lease("to_score", 4, None, "r", wait=SHORT) == []
    advance(queue, "to_sample", 1)
    assert ordinals(queue.lease("to_score", 4, None, "other")) == [0, 1]


def test_closing_ends_waits_and_lets_workers_finish(open_queue):
    queue = open_queue(config())
    sampling = queue.lease("to_sample", 1, None, "s")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(queue.lease, "to_score", 4, None, "r", LONG)
        while not waiting.running():
            pass
        queue.close()
        with pytest.raises(QueueClosed, match="over"):
            waiting.result(timeout=LONG)
    with pytest.raises(QueueClosed):
        queue.lease("to_sample", 1, None, "s")
    assert queue.complete([(g.id, b"sampled") for g in sampling]) == [Completion.DONE] * 2
    assert queue.frontier() == Frontier()
    assert queue.stats().closed
    assert not open_queue(config()).stats().closed


def test_no_more_is_minted_than_the_run_needs(open_queue):
    queue = open_queue(config(total_groups=4))
    assert advance(queue, "to_sample", 9) == [0, 1, 2, 3]
    advance(queue, "to_score", 9)
    queue.ack(ordinals(queue.lease("to_train", 4, None, "l")))
    assert queue.stats().finished
    assert queue.lease("to_sample", 1, None, "s") == []


def test_a_learner_whose_place_is_taken_changes_nothing(open_queue):
    queue = open_queue(config())
    advance(queue, "to_sample", 4)
    advance(queue, "to_score", 9)
    old = queue.fence()
    queue.restart(Frontier(), old)
    advance(queue, "to_sample", 4)
    advance(queue, "to_score", 9)
    queue.lease("to_train", 4, None, "l", epoch=old)
    new = queue.fence()
    assert new != old
    for attempt in (
        lambda: queue.ack([0, 1, 2, 3], epoch=old),
        lambda: queue.ack([], [0], old),
        lambda: queue.lease("to_train", 4, None, "l", epoch=old),
        lambda: queue.restart(Frontier(4), old),
    ):
        with pytest.raises(LearnerFenced, match="another one has taken over"):
            attempt()
    assert queue.frontier() == Frontier()
    assert queue.stats().stages[Stage.TO_TRAIN].ready == 4
    queue.ack([0, 1, 2, 3], epoch=new)
    queue.ack([4])  # who gives no epoch is not checked
    assert queue.frontier() == Frontier(5)


def test_a_restart_that_arrives_again_late_takes_nothing_back(open_queue):
    queue = open_queue(config())
    epoch = queue.fence()
    queue.restart(Frontier(), epoch)
    advance(queue, "to_sample", 4)
    advance(queue, "to_score", 9)
    queue.lease("to_train", 4, None, "l", epoch=epoch)
    queue.ack([0, 1, 2, 3], epoch=epoch)
    queue.restart(Frontier(), epoch)  # such as of a server that was stopped and is not any more
    assert queue.frontier() == Frontier(4)
    queue.restart(Frontier(2), queue.fence())
    assert queue.frontier() == Frontier(2)


def test_an_earlier_learner_that_waits_is_told_that_its_place_is_taken(open_queue):
    queue = open_queue(config())
    old = queue.fence()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(queue.lease, "to_train", 4, None, "l", LONG, old)
        while not waiting.running():
            pass
        queue.fence()
        with pytest.raises(LearnerFenced):
            waiting.result(timeout=LONG)


def test_ordinals_that_are_none_are_refused_and_those_that_are_not_out_are_waited_for(open_queue):
    queue = open_queue(config())
    advance(queue, "to_sample", 4)
    advance(queue, "to_score", 9)
    for ordinal in (2**52, 2**53 - 1, 2**53 + 1, 2**60, 2**63, 2**64 - 1):
        with pytest.raises(ValueError, match=f"ordinal {ordinal} is none"):
            queue.lease("to_train", 4, None, "l", first=ordinal)
        for trained, dropped in (([0, ordinal], []), ([0], [ordinal])):
            with pytest.raises(ValueError, match=f"ordinal {ordinal} is none"):
                queue.ack(trained, dropped)
    assert queue.frontier() == Frontier()
    for first in (6, 8, 2**52 - 1):  # the last groups that are out are 6 and 7
        assert queue.lease("to_train", 4, None, "l", first=first) == []
    assert ordinals(queue.lease("to_train", 4, None, "l", first=4)) == [4, 5, 6, 7]


def test_outcomes_of_which_one_is_refused_change_nothing(open_queue):
    queue = open_queue(config())
    advance(queue, "to_sample", 1)
    advance(queue, "to_score", 2)
    (training, _) = queue.lease("to_train", 2, None, "l")
    sampling = queue.lease("to_sample", 1, None, "s")
    with pytest.raises(ValueError, match="acked instead"):
        queue.complete([(sampling[0].id, b"sampled"), (training.id, b"trained")])
    for kind in FailureKind:
        with pytest.raises(ValueError, match="acked instead"):
            queue.fail([(sampling[0].id, "no", kind), (training.id, "no", kind)])
    stages = queue.stats().stages
    assert stages[Stage.TO_SAMPLE].leased == stages[Stage.TO_TRAIN].leased == 2
    assert stages[Stage.TO_SCORE].ready == 0
    assert queue.stats().last_reasons == ()
    assert queue.complete([(sampling[0].id, b"sampled")]) == [Completion.DONE]


def test_of_a_group_that_failed_very_often_the_last_reasons_are_kept(open_queue):
    queue = open_queue(config(block=1, max_deliveries=30))
    for stage in ("to_sample", "to_score"):
        for number in range(15 if stage == "to_sample" else 30):
            (lease,) = queue.lease(stage, 1, None, "w")
            reason = f"{stage} {number}"
            queue.fail([(lease.id, reason, FailureKind.INFRASTRUCTURE)])
        if stage == "to_sample":
            advance(queue, stage)
    (tombstone,) = queue.lease("to_train", 1, None, "l")
    assert tombstone.reasons == tuple(f"to_score {number}" for number in range(10, 30))
    assert queue.quarantine()[0].reasons == tombstone.reasons


def test_misuse_is_refused_by_name(open_queue):
    queue = open_queue(config())
    with pytest.raises(ValueError, match="to_taste"):
        queue.lease("to_taste", 1, None, "s")
    with pytest.raises(ValueError, match="n=0"):
        queue.lease("to_sample", 0, None, "s")
    with pytest.raises(ValueError, match="n=9 in order; only 8"):
        queue.lease("to_train", 9, None, "l")
    with pytest.raises(ValueError, match="ordinal 3: it is not handed out"):
        queue.ack([3])
    advance(queue, "to_sample", 1)
    with pytest.raises(ValueError, match="ordinal 0: it is in to_score"):
        queue.ack([0])
    advance(queue, "to_score", 2)
    (lease, _) = queue.lease("to_train", 2, None, "l")
    with pytest.raises(ValueError, match="acked instead"):
        queue.complete([(lease.id, b"trained")])
