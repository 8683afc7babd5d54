"""Weights over gRPC arrive as they were published, whatever breaks on the way, or not at all."""

import dataclasses
import math
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learner import remote_weights, weights_wire
from learner.packed_weights import (
    Manifest,
    VersionNotHeld,
    WeightsError,
    WeightsUnavailable,
    flatten,
    pack_weights,
)
from learner.remote_weights import RemoteWeights
from learner.weights_service import WeightsService
from learner.weights_wire import (
    SERVICE,
    Assembly,
    chunks,
    data_message,
    manifest_message,
    read_data,
    read_manifest,
)
from protos import weights_pb2 as pb
from protos.edge import Download, Refused, Upload
from protos.edge_client import Peer
from protos.trajectory import WireError
from replay.queue import LearnerFenced
from tests.edges import MemoryWeights
from tests.remote_rewards import WAIT, Server


@pytest.fixture
def params():
    random = np.random.default_rng(0)
    return {
        "encoder": {"kernel": random.normal(size=(300, 500)).astype(np.float32)},
        "a-b": np.ones(3, np.float32),
        "a": {"b": np.array(0.25, np.float32), "c": np.zeros((0, 2), np.float32)},
    }


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(weights_wire, "CHUNK_BYTES", 100_000)


@contextmanager
def serving(store=None, change=lambda methods: None, **settings) -> Iterator[RemoteWeights]:
    service = WeightsService(store or MemoryWeights(), **settings)
    methods = dict(service.services()[SERVICE])
    change(methods)
    with Server(lambda: {SERVICE: methods}) as server:
        client = RemoteWeights(Peer(server.address, timeout=WAIT, patience=5))
        client.address = server.address
        yield client
        client.disconnect()
    service.close()


def assert_same(tree, other):
    mine, others = flatten(tree), flatten(other)
    assert mine.keys() == others.keys()
    for name, array in mine.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, others[name])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_published_is_what_is_loaded(params, dtype):
    rounded = {
        name: array.astype(weights_wire.WIRE_DTYPES[dtype]).astype(np.float32)
        for name, array in flatten(params).items()
    }
    with serving() as weights:
        assert weights.newest_version() is None
        with pytest.raises(VersionNotHeld, match="there are"):
            weights.load(None)
        weights.publish(0, params, dtype, last=False)
        weights.publish(3, params | {"a-b": np.zeros(3, np.float32)}, dtype, last=True)
        assert weights.newest_version() == 3
        version, loaded = weights.load(0)
        assert version == 0
        assert_same(loaded, rounded)
        assert weights.load(None)[1]["a-b"].tolist() == [0, 0, 0]
        assert weights.load(3)[1] is weights.load(None)[1]  # kept
        with pytest.raises(VersionNotHeld, match="version 2"):
            weights.load(2)
        assert weights.to_evaluate() == [0, 3]
        weights.evaluated(0)
        assert weights.next_to_evaluate(0.0) == 3


def test_a_broken_download_goes_on_from_where_it_broke(params):
    offsets = []

    def break_it(methods):
        whole = methods["Download"].handle

        async def breaking(data):
            offsets.append(pb.DownloadRequest.FromString(data).offset)
            sent = 0
            async for part in whole(data):
                if sent == 2 and len(offsets) < 3:
                    raise Refused(grpc.StatusCode.UNAVAILABLE, "the server is killed")
                sent += 1
                yield part

        methods["Download"] = Download(breaking)

    with serving(change=break_it) as weights:
        weights.publish(1, params, "float32", last=False)
        assert_same(weights.load(1)[1], params)
    assert offsets[0] == 0
    assert offsets == sorted(set(offsets))
    assert len(offsets) == 3


