"""Who may call the queue's service, and that nothing hostile has an effect."""

import random

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from protos import replay_pb2 as pb
from protos.edge import EdgeError, EdgeOptions
from protos.edge_client import Peer
from protos.tokens import TokenSource
from protos.trajectory import WireError
from replay.queue import Completion, Frontier, QueueUnavailable, Stage
from replay.remote_queue import RemoteReplayQueue
from replay.wire import SERVICE
from tests.certificates import self_signed
from tests.queues import advance, ordinals
from tests.remote_rewards import WAIT
from tests.unit.test_replay_service import CONFIG, QUICK, raw, serving


def call(number=1, caller="hostile"):
    return pb.Call(caller=caller, number=number)


def test_hostile_messages_are_refused_and_change_nothing():
    item = pb.FailRequest.Item(lease_id="x", reason="", kind=7)
    hostile = [
        ("Lease", b"\xff\xff\xff", "not a LeaseRequest"),
        ("Lease", pb.LeaseRequest(call=call(), count=1, worker="w"), "stage 0 is none"),
        ("Lease", pb.LeaseRequest(call=call(), stage=9, count=1, worker="w"), "stage 9 is none"),
        ("Lease", pb.LeaseRequest(call=call(), stage=1, count=0, worker="w"), "n=0"),
        ("Lease", pb.LeaseRequest(call=call(2), stage=1, count=2**32 - 1, worker="w"), "at most"),
        ("Lease", pb.LeaseRequest(stage=1, count=1, worker="w"), "no caller"),
        ("Lease", pb.LeaseRequest(call=call(), stage=1, count=1), "worker has 0 characters"),
        ("Lease", pb.LeaseRequest(call=call(), stage=1, count=1, worker="w" * 201), "201"),
        ("Ack", pb.AckRequest(ordinals=[2**64 - 1]), "ordinal 18446744073709551615 is none"),
        ("Ack", b"\x0a\x0a" + b"\xff" * 9 + b"\x01", "is none"),  # -1, as a varint
        ("Ack", pb.AckRequest(ordinals=[2**52 - 1]), "not handed out"),
        ("Ack", pb.AckRequest(dropped=[0]), "not in to_train"),
        ("Fail", pb.FailRequest(call=call(), items=[item]), "unknown kind of failure"),
        ("ReleaseWorker", pb.ReleaseWorkerRequest(call=call()), "worker has 0"),
        (
            "Restart",
            pb.RestartRequest(call=call(), frontier=pb.Frontier(dropped=9)),
            "more dropped than acked",
        ),
        (
            "Restart",
            pb.RestartRequest(call=call(), frontier=pb.Frontier(acked_above=[3, 2])),
            "must ascend",
        ),
        (
            "Restart",
            pb.RestartRequest(call=call(), frontier=pb.Frontier(next_unacked=2**60), epoch="e"),
            "ordinals go to 2^52",
        ),
        ("Restart", pb.RestartRequest(call=call()), "needs the epoch"),
        ("Restart", pb.RestartRequest(call=call(50), epoch="a-guess"), "REASON_FENCED"),
    ]
    many = 2**18 + 1
    items = [pb.FailRequest.Item(lease_id="x", reason="no", kind=1)] * many
    above = pb.Frontier(acked_above=range(1, many + 1))
    hostile += [
        ("Renew", pb.RenewRequest(lease_ids=[""] * many), "262145 lease_ids: at most 262144"),
        ("Release", pb.ReleaseRequest(lease_ids=[""] * many), "262145 lease_ids"),
        (
            "Complete",
            pb.CompleteRequest(call=call(), items=[pb.CompleteRequest.Item()] * many),
            "262145 items",
        ),
        ("Fail", pb.FailRequest(call=call(), items=items), "262145 items"),
        ("Ack", pb.AckRequest(ordinals=[0] * many), "262145 ordinals"),
        ("Ack", pb.AckRequest(dropped=[0] * many), "262145 dropped"),
        ("Restart", pb.RestartRequest(call=call(), frontier=above, epoch="e"), "acked_above"),
    ]
    brief = pb.LeaseRequest(call=call(), stage=1, count=1, worker="w", ttl=0.99)
    hostile.append(("Lease", brief, "ttl is 0.99 s; it must be in 1 .. 86400"))
    for name in ("ttl", "wait"):
        for seconds in (float("nan"), float("inf"), -1.0, 1e9):
            values = {name: seconds}
            request = pb.LeaseRequest(call=call(), stage=1, count=1, worker="w", **values)
            hostile.append(("Lease", request, f"{name} is"))
    with serving() as (queue, address, _):
        advance(queue, "to_sample")
        before = queue.stats()
        for method, request, reason in hostile:
            code, said = raw(address, method, request)
            assert reason in said, (method, said)
            expected = grpc.StatusCode.INVALID_ARGUMENT
            if "REASON" in reason:
                expected = grpc.StatusCode.FAILED_PRECONDITION
            assert code is expected
        code, _ = raw(address, "Drop", b"")
        assert code is grpc.StatusCode.UNIMPLEMENTED
        after = queue.stats()
        assert (after.out, after.acked, after.stages.keys()) == (2, 0, before.stages.keys())
        assert after.stages[Stage.TO_SCORE].ready == 2
        assert queue.frontier() == Frontier()


