"""Remote rewards over real gRPC on loopback: the same outcomes, and every fault typed."""

import asyncio
import random
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from protos import edge
from protos.edge import EdgeError, EdgeOptions, read_token
from protos.reward import SCORE, SERVICE, Description, ScoreRequest, ScoreResponse
from protos.trajectory import (
    Abstained,
    Failed,
    FailureKind,
    InfrastructureError,
    Scored,
    WireError,
)
from rewards import remote as remote_module
from rewards.combine import RewardLoadError, SubmittedSum, load_reward
from rewards.facts import differences, task_facts
from rewards.judge import GroupFailure, group_failure, start
from rewards.remote import RemoteReward, RemoteRewardError
from rewards.service import ComputedScorer, handlers
from tests.remote_rewards import (
    WAIT,
    Elsewhere,
    Server,
    StubTask,
    SumReward,
    group,
    request,
)

TASK = StubTask()
QUICK: Mapping[str, Any] = {"connect_seconds": 0.5, "deadline_seconds": WAIT}


def serving(reward=None, task=TASK, options=None, deadline=WAIT, on_stuck=pytest.fail) -> Server:
    reward = reward or SumReward()
    return Server(lambda: handlers(task, ComputedScorer(task, reward, deadline, on_stuck)), options)


def outcome_of(reward, one=None):
    """The outcomes or the failure of a group, as a reward worker sees them."""
    answer = start(reward, one or group(TASK))
    error = answer.exception(WAIT)
    return answer.result() if error is None else group_failure(error)


def stub(score, task=TASK) -> Server:
    """A server whose Score is what a test wants, from bytes to bytes."""

    async def describe(_: bytes) -> bytes:
        return Description("Stub", (), task_facts(task)).to_bytes()

    return Server(lambda: {SERVICE: {"Describe": describe, "Score": score}})


def test_outcomes_are_those_of_the_local_reward():
    odd = [Scored(1 / 3, {"iou": np.arange(2.0)}), Abstained("dark"), Failed("?", FailureKind.DATA)]
    local = SumReward({"1": odd})
    with serving(local) as server:
        away = RemoteReward(TASK, server.address, **QUICK)
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
        away = RemoteReward(TASK, server.address, **QUICK)
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
        away = RemoteReward(TASK, server.address, in_flight=50, **QUICK)
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
        away = RemoteReward(TASK, server.address, retries=3, **QUICK)
        assert outcome_of(away) == (Scored(2.0),) * 2
        assert seen == [request().to_bytes()] * 4
        seen.clear()
        impatient = RemoteReward(TASK, server.address, retries=2, **QUICK)
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

    with stub(never) as server:
        port = int(server.address.rpartition(":")[2])
        away = RemoteReward(TASK, server.address, **QUICK)
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


def test_a_server_that_is_gone_is_an_infrastructure_failure():
    with serving() as server:
        away = RemoteReward(TASK, server.address, retries=0, **QUICK)
    failure = outcome_of(away)
    away.close()
    assert failure.kind is FailureKind.INFRASTRUCTURE
    assert "UNAVAILABLE" in failure.reason


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
        away = RemoteReward(TASK, server.address, **QUICK)
        answer = start(SubmittedSum([(away, 1.0), (SumReward(), 1.0)]), group(TASK))
        assert held.wait(WAIT)
        assert answer.cancel()
        assert ended.wait(WAIT)
        away.close()


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
        away = RemoteReward(TASK, server.address, **QUICK)
        failure = outcome_of(away)
        away.close()
    assert failure.kind is FailureKind.DATA
    assert reason in failure.reason


def test_a_reward_that_exceeds_its_deadline_says_so_and_ends_the_server():
    class Hanging(SumReward):
        def score(self, examples, predictions):
            released.wait(WAIT)
            return super().score(examples, predictions)

    released, stuck = threading.Event(), threading.Event()
    with serving(Hanging(), deadline=0.1, on_stuck=stuck.set) as server:
        away = RemoteReward(TASK, server.address, **QUICK)
        failure = outcome_of(away)
        assert stuck.wait(WAIT)
        released.set()
        away.close()
    assert failure.kind is FailureKind.INFRASTRUCTURE
    assert "exceeded its deadline of 0.1 s" in failure.reason


