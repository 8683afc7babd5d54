"""Remote rewards over real gRPC on loopback: the same outcomes, and every fault typed."""

import asyncio
import threading
from concurrent.futures import Future
from pathlib import Path

import grpc
import numpy as np
import pytest

from protos.edge import EdgeOptions, Refused
from protos.reward import SERVICE, ScoreResponse
from protos.trajectory import (
    Abstained,
    Failed,
    FailureKind,
    InfrastructureError,
    RewardAway,
    Scored,
)
from rewards import remote as remote_module
from rewards.combine import RewardLoadError, SubmittedSum, load_reward
from rewards.facts import differences, task_facts
from rewards.judge import GroupFailure, group_failure, start
from rewards.remote import RemoteReward, RemoteRewardError
from tests.ports import free_port
from tests.remote_rewards import (
    SURE,
    TASK,
    WAIT,
    Elsewhere,
    Server,
    StubTask,
    SumReward,
    group,
    outcome_of,
    request,
    serving,
    stub,
)


def test_outcomes_are_those_of_the_local_reward():
    odd = [Scored(1 / 3, {"iou": np.arange(2.0)}), Abstained("dark"), Failed("?", FailureKind.DATA)]
    local = SumReward({"1": odd})
    with serving(local) as server:
        away = RemoteReward(TASK, server.address, **SURE)
        assert list(away.provides) == ["iou"]
        for one in (group(TASK), group(TASK, 1, 3), group(TASK, 2, 5, 2**60)):
            assert outcome_of(away, one) == outcome_of(local, one)
        away.close()


@pytest.mark.parametrize(
    ("reward", "kind", "reason"),
    [
        (SumReward({"0": ValueError("cursed")}), FailureKind.DATA, "cursed"),
        (SumReward({"0": [Scored(1.0)]}), FailureKind.DATA, "1 outcomes for 2"),
        (Elsewhere(), FailureKind.INFRASTRUCTURE, "being loaded"),
    ],
)
def test_failures_of_the_served_reward_keep_their_kind(reward, kind, reason):
    with serving(reward) as server:
        away = RemoteReward(TASK, server.address, **SURE)
        failure = outcome_of(away)
        away.close()
    assert isinstance(failure, GroupFailure)
    assert failure.kind is kind
    assert reason in failure.reason


def test_many_groups_are_in_flight_at_once_and_need_one_thread():
    arrived = 0
    everyone = asyncio.Event()

    async def score(data: bytes) -> bytes:
        nonlocal arrived
        arrived += 1
        if arrived == 50:
            everyone.set()
        await everyone.wait()
        return ScoreResponse((Scored(1.0),) * 2).to_bytes()

    with stub(score) as server:
        away = RemoteReward(TASK, server.address, in_flight=50, **SURE)
        before = threading.active_count()
        answers = [start(away, group(TASK)) for _ in range(50)]
        assert all(answer.result(WAIT) == (Scored(1.0),) * 2 for answer in answers)
        assert threading.active_count() <= before + 3  # gRPC has a poller of its own
        away.close()


def test_a_call_that_gets_no_answer_is_repeated(monkeypatch):
    monkeypatch.setattr(remote_module, "FIRST_BACKOFF_SECONDS", 0.01)
    seen: list[bytes] = []

    async def score(data: bytes) -> bytes:
        seen.append(data)
        if len(seen) < 4:
            raise RuntimeError("a fault of the server")  # INTERNAL
        return ScoreResponse((Scored(2.0),) * 2).to_bytes()

    with stub(score) as server:
        away = RemoteReward(TASK, server.address, retries=3, **SURE)
        assert outcome_of(away) == (Scored(2.0),) * 2
        assert seen == [request().to_bytes()] * 4
        seen.clear()
        impatient = RemoteReward(TASK, server.address, retries=2, **SURE)
        failure = outcome_of(impatient)
        assert len(seen) == 3
        away.close()
        impatient.close()
    assert failure.kind is FailureKind.INFRASTRUCTURE
    assert "asked 3 times: INTERNAL" in failure.reason


def test_a_group_survives_the_death_of_the_server_that_held_it():
    held = threading.Event()

    async def never(data: bytes) -> bytes:
        held.set()
        await asyncio.Event().wait()
        raise AssertionError

    first, port = stub(never), free_port()
    first._options = EdgeOptions(port=port)
    with first as server:
        away = RemoteReward(TASK, server.address, **SURE)
        answer = start(away, group(TASK))
        assert held.wait(WAIT)
    assert not answer.done()

    async def score(data: bytes) -> bytes:
        return ScoreResponse((Scored(3.0),) * 2).to_bytes()

    again = stub(score)
    again._options = EdgeOptions(port=port)
    with again:
        assert answer.result(WAIT) == (Scored(3.0),) * 2
        away.close()