def test_a_version_that_is_published_anew_meanwhile_is_not_mixed(params):
    store, other = MemoryWeights(), {"x": np.ones(200_000, np.float32)}
    first, second = (
        pack_weights(1, {"x": np.zeros(200_000, np.float32)}, "float32"),
        pack_weights(1, other, "float32"),
    )
    store.publish_packed(*first, False, None)

    def publish_anew(methods):
        whole = methods["Download"].handle

        async def breaking(data):
            parts = 0
            async for part in whole(data):
                if store.versions[1] is not second and parts == 2:
                    store.versions[1] = second
                    service_cache.clear()
                    raise Refused(grpc.StatusCode.UNAVAILABLE, "the server is killed")
                parts += 1
                yield part

        service_cache = methods["Download"].handle.__self__._kept
        methods["Download"] = Download(breaking)

    with serving(store, publish_anew) as weights:
        assert_same(weights.load(1)[1], other)


def test_bytes_that_do_not_match_the_manifest_are_not_used(params):
    store = MemoryWeights()
    manifest, arrays = pack_weights(1, params, "float32")
    damaged = {name: array.copy() for name, array in arrays.items()}
    damaged["encoder/kernel"].reshape(-1).view(np.uint8)[5] ^= 1
    store.publish_packed(manifest, damaged, False, None)
    with serving(store) as weights, pytest.raises(WeightsError, match="checksum differs"):
        weights.load(1)


def test_a_broken_upload_is_begun_again_and_changes_nothing_before_it_is_whole(params):
    store, seen = MemoryWeights(), []

    def break_it(methods):
        whole = methods["Publish"].handle

        async def breaking(requests):
            seen.append(dict(store.versions))
            if len(seen) < 3:
                await anext(requests)
                await anext(requests)
                raise Refused(grpc.StatusCode.UNAVAILABLE, "the server is killed")
            return await whole(requests)

        methods["Publish"] = Upload(breaking)

    with serving(store, break_it) as weights:
        weights.publish(1, params, "float32", last=True)
    assert seen == [{}] * 3
    assert store.last == [1]


def test_a_learner_whose_place_is_taken_publishes_nothing(params):
    store = MemoryWeights()
    with serving(store) as old, serving(store) as new:
        old.fence("e.1")
        old.publish(0, params, "float32", last=False)
        new.fence("e.2")
        with pytest.raises(LearnerFenced, match="another one has taken over"):
            old.publish(1, params, "float32", last=False)
        assert store.newest_version() == 0
        new.publish(1, params, "float32", last=False)


def publish_raw(address, *messages):
    with grpc.insecure_channel(address) as channel:
        ask = channel.stream_unary(f"/{SERVICE}/Publish")
        parts = [m if isinstance(m, bytes) else m.SerializeToString() for m in messages]
        with pytest.raises(grpc.RpcError) as raised:
            ask(iter(parts), timeout=WAIT)
    return raised.value.code(), raised.value.details()


def begin(manifest):
    message = manifest if isinstance(manifest, pb.Manifest) else manifest_message(manifest)
    return pb.PublishRequest(begin=pb.PublishRequest.Begin(manifest=message))


def test_lies_about_what_is_published_are_refused_and_change_nothing(params):
    store = MemoryWeights()
    manifest, arrays = pack_weights(7, params, "float32")
    data = [pb.PublishRequest(data=chunk.tobytes()) for chunk in chunks(arrays)]
    turned = dataclasses.replace(manifest, shapes={**manifest.shapes, "encoder/kernel": (500, 300)})
    wrong_sum = dataclasses.replace(manifest, checksum=manifest.checksum ^ 1)
    huge = dataclasses.replace(manifest, shapes={"x": (2**40, 2**40)})
    lies = {
        "must begin with a manifest": data,
        "not a PublishRequest": [b"\xff\xff"],
        "one manifest": [begin(manifest), begin(manifest)],
        "more than": [begin(manifest), *data, data[0]],
        "bytes of": [begin(manifest), *data[:-1]],
        "checksum differs": [begin(wrong_sum), *data],
        "encoder/kernel is [500, 300], in this run's model [300, 500]": [begin(turned), *data],
        "at most": [begin(huge), *data],
    }
    with serving(store, shapes=manifest.shapes) as weights:
        for reason, messages in lies.items():
            code, said = publish_raw(weights.address, *messages)
            assert code is grpc.StatusCode.INVALID_ARGUMENT
            assert reason in said
        code, _ = publish_raw(weights.address)
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert store.versions == {}
        weights.publish(7, params, "float32", last=False)


@pytest.mark.parametrize(
    ("parameters", "dtype", "reason"),
    [
        ([("x", [2])], "float64", "dtype is 'float64'"),
        ([], "float32", "0 parameters"),
        ([("b", [2]), ("a", [2])], "float32", "names must ascend"),
        ([("a", [2]), ("a", [2])], "float32", "names must ascend"),
        ([("", [2])], "float32", "names must ascend"),
        ([("a//b", [2])], "float32", "no empty part"),
        ([("a", []), ("a-b", []), ("a/b", [])], "float32", "'a' is a parameter, and holds others"),
        ([("a", [1] * 17)], "float32", "17 axes"),
        ([("a" * 501, [])], "float32", "at most 500"),
        ([("a", [2**63, 2**63])], "bfloat16", "at most"),
    ],
)
def test_manifests_that_no_tree_has_are_refused(parameters, dtype, reason):
    message = pb.Manifest(
        version=1,
        dtype=dtype,
        parameters=[pb.Manifest.Parameter(name=n, shape=s) for n, s in parameters],
    )
    with pytest.raises(WireError, match=reason):
        read_manifest(message)


NAMES = st.lists(st.sampled_from("ab-/c"), min_size=1, max_size=4).map("".join)


@settings(max_examples=50)
@given(st.dictionaries(NAMES, st.lists(st.integers(0, 3), max_size=3).map(tuple), min_size=1))
def test_a_manifest_survives_the_wire_or_is_refused(shapes):
    sent = Manifest(2**64 - 1, "bfloat16", shapes, 2**32 - 1)
    try:
        got = read_manifest(manifest_message(sent))
    except WireError:
        return
    assert got == sent
    total = sum(2 * math.prod(shape) for shape in shapes.values())
    assembly = Assembly(got)
    assembly.add(b"\0" * total)
    assert {name: array.shape for name, array in assembly.arrays().items()} == shapes


def test_a_server_that_is_not_there_is_waited_for_and_then_named(params, monkeypatch):
    monkeypatch.setattr(remote_weights, "ANEW_ALLOWED", 1)
    weights = RemoteWeights(Peer("127.0.0.1:1", timeout=1, patience=0.3))
    with pytest.raises(WeightsUnavailable, match=r"weight store at 127.0.0.1:1 could not do"):
        weights.newest_version()
    with pytest.raises(WeightsUnavailable, match="Publish"):
        weights.publish(0, params, "float32", last=False)
    weights.disconnect()


@given(data=st.binary(max_size=300), field=st.integers(1, 15))
def test_data_is_written_as_protobuf_writes_it_and_read_without_a_copy(data, field):
    octets = np.frombuffer(data, np.uint8)
    message = data_message(field, octets)
    if field == pb.PublishRequest.DATA_FIELD_NUMBER:
        assert message == pb.PublishRequest(data=data).SerializeToString()
    assert read_data(field, message) == data
    assert read_data(field, message + b"\0") is None
    assert read_data(field, message[:-1]) is None
    assert read_data(field % 15 + 1, message) is None


@given(message=st.binary(max_size=20))
def test_what_is_read_as_data_is_what_protobuf_reads(message):
    octets = read_data(pb.PublishRequest.DATA_FIELD_NUMBER, message)
    if octets is not None:
        assert pb.PublishRequest.FromString(message).data == octets


def test_large_data_is_written_as_protobuf_writes_it():
    for size in (127, 128, 16_383, 16_384, 2**21):
        octets = np.ones(size, np.uint8)
        message = data_message(pb.DownloadResponse.DATA_FIELD_NUMBER, octets)
        assert message == pb.DownloadResponse(data=octets.tobytes()).SerializeToString()
        assert read_data(pb.DownloadResponse.DATA_FIELD_NUMBER, message) == octets.tobytes()
