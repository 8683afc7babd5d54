"""Whole runs on a real Ray with the queue on a real redis-server."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.checks import check_queue
from deploy.run_directory import read_status
from learner.ordinals import read_ordinals
from learner.stop import StopRequest
from replay.queue import QueueFull
from replay.redis_fitness import RedisUnfit
from replay.redis_queue import key_prefix
from replay.redis_runs import stored_runs
from tests.last_step import LastStep
from tests.redis_server import MISSING, RedisServer, redis_server
from tests.runs import STEPS, Run

pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))

Tune = Callable[..., Run]


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with redis_server("--maxmemory", "1gb", "--maxmemory-policy", "noeviction") as running:
        yield running


def assert_same_weights(run: Run, other: Run) -> None:
    mine, others = run.weights(), other.weights()
    assert mine.keys() == others.keys()
    assert all(np.array_equal(mine[name], others[name]) for name in mine)


def test_weights_are_those_of_the_queue_in_memory(
    tune: Tune, undisturbed: Run, server: RedisServer
) -> None:
    run = tune("on_redis", {"replay.url": server.url, "rewards.count": 2})
    assert_same_weights(run, undisturbed)
    queue = read_status(run.directory)["queue"]
    assert (queue["backend"], queue["url"], queue["waiting"]) == ("redis", server.url, None)
    connection = server.connect()
    (stored,) = stored_runs(connection)
    assert (stored.name, stored.at_work) == ("on_redis", False)
    server.client().config_set("maxmemory-policy", "allkeys-lru")
    with pytest.raises(RedisUnfit, match="noeviction"):
        check_queue(run.config)


def test_a_killed_redis_changes_no_weight_and_is_shown_while_it_is_away(
    tune: Tune,
    undisturbed: Run,
    server: RedisServer,
    tiny_values: dict[str, Any],
    tmp_path: Path,
) -> None:
    last = LastStep(tiny_values, tmp_path)
    seen: list[Mapping[str, Any]] = []
    away = 0

    def kill_once(status: Mapping[str, Any], stop: StopRequest) -> None:
        nonlocal away
        seen.append(json.loads(json.dumps(status, default=str)))
        if status["step"] >= 2 and not away:
            away = 1
            server.kill()
        elif away == 1 and status["queue"]["waiting"]:
            away = 2
            server.start()
            last.begin()

    run = tune("killed_redis", last.changes | {"replay.url": server.url}, kill_once)
    assert away == 2
    assert_same_weights(run, undisturbed)
    waiting = [status["queue"]["waiting"] for status in seen if status["queue"]["waiting"]]
    assert waiting[0].startswith("waiting for Redis at unix://")
    final = seen[-1]
    assert final["queue"]["interruptions"] >= 1
    assert all(worker["restarts"] == 0 for worker in final["workers"])


def test_a_redis_that_has_lost_its_last_writes_changes_no_weight(
    tune: Tune,
    undisturbed: Run,
    server: RedisServer,
    tiny_values: dict[str, Any],
    tmp_path: Path,
) -> None:
    # Workers hold leases that Redis has forgotten, and it some that they have: those run out.
    leases = {"actors.lease_seconds": 10, "rewards.lease_seconds": 10}
    last = LastStep(tiny_values, tmp_path, leases | {"learner.checkpoint_every": 100})
    saved: list[Any] = []
    trained_by_then = 0

    def go_back_once(status: Mapping[str, Any], stop: StopRequest) -> None:
        nonlocal trained_by_then
        if not saved and status["step"] >= 1:
            saved.append(server.saved())
            meta = f"{key_prefix('forgetful_redis')}meta"
            acked: Any = server.client().hget(meta, "next_unacked")
            trained_by_then = int(acked)
        elif len(saved) == 1 and status["queue"]["trained"] > trained_by_then:
            server.go_back(saved[0])
            saved.append(None)
        elif any(w["role"] == "learner" and w["restarts"] for w in status["workers"]):
            last.begin()

    run = tune("forgetful_redis", last.changes | {"replay.url": server.url}, go_back_once)
    assert len(saved) == 2
    assert_same_weights(run, undisturbed)
    (learner,) = [w for w in run.statuses[-1]["workers"] if w["name"] == "learner"]
    assert learner["restarts"] == 1
    lines = read_ordinals(run.directory)
    assert lines[-1].step == STEPS
    began = [line.step for line in lines if line.resumed]
    assert began[0] == 0
    assert 4 * began[1] > trained_by_then  # no step was trained again
    trained = [ordinal for line in lines for ordinal in line.trained]
    assert trained == list(range(4 * STEPS))


def test_a_full_redis_ends_the_run_which_resumes_to_the_same_weights(
    tune: Tune,
    undisturbed: Run,
    server: RedisServer,
    tiny_values: dict[str, Any],
    tmp_path: Path,
) -> None:
    last = LastStep(tiny_values, tmp_path)
    seen: list[str | None] = []

    def fill(status: Mapping[str, Any], stop: StopRequest) -> None:
        seen.append(status["queue"]["waiting"])
        if status["step"] >= 1:
            server.client().config_set("maxmemory", 1)

    changes = last.changes | {"replay.url": server.url, "replay.patience_seconds": 2}
    with pytest.raises(QueueFull, match="no room for 2 s, in which no group was trained"):
        tune("full_redis", changes, fill)
    assert "memory is full" in (seen[-1] or "")
    server.client().config_set("maxmemory", "1gb")
    last.begin()
    run = tune("full_redis", changes)
    assert_same_weights(run, undisturbed)
    queue = run.statuses[-1]["queue"]
    assert (queue["quarantined"], queue["redelivered"], queue["waiting"]) == (0, 0, None)