def test_a_server_that_is_not_there_is_told_apart_from_one_that_does_not_answer():
    async def score(data: bytes) -> bytes:
        raise Refused(grpc.StatusCode.UNAVAILABLE, "the model is away")

    with stub(score) as server:
        away = RemoteReward(TASK, server.address, retries=0, **SURE)
        error = start(away, group(TASK)).exception(WAIT)
        assert type(error) is InfrastructureError
        assert "asked 1 times: UNAVAILABLE: the model is away" in str(error)
        gone = RemoteReward(TASK, server.address, connect_seconds=1)
    for reward in (gone, SubmittedSum([(SumReward(), 1.0), (gone, 1.0)])):
        error = start(reward, group(TASK)).exception(WAIT)
        assert isinstance(error, RewardAway)
        assert f"no reward answers at {server.address} for 1 s (UNAVAILABLE: " in str(error)
    for one in (away, gone):
        one.close()


def test_a_deadline_ends_the_wait():
    async def never(data: bytes) -> bytes:
        await asyncio.Event().wait()
        raise AssertionError

    with stub(never) as server:
        away = RemoteReward(TASK, server.address, deadline_seconds=0.2)
        failure = outcome_of(away)
        away.close()
    assert failure.kind is FailureKind.INFRASTRUCTURE
    assert "DEADLINE_EXCEEDED" in failure.reason


def test_what_the_server_said_is_told_where_time_runs_out_over_its_repetition(monkeypatch):
    monkeypatch.setattr(remote_module, "FIRST_BACKOFF_SECONDS", 0.01)
    asked: list[bytes] = []

    async def score(data: bytes) -> bytes:
        asked.append(data)
        if len(asked) > 1:
            await asyncio.Event().wait()
        raise Refused(grpc.StatusCode.UNAVAILABLE, "the model is away")

    with stub(score) as server:
        away = RemoteReward(TASK, server.address, deadline_seconds=3)
        failure = outcome_of(away)
        away.close()
    assert failure.kind is FailureKind.INFRASTRUCTURE
    assert "asked 2 times: UNAVAILABLE: the model is away" in failure.reason


def test_a_group_that_is_called_off_is_called_off_at_the_server():
    held, ended = threading.Event(), threading.Event()

    async def never(data: bytes) -> bytes:
        held.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        raise AssertionError

    with stub(never) as server:
        away = RemoteReward(TASK, server.address, **SURE)
        answer = start(SubmittedSum([(away, 1.0), (SumReward(), 1.0)]), group(TASK))
        assert held.wait(WAIT)
        assert answer.cancel()
        assert ended.wait(WAIT)
        away.close()


def test_groups_without_an_answer_are_infrastructure_failures_once_it_is_closed():
    held = threading.Event()

    async def never(data: bytes) -> bytes:
        held.set()
        await asyncio.Event().wait()
        raise AssertionError

    with stub(never) as server:
        away = RemoteReward(TASK, server.address, **SURE)
        answer = start(away, group(TASK))
        assert held.wait(WAIT)
        away.close()
        assert group_failure(answer.exception(WAIT)).kind is FailureKind.INFRASTRUCTURE


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"\xff\xff", "not a ScoreResponse"),
        (ScoreResponse((Scored(1.0),)).to_bytes(), "1 outcomes for 2"),
        (b"", "0 outcomes and no failure"),
    ],
)
def test_an_answer_that_is_none_is_a_data_failure(answer, reason):
    async def score(data: bytes) -> bytes:
        return answer

    with stub(score) as server:
        away = RemoteReward(TASK, server.address, **SURE)
        failure = outcome_of(away)
        away.close()
    assert failure.kind is FailureKind.DATA
    assert reason in failure.reason


def test_an_address_where_nobody_listens_is_an_error_at_start():
    options = {"address": f"127.0.0.1:{free_port()}", "connect_seconds": 0.3}
    with pytest.raises(RewardLoadError, match=r"no reward answers.*UNAVAILABLE.*`rewardtune serve"):
        load_reward("rewards.remote:RemoteReward", TASK, options)


def test_a_server_that_comes_late_is_waited_for():
    port = free_port()
    built: list[RemoteReward] = []
    waiting = threading.Thread(
        target=lambda: built.append(RemoteReward(TASK, f"127.0.0.1:{port}", connect_seconds=WAIT))
    )
    waiting.start()
    with serving(options=EdgeOptions(port=port)):
        waiting.join(WAIT)
        assert len(built) == 1