def test_an_address_where_nobody_listens_is_an_error_at_start():
    with serving() as server:
        address = server.address
    options = {"address": address, "connect_seconds": 0.3}
    with pytest.raises(RewardLoadError, match=r"no reward answers.*UNAVAILABLE.*`rewardtune serve"):
        load_reward("rewards.remote:RemoteReward", TASK, options)


def test_a_server_that_comes_late_is_waited_for():
    with serving() as server:
        port = int(server.address.rpartition(":")[2])
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
        RemoteReward(TASK, server.address, **QUICK)
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
        RemoteReward(TASK, server.address, **QUICK)
    with (
        Server(lambda: {"other.Service": {"Describe": describe}}) as server,
        pytest.raises(RemoteRewardError, match="not as a reward: UNIMPLEMENTED"),
    ):
        RemoteReward(TASK, server.address, **QUICK)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
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


def test_only_calls_with_the_token_are_answered(tmp_path: Path, monkeypatch, caplog):
    caplog.set_level("DEBUG")
    (tmp_path / "token").write_text("s3cret\n")
    token = read_token(None, tmp_path / "token")
    reward = SumReward()
    with serving(reward, options=EdgeOptions(token=token)) as server:
        for options in ({}, {"token_env": "WRONG"}):
            monkeypatch.setenv("WRONG", "wrong")
            with pytest.raises(RemoteRewardError, match=r"refuses the token.*UNAUTHENTICATED"):
                RemoteReward(TASK, server.address, **QUICK, **options)
        with (
            grpc.insecure_channel(server.address) as channel,
            pytest.raises(grpc.RpcError) as raised,
        ):
            channel.unary_unary(SCORE)(request().to_bytes(), timeout=WAIT)
        assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert reward.calls == 0
        away = RemoteReward(TASK, server.address, token_file=str(tmp_path / "token"), **QUICK)
        assert outcome_of(away) == outcome_of(reward)
        away.close()
        assert health_of(server.address) == health_pb2.HealthCheckResponse.SERVING
    assert "s3cret" not in caplog.text
    assert "s3cret" not in repr(EdgeOptions(token="s3cret"))


def health_of(address: str, service: str = SERVICE) -> int:
    with grpc.insecure_channel(address) as channel:
        asked = health_pb2.HealthCheckRequest(service=service)
        return health_pb2_grpc.HealthStub(channel).Check(asked, timeout=WAIT).status


