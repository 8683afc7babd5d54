"""Runs on Redis: listed, removed, taken up again, and apart from each other."""

import json

import pytest
from typer.testing import CliRunner

from deploy.cli import app
from protos.trajectory import FailureKind
from replay.config import QueueConfig
from replay.queue import Completion, Frontier, QueueClosed, QueueUnavailable, Stage
from replay.redis_queue import OWNER_SECONDS, RedisReplayQueue, RunTaken, key_prefix
from replay.redis_runs import RunAtWork, open_when_free, remove_run, stored_runs
from tests.redis_server import MISSING, redis_server
from tests.unit.test_redis_queue import CONFIG, mint, open_run, pass_stage

pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))


@pytest.fixture(scope="module")
def server():
    with redis_server() as running:
        yield running


def test_a_run_is_listed_and_removed_and_others_stay(server):
    ours, other = open_run(server, "a.run"), open_run(server, "a-run")
    pass_stage(ours, "to_sample")
    pass_stage(other, "to_sample")
    stored = {run.name: run for run in stored_runs(ours.connection)}
    assert (stored["a.run"].groups, stored["a.run"].at_work) == (8, True)
    assert stored["a.run"].memory > 0
    with pytest.raises(RunAtWork, match="at work in here"):
        remove_run(ours.connection, "a.run")
    ours.close()
    remove_run(ours.connection, "a.run")
    assert not [key for key in server.client().scan_iter() if b"{a.run}" in key]
    assert other.stats().out == 8
    with pytest.raises(KeyError):
        remove_run(ours.connection, "a.run")


def test_gc_lists_runs_and_removes_one(server):
    queue = open_run(server, "collected")
    listed = CliRunner().invoke(app, ["gc", "--url", server.url, "--json"])
    assert "collected" in [run["name"] for run in json.loads(listed.output)]
    refused = CliRunner().invoke(app, ["gc", "--url", server.url, "--run", "collected"])
    assert refused.exit_code == 1
    assert "at work in here" in refused.output
    removed = CliRunner().invoke(app, ["gc", "--url", server.url, "--run", "collected", "--force"])
    assert removed.exit_code == 0, removed.output
    assert "collected" not in CliRunner().invoke(app, ["gc", "--url", server.url]).output
    with pytest.raises(QueueUnavailable, match="no queue of the run collected"):
        queue.stats()
    unknown = CliRunner().invoke(app, ["gc", "--url", server.url, "--run", "colected"])
    assert unknown.exit_code == 1
    assert "no run 'colected'" in unknown.output


def test_two_controllers_do_not_share_a_name(server):
    queue = open_run(server, "shared")
    rival = RedisReplayQueue(server.connect(), "shared", mint)
    with pytest.raises(RunTaken, match="at work in here"):
        rival.open(CONFIG, "elsewhere", "a run")
    queue.open(CONFIG, "here", "a run")  # its own controller, started again
    queue.close()
    rival.open(CONFIG, "elsewhere", "a run")


def test_a_run_is_at_work_while_its_owner_asks_and_not_while_others_do(server):
    now = [1000.0]

    def of_run():
        return RedisReplayQueue(server.connect(), "asked", mint, clock=lambda: now[0])

    owner, edge, rival = of_run(), of_run(), of_run()
    owner.open(CONFIG, "here", "a run")
    for _ in range(3):
        now[0] += 20
        owner.stats()
    with pytest.raises(RunTaken, match="at work in here"):
        rival.open(CONFIG, "elsewhere", "a run")
    for _ in range(3):
        now[0] += 20
        edge.stats()
        rival.stats()
    assert rival.open(CONFIG, "elsewhere", "a run")
    now[0] += 40
    with pytest.raises(RunTaken):
        owner.stats()  # its place is taken
    of_run().open(CONFIG, "yet another", "a run")


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_controller_that_was_away_until_another_took_its_run_is_told_so_and_changes_nothing(
    server, number
):
    now = [1000.0]

    def of_run():
        return RedisReplayQueue(server.connect(), f"taken {number}", mint, clock=lambda: now[0])

    away, other = of_run(), of_run()
    asked = (away.stats, away.fence, lambda: away.release_worker("s", "it died"))[number]
    away.open(CONFIG, "here", "a run")
    asked()
    now[0] += OWNER_SECONDS + 1  # without a way to Redis
    assert other.open(CONFIG, "elsewhere", "a run")
    epoch, leases = other.fence(), other.lease("to_sample", 1, None, "s")
    with pytest.raises(RunTaken, match="at work in elsewhere"):
        asked()
    other.restart(Frontier(), epoch)
    assert other.complete([(lease.id, b"samples") for lease in leases]) == [Completion.DONE] * 2


