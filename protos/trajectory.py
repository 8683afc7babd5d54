"""The trajectory in Python: what travels between the roles, and its bytes.

Thin typed views over `trajectory.proto`. Arrays are raw little-endian bytes with dtype and shape;
no pickle crosses any wire. What does not hold what it says raises `WireError`, in both directions,
so that a broken group is found where it is broken.
"""

import enum
import math
from collections.abc import Mapping
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from google.protobuf.message import DecodeError, EncodeError, Message

from protos import trajectory_pb2 as pb

DTYPES = (
    "bool",
    *(f"int{bits}" for bits in (8, 16, 32, 64)),
    *(f"uint{bits}" for bits in (8, 16, 32, 64)),
    *(f"float{bits}" for bits in (16, 32, 64)),
)
_WIRE_DTYPES = {name: np.dtype(name).newbyteorder("<") for name in DTYPES}
MAX_AXES = 64  # of numpy; and a number of more digits than Python writes would need more
_M = TypeVar("_M", bound=Message)


class WireError(ValueError):
    """Bytes or values that the wire contract does not allow."""


class InfrastructureError(RuntimeError):
    """Raised by a reward for what another worker may manage."""


class RewardAway(InfrastructureError):
    """Raised by a reward that is computed elsewhere, where nobody has been there to be asked.

    That is not the group's fault: it goes back untried, and the worker begins anew.
    """


class PolicyNotHeld(LookupError):
    """A policy version that is not there, or no more."""


class FailureKind(enum.Enum):
    """Whether trying elsewhere may help."""

    INFRASTRUCTURE = pb.FAILURE_KIND_INFRASTRUCTURE
    DATA = pb.FAILURE_KIND_DATA


# Of the file that was named, not of the machine or the file system that holds it.
_FILE_ERRORS = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
# Of HTTP clients the last two come without an `errno`.
_ELSEWHERE = (InfrastructureError, CancelledError, MemoryError, ConnectionError, TimeoutError)


def failure_kind(error: BaseException) -> FailureKind:
    """What an exception that a group's work met means for the group.

    Infrastructure: what says so, work that was called off, a full memory, a connection that broke,
    time that ran out, and what the operating system refused (`OSError` with its `errno`: a disk, a
    mount, permissions, open files). All else is the data's fault: Pillow tells a broken image by an
    `OSError` too, but without `errno`.
    """
    elsewhere = isinstance(error, _ELSEWHERE) or (
        isinstance(error, OSError)
        and error.errno is not None
        and not isinstance(error, _FILE_ERRORS)
    )
    return FailureKind.INFRASTRUCTURE if elsewhere else FailureKind.DATA


@dataclass(frozen=True)
class Ticket:
    """What to sample; a pure function of (run seed, ordinal).

    Attributes:
      ordinal: counts up from 0, never reused.
      example_id: unique within the training split.
      augmentation_seed: uint64, for all roles alike.
      sampling_seed: uint64, seeds the K samples.
      policy_version: the version that must sample it (ordered mode); None: the newest.
    """

    ordinal: int
    example_id: str
    augmentation_seed: int
    sampling_seed: int
    policy_version: int | None

    def to_bytes(self) -> bytes:
        """Serialises; `WireError` for an empty id or a number that is not a uint64."""
        return serialise(_ticket_message(self))

    @classmethod
    def from_bytes(cls, data: bytes) -> "Ticket":
        """Parses; `WireError` where `data` is not a ticket."""
        return _ticket(parse(pb.Ticket(), data))


@dataclass(frozen=True, eq=False)
class Sampled:
    """K samples of one example.

    Attributes:
      ticket: what was asked for.
      tokens: [K, L] int32, padded with 0.
      logprobs: [K, L] float32 under the behaviour policy, natural log; 0 at padding.
      policy_version: the version that did sample it.
      engine: its name, for the logs.
      kept_mass: [K, L] float32 probability that truncated sampling kept; None: nothing was cut.
    """

    ticket: Ticket
    tokens: np.ndarray
    logprobs: np.ndarray
    policy_version: int
    engine: str
    kept_mass: np.ndarray | None = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sampled) and self.to_bytes() == other.to_bytes()

    __hash__ = None  # type: ignore[assignment]  # arrays do not hash

    def to_bytes(self) -> bytes:
        """Serialises; `WireError` where the arrays' shapes or dtypes are not as documented."""
        return serialise(_sampled_message(self))

    @classmethod
    def from_bytes(cls, data: bytes) -> "Sampled":
        """Parses into read-only views; `WireError` where `data` is not a sampled group."""
        return _sampled(parse(pb.Sampled(), data))


