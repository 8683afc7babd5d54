"""Direct connections to the queue's actor, without Ray: a server in a thread, real sockets."""

import asyncio
import random
import socket
import threading
import time
from dataclasses import replace

import msgpack
import pytest
import uvloop

from protos.trajectory import FailureKind
from replay.direct import HEAD, MAX_FRAME, DirectAddress
from replay.direct_client import DirectConnection
from replay.direct_server import DirectServer
from replay.memory import MemoryReplayQueue
from replay.queue import Completion, Frontier, LearnerFenced, QueueClosed, Stage
from tests.queues import LONG, Loop, config, in_a_loop, ordinals, tickets


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def served(request):
    """A queue, and where it listens; Ray's actors run on uvloop where it is installed."""
    with in_a_loop(request.param) as loop:
        queue = MemoryReplayQueue(config(), tickets(config()))
        yield Loop(queue, loop), Loop(DirectServer(queue), loop).start("127.0.0.1")


def test_what_is_asked_directly_is_what_the_queue_says(served):
    queue, address = served
    direct = DirectConnection(address, LONG)
    sampling = direct.lease("to_sample", 1, None, "w")
    assert ordinals(sampling) == [0, 1]
    assert sampling[0].block_start == 0
    assert [lease.payload for lease in sampling] == [
        tickets(config()).ticket(ordinal).to_bytes() for ordinal in (0, 1)
    ]
    queue.fail([(sampling[0].id, "broken: caf\udce9.png", FailureKind.DATA)])
    late = [(sampling[0].id, b"late")]
    assert direct.complete([(sampling[1].id, b"\0" * 300_000), *late]) == [
        Completion.DONE,
        Completion.TOO_LATE,
    ]
    (scoring,) = direct.lease(Stage.TO_SCORE, 4, None, "w")
    assert (scoring.payload, scoring.stage, scoring.worker) == (b"\0" * 300_000, "to_score", "w")
    direct.complete([(scoring.id, b"")])
    training = direct.lease("to_train", 2, None, "w", first=0)
    assert [(g.payload, g.tombstone, g.reasons) for g in training] == [
        (None, True, (r"broken: caf\udce9.png",)),
        (b"", False, ()),
    ]
    direct.ack([0], [1])
    assert queue.frontier() == Frontier(2, (), 1)


def test_frames_of_every_size_come_whole(served):
    _, address = served
    direct = DirectConnection(address, LONG)
    for size in (0, 1000, 1020, 4096, 2**18, 2**23, 3 * 2**23, 10, 2**18 + 1, 2**18):
        (first, second) = direct.lease("to_sample", 1, None, "w")
        payload = bytes(random.Random(size).randbytes(size))
        direct.complete([(first.id, payload), (second.id, payload[::-1])])
        scoring = direct.lease("to_score", 2, None, "w")
        assert [lease.payload for lease in scoring] == [payload, payload[::-1]]
        direct.complete([(lease.id, b"") for lease in scoring])
        direct.ack([lease.ordinal for lease in direct.lease("to_train", 2, None, "w")])


def test_calls_that_come_together_are_answered_one_by_one(served):
    _, address = served
    direct = DirectConnection(address, LONG)
    header = msgpack.packb(["ack", [], [], None])
    direct._send([HEAD.pack(len(header), 0), header] * 500)
    answer = msgpack.packb(["ok", None])
    answers = bytes(direct._read(500 * (HEAD.size + len(answer))))
    assert answers == (HEAD.pack(len(answer), 0) + answer) * 500


def test_leases_whose_answer_is_not_taken_go_back_untried(served):
    queue, address = served
    sampling = queue.lease("to_sample", 1, None, "s")
    queue.complete([(lease.id, b"\0" * 2**23) for lease in sampling])
    direct = DirectConnection(address, LONG)
    header = msgpack.packb(["lease", "to_score", 2, 60.0, "deaf", 0.0, None, None])
    direct._send([HEAD.pack(len(header), 0), header] * 100)
    while queue.stats().stages["to_score"].leased < 2:
        time.sleep(0.001)
    direct.close()
    again = queue.lease("to_score", 2, None, "r", wait=LONG)
    assert [(g.ordinal, g.delivery) for g in again] == [(g.ordinal, 1) for g in sampling]


def test_refusals_keep_their_type(served):
    queue, address = served
    direct = DirectConnection(address, LONG)
    with pytest.raises(ValueError, match="ordinal 3: it is not handed out"):
        direct.ack([3])
    old = queue.fence()
    queue.fence()
    with pytest.raises(LearnerFenced, match="another one has taken over"):
        direct.lease("to_train", 4, None, "w", epoch=old)
    queue.close()
    with pytest.raises(QueueClosed):
        direct.lease("to_sample", 1, None, "w")


