"""The reward server over real gRPC on loopback: whom and what it answers, and how it ends."""

import asyncio
import random
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from protos import edge
from protos.edge import EdgeError, EdgeOptions
from protos.reward import SCORE, SERVICE, ScoreResponse
from protos.tokens import TokenSource
from protos.trajectory import (
    FailureKind,
    Scored,
    WireError,
)
from rewards import remote as remote_module
from rewards.remote import RemoteReward, RemoteRewardError
from rewards.service import ComputedScorer
from tests.certificates import self_signed
from tests.remote_rewards import (
    SURE,
    TASK,
    WAIT,
    StubTask,
    SumReward,
    group,
    outcome_of,
    request,
    serving,
)


def test_a_reward_that_exceeds_its_deadline_says_so_and_ends_the_server():
    class Hanging(SumReward):
        def score(self, examples, predictions):
            released.wait(WAIT)
            return super().score(examples, predictions)

    released, stuck = threading.Event(), threading.Event()
    with serving(Hanging(), deadline=0.1, on_stuck=stuck.set) as server:
        away = RemoteReward(TASK, server.address, **SURE)
        failure = outcome_of(away)
        assert stuck.wait(WAIT)
        released.set()
        away.close()
    assert failure.kind is FailureKind.INFRASTRUCTURE
    assert "exceeded its deadline of 0.1 s" in failure.reason


def test_a_call_whose_client_has_gone_before_its_turn_costs_nothing():
    class Slow(SumReward):
        def score(self, examples, predictions):
            began.set()
            released.wait(WAIT)
            return super().score(examples, predictions)

    began, released, reward = threading.Event(), threading.Event(), Slow()

    async def body() -> None:
        scorer = ComputedScorer(TASK, reward, WAIT, pytest.fail)
        computing, waiting, last = [
            asyncio.create_task(scorer.score(request(example))) for example in range(3)
        ]
        await asyncio.to_thread(began.wait, WAIT)
        for gone in (computing, waiting):  # the first keeps its turn until it is done
            gone.cancel()
        await asyncio.sleep(0)
        assert reward.calls == 0
        released.set()
        assert len((await last).outcomes) == 2

    asyncio.run(body())
    assert reward.calls == 2


def test_threads_load_and_decode_at_the_same_time():
    together = threading.Barrier(3, timeout=WAIT)

    class Together(StubTask):
        def load(self, split, example_id, augmentation_seed):
            together.wait()
            return super().load(split, example_id, augmentation_seed)

        def decode(self, example, tokens, logprobs):
            together.wait()
            return super().decode(example, tokens, logprobs)

    async def body() -> None:
        scorer = ComputedScorer(Together(), SumReward(), WAIT, pytest.fail, threads=3)
        answers = await asyncio.gather(*(scorer.score(request(n)) for n in range(3)))
        assert all(len(answer.outcomes) == 2 for answer in answers)

    asyncio.run(body())


def test_a_server_ends_though_a_reward_hangs():
    program = (
        "import threading; from deploy.serve import leave\n"
        "threading.Thread(target=threading.Event().wait).start(); leave(0)"
    )
    subprocess.run([sys.executable, "-c", program], timeout=WAIT, check=True)


def test_only_calls_with_the_token_are_answered(tmp_path: Path, monkeypatch, caplog):
    caplog.set_level("DEBUG")
    (tmp_path / "token").write_text("s3cret\n")
    token = TokenSource(file=tmp_path / "token")
    reward = SumReward()
    with serving(reward, options=EdgeOptions(token=token)) as server:
        for options in ({}, {"token_env": "WRONG"}):
            monkeypatch.setenv("WRONG", "wrong")
            with pytest.raises(RemoteRewardError, match=r"refuses the token.*UNAUTHENTICATED"):
                RemoteReward(TASK, server.address, **SURE, **options)
        with (
            grpc.insecure_channel(server.address) as channel,
            pytest.raises(grpc.RpcError) as raised,
        ):
            channel.unary_unary(SCORE)(request().to_bytes(), timeout=WAIT)
        assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert reward.calls == 0
        away = RemoteReward(TASK, server.address, token_file=str(tmp_path / "token"), **SURE)
        assert outcome_of(away) == outcome_of(reward)
        away.close()
        assert health_of(server.address) == health_pb2.HealthCheckResponse.SERVING
    assert "s3cret" not in caplog.text
    assert "s3cret" not in repr(EdgeOptions(token="s3cret"))


def health_of(address: str, service: str = SERVICE) -> int:
    with grpc.insecure_channel(address) as channel:
        asked = health_pb2.HealthCheckRequest(service=service)
        return health_pb2_grpc.HealthStub(channel).Check(asked, timeout=WAIT).status


def test_requests_that_do_not_fit_the_task_are_refused_and_cost_nothing(caplog):
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
        "or more than 0": replace(good, logprobs=np.full_like(good.logprobs, 3e38)),
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
        long = replace(good, example_id="7\n" * 100_000)
        with pytest.raises(grpc.RpcError):
            channel.unary_unary(SCORE)(long.to_bytes(), timeout=WAIT)
    told = [record.getMessage() for record in caplog.records if "refused" in record.getMessage()]
    assert len(told) == len(lies) + 1
    assert all("\n" not in line and len(line) < 5000 for line in told)


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
        away = RemoteReward(TASK, server.address, **SURE)
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
        away = RemoteReward(TASK, server.address, ca_file=str(certificate), **SURE)
        assert outcome_of(away) == outcome_of(SumReward())
        away.close()
        for options in ({}, {"tls": True}):
            with pytest.raises(RemoteRewardError, match="no reward answers"):
                RemoteReward(TASK, server.address, connect_seconds=0.5, **options)