def test_the_next_controller_waits_for_one_that_was_killed_and_not_for_one_that_lives(server):
    now = [1000.0]

    def of_run():
        return RedisReplayQueue(server.connect(), "killed", mint, clock=lambda: now[0])

    owner, rival = of_run(), of_run()
    owner.open(CONFIG, "pod-0", "a run")
    owner.stats()
    now[0] += 4

    def while_it_lives(seconds):
        now[0] += seconds
        owner.stats()

    with pytest.raises(RunTaken, match=r"at work in pod-0, seen \d s ago.*after it was last seen"):
        open_when_free(rival, CONFIG, "pod-1", "a run", sleep=while_it_lives)

    def while_it_is_dead(seconds):
        now[0] += seconds

    died = now[0]
    with pytest.raises(RunTaken, match="last seen: in 30 s, if it was"):
        rival.open(CONFIG, "pod-1", "a run")
    assert open_when_free(rival, CONFIG, "pod-1", "a run", sleep=while_it_is_dead)
    assert now[0] - died == pytest.approx(OWNER_SECONDS)


def test_a_command_that_resumes_finds_its_groups_and_gives_back_all_leases(server):
    queue = open_run(server, "again")
    epoch = queue.fence()
    pass_stage(queue, "to_sample", 1)
    assert pass_stage(queue, "to_score", 1, b"scored") == [0]
    (scoring,) = queue.lease("to_score", 1, None, "dead")
    sampling = queue.lease("to_sample", 1, None, "dead")
    queue.lease("to_sample", 1, 0.001, "dead")
    queue.close()
    # With more steps, and a learner that has seen nothing of it.
    config = CONFIG.model_copy(update={"total_groups": 400, "score_ttl": 7.0})
    assert queue.open(config, "here", "a run")
    assert queue.renew([scoring.id, *(lease.id for lease in sampling)]) == []
    stats = queue.stats()
    assert not stats.closed
    assert (stats.out, stats.redelivered, stats.expired) == (6, 0, 0)
    assert queue.fence() != epoch
    queue.restart(Frontier())
    (again,) = queue.lease("to_score", 1, None, "r")
    assert (again.ordinal, again.payload, again.delivery, again.ttl) == (1, b"payload", 1, 7.0)
    queue.complete([(again.id, b"scored again")])
    training = queue.lease("to_train", 2, None, "l")
    assert [lease.payload for lease in training] == [b"scored", b"scored again"]
    assert [g.ordinal for g in queue.lease("to_sample", 9, None, "s")] == [2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize(
    ("identity", "changes"),
    [("another run", {}), ("a run", {"block": 4}), ("a run", {"mode": "async"})],
)
def test_a_queue_of_other_numbers_is_made_anew(server, identity, changes):
    queue = open_run(server, f"other {identity} {len(changes)}")
    pass_stage(queue, "to_sample")
    assert not queue.open(CONFIG.model_copy(update=changes), "here", identity)
    assert queue.stats().out == 0


def test_workers_that_hold_nothing_leave_no_name_behind(server):
    queue = open_run(server, "names")
    for number in range(1100):
        queue.release([lease.id for lease in queue.lease("to_sample", 1, None, f"{number}")])
    assert server.client().hlen(f"{key_prefix('names')}newest") < 1050


def test_of_very_many_names_the_latest_are_kept_and_no_expiry_is_uncounted(server):
    now, most = [1000.0], 4096
    queue = RedisReplayQueue(server.connect(), "expired", mint, clock=lambda: now[0])
    queue.open(QueueConfig(groups_per_step=most + 4, block=1), "here", "a run")
    for number in range(most + 3):
        assert queue.lease("to_sample", 1, 1.0, f"{number}")
    now[0] += 9
    expired = queue.stats().expired_by_worker
    assert (len(expired), expired.pop("(others)")) == (most + 1, 3)
    assert set(expired.values()) == {1}
    assert queue.lease("to_sample", 1, 1.0, "latest")
    now[0] += 9
    stats = queue.stats()
    assert stats.expired == most + 4
    assert (stats.expired_by_worker["latest"], stats.expired_by_worker["(others)"]) == (1, 4)
    client, key = server.client(), key_prefix("expired")
    assert client.hlen(f"{key}expired") == client.zcard(f"{key}expired_at") == most


def test_a_queue_made_anew_knows_no_lease_and_no_count_of_before(server):
    queue = open_run(server, "anew")
    (lease, _) = queue.lease("to_sample", 1, None, "s")
    queue.fail([(lease.id, "broken", FailureKind.DATA)])
    (other,) = queue.lease("to_train", 1, None, "l")
    queue.open(CONFIG, "here", "another run")
    assert queue.renew([other.id]) == []
    stats = queue.stats()
    assert (stats.out, stats.quarantined, stats.last_reasons) == (0, 0, ())
    assert stats.stages[Stage.TO_TRAIN].leased == 0


def test_who_has_joined_a_run_gets_no_work_of_another_one_of_its_name(server):
    def of_run():
        return RedisReplayQueue(server.connect(), "joined", mint)

    owner, edge = of_run(), of_run()
    owner.open(CONFIG, "here", "a run", "its config")
    assert edge.join() == "its config"
    owner.open(CONFIG, "here", "a run", "with more workers")  # the same, resumed
    assert edge.run_config() == "with more workers"
    (held, _) = edge.lease("to_sample", 1, None, "s")
    owner.open(CONFIG, "here", "with another reward", "another config")
    with pytest.raises(QueueClosed, match="made anew"):
        edge.lease("to_sample", 1, None, "s")
    assert edge.complete([(held.id, b"samples")]) == [Completion.TOO_LATE]
    assert owner.stats().out == 0
    edge.join()
    assert [lease.ordinal for lease in edge.lease("to_sample", 1, None, "s")] == [0, 1]


def test_a_restart_that_is_cut_short_loses_no_survivor_and_the_next_one_completes_it(server):
    queue = open_run(server, "cut short", patience=0.2)
    pass_stage(queue, "to_sample", 2)
    (held,) = queue.lease("to_score", 1, None, "r")
    queue._call("restart", "", 0, 0)  # the learner dies before it goes on
    assert queue.lease("to_score", 1, None, "r") == []
    with pytest.raises(QueueUnavailable, match="a learner that resumes goes through its groups"):
        queue.complete([(held.id, b"scored")])
    assert queue.stats().out == 4
    queue.restart(Frontier())
    assert queue.complete([(held.id, b"scored")]) == [Completion.DONE]
    assert pass_stage(queue, "to_score") == [1, 2, 3]


def test_a_learner_that_takes_its_restart_for_ended_ends_it_and_another_one_does_not(server):
    queue = open_run(server, "forgotten end", patience=0.2)
    other = RedisReplayQueue(server.connect(0.2), "forgotten end", mint)
    pass_stage(queue, "to_sample", 2)
    epoch = queue.fence()
    queue.restart(Frontier(), epoch)
    (held, *_) = queue.lease("to_score", 9, None, "r")
    queue._call("restart", "", 0, 0)  # as if Redis had forgotten the pieces of this one
    other.lease("to_train", 1, None, "learner", epoch="of before")
    with pytest.raises(QueueUnavailable, match="a learner that resumes goes through"):
        other.renew([held.id])
    assert queue.renew([held.id]) == [held.id]
    assert other.renew([held.id]) == [held.id]


def test_a_restart_of_more_groups_than_one_piece_holds_keeps_each_survivor(server):
    step = 5000
    queue = open_run(server, "many", QueueConfig(groups_per_step=step, block=50, lag=1))
    assert len(pass_stage(queue, "to_sample", 200)) == 2 * step
    assert pass_stage(queue, "to_score", step) == list(range(step))
    queue.lease("to_train", step, None, "learner that dies")
    queue = open_run(server, "many", QueueConfig(groups_per_step=step, block=50, lag=0))
    queue.restart(Frontier(2))
    stages = queue.stats().stages
    assert stages["to_train"].ready == step - 2
    assert stages["to_score"].ready + stages["to_sample"].ready == 0  # the others wait aside
    groups = queue.lease("to_train", step - 2, None, "the next")
    assert [(g.ordinal, g.payload) for g in groups] == [(o, b"payload") for o in range(2, step)]
    queue.ack([g.ordinal for g in groups])
    assert queue.lease("to_sample", 1, None, "s") == []
    assert queue.stats().stages["to_score"].ready == step
