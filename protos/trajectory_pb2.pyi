# mypy: disable-error-code="type-arg"
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FailureKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FAILURE_KIND_UNSPECIFIED: _ClassVar[FailureKind]
    FAILURE_KIND_INFRASTRUCTURE: _ClassVar[FailureKind]
    FAILURE_KIND_DATA: _ClassVar[FailureKind]
FAILURE_KIND_UNSPECIFIED: FailureKind
FAILURE_KIND_INFRASTRUCTURE: FailureKind
FAILURE_KIND_DATA: FailureKind

class Array(_message.Message):
    __slots__ = ("dtype", "shape", "data")
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    dtype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    data: bytes
    def __init__(self, dtype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., data: _Optional[bytes] = ...) -> None: ...

class Ticket(_message.Message):
    __slots__ = ("ordinal", "example_id", "augmentation_seed", "sampling_seed", "policy_version")
    ORDINAL_FIELD_NUMBER: _ClassVar[int]
    EXAMPLE_ID_FIELD_NUMBER: _ClassVar[int]
    AUGMENTATION_SEED_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_SEED_FIELD_NUMBER: _ClassVar[int]
    POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    ordinal: int
    example_id: str
    augmentation_seed: int
    sampling_seed: int
    policy_version: int
    def __init__(self, ordinal: _Optional[int] = ..., example_id: _Optional[str] = ..., augmentation_seed: _Optional[int] = ..., sampling_seed: _Optional[int] = ..., policy_version: _Optional[int] = ...) -> None: ...

class Sampled(_message.Message):
    __slots__ = ("ticket", "policy_version", "engine", "tokens", "logprobs", "kept_mass")
    TICKET_FIELD_NUMBER: _ClassVar[int]
    POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    KEPT_MASS_FIELD_NUMBER: _ClassVar[int]
    ticket: Ticket
    policy_version: int
    engine: str
    tokens: Array
    logprobs: Array
    kept_mass: Array
    def __init__(self, ticket: _Optional[_Union[Ticket, _Mapping]] = ..., policy_version: _Optional[int] = ..., engine: _Optional[str] = ..., tokens: _Optional[_Union[Array, _Mapping]] = ..., logprobs: _Optional[_Union[Array, _Mapping]] = ..., kept_mass: _Optional[_Union[Array, _Mapping]] = ...) -> None: ...

class Scored(_message.Message):
    __slots__ = ("reward", "auxiliary")
    class AuxiliaryEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Array
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Array, _Mapping]] = ...) -> None: ...
    REWARD_FIELD_NUMBER: _ClassVar[int]
    AUXILIARY_FIELD_NUMBER: _ClassVar[int]
    reward: float
    auxiliary: _containers.MessageMap[str, Array]
    def __init__(self, reward: _Optional[float] = ..., auxiliary: _Optional[_Mapping[str, Array]] = ...) -> None: ...

class Abstained(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class Failed(_message.Message):
    __slots__ = ("reason", "kind")
    REASON_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    reason: str
    kind: FailureKind
    def __init__(self, reason: _Optional[str] = ..., kind: _Optional[_Union[FailureKind, str]] = ...) -> None: ...

class Outcome(_message.Message):
    __slots__ = ("scored", "abstained", "failed")
    SCORED_FIELD_NUMBER: _ClassVar[int]
    ABSTAINED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    scored: Scored
    abstained: Abstained
    failed: Failed
    def __init__(self, scored: _Optional[_Union[Scored, _Mapping]] = ..., abstained: _Optional[_Union[Abstained, _Mapping]] = ..., failed: _Optional[_Union[Failed, _Mapping]] = ...) -> None: ...

class ScoredGroup(_message.Message):
    __slots__ = ("sampled", "outcomes")
    SAMPLED_FIELD_NUMBER: _ClassVar[int]
    OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    sampled: Sampled
    outcomes: _containers.RepeatedCompositeFieldContainer[Outcome]
    def __init__(self, sampled: _Optional[_Union[Sampled, _Mapping]] = ..., outcomes: _Optional[_Iterable[_Union[Outcome, _Mapping]]] = ...) -> None: ...
