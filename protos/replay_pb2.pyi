# mypy: disable-error-code="type-arg"
from protos import trajectory_pb2 as _trajectory_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Stage(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STAGE_UNSPECIFIED: _ClassVar[Stage]
    STAGE_TO_SAMPLE: _ClassVar[Stage]
    STAGE_TO_SCORE: _ClassVar[Stage]
    STAGE_TO_TRAIN: _ClassVar[Stage]

class Completion(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    COMPLETION_UNSPECIFIED: _ClassVar[Completion]
    COMPLETION_DONE: _ClassVar[Completion]
    COMPLETION_TOO_LATE: _ClassVar[Completion]
STAGE_UNSPECIFIED: Stage
STAGE_TO_SAMPLE: Stage
STAGE_TO_SCORE: Stage
STAGE_TO_TRAIN: Stage
COMPLETION_UNSPECIFIED: Completion
COMPLETION_DONE: Completion
COMPLETION_TOO_LATE: Completion

class Call(_message.Message):
    __slots__ = ("caller", "number")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    caller: str
    number: int
    def __init__(self, caller: _Optional[str] = ..., number: _Optional[int] = ...) -> None: ...

class HeldGroup(_message.Message):
    __slots__ = ("lease_id", "ordinal", "stage", "worker", "ttl", "deadline", "delivery", "payload", "reasons", "block_start")
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    ORDINAL_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    TTL_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_FIELD_NUMBER: _ClassVar[int]
    DELIVERY_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    REASONS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_START_FIELD_NUMBER: _ClassVar[int]
    lease_id: str
    ordinal: int
    stage: Stage
    worker: str
    ttl: float
    deadline: float
    delivery: int
    payload: bytes
    reasons: _containers.RepeatedScalarFieldContainer[str]
    block_start: int
    def __init__(self, lease_id: _Optional[str] = ..., ordinal: _Optional[int] = ..., stage: _Optional[_Union[Stage, str]] = ..., worker: _Optional[str] = ..., ttl: _Optional[float] = ..., deadline: _Optional[float] = ..., delivery: _Optional[int] = ..., payload: _Optional[bytes] = ..., reasons: _Optional[_Iterable[str]] = ..., block_start: _Optional[int] = ...) -> None: ...

class Frontier(_message.Message):
    __slots__ = ("next_unacked", "acked_above", "dropped")
    NEXT_UNACKED_FIELD_NUMBER: _ClassVar[int]
    ACKED_ABOVE_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    next_unacked: int
    acked_above: _containers.RepeatedScalarFieldContainer[int]
    dropped: int
    def __init__(self, next_unacked: _Optional[int] = ..., acked_above: _Optional[_Iterable[int]] = ..., dropped: _Optional[int] = ...) -> None: ...

class GetRunRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetRunResponse(_message.Message):
    __slots__ = ("name", "config", "task")
    class TaskEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    name: str
    config: str
    task: _containers.ScalarMap[str, str]
    def __init__(self, name: _Optional[str] = ..., config: _Optional[str] = ..., task: _Optional[_Mapping[str, str]] = ...) -> None: ...

class LeaseRequest(_message.Message):
    __slots__ = ("call", "stage", "count", "ttl", "worker", "wait", "epoch", "first")
    CALL_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    TTL_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    call: Call
    stage: Stage
    count: int
    ttl: float
    worker: str
    wait: float
    epoch: str
    first: int
    def __init__(self, call: _Optional[_Union[Call, _Mapping]] = ..., stage: _Optional[_Union[Stage, str]] = ..., count: _Optional[int] = ..., ttl: _Optional[float] = ..., worker: _Optional[str] = ..., wait: _Optional[float] = ..., epoch: _Optional[str] = ..., first: _Optional[int] = ...) -> None: ...

class LeaseResponse(_message.Message):
    __slots__ = ("groups",)
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    groups: _containers.RepeatedCompositeFieldContainer[HeldGroup]
    def __init__(self, groups: _Optional[_Iterable[_Union[HeldGroup, _Mapping]]] = ...) -> None: ...

class RenewRequest(_message.Message):
    __slots__ = ("lease_ids",)
    LEASE_IDS_FIELD_NUMBER: _ClassVar[int]
    lease_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, lease_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class RenewResponse(_message.Message):
    __slots__ = ("lease_ids",)
    LEASE_IDS_FIELD_NUMBER: _ClassVar[int]
    lease_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, lease_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class CompleteRequest(_message.Message):
    __slots__ = ("call", "items")
    class Item(_message.Message):
        __slots__ = ("lease_id", "payload")
        LEASE_ID_FIELD_NUMBER: _ClassVar[int]
        PAYLOAD_FIELD_NUMBER: _ClassVar[int]
        lease_id: str
        payload: bytes
        def __init__(self, lease_id: _Optional[str] = ..., payload: _Optional[bytes] = ...) -> None: ...
    CALL_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    call: Call
    items: _containers.RepeatedCompositeFieldContainer[CompleteRequest.Item]
    def __init__(self, call: _Optional[_Union[Call, _Mapping]] = ..., items: _Optional[_Iterable[_Union[CompleteRequest.Item, _Mapping]]] = ...) -> None: ...

class CompleteResponse(_message.Message):
    __slots__ = ("completions",)
    COMPLETIONS_FIELD_NUMBER: _ClassVar[int]
    completions: _containers.RepeatedScalarFieldContainer[Completion]
    def __init__(self, completions: _Optional[_Iterable[_Union[Completion, str]]] = ...) -> None: ...

class FailRequest(_message.Message):
    __slots__ = ("call", "items")
    class Item(_message.Message):
        __slots__ = ("lease_id", "reason", "kind")
        LEASE_ID_FIELD_NUMBER: _ClassVar[int]
        REASON_FIELD_NUMBER: _ClassVar[int]
        KIND_FIELD_NUMBER: _ClassVar[int]
        lease_id: str
        reason: str
        kind: _trajectory_pb2.FailureKind
        def __init__(self, lease_id: _Optional[str] = ..., reason: _Optional[str] = ..., kind: _Optional[_Union[_trajectory_pb2.FailureKind, str]] = ...) -> None: ...
    CALL_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    call: Call
    items: _containers.RepeatedCompositeFieldContainer[FailRequest.Item]
    def __init__(self, call: _Optional[_Union[Call, _Mapping]] = ..., items: _Optional[_Iterable[_Union[FailRequest.Item, _Mapping]]] = ...) -> None: ...

class FailResponse(_message.Message):
    __slots__ = ("completions",)
    COMPLETIONS_FIELD_NUMBER: _ClassVar[int]
    completions: _containers.RepeatedScalarFieldContainer[Completion]
    def __init__(self, completions: _Optional[_Iterable[_Union[Completion, str]]] = ...) -> None: ...

class ReleaseRequest(_message.Message):
    __slots__ = ("lease_ids",)
    LEASE_IDS_FIELD_NUMBER: _ClassVar[int]
    lease_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, lease_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class ReleaseResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReleaseWorkerRequest(_message.Message):
    __slots__ = ("call", "worker", "reason")
    CALL_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    call: Call
    worker: str
    reason: str
    def __init__(self, call: _Optional[_Union[Call, _Mapping]] = ..., worker: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class ReleaseWorkerResponse(_message.Message):
    __slots__ = ("released",)
    RELEASED_FIELD_NUMBER: _ClassVar[int]
    released: int
    def __init__(self, released: _Optional[int] = ...) -> None: ...

class AckRequest(_message.Message):
    __slots__ = ("ordinals", "dropped", "epoch")
    ORDINALS_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ordinals: _containers.RepeatedScalarFieldContainer[int]
    dropped: _containers.RepeatedScalarFieldContainer[int]
    epoch: str
    def __init__(self, ordinals: _Optional[_Iterable[int]] = ..., dropped: _Optional[_Iterable[int]] = ..., epoch: _Optional[str] = ...) -> None: ...

class AckResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class FenceRequest(_message.Message):
    __slots__ = ("call",)
    CALL_FIELD_NUMBER: _ClassVar[int]
    call: Call
    def __init__(self, call: _Optional[_Union[Call, _Mapping]] = ...) -> None: ...

class FenceResponse(_message.Message):
    __slots__ = ("epoch",)
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    epoch: str
    def __init__(self, epoch: _Optional[str] = ...) -> None: ...

class RestartRequest(_message.Message):
    __slots__ = ("call", "frontier", "epoch")
    CALL_FIELD_NUMBER: _ClassVar[int]
    FRONTIER_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    call: Call
    frontier: Frontier
    epoch: str
    def __init__(self, call: _Optional[_Union[Call, _Mapping]] = ..., frontier: _Optional[_Union[Frontier, _Mapping]] = ..., epoch: _Optional[str] = ...) -> None: ...

class RestartResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CloseRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CloseResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetStatsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetStatsResponse(_message.Message):
    __slots__ = ("stages", "out", "window", "room", "acked", "dropped", "finished", "quarantined", "redelivered", "expired", "expired_by_worker", "too_late", "last_reasons", "closed", "held_by_worker")
    class StageStats(_message.Message):
        __slots__ = ("stage", "ready", "leased", "oldest_wait", "wait_p50", "wait_p95")
        STAGE_FIELD_NUMBER: _ClassVar[int]
        READY_FIELD_NUMBER: _ClassVar[int]
        LEASED_FIELD_NUMBER: _ClassVar[int]
        OLDEST_WAIT_FIELD_NUMBER: _ClassVar[int]
        WAIT_P50_FIELD_NUMBER: _ClassVar[int]
        WAIT_P95_FIELD_NUMBER: _ClassVar[int]
        stage: Stage
        ready: int
        leased: int
        oldest_wait: float
        wait_p50: float
        wait_p95: float
        def __init__(self, stage: _Optional[_Union[Stage, str]] = ..., ready: _Optional[int] = ..., leased: _Optional[int] = ..., oldest_wait: _Optional[float] = ..., wait_p50: _Optional[float] = ..., wait_p95: _Optional[float] = ...) -> None: ...
    class ExpiredByWorkerEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class HeldByWorkerEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    STAGES_FIELD_NUMBER: _ClassVar[int]
    OUT_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    ROOM_FIELD_NUMBER: _ClassVar[int]
    ACKED_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    QUARANTINED_FIELD_NUMBER: _ClassVar[int]
    REDELIVERED_FIELD_NUMBER: _ClassVar[int]
    EXPIRED_FIELD_NUMBER: _ClassVar[int]
    EXPIRED_BY_WORKER_FIELD_NUMBER: _ClassVar[int]
    TOO_LATE_FIELD_NUMBER: _ClassVar[int]
    LAST_REASONS_FIELD_NUMBER: _ClassVar[int]
    CLOSED_FIELD_NUMBER: _ClassVar[int]
    HELD_BY_WORKER_FIELD_NUMBER: _ClassVar[int]
    stages: _containers.RepeatedCompositeFieldContainer[GetStatsResponse.StageStats]
    out: int
    window: int
    room: int
    acked: int
    dropped: int
    finished: bool
    quarantined: int
    redelivered: int
    expired: int
    expired_by_worker: _containers.ScalarMap[str, int]
    too_late: int
    last_reasons: _containers.RepeatedScalarFieldContainer[str]
    closed: bool
    held_by_worker: _containers.ScalarMap[str, int]
    def __init__(self, stages: _Optional[_Iterable[_Union[GetStatsResponse.StageStats, _Mapping]]] = ..., out: _Optional[int] = ..., window: _Optional[int] = ..., room: _Optional[int] = ..., acked: _Optional[int] = ..., dropped: _Optional[int] = ..., finished: bool = ..., quarantined: _Optional[int] = ..., redelivered: _Optional[int] = ..., expired: _Optional[int] = ..., expired_by_worker: _Optional[_Mapping[str, int]] = ..., too_late: _Optional[int] = ..., last_reasons: _Optional[_Iterable[str]] = ..., closed: bool = ..., held_by_worker: _Optional[_Mapping[str, int]] = ...) -> None: ...

class GetQuarantineRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetQuarantineResponse(_message.Message):
    __slots__ = ("groups",)
    class Quarantined(_message.Message):
        __slots__ = ("ordinal", "stage", "reasons")
        ORDINAL_FIELD_NUMBER: _ClassVar[int]
        STAGE_FIELD_NUMBER: _ClassVar[int]
        REASONS_FIELD_NUMBER: _ClassVar[int]
        ordinal: int
        stage: Stage
        reasons: _containers.RepeatedScalarFieldContainer[str]
        def __init__(self, ordinal: _Optional[int] = ..., stage: _Optional[_Union[Stage, str]] = ..., reasons: _Optional[_Iterable[str]] = ...) -> None: ...
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    groups: _containers.RepeatedCompositeFieldContainer[GetQuarantineResponse.Quarantined]
    def __init__(self, groups: _Optional[_Iterable[_Union[GetQuarantineResponse.Quarantined, _Mapping]]] = ...) -> None: ...

class GetFrontierRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetFrontierResponse(_message.Message):
    __slots__ = ("frontier",)
    FRONTIER_FIELD_NUMBER: _ClassVar[int]
    frontier: Frontier
    def __init__(self, frontier: _Optional[_Union[Frontier, _Mapping]] = ...) -> None: ...