def test_mutated_messages_end_as_answers_or_refusals_and_the_server_lives():
    """A short run of what the long one repeats 100,000 times."""
    chance = random.Random(0)
    good = {
        "Lease": pb.LeaseRequest(call=call(), stage=1, count=1, worker="w"),
        "Complete": pb.CompleteRequest(
            call=call(), items=[pb.CompleteRequest.Item(lease_id="x", payload=b"y")]
        ),
        "Ack": pb.AckRequest(ordinals=[1, 2], epoch="e"),
        "Restart": pb.RestartRequest(call=call(), frontier=pb.Frontier(next_unacked=1)),
    }
    allowed = {
        grpc.StatusCode.OK,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.FAILED_PRECONDITION,
    }
    with serving() as (queue, address, client), grpc.insecure_channel(address) as channel:
        for _ in range(400):
            method = chance.choice(sorted(good))
            data = bytearray(good[method].SerializeToString())
            for _ in range(chance.randint(1, 4)):
                data[chance.randrange(len(data))] = chance.randrange(256)
            answer = channel.unary_unary(f"/{SERVICE}/{method}").future(bytes(data), timeout=WAIT)
            assert answer.code() in allowed, (method, bytes(data), answer.details())
        assert client.stats().out <= CONFIG.window
        assert queue.stats().acked == client.stats().acked


def test_payloads_that_the_run_cannot_use_are_refused_with_the_ordinal_of_their_lease():
    told = []

    def check(ordinal, stage, payload):
        told.append((ordinal, stage, payload))
        if payload == b"a lie":
            raise WireError("tokens are a lie")

    with serving(check_payload=check) as (queue, _, client):
        one, two = client.lease("to_sample", 1, None, "s")
        with pytest.raises(ValueError, match="tokens are a lie"):
            client.complete([(one.id, b"good"), (two.id, b"a lie")])
        assert queue.stats().stages[Stage.TO_SAMPLE].leased == 2
        client.complete([(one.id, b"good")])
        said = [(0, b"good"), (1, b"a lie"), (0, b"good")]
        assert told == [(ordinal, "to_sample", payload) for ordinal, payload in said]
        (scoring,) = client.lease("to_score", 1, None, "r")
        client.complete([(scoring.id, b"scored")])
        assert told[-1] == (0, "to_score", b"scored")
        for unknown in ("unknown", "0.1.9.3", "0.1.1.-3", "0.1.1.٣", ""):  # no queue's ids
            assert client.complete([(unknown, b"a lie")]) == [Completion.TOO_LATE]
        assert len(told) == 4
        forged = scoring.id.replace(".2.", ".1.")  # what is held is what its own id says
        done = client.complete([(forged, b"a lie"), (two.id, b"good")])
        assert done == [Completion.TOO_LATE, Completion.DONE]


