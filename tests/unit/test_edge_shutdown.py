"""An edge that is told to end says so, lets those at work finish, and ends within its grace."""

import asyncio
import subprocess
import sys
import threading
from contextlib import contextmanager

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from protos.reward import SCORE, SERVICE
from tests.remote_rewards import WAIT, Server

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Work:
    """A handler that is at work until it is told to go on."""

    def __init__(self):
        self.begun, self.go_on, self.cut_off = threading.Event(), asyncio.Event(), threading.Event()

    async def __call__(self, data):
        self.begun.set()
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.cut_off.set()
            raise
        return b"done with " + data


@contextmanager
def at_work():
    """A server with a call at work: both, the work, a channel, and the call."""
    work = Work()
    with (
        Server(lambda: {SERVICE: {"Score": work}}) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        call = channel.unary_unary(SCORE).future(b"it", timeout=WAIT)
        assert work.begun.wait(WAIT)
        yield server, work, channel, call


def watch(channel, service=SERVICE):
    """A call that watches, after its first answer."""
    request = health_pb2.HealthCheckRequest(service=service)
    call = health_pb2_grpc.HealthStub(channel).Watch(request, timeout=WAIT)
    assert next(call).status == SERVING
    return call


def ending(server, grace):
    """`stop` at work in the server's loop."""
    return asyncio.run_coroutine_threadsafe(server._server.stop(grace), server.loop)


def test_a_call_at_work_is_answered_while_health_and_new_calls_are_told_the_end():
    with at_work() as (server, work, channel, call):
        watching = watch(channel)
        watch(channel).cancel()  # who leaves does not take the others' answers along
        stopping = ending(server, WAIT)
        assert [told.status for told in watching] == [NOT_SERVING]
        with grpc.insecure_channel(server.address) as another:
            for one in (channel, another):
                refused = one.unary_unary(SCORE).future(b"new", timeout=WAIT)
                assert refused.code() is grpc.StatusCode.UNAVAILABLE
        assert not call.done()
        assert not stopping.done()
        server.loop.call_soon_threadsafe(work.go_on.set)
        assert call.result(WAIT) == b"done with it"
        stopping.result(WAIT / 2)  # it does not wait for the grace to be over
        assert not work.cut_off.is_set()


def test_a_call_that_does_not_end_is_cut_off_when_the_grace_is_over():
    with at_work() as (server, work, _, call):
        ending(server, 0.2).result(WAIT / 2)
        assert call.code() in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE)
        assert work.cut_off.wait(WAIT)
        with grpc.insecure_channel(server.address) as another:
            refused = another.unary_unary(SCORE).future(b"new", timeout=WAIT)
            assert refused.code() is grpc.StatusCode.UNAVAILABLE


def test_a_service_is_not_freed_before_its_process_has_left():
    # Where the run's Ray has gone, to free an array of its memory ends the process with code 1.
    program = """if True:
        import sys
        from deploy.edges import serve_and_leave
        from protos.edge import EdgeOptions

        class Service:
            def services(self): return {}
            def stop(self): print("stops", flush=True)
            def close(self): print("closes", flush=True)
            def __del__(self): print("is freed", flush=True)

        serve_and_leave(Service(), EdgeOptions(port=0), "a service", None)
    """
    server = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    assert "serving a service at" in server.stdout.readline()
    server.terminate()
    assert server.communicate(timeout=WAIT)[0].split("\n") == ["stops", "closes", ""]
    assert server.returncode == 0


def test_who_asks_after_the_end_of_a_run_is_told_of_it_before_the_server_leaves():
    program = """if True:
        from deploy import edges
        from protos.edge import EdgeOptions

        edges.FAREWELL_SECONDS = 3600
        ended = []

        class Run:
            over = "the run has ended"
            async def has_ended(self): return True

        class Service:
            def services(self): return {"Queue": {"Lease": self.lease}}
            async def lease(self, data): return b"over" if ended else b"nothing"
            def stop(self): print("stops", flush=True)
            def close(self): pass

        end = lambda: not ended.append(True)
        edges.serve_and_leave(Service(), EdgeOptions(port=0), "a queue", Run(), end)
    """
    server = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    address = server.stdout.readline().split()[-1]
    with grpc.insecure_channel(address) as channel:
        while channel.unary_unary("/Queue/Lease")(b"", timeout=WAIT) != b"over":
            pass
    server.terminate()
    assert server.communicate(timeout=WAIT)[0] == "stops\n"
    assert server.returncode == 0