def test_a_token_is_named_once_and_is_one_line(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("TOKEN", "one")
    assert read_token("TOKEN", None) == "one"
    assert read_token(None, None) is None
    with pytest.raises(EdgeError, match="named twice"):
        read_token("TOKEN", tmp_path / "token")
    with pytest.raises(EdgeError, match="cannot be read"):
        read_token(None, tmp_path / "token")
    (tmp_path / "token").write_text("a\nb")
    with pytest.raises(EdgeError, match="not one line"):
        read_token(None, tmp_path / "token")


def test_requests_that_do_not_fit_the_task_are_refused_and_cost_nothing():
    good = request()
    lies = {
        "has no example '77'": replace(good, example_id="77"),
        "has no example '../../etc/passwd'": replace(good, example_id="../../etc/passwd"),
        "unknown split 'secret'": replace(good, split="secret"),
        "this task's are [K, 3]": replace(
            good, tokens=good.tokens[:, :2], logprobs=good.logprobs[:, :2]
        ),
        "vocabulary has 10": replace(good, tokens=good.tokens + 7),
        "tokens are in -1 ..": replace(good, tokens=good.tokens - 1),
        "logprobs hold NaN": replace(good, logprobs=good.logprobs * np.float32("nan")),
        "K at most 1024": request(samples=1025),
    }
    reward = SumReward()
    with serving(reward) as server, grpc.insecure_channel(server.address) as channel:
        for reason, lie in lies.items():
            with pytest.raises(grpc.RpcError) as raised:
                channel.unary_unary(SCORE)(lie.to_bytes(), timeout=WAIT)
            assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert reason in raised.value.details()
        assert reward.calls == 0
        channel.unary_unary(SCORE)(good.to_bytes(), timeout=WAIT)
        assert reward.calls == 1


def test_hostile_bytes_end_as_errors_and_the_server_answers_on():
    random_ = random.Random(7)
    good = request(samples=3).to_bytes()
    reward = SumReward()
    answered = 0
    with serving(reward) as server, grpc.insecure_channel(server.address) as channel:
        score = channel.unary_unary(SCORE)
        for _ in range(500):
            mutated = bytearray(good)
            for _ in range(random_.randint(1, 6)):
                mutated[random_.randrange(len(mutated))] = random_.randrange(256)
            data = bytes(mutated[: random_.randint(0, len(mutated))])
            data = random_.choice([data, bytes(mutated), random_.randbytes(40)])
            answer = score.future(data, timeout=WAIT)
            answered += answer.exception() is None
            assert answer.code() in (grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT)
        assert reward.calls == answered < 500
        assert ScoreResponse.from_bytes(score(good, timeout=WAIT)).failure is None


def test_messages_that_are_too_large_are_refused_by_name(monkeypatch):
    monkeypatch.setattr(edge, "MAX_MESSAGE_BYTES", 2000)
    monkeypatch.setattr(remote_module, "MAX_MESSAGE_BYTES", 2000)
    large = [Scored(1.0, {"iou": np.zeros(1000)})] * 2
    with serving(SumReward({"1": large})) as server:
        away = RemoteReward(TASK, server.address, **QUICK)
        with pytest.raises(WireError, match="at most 2000 may travel: fewer samples"):
            away.submit(group(TASK, 0, 200))
        failure = outcome_of(away, group(TASK, 1))
        away.close()
    assert failure.kind is FailureKind.DATA
    assert "RESOURCE_EXHAUSTED: the answer has" in failure.reason


def test_a_port_is_not_shared_between_two_servers():
    with serving() as server:
        port = int(server.address.rpartition(":")[2])
        with (
            pytest.raises(EdgeError, match=f"cannot listen on 127.0.0.1:{port}"),
            serving(options=EdgeOptions(port=port)),
        ):
            pass


def test_tls_checks_the_server_against_the_given_certificates(tmp_path: Path):
    certificate, key = self_signed(tmp_path)
    with serving(options=EdgeOptions(certificate=certificate, key=key)) as server:
        away = RemoteReward(TASK, server.address, ca_file=str(certificate), **QUICK)
        assert outcome_of(away) == outcome_of(SumReward())
        away.close()
        for options in ({}, {"tls": True}):
            with pytest.raises(RemoteRewardError, match="no reward answers"):
                RemoteReward(TASK, server.address, **QUICK, **options)


def self_signed(directory: Path) -> tuple[Path, Path]:
    import datetime
    import ipaddress

    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "rewards")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    encoding = serialization.Encoding.PEM
    (directory / "cert.pem").write_bytes(certificate.public_bytes(encoding))
    private = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (directory / "key.pem").write_bytes(key.private_bytes(encoding, *private))
    return directory / "cert.pem", directory / "key.pem"


def test_a_sum_of_remote_and_local_terms_is_that_of_local_ones():
    local = SumReward()
    with serving(local) as server:
        away = RemoteReward(TASK, server.address, in_flight=5, **QUICK)
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


def test_a_request_parses_into_what_was_sent():
    sent = request(2, 3, 9)
    assert ScoreRequest.from_bytes(sent.to_bytes()) == sent