def test_who_does_not_know_the_secret_learns_and_changes_nothing(served, caplog):
    queue, address = served
    with pytest.raises(OSError, match="ended the connection"):
        DirectConnection(replace(address, secret=b"a guess"), LONG)
    assert "does not know its secret" in caplog.text
    assert "secret" not in repr(address)
    with socket.create_connection((address.host, address.port)) as stranger:
        stranger.settimeout(LONG)
        stranger.recv(32)
        stranger.sendall(HEAD.pack(2**31, 2**31) * 20)
        assert stranger.recv(1) == b""
    assert queue.stats().out == 0


def test_a_worker_gives_no_proof_away_to_who_is_not_the_queue():
    with socket.create_server(("127.0.0.1", 0)) as impostor:

        def answer():
            with impostor.accept()[0] as connection:
                connection.sendall(b"n" * 32)
                connection.recv(64)
                connection.sendall(b"p" * 32)

        thread = threading.Thread(target=answer)
        thread.start()
        port = impostor.getsockname()[1]
        with pytest.raises(ConnectionError, match="is not the run's queue"):
            DirectConnection(DirectAddress("127.0.0.1", port, b"secret"), LONG)
        thread.join()


def test_leases_for_a_worker_that_is_gone_go_back_untried(served):
    queue, address = served
    sampling = queue.lease("to_sample", 1, None, "s")
    direct = DirectConnection(address, 0.01)
    with pytest.raises(TimeoutError):  # it is told to wait longer than it waits itself
        direct._call(["lease", "to_score", 2, None, "gone", LONG, None, None])
    direct.close()
    queue.complete([(lease.id, b"sampled") for lease in sampling])
    for lease in queue.lease("to_score", 2, None, "r", wait=LONG):
        assert lease.delivery == 1


def hostile_frames():
    good = msgpack.packb(["ack", [0], [], None])
    yield "too large", HEAD.pack(2**31, 2**31)
    yield "too large for one", HEAD.pack(8, MAX_FRAME)
    yield "no MessagePack", HEAD.pack(4, 0) + b"\xc1{]1"
    yield "deep", HEAD.pack(100_000, 0) + b"\x91" * 100_000
    yield "long", HEAD.pack(5, 0) + b"\xdd\xff\xff\xff\xff"
    yield "odd keys", HEAD.pack(3, 0) + b"\x81\x90\x01"
    yield "no UTF-8", HEAD.pack(3, 0) + b"\x91\xa1\xff"
    yield "a timestamp", HEAD.pack(7, 0) + b"\x91\xd6\xff\0\0\0\0"
    yield "an extension", HEAD.pack(4, 0) + b"\x91\xd4\x05\0"
    yield "cut short", HEAD.pack(len(good) - 1, 0) + good[:-1]
    for header in (
        {"ack": [0]},
        [],
        ["close"],
        ["fence"],
        ["lease"],
        ["lease", "to_sample", "1", None, "w", 0.0, None, None],
        ["lease", "to_sample", 1, None, ["w"], 0.0, None, None],
        ["complete", [["a"]], [0]],
        ["complete", ["HELD"], []],
        ["complete", ["HELD"], [1]],
        ["complete", ["HELD", "HELD"], [5, -5]],
        ["complete", ["HELD"], [None]],
        ["ack", ["0"], [], None],
        ["ack", [0.0], [], None],
        ["ack", [0], [], 7],
    ):
        yield str(header), header


def with_held(said, held):
    """With the id of a lease that is held."""
    if isinstance(said, list):
        return [with_held(each, held) for each in said]
    return held if said == "HELD" else said


@pytest.mark.parametrize("said", [pytest.param(said, id=name) for name, said in hostile_frames()])
def test_what_no_worker_says_ends_its_connection_and_changes_nothing(served, said):
    queue, address = served
    held = queue.lease("to_sample", 1, None, "w")[0].id
    direct = DirectConnection(address, LONG)
    if not isinstance(said, bytes):
        header = msgpack.packb(with_held(said, held))
        said = HEAD.pack(len(header), 0) + header
    direct._send([said])
    direct._socket.shutdown(socket.SHUT_WR)
    with pytest.raises(ConnectionError):
        direct._read(1)
    stats = queue.stats()
    assert (stats.out, stats.acked, stats.stages["to_sample"].leased) == (2, 0, 2)
    assert ordinals(DirectConnection(address, LONG).lease("to_sample", 1, None, "w")) == [2, 3]


def test_a_call_without_its_answer_ends_the_connection(served):
    _, address = served
    direct = DirectConnection(address, 0.01)
    with pytest.raises(TimeoutError):
        direct._call(["lease", "to_score", 1, None, "w", LONG, None, None])
    with pytest.raises(OSError, match="Bad file descriptor"):
        direct.ack([])