@dataclass(frozen=True, eq=False)
class Scored:
    """The reward of one sample.

    Attributes:
      reward: finite (on the wire; `rewards.judge` turns NaN and inf into `Failed` before).
      auxiliary: named arrays for the task's auxiliary loss, such as `match_iou [max_boxes]`.
    """

    reward: float
    auxiliary: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Scored)
            and self.reward == other.reward
            and self.auxiliary.keys() == other.auxiliary.keys()
            and all(np.array_equal(a, other.auxiliary[name]) for name, a in self.auxiliary.items())
        )

    __hash__ = None  # type: ignore[assignment]  # arrays do not hash


@dataclass(frozen=True)
class Abstained:
    """The reward has no opinion on this sample."""

    reason: str


@dataclass(frozen=True)
class Failed:
    """The reward could not judge this sample."""

    reason: str
    kind: FailureKind


Outcome = Scored | Abstained | Failed


@dataclass(frozen=True)
class ScoredGroup:
    """A sampled group with one outcome for each of its K samples, in order."""

    sampled: Sampled
    outcomes: tuple[Outcome, ...]

    def to_bytes(self) -> bytes:
        """Serialises; `WireError` for a reward that is not finite or K that differ."""
        _check_group(self)
        outcomes = [outcome_message(k, outcome) for k, outcome in enumerate(self.outcomes)]
        return serialise(pb.ScoredGroup(sampled=_sampled_message(self.sampled), outcomes=outcomes))

    @classmethod
    def from_bytes(cls, data: bytes) -> "ScoredGroup":
        """Parses into read-only views; `WireError` where `data` is not a scored group."""
        message = parse(pb.ScoredGroup(), data)
        if not message.HasField("sampled"):
            raise WireError(f"ScoredGroup without its sampled group, in {len(data)} bytes")
        outcomes = tuple(read_outcome(k, outcome) for k, outcome in enumerate(message.outcomes))
        group = cls(_sampled(message.sampled), outcomes)
        _check_group(group)
        return group


def _check_group(group: ScoredGroup) -> None:
    samples = len(group.sampled.tokens)
    if len(group.outcomes) != samples:
        raise WireError(
            f"ordinal {group.sampled.ticket.ordinal}: {len(group.outcomes)} outcomes for "
            f"{samples} samples; there must be one for each"
        )


def serialise(message: Message) -> bytes:
    """A message's bytes, the same for equal messages; `WireError` where there are none."""
    try:
        return message.SerializeToString(deterministic=True)
    except EncodeError as error:
        raise WireError(f"{type(message).__name__} cannot be serialised: {error}") from error


def parse(message: _M, data: bytes) -> _M:
    """Fills the message from bytes; `WireError` where they are not one of its kind."""
    try:
        message.ParseFromString(data)
    except (DecodeError, TypeError) as error:
        size = len(data) if isinstance(data, bytes) else type(data).__name__
        raise WireError(f"not a {type(message).__name__} ({size} bytes): {error}") from error
    return message


def uint64(name: str, value: int) -> int:
    """The value; `WireError` where it is not a uint64."""
    if not 0 <= value < 1 << 64:
        raise WireError(f"{name} is {value}; it must be in 0 .. 2^64 - 1")
    return int(value)


def _ticket_message(ticket: Ticket) -> pb.Ticket:
    if not ticket.example_id:
        raise WireError(f"ordinal {ticket.ordinal}: the example id is empty")
    version = ticket.policy_version
    return pb.Ticket(
        ordinal=uint64("ordinal", ticket.ordinal),
        example_id=ticket.example_id,
        augmentation_seed=uint64("augmentation_seed", ticket.augmentation_seed),
        sampling_seed=uint64("sampling_seed", ticket.sampling_seed),
        policy_version=None if version is None else uint64("policy_version", version),
    )


def _ticket(message: pb.Ticket) -> Ticket:
    if not message.example_id:
        raise WireError(f"Ticket with ordinal {message.ordinal} has no example id")
    return Ticket(
        ordinal=message.ordinal,
        example_id=message.example_id,
        augmentation_seed=message.augmentation_seed,
        sampling_seed=message.sampling_seed,
        policy_version=message.policy_version if message.HasField("policy_version") else None,
    )


def _sampled_message(sampled: Sampled) -> pb.Sampled:
    _check_sampled(sampled)
    kept = sampled.kept_mass
    return pb.Sampled(
        ticket=_ticket_message(sampled.ticket),
        policy_version=uint64("policy_version", sampled.policy_version),
        engine=sampled.engine,
        tokens=array_message("tokens", sampled.tokens),
        logprobs=array_message("logprobs", sampled.logprobs),
        kept_mass=None if kept is None else array_message("kept_mass", kept),
    )


def _sampled(message: pb.Sampled) -> Sampled:
    missing = [n for n in ("ticket", "tokens", "logprobs") if not message.HasField(n)]
    if missing:
        raise WireError(f"Sampled without {', '.join(missing)}")
    kept = array("kept_mass", message.kept_mass) if message.HasField("kept_mass") else None
    sampled = Sampled(
        ticket=_ticket(message.ticket),
        tokens=array("tokens", message.tokens),
        logprobs=array("logprobs", message.logprobs),
        policy_version=message.policy_version,
        engine=message.engine,
        kept_mass=kept,
    )
    _check_sampled(sampled)
    return sampled


