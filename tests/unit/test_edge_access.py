"""Where an edge is, how many calls it takes, and what does not travel to it in plain text."""

import socket
import threading
import time

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from protos import edge_client
from protos.edge import EdgeOptions, is_busy, join_address, split_address
from protos.reward import DESCRIBE, SERVICE
from protos.trajectory import FailureKind
from rewards import remote as remote_module
from rewards.combine import RewardLoadError, load_reward
from rewards.judge import start
from rewards.remote import RemoteReward, RemoteRewardError
from tests.remote_rewards import SURE, TASK, WAIT, SumReward, group, outcome_of, serving


def test_a_full_server_tells_others_to_ask_again_and_that_is_no_fault_of_a_group(monkeypatch):
    monkeypatch.setattr(remote_module, "BUSY_SECONDS", 0.05)
    held = threading.Event()

    class Held(SumReward):
        def score(self, examples, predictions):
            held.wait(WAIT)
            return super().score(examples, predictions)

    with serving(Held(), options=EdgeOptions(most_calls=2)) as server:
        away = RemoteReward(TASK, server.address, retries=0, **SURE)
        brief = RemoteReward(TASK, server.address, deadline_seconds=2)
        answers = [start(away, group(TASK)) for _ in range(2)]
        with grpc.insecure_channel(server.address) as channel:
            describe = channel.unary_unary(DESCRIBE)
            while describe.future(b"", timeout=WAIT).code() is grpc.StatusCode.OK:
                time.sleep(0.01)  # until both calls are open
            asked = health_pb2.HealthCheckRequest(service=SERVICE)
            health_pb2_grpc.HealthStub(channel).Check(asked, timeout=WAIT)  # is always answered
        with pytest.raises(
            RemoteRewardError, match="is busy: RESOURCE_EXHAUSTED: 2 calls are open"
        ):
            RemoteReward(TASK, server.address, connect_seconds=2)
        failure = outcome_of(brief)
        assert failure.kind is FailureKind.INFRASTRUCTURE
        assert "2 calls are open here already" in failure.reason
        refused = []
        monkeypatch.setattr(
            remote_module, "is_busy", lambda e: is_busy(e) and not refused.append(e)
        )
        answers.append(start(away, group(TASK)))  # asks again, which does not count as a retry
        while len(refused) < 8:
            time.sleep(0.01)
        assert not any(answer.done() for answer in answers)
        held.set()
        for answer in answers:
            assert answer.result(WAIT) == outcome_of(SumReward())
        away.close()
        brief.close()


def test_a_call_that_waits_to_be_repeated_fails_as_any_other_when_its_client_closes(
    monkeypatch, caplog
):
    monkeypatch.setattr(edge_client, "FIRST_PAUSE", WAIT)
    failures = []
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        address = join_address(*nobody.getsockname())
        client = edge_client.EdgeClient(edge_client.Peer(address, patience=9 * WAIT), "test")

        def call():
            with pytest.raises(edge_client.CallFailed) as failed:
                client.call(DESCRIBE, b"")
            failures.append(failed.value.code)

        caller = threading.Thread(target=call)
        caller.start()
        while "asking again" not in caplog.text:
            time.sleep(0.01)
        client.close()
        caller.join(WAIT / 3)
    assert failures == [grpc.StatusCode.UNAVAILABLE]


def test_bytes_that_are_no_message_are_refused_and_who_has_no_token_writes_no_log(caplog):
    health_of, reflection_of = f"/{health.SERVICE_NAME}", f"/{reflection.SERVICE_NAME}"
    with (
        serving(options=EdgeOptions(token="s3cret")) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        token = (("authorization", "Bearer s3cret"),)
        for ask, metadata in (
            (channel.unary_unary(f"{health_of}/Check").future, None),
            (channel.unary_stream(f"{health_of}/Watch"), None),
            (
                lambda data, **given: channel.stream_stream(
                    f"{reflection_of}/ServerReflectionInfo"
                )(iter([data]), **given),
                token,
            ),
        ):
            refused = ask(b"\xff\xff", timeout=WAIT, metadata=metadata)
            assert refused.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert "not a message of this method" in refused.details()
    assert caplog.text == ""


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_the_ipv6_address_that_a_server_tells_is_the_one_that_a_client_takes():
    with serving(options=EdgeOptions(host="::1")) as server:
        assert server.address.startswith("[::1]:")
        away = RemoteReward(TASK, server.address, **SURE)
        assert outcome_of(away) == outcome_of(SumReward())
        away.close()


def test_addresses_are_joined_and_split_alike():
    for host in ("::1", "[::1]", "127.0.0.1", "rewards.example"):
        assert split_address(join_address(host, 7)) == (host.strip("[]"), 7)


def test_a_token_does_not_travel_in_plain_text_unless_the_config_says_so(monkeypatch):
    monkeypatch.setenv("TOKEN", "s3cret")
    options = {"token_env": "TOKEN", "connect_seconds": 0.05}
    for address in ("192.0.2.1:50061", "[2001:db8::1]:50061"):
        with pytest.raises(RewardLoadError, match=r"plain text: set tls: true or ca_file"):
            load_reward("rewards.remote:RemoteReward", TASK, {"address": address} | options)
        for allowed in ({"insecure": True}, {"tls": True}):
            with pytest.raises(RewardLoadError, match="no reward answers at"):
                load_reward(
                    "rewards.remote:RemoteReward", TASK, {"address": address} | options | allowed
                )
