"""The remote reward in Python: its requests and answers, and their bytes.

Thin typed views over `reward.proto`, as `protos.trajectory` is over `trajectory.proto`; what does
not hold what it says raises `WireError`, in both directions.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from protos import reward_pb2 as pb
from protos.trajectory import (
    Failed,
    Outcome,
    WireError,
    array,
    array_message,
    failed_message,
    outcome_message,
    parse,
    read_failed,
    read_outcome,
    serialise,
    uint64,
)

SERVICE = "rewardtune.v1.RewardService"
DESCRIBE = f"/{SERVICE}/Describe"
SCORE = f"/{SERVICE}/Score"


@dataclass(frozen=True)
class Description:
    """What a reward server is.

    Attributes:
      reward: its name, for logs and errors.
      provides: the auxiliary arrays that its `Scored` outcomes carry.
      task: what client and server must agree on, by name (`rewards.facts.task_facts`).
    """

    reward: str
    provides: tuple[str, ...]
    task: Mapping[str, str]

    def to_bytes(self) -> bytes:
        """Serialises; `WireError` for what is not text."""
        try:
            message = pb.DescribeResponse(
                reward=self.reward, provides=self.provides, task=dict(self.task)
            )
        except (TypeError, ValueError) as error:
            raise WireError(f"{self} cannot be serialised: {error}") from error
        return serialise(message)

    @classmethod
    def from_bytes(cls, data: bytes) -> "Description":
        """Parses; `WireError` where `data` is not a description."""
        message = parse(pb.DescribeResponse(), data)
        return cls(message.reward, tuple(message.provides), dict(message.task))


@dataclass(frozen=True, eq=False)
class ScoreRequest:
    """K sampled sequences of one example, to be judged.

    Attributes:
      split: train, validation or test.
      example_id: unique within the split.
      augmentation_seed: uint64; None: not augmented.
      tokens: [K, L] int32, padded with 0.
      logprobs: [K, L] float32 under the behaviour policy, natural log; 0 at padding.
    """

    split: str
    example_id: str
    augmentation_seed: int | None
    tokens: np.ndarray
    logprobs: np.ndarray

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ScoreRequest) and self.to_bytes() == other.to_bytes()

    __hash__ = None  # type: ignore[assignment]  # arrays do not hash

    def __len__(self) -> int:
        return len(self.tokens)

    def to_bytes(self) -> bytes:
        """Serialises; `WireError` where the arrays' shapes or dtypes are not as documented."""
        _check(self)
        seed = self.augmentation_seed
        return serialise(
            pb.ScoreRequest(
                split=self.split,
                example_id=self.example_id,
                augmentation_seed=None if seed is None else uint64("augmentation_seed", seed),
                tokens=array_message("tokens", self.tokens),
                logprobs=array_message("logprobs", self.logprobs),
            )
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> "ScoreRequest":
        """Parses into read-only views; `WireError` where `data` is not a request."""
        message = parse(pb.ScoreRequest(), data)
        missing = [name for name in ("tokens", "logprobs") if not message.HasField(name)]
        if missing:
            raise WireError(f"ScoreRequest without {', '.join(missing)}")
        seed = message.augmentation_seed if message.HasField("augmentation_seed") else None
        request = cls(
            message.split,
            message.example_id,
            seed,
            array("tokens", message.tokens),
            array("logprobs", message.logprobs),
        )
        _check(request)
        return request


def _check(request: ScoreRequest) -> None:
    if not request.split or not request.example_id:
        raise WireError(
            f"ScoreRequest for split {request.split!r}, example {request.example_id!r}: both must "
            "be named"
        )
    shape = np.shape(request.tokens)
    for name, values, dtype in (
        ("tokens", request.tokens, "int32"),
        ("logprobs", request.logprobs, "float32"),
    ):
        if len(shape) != 2 or not shape[0] or values.shape != shape or values.dtype != dtype:
            raise WireError(
                f"example {request.example_id}: {name} is {values.dtype}{list(values.shape)}; it "
                f"must be {dtype}[K, L], of one shape with tokens, with K at least 1"
            )


@dataclass(frozen=True)
class ScoreResponse:
    """One outcome for each sample, or why no sample could be judged.

    Attributes:
      outcomes: in the samples' order; empty where the group failed.
      failure: of the whole group; None where there are outcomes.
    """

    outcomes: tuple[Outcome, ...]
    failure: Failed | None = None

    def __post_init__(self) -> None:
        if bool(self.outcomes) == (self.failure is not None):
            raise WireError(
                f"ScoreResponse with {len(self.outcomes)} outcomes and "
                f"{'a' if self.failure else 'no'} failure: it must have one of them"
            )

    def to_bytes(self) -> bytes:
        """Serialises; `WireError` for a reward that is not finite."""
        outcomes = [outcome_message(k, outcome) for k, outcome in enumerate(self.outcomes)]
        failure = None if self.failure is None else failed_message(self.failure)
        return serialise(pb.ScoreResponse(outcomes=outcomes, failure=failure))

    @classmethod
    def from_bytes(cls, data: bytes) -> "ScoreResponse":
        """Parses; `WireError` where `data` is not an answer."""
        message = parse(pb.ScoreResponse(), data)
        failure = read_failed("the group", message.failure) if message.HasField("failure") else None
        outcomes = tuple(read_outcome(k, outcome) for k, outcome in enumerate(message.outcomes))
        return cls(outcomes, failure)