def _check_sampled(sampled: Sampled) -> None:
    shape = np.shape(sampled.tokens)
    arrays = [("tokens", sampled.tokens, "int32"), ("logprobs", sampled.logprobs, "float32")]
    if sampled.kept_mass is not None:
        arrays.append(("kept_mass", sampled.kept_mass, "float32"))
    for name, values, dtype in arrays:
        if len(shape) != 2 or values.shape != shape or values.dtype != dtype:
            raise WireError(
                f"ordinal {sampled.ticket.ordinal}: {name} is {values.dtype}{list(values.shape)}; "
                f"it must be {dtype}[K, L], of one shape with tokens"
            )


def outcome_message(k: int, outcome: Outcome) -> pb.Outcome:
    """The outcome of sample `k`; `WireError` for a reward that is not finite, or none of them."""
    match outcome:
        case Scored(reward, auxiliary):
            if not math.isfinite(reward):
                raise WireError(f"sample {k}: reward {reward} is not finite; it must be a failure")
            arrays = {name: array_message(name, values) for name, values in auxiliary.items()}
            return pb.Outcome(scored=pb.Scored(reward=reward, auxiliary=arrays))
        case Abstained(reason):
            return pb.Outcome(abstained=pb.Abstained(reason=utf8(reason)))
        case Failed():
            return pb.Outcome(failed=failed_message(outcome))
        case _:
            raise WireError(f"sample {k}: {outcome!r} is not Scored, Abstained or Failed")


def utf8(reason: str) -> str:
    """A reason quotes anyone's exception: what UTF-8 cannot write must not hide the failure."""
    return reason.encode("utf-8", "backslashreplace").decode("utf-8")


def read_outcome(k: int, message: pb.Outcome) -> Outcome:
    """The outcome of sample `k`; `WireError` where it is none, or its reward is not finite."""
    match message.WhichOneof("outcome"):
        case "scored":
            scored = message.scored
            if not math.isfinite(scored.reward):
                raise WireError(f"sample {k}: reward {scored.reward} is not finite")
            return Scored(scored.reward, {n: array(n, a) for n, a in scored.auxiliary.items()})
        case "abstained":
            return Abstained(message.abstained.reason)
        case "failed":
            return read_failed(f"sample {k}", message.failed)
        case _:
            raise WireError(f"sample {k} has no outcome, or one of a newer version")


def failed_message(failed: Failed) -> pb.Failed:
    """A failure with its reason."""
    return pb.Failed(reason=utf8(failed.reason), kind=failed.kind.value)


def read_failed(name: str, message: pb.Failed) -> Failed:
    """The failure; `WireError` for an unknown kind, in which `name` says whose it is."""
    try:
        return Failed(message.reason, FailureKind(message.kind))
    except ValueError as error:
        raise WireError(f"{name}: unknown kind of failure: {error}") from error


def array_message(name: str, values: np.ndarray) -> pb.Array:
    """An array as its bytes; `name` is for the error, a `WireError` for dtypes beyond `DTYPES`."""
    values = np.asarray(values)
    wire = _WIRE_DTYPES.get(values.dtype.name)
    if wire is None:
        raise WireError(f"{name} has dtype {values.dtype}; it must be one of {', '.join(DTYPES)}")
    data = np.ascontiguousarray(values, dtype=wire).tobytes()
    return pb.Array(dtype=values.dtype.name, shape=values.shape, data=data)


def array(name: str, message: pb.Array) -> np.ndarray:
    """A read-only view of the message's bytes.

    Raises:
      WireError: the dtype is unknown, an axis is negative, or the bytes are not as many as dtype
        and shape say.
    """
    wire = _WIRE_DTYPES.get(message.dtype)
    if wire is None:
        raise WireError(f"{name} has dtype {message.dtype!r}; expected one of {', '.join(DTYPES)}")
    shape = tuple(message.shape)
    if any(length < 0 for length in shape):
        raise WireError(f"{name} has shape {list(shape)}; no axis can be negative")
    if len(shape) > MAX_AXES:
        raise WireError(f"{name} has {len(shape)} axes; no array has more than {MAX_AXES}")
    expected = math.prod(shape) * wire.itemsize  # Python integers: no overflow to hide behind
    if len(message.data) != expected:
        raise WireError(
            f"{name} has {len(message.data)} bytes; {message.dtype}{list(shape)} takes {expected}"
        )
    try:
        return np.frombuffer(message.data, dtype=wire).reshape(shape)
    except ValueError as error:  # too long axes beside one of length 0
        raise WireError(f"{name} has shape {list(shape)}, which no array has: {error}") from error
