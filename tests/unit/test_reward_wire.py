"""The wire of remote rewards: what goes in comes out, and lies are found."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from protos import reward_pb2 as pb
from protos.reward import Description, ScoreRequest, ScoreResponse
from protos.trajectory import Abstained, Failed, FailureKind, Scored, WireError, array_message
from tests.remote_rewards import request
from tests.unit.test_trajectory import OUTCOMES, TEXT, UINT64


@st.composite
def requests(draw: st.DrawFn) -> ScoreRequest:
    shape = (draw(st.integers(1, 4)), draw(st.integers(0, 5)))
    return ScoreRequest(
        draw(TEXT.filter(bool)),
        draw(TEXT.filter(bool)),
        draw(st.none() | UINT64),
        draw(hnp.arrays(np.int32, shape)),
        draw(hnp.arrays(np.float32, shape, elements=st.floats(width=32, allow_nan=False))),
    )


RESPONSES = st.one_of(
    st.lists(OUTCOMES, min_size=1, max_size=4).map(lambda some: ScoreResponse(tuple(some))),
    st.builds(Failed, TEXT, st.sampled_from(FailureKind)).map(lambda one: ScoreResponse((), one)),
)


@given(requests())
def test_a_request_survives_the_wire(sent):
    got = ScoreRequest.from_bytes(sent.to_bytes())
    assert got == sent
    assert np.array_equal(got.tokens, sent.tokens)
    assert got.augmentation_seed == sent.augmentation_seed


@given(RESPONSES)
def test_an_answer_survives_the_wire(sent):
    assert ScoreResponse.from_bytes(sent.to_bytes()) == sent


@given(TEXT, st.lists(TEXT, max_size=3), st.dictionaries(TEXT, TEXT, max_size=3))
def test_a_description_survives_the_wire(name, provides, facts):
    sent = Description(name, tuple(provides), facts)
    assert Description.from_bytes(sent.to_bytes()) == sent


@settings(max_examples=300)
@given(st.data())
def test_mutated_bytes_are_a_message_of_their_kind_or_a_wire_error(data):
    kind, sent = data.draw(
        st.sampled_from(
            [
                (ScoreRequest, request()),
                (ScoreResponse, ScoreResponse((Scored(1.0, {"a": np.ones(2)}), Abstained("no")))),
                (Description, Description("Sum", ("iou",), {"max_length": "3"})),
            ]
        )
    )
    mutated = bytearray(sent.to_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(mutated) - 1))
        match data.draw(st.sampled_from(["change", "cut", "double"])):
            case "change":
                mutated[place] = data.draw(st.integers(0, 255))
            case "cut":
                del mutated[max(1, place) :]
            case "double":
                mutated += mutated[place:]
    try:
        parsed = kind.from_bytes(bytes(mutated))
    except WireError:
        return
    assert isinstance(parsed, kind)
    assert kind.from_bytes(parsed.to_bytes()).to_bytes() == parsed.to_bytes()


def raw(**changes):
    tokens = np.zeros((2, 3), np.int32)
    fields = {
        "split": "train",
        "example_id": "0",
        "tokens": array_message("tokens", tokens),
        "logprobs": array_message("logprobs", tokens.astype(np.float32)),
    }
    return pb.ScoreRequest(**(fields | changes)).SerializeToString()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"split": ""}, "must be named"),
        ({"example_id": ""}, "must be named"),
        ({"tokens": None}, "without tokens"),
        ({"logprobs": None}, "without logprobs"),
        ({"tokens": array_message("t", np.zeros((2, 3), np.int64))}, r"must be int32\[K, L\]"),
        ({"tokens": array_message("t", np.zeros((0, 3), np.int32))}, "K at least 1"),
        ({"tokens": array_message("t", np.zeros(6, np.int32))}, r"int32\[6\]"),
        ({"logprobs": array_message("l", np.zeros((3, 2), np.float32))}, "of one shape"),
    ],
)
def test_a_request_that_lies_is_refused(changes, reason):
    with pytest.raises(WireError, match=reason):
        ScoreRequest.from_bytes(raw(**changes))


def test_an_answer_has_outcomes_or_a_failure():
    failed = Failed("broken", FailureKind.DATA)
    with pytest.raises(WireError, match="must have one of them"):
        ScoreResponse(())
    with pytest.raises(WireError, match="must have one of them"):
        ScoreResponse((Abstained("dark"),), failed)
    unknown = pb.ScoreResponse(failure={"reason": "?", "kind": 9}).SerializeToString()
    with pytest.raises(WireError, match="unknown kind of failure"):
        ScoreResponse.from_bytes(unknown)


def test_a_reward_that_is_no_number_does_not_travel():
    with pytest.raises(WireError, match="not finite"):
        ScoreResponse((Scored(float("nan")),)).to_bytes()
