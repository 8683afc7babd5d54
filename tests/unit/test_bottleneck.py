"""Which sentence a run gets, for runs that never were."""

import json

from deploy.bottleneck import find_bottleneck, has_ended
from tests.statuses import Imagined


def said(**changes):
    return find_bottleneck(Imagined(**changes).status()).sentence


def test_reward_workers_that_cannot_keep_up_are_named_with_backlog_and_how_many_more():
    run = Imagined(
        busy={"learner": 0.25, "sampler": 0.3, "reward": 0.93},
        held={"to_sample": (0, 4), "to_score": (56, 4), "to_train": (0, 0)},
    )
    found = find_bottleneck(run.status())
    # A group costs 0.93 s of work here; samplers could bring 13.3 a second, the learner take 16.
    assert found.sentence == (
        "reward workers are the bottleneck: 93 % busy, backlog 14 s; 11 more would balance"
    )
    assert (found.role, found.more) == ("reward", 11)
    json.dumps(found.to_json())


def test_as_many_more_as_are_named_leave_the_bottleneck():
    slow = Imagined(busy={"learner": 0.25, "sampler": 0.3, "reward": 0.93})
    more = find_bottleneck(slow.status()).more
    faster = 1 / 0.3  # the samplers are then busy all the time
    balanced = Imagined(
        workers={"learner": 1, "sampler": 2, "reward": 4 + more},
        per_second=4.0 * faster,
        busy={"learner": 0.25 * faster, "sampler": 1.0, "reward": 0.93 * faster * 4 / (4 + more)},
    )
    assert find_bottleneck(balanced.status()).role != "reward"


def test_samplers_that_cannot_keep_up_are_named():
    found = find_bottleneck(
        Imagined(busy={"learner": 0.5, "sampler": 0.97, "reward": 0.2}).status()
    )
    assert found.role == "sampler"
    assert found.sentence == "samplers are the bottleneck: 97 % busy; 3 more would balance"


def test_a_busy_learner_is_named_and_how_few_workers_would_do():
    found = find_bottleneck(
        Imagined(busy={"learner": 0.99, "sampler": 0.3, "reward": 0.2}).status()
    )
    assert (found.role, found.more) == ("learner", None)
    assert found.sentence == (
        "the learner is the bottleneck: 99 % busy; "
        "1 of 2 samplers and 1 of 4 reward workers would do"
    )


def test_when_both_pools_are_busy_the_one_with_groups_before_it_is_named():
    busy = {"learner": 0.4, "sampler": 0.98, "reward": 0.95}
    waiting = {"to_sample": (0, 2), "to_score": (9, 4), "to_train": (0, 0)}
    assert said(busy=busy, held=waiting).startswith("reward workers are the bottleneck")
    waiting["to_score"] = (0, 1)
    assert said(busy=busy, held=waiting).startswith("samplers are the bottleneck")


def test_a_learner_as_busy_as_its_workers_is_balanced():
    assert said(busy={"learner": 0.92, "sampler": 0.88, "reward": 0.4}) == (
        "balanced: the learner 92 % and samplers 88 % busy"
    )


def test_stages_that_take_turns_are_told_apart_from_a_bottleneck():
    busy = {"learner": 0.5, "sampler": 0.45, "reward": 0.1}
    assert "policy_lag 0 has them take turns" in said(busy=busy, lag=0)
    assert "they wait for each other, with 12 of 16 groups out" in said(busy=busy, lag=1)


def test_a_run_that_starts_says_what_is_not_there_yet():
    assert "the learner is not at work yet" in said(state="starting", per_second=0.0)
    sentence = said(states={"reward": "pending"}, per_second=0.0, busy={})
    assert sentence.startswith("no reward worker is at work: 4 pending")
    assert "outside" in said(state="waiting for a learner", states={"learner": "outside"})


def test_before_a_first_group_it_is_too_early_to_tell():
    busy = {"sampler": 1.0, "reward": 0.0}
    assert said(busy=busy, per_second=0.0, state="waiting").startswith("too early to tell")


def test_a_queue_that_is_waited_for_comes_before_all_else():
    reason = "waiting for Redis at redis://h:1/0: no answer"
    assert said(waiting=reason) == f"everyone is {reason}"


def test_a_run_in_which_nothing_moves_says_where_its_groups_are():
    sentence = said(
        per_second=0.0,
        busy={"learner": 0.0, "sampler": 0.0, "reward": 0.0},
        held={"to_sample": (3, 0), "to_score": (0, 0), "to_train": (0, 0)},
        state="waiting",
    )
    assert sentence.startswith("nothing moves: no group has left its stage for 60 s")
    assert "3 of 16 groups out: 3 to_sample" in sentence


def test_a_pool_without_workers_is_what_is_waited_for_and_what_helps_is_told():
    workers = {"learner": 1, "sampler": 2, "reward": 0}
    busy = {"learner": 0.0, "sampler": 0.0}
    found = find_bottleneck(Imagined(workers=workers, busy=busy, per_second=0.0).status())
    assert found.role == "reward"
    assert found.sentence.startswith("no reward worker is at work: none is wanted")
    assert "`rewardtune scale rewards=N`" in found.sentence
    none = said(workers={"learner": 1, "sampler": 0, "reward": 4}, busy={}, per_second=0.0)
    assert "`rewardtune scale actors=N`" in none
    leaving = Imagined(states={"reward": "draining"}, busy={"learner": 0.0, "sampler": 0.95})
    assert "no reward worker" not in find_bottleneck(leaving.status()).sentence


def test_nothing_pending_at_all_is_told():
    empty = dict.fromkeys(("to_sample", "to_score", "to_train"), (0, 0))
    busy = {"learner": 0.0, "sampler": 0.0, "reward": 0.0}
    assert "none in any stage" in said(per_second=0.0, busy=busy, held=empty, state="waiting")


def test_answers_from_elsewhere_are_named():
    busy = {"learner": 0.1, "sampler": 0.2, "reward": 0.05}
    assert said(busy=busy, in_flight=3) == (
        "answers from elsewhere are the bottleneck: 12 groups wait for one"
    )


def test_after_the_learner_the_evaluator_is_the_bottleneck_and_the_run_goes_on():
    status = Imagined(
        state="finished",
        workers={"learner": 1, "sampler": 2, "reward": 4, "evaluator": 1},
        states={"learner": "ended"},
        behind=2,
    ).status()
    assert not has_ended(status)
    assert find_bottleneck(status).sentence.endswith("2 policies left to evaluate")


def test_a_run_that_is_over_says_how_it_ended():
    over = dict.fromkeys(("learner", "sampler", "reward"), "ended")
    for state in ("finished", "stopped", "failed"):
        status = Imagined(state=state, states=over).status()
        assert has_ended(status)
        assert find_bottleneck(status).sentence == f"the run is {state}"


def test_a_learner_outside_of_ray_tells_no_share_and_the_others_are_still_judged():
    busy = {"sampler": 0.3, "reward": 0.95}
    assert said(busy=busy, states={"learner": "outside"}).startswith(
        "reward workers are the bottleneck"
    )


def test_a_pool_that_is_all_outside_of_ray_is_not_judged():
    status = Imagined().status()
    del status["roles"]["reward"]
    status["outside"] = [{"name": "reward@x", "role": "reward", "leases": 1}]
    sentence = find_bottleneck(status).sentence
    assert sentence == "cannot tell: all reward workers are outside of Ray, busy or not"