# -- who may call ---------------------------------------------------------------------------------


def test_tokens_that_are_missing_wrong_or_expired_have_no_effect(tmp_path):
    path = tmp_path / "tokens"
    path.write_text("g00d\nold-t0ken 2020-01-01T00:00:00Z\n")
    (tmp_path / "mine").write_text("g00d")
    options = EdgeOptions(token=TokenSource(file=path))
    with serving(options, peer={**QUICK, "token_file": tmp_path / "mine"}) as (queue, at, client):
        request = pb.LeaseRequest(call=call(), stage=1, count=1, worker="w")
        for token, reason in (
            (None, "wants its bearer token"),
            ("Bearer guess", "wants its bearer token"),
            ("Bearer old-t0ken", "has expired"),
        ):
            metadata = (("authorization", token),) if token else None
            for data in (request, b"\xff" * 100):  # what is sent is not looked at
                code, said = raw(at, "Lease", data, metadata)
                assert code is grpc.StatusCode.UNAUTHENTICATED
                assert reason in said
        assert queue.stats().out == 0
        assert ordinals(client.lease("to_sample", 1, None, "s")) == [0, 1]
        path.write_text("other")  # as when a secret is replaced
        with pytest.raises(QueueUnavailable, match="UNAUTHENTICATED"):
            client.renew(["x"])
        (tmp_path / "mine").write_text("other")
        assert client.renew(["x"]) == []


def test_without_a_certificate_of_the_clients_authority_nobody_connects(tmp_path):
    for name in ("server", "client", "stranger"):
        (tmp_path / name).mkdir()
    certificate, key = self_signed(tmp_path / "server")
    mine, my_key = self_signed(tmp_path / "client")
    other, other_key = self_signed(tmp_path / "stranger")
    options = EdgeOptions(certificate=certificate, key=key, client_ca=mine)
    trusted = {**QUICK, "ca_file": certificate, "certificate": mine, "key": my_key}
    with serving(options, peer=trusted) as (_, address, client):
        assert client.frontier() == Frontier()
        for pair in ({}, {"certificate": other, "key": other_key}):
            stranger = RemoteReplayQueue(
                Peer(address, ca_file=certificate, timeout=2, patience=0.3, **pair)
            )
            with pytest.raises(QueueUnavailable, match="UNAVAILABLE"):
                stranger.frontier()
            stranger.disconnect()
    with pytest.raises(EdgeError, match="certificate and key beside client_ca"):
        EdgeOptions(client_ca=mine)
    with pytest.raises(EdgeError, match="both this client's certificate and its key"):
        RemoteReplayQueue(Peer("localhost:1", certificate=mine))


def test_reflection_tells_the_services_to_whom_has_the_token():
    with serving(EdgeOptions(token="t0ken")) as (_, address, _):  # noqa: SIM117
        with grpc.insecure_channel(address) as channel:  # its address is known then
            stub = reflection_pb2_grpc.ServerReflectionStub(channel)
            asked = [
                reflection_pb2.ServerReflectionRequest(list_services=""),
                reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE),
            ]
            metadata = (("authorization", "Bearer t0ken"),)
            named, described = stub.ServerReflectionInfo(iter(asked), metadata=metadata)
            names = {one.name for one in named.list_services_response.service}
            assert {SERVICE, "grpc.health.v1.Health"} <= names
            assert described.file_descriptor_response.file_descriptor_proto
            with pytest.raises(grpc.RpcError) as raised:
                next(stub.ServerReflectionInfo(iter(asked)))
            assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED
