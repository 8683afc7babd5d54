"""The wire contract: what goes in comes out, and lies are found."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from protos import generate as generator
from protos import trajectory_pb2 as pb
from protos.trajectory import (
    DTYPES,
    Abstained,
    Failed,
    FailureKind,
    Sampled,
    Scored,
    ScoredGroup,
    Ticket,
    WireError,
    array,
    array_message,
)

UINT64 = st.integers(0, 2**64 - 1)
SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
ARRAYS = st.sampled_from(DTYPES).flatmap(lambda d: hnp.arrays(d, SHAPES))
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
TICKETS = st.builds(
    Ticket,
    ordinal=UINT64,
    example_id=TEXT.filter(bool),
    augmentation_seed=UINT64,
    sampling_seed=UINT64,
    policy_version=st.none() | UINT64,
)
OUTCOMES = st.one_of(
    st.builds(
        Scored,
        reward=st.floats(allow_nan=False, allow_infinity=False),
        auxiliary=st.dictionaries(
            TEXT, hnp.arrays(np.float32, SHAPES, elements=st.floats(-1, 1, width=32)), max_size=2
        ),
    ),
    st.builds(Abstained, TEXT),
    st.builds(Failed, TEXT, st.sampled_from(FailureKind)),
)


@st.composite
def sampled_groups(draw: st.DrawFn) -> Sampled:
    shape = (draw(st.integers(0, 4)), draw(st.integers(0, 5)))
    floats = hnp.arrays(np.float32, shape, elements=st.floats(width=32, allow_nan=False))
    return Sampled(
        ticket=draw(TICKETS),
        tokens=draw(hnp.arrays(np.int32, shape)),
        logprobs=draw(floats),
        policy_version=draw(UINT64),
        engine=draw(TEXT),
        kept_mass=draw(st.none() | floats),
    )


def example_group() -> ScoredGroup:
    ticket = Ticket(7, "000042", 1, 2, 3)
    tokens = np.arange(6, dtype=np.int32).reshape(2, 3)
    sampled = Sampled(ticket, tokens, np.zeros((2, 3), np.float32), 3, "jax")
    iou = {"match_iou": np.ones(4, np.float32)}
    return ScoredGroup(sampled, (Scored(1.5, iou), Failed("broken", FailureKind.DATA)))


@given(TICKETS)
def test_a_ticket_survives_the_wire(ticket):
    assert Ticket.from_bytes(ticket.to_bytes()) == ticket


@given(sampled_groups(), st.data())
def test_groups_survive_the_wire(sampled, data):
    read = Sampled.from_bytes(sampled.to_bytes())
    for name in ("tokens", "logprobs", "kept_mass"):
        np.testing.assert_array_equal(getattr(read, name), getattr(sampled, name))
    assert (read.ticket, read.engine) == (sampled.ticket, sampled.engine)
    assert read.policy_version == sampled.policy_version
    k = len(sampled.tokens)
    outcomes = tuple(data.draw(st.lists(OUTCOMES, min_size=k, max_size=k)))
    group = ScoredGroup(sampled, outcomes)
    assert ScoredGroup.from_bytes(group.to_bytes()).outcomes == outcomes


@given(ARRAYS)
def test_arrays_survive_bit_for_bit_in_any_layout(values):
    for layout in (values, values.T, values[..., ::-1] if values.ndim else values):
        read = array("x", array_message("x", layout))
        assert read.dtype == layout.dtype
        assert read.shape == layout.shape
        assert read.tobytes() == layout.tobytes()
        assert not read.flags.writeable


def test_big_endian_arrays_travel_little_endian():
    values = np.array([1, 256], dtype=">i4")
    message = array_message("x", values)
    assert message.data == b"\x01\0\0\0\0\x01\0\0"
    np.testing.assert_array_equal(array("x", message), values)


def test_reading_a_group_gives_views_not_copies():
    read = ScoredGroup.from_bytes(example_group().to_bytes())
    assert not read.sampled.tokens.flags.owndata
    assert not read.sampled.tokens.flags.writeable


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (
            pb.Array(dtype="int32", shape=[2, 3], data=b"\0" * 23),
            r"23 bytes.*int32\[2, 3\] takes 24",
        ),
        (pb.Array(dtype="int32", shape=[-2, -3], data=b"\0" * 24), r"shape \[-2, -3\]"),
        (pb.Array(dtype="object", shape=[1], data=b"\0" * 8), "dtype 'object'"),
        (pb.Array(dtype="O", shape=[1], data=b"\0" * 8), "dtype 'O'"),
        (pb.Array(dtype="complex128", shape=[1], data=b"\0" * 16), "dtype 'complex128'"),
        (pb.Array(dtype="", shape=[], data=b""), "dtype ''"),
        (pb.Array(dtype="int8", shape=[2**62, 4], data=b""), "takes 18446744073709551616"),
        (pb.Array(dtype="int8", shape=[1] * 65, data=b"\0"), "65 axes"),
        (pb.Array(dtype="int8", shape=[2**62] * 300, data=b"\0"), "300 axes"),
        (pb.Array(dtype="int8", shape=[0, 2**62, 4], data=b""), "too big"),
    ],
)
def test_an_array_that_lies_names_the_lie(message, says):
    with pytest.raises(WireError, match=f"tokens.*{says}"):
        array("tokens", message)


@pytest.mark.parametrize("dtype", ["object", "complex64", "datetime64[s]", "U3"])
def test_other_dtypes_are_not_written(dtype):
    with pytest.raises(WireError, match="iou has dtype"):
        array_message("iou", np.zeros(2, dtype=dtype))


@pytest.mark.parametrize("kind", [Ticket, Sampled, ScoredGroup])
@given(data=st.binary(max_size=200))
def test_any_bytes_are_a_message_or_a_wire_error(kind, data):
    try:
        read = kind.from_bytes(data)
    except WireError:
        return
    assert kind.from_bytes(read.to_bytes()).to_bytes() == read.to_bytes()


@given(data=st.data())
def test_a_flipped_or_cut_group_is_a_group_or_a_wire_error(data):
    sent = bytearray(example_group().to_bytes())
    sent[data.draw(st.integers(0, len(sent) - 1))] ^= data.draw(st.integers(1, 255))
    del sent[data.draw(st.integers(0, len(sent))) :]
    try:
        read = ScoredGroup.from_bytes(bytes(sent))
    except WireError:
        return
    assert len(read.outcomes) == len(read.sampled.tokens)
    assert read.sampled.tokens.dtype == np.int32


def test_bytes_of_one_message_are_not_another():
    group = example_group()
    sent = {Ticket: group.sampled.ticket, Sampled: group.sampled, ScoredGroup: group}
    for kind in sent:
        for other, value in sent.items():
            if kind is not other:
                with pytest.raises(WireError):
                    kind.from_bytes(value.to_bytes())


def test_a_group_of_another_shape_or_dtype_is_refused():
    good = example_group().sampled
    for tokens, logprobs in [
        (good.tokens.astype(np.int64), good.logprobs),
        (good.tokens, good.logprobs.astype(np.float64)),
        (good.tokens, good.logprobs[:, :2]),
        (good.tokens[0], good.logprobs[0]),
    ]:
        bad = Sampled(good.ticket, tokens, logprobs, 0, "jax")
        with pytest.raises(WireError, match=r"ordinal 7: (tokens|logprobs) is .*it must be"):
            bad.to_bytes()


@pytest.mark.parametrize("reward", [float("nan"), float("inf"), -float("inf")])
def test_a_reward_that_is_no_number_does_not_travel(reward):
    group = example_group()
    with pytest.raises(WireError, match=r"sample 1: reward .* is not finite"):
        ScoredGroup(group.sampled, (Scored(0.0), Scored(reward))).to_bytes()
    message = pb.ScoredGroup.FromString(group.to_bytes())
    message.outcomes[1].CopyFrom(pb.Outcome(scored=pb.Scored(reward=reward)))
    with pytest.raises(WireError, match=r"sample 1: reward .* is not finite"):
        ScoredGroup.from_bytes(message.SerializeToString())


def test_there_is_one_outcome_for_each_sample():
    group = example_group()
    with pytest.raises(WireError, match="1 outcomes for 2 samples"):
        ScoredGroup(group.sampled, group.outcomes[:1]).to_bytes()
    message = pb.ScoredGroup.FromString(group.to_bytes())
    message.outcomes[0].CopyFrom(pb.Outcome())
    with pytest.raises(WireError, match="sample 0 has no outcome"):
        ScoredGroup.from_bytes(message.SerializeToString())
    message.outcomes[0].failed.kind = 9
    with pytest.raises(WireError, match="unknown kind of failure"):
        ScoredGroup.from_bytes(message.SerializeToString())


@pytest.mark.parametrize(
    "ticket", [Ticket(-1, "a", 0, 0, 0), Ticket(0, "a", 2**64, 0, 0), Ticket(0, "", 0, 0, 0)]
)
def test_a_ticket_out_of_range_is_refused(ticket):
    with pytest.raises(WireError):
        ticket.to_bytes()


def test_a_reason_that_utf8_cannot_write_still_travels():
    group = example_group()
    failed = Failed("cannot read '\udcff.jpg'", FailureKind.DATA)
    sent = ScoredGroup(group.sampled, (failed, failed)).to_bytes()
    assert ".jpg" in ScoredGroup.from_bytes(sent).outcomes[0].reason


def test_generated_code_is_fresh(tmp_path):
    pytest.importorskip("grpc_tools", reason="needs grpcio-tools, a development dependency")
    for fresh in generator.generate(tmp_path):
        committed = generator.PROTOS / fresh.name
        assert committed.read_text() == fresh.read_text(), "run: python -m protos.generate"


def test_every_proto_file_is_generated():
    assert {Path(name).name for name in generator.SOURCES} == {
        path.name for path in generator.PROTOS.glob("*.proto")
    }