def test_a_server_of_another_task_is_named_at_start():
    class Longer(StubTask):
        max_length = 5
        auxiliary_arrays = {"iou": (7,)}  # noqa: RUF012

    with (
        serving(task=Longer(examples=9)) as server,
        pytest.raises(RemoteRewardError) as raised,
    ):
        RemoteReward(TASK, server.address, **SURE)
    assert "serves another task" in str(raised.value)
    assert "max_length: here 3, there 5" in str(raised.value)
    assert 'auxiliary_arrays: here {"iou": [2]}, there {"iou": [7]}' in str(raised.value)
    assert "training examples: here 4, " in str(raised.value)


def test_what_answers_without_being_a_reward_is_named_at_start():
    async def describe(_: bytes) -> bytes:
        return b"\xff\xff\xff"

    with (
        Server(lambda: {SERVICE: {"Describe": describe}}) as server,
        pytest.raises(RemoteRewardError, match="not as a reward: not a DescribeResponse"),
    ):
        RemoteReward(TASK, server.address, **SURE)
    with (
        Server(lambda: {"other.Service": {"Describe": describe}}) as server,
        pytest.raises(RemoteRewardError, match="not as a reward: UNIMPLEMENTED"),
    ):
        RemoteReward(TASK, server.address, **SURE)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"address": "localhost"}, "address is 'localhost'; it must be HOST:PORT"),
        ({"address": "::1:50061"}, r"an IPv6 host stands in brackets: \[::1\]"),
        ({"deadline_seconds": 0}, "deadline_seconds is 0"),
        ({"retries": -1}, "retries is -1"),
        ({"in_flight": 0}, "in_flight is 0"),
        ({"deadline_seconds": float("nan")}, "deadline_seconds is nan"),
        ({"ca_file": "/nowhere.pem"}, "ca_file /nowhere.pem cannot be read"),
        ({"token_env": "NO_SUCH_TOKEN"}, "variable NO_SUCH_TOKEN is not set"),
    ],
)
def test_options_that_cannot_work_are_refused(options, reason):
    with pytest.raises(RewardLoadError, match=reason):
        load_reward("rewards.remote:RemoteReward", TASK, {"address": "127.0.0.1:1"} | options)


def test_a_sum_of_remote_and_local_terms_is_that_of_local_ones():
    local = SumReward()
    with serving(local) as server:
        away = RemoteReward(TASK, server.address, in_flight=5, **SURE)
        mixed = SubmittedSum([(local, 0.5), (away, 2.0)])
        assert (mixed.in_flight, list(mixed.provides)) == (5, ["iou"])
        expected = [2.5 * outcome.reward for outcome in outcome_of(local)]
        assert [outcome.reward for outcome in outcome_of(mixed)] == pytest.approx(expected)
        away.close()
    failing = SubmittedSum([(SumReward({"0": InfrastructureError("away")}), 1.0), (Now(), 1.0)])
    failure = outcome_of(failing)
    assert failure.kind is FailureKind.INFRASTRUCTURE
    assert "term 0 (SumReward): away" in failure.reason


class Now:
    """A submitted reward that raises at once."""

    provides = ()
    in_flight = 1

    def submit(self, group):
        raise KeyError("term 1")


def test_nobody_is_asked_for_a_group_that_a_local_term_cannot_judge():
    class Person:
        provides = ()
        in_flight = 4

        def submit(self, group):
            self.asked: Future = Future()
            return self.asked

    person = Person()
    local = SumReward({"0": ValueError("no label")})
    failure = outcome_of(SubmittedSum([(person, 1.0), (local, 1.0)]))
    assert person.asked.cancelled()
    assert failure.kind is FailureKind.DATA
    assert "term 1 (SumReward): ValueError: no label" in failure.reason
    waiting = start(SubmittedSum([(person, 1.0), (SumReward(), 1.0)]), group(TASK))
    person.asked.cancel()  # what was called off is no fault of the data
    assert group_failure(waiting.exception(WAIT)).kind is FailureKind.INFRASTRUCTURE


def test_facts_compare_files_by_their_contents_and_ignore_where_they_are(tmp_path: Path):
    from pydantic import BaseModel

    class Config(BaseModel):
        weights: Path
        cache: Path | None
        sizes: tuple[int, int] = (1, 2)

    def facts(directory: str, contents: str) -> dict[str, str]:
        path = tmp_path / directory
        path.mkdir()
        (path / "weights").write_text(contents)
        task = StubTask()
        task.config = Config(weights=path / "weights", cache=path)  # type: ignore[attr-defined]
        return task_facts(task)  # type: ignore[arg-type]

    mine = facts("a", "1")
    assert differences(mine, facts("b", "1")) == []
    (found,) = differences(mine, facts("c", "2"))
    assert found.startswith("task.weights: here")
    assert differences({}, {"a": "1"}) == ["a: here (not there), there 1"]
