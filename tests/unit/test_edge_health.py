"""Health of an edge is what gRPC's own clients and probes expect of `grpc.health.v1`."""

import asyncio
import json
from contextlib import contextmanager

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from protos.edge_health import Health
from protos.reward import SCORE, SERVICE
from tests.remote_rewards import WAIT, Server

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


async def score(data):
    return data


@contextmanager
def asking(*options):
    """A server, and a channel to it."""
    with (
        Server(lambda: {SERVICE: {"Score": score}}) as server,
        grpc.insecure_channel(server.address, options=options) as channel,
    ):
        yield server, channel


def check(channel, service):
    asked = health_pb2.HealthCheckRequest(service=service)
    return health_pb2_grpc.HealthStub(channel).Check(asked, timeout=WAIT).status


def watch(channel, service):
    asked = health_pb2.HealthCheckRequest(service=service)
    return health_pb2_grpc.HealthStub(channel).Watch(asked, timeout=WAIT)


def test_the_server_and_its_services_serve_and_others_are_unknown():
    with asking() as (_, channel):
        for service in ("", SERVICE):
            assert check(channel, service) == next(watch(channel, service)).status == SERVING
        with pytest.raises(grpc.RpcError) as refused:
            check(channel, "another")
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND
        assert next(watch(channel, "another")).status == SERVICE_UNKNOWN


def test_who_asks_while_it_ends_is_told_so_and_those_who_watch_are_let_go():
    async def end():
        server._server._health.end()

    with asking() as (server, channel):
        watching = {service: watch(channel, service) for service in ("", SERVICE, "another")}
        first = {service: next(watches).status for service, watches in watching.items()}
        assert first == {"": SERVING, SERVICE: SERVING, "another": SERVICE_UNKNOWN}
        asyncio.run_coroutine_threadsafe(end(), server.loop).result(WAIT)
        left = {service: [told.status for told in watches] for service, watches in watching.items()}
        assert left == {"": [NOT_SERVING], SERVICE: [NOT_SERVING], "another": []}
        assert check(channel, "") == check(channel, SERVICE) == NOT_SERVING
        assert [told.status for told in watch(channel, SERVICE)] == [NOT_SERVING]


def test_who_watches_is_told_the_end_that_comes_while_the_first_answer_is_written():
    health, told = Health([SERVICE]), []

    class Context:
        async def write(self, answer):
            told.append(answer.status)
            health.end()

    asyncio.run(health.Watch(health_pb2.HealthCheckRequest(service=SERVICE), Context()))
    assert told == [SERVING, NOT_SERVING]


@pytest.mark.parametrize(("service", "served"), [("", True), (SERVICE, True), ("another", False)])
def test_a_client_that_checks_health_calls_what_serves_only(service, served):
    config = {
        "loadBalancingConfig": [{"round_robin": {}}],  # the default does not check
        "healthCheckConfig": {"serviceName": service},
    }
    with asking(("grpc.service_config", json.dumps(config))) as (_, channel):
        call = channel.unary_unary(SCORE).future(b"it", timeout=WAIT)
        if served:
            assert call.result() == b"it"
        else:
            assert call.code() is grpc.StatusCode.UNAVAILABLE
