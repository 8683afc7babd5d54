# mypy: disable-error-code="type-arg"
from protos import trajectory_pb2 as _trajectory_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DescribeResponse(_message.Message):
    __slots__ = ("reward", "provides", "task")
    class TaskEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    REWARD_FIELD_NUMBER: _ClassVar[int]
    PROVIDES_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    reward: str
    provides: _containers.RepeatedScalarFieldContainer[str]
    task: _containers.ScalarMap[str, str]
    def __init__(self, reward: _Optional[str] = ..., provides: _Optional[_Iterable[str]] = ..., task: _Optional[_Mapping[str, str]] = ...) -> None: ...

class ScoreRequest(_message.Message):
    __slots__ = ("split", "example_id", "augmentation_seed", "tokens", "logprobs")
    SPLIT_FIELD_NUMBER: _ClassVar[int]
    EXAMPLE_ID_FIELD_NUMBER: _ClassVar[int]
    AUGMENTATION_SEED_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    split: str
    example_id: str
    augmentation_seed: int
    tokens: _trajectory_pb2.Array
    logprobs: _trajectory_pb2.Array
    def __init__(self, split: _Optional[str] = ..., example_id: _Optional[str] = ..., augmentation_seed: _Optional[int] = ..., tokens: _Optional[_Union[_trajectory_pb2.Array, _Mapping]] = ..., logprobs: _Optional[_Union[_trajectory_pb2.Array, _Mapping]] = ...) -> None: ...

class ScoreResponse(_message.Message):
    __slots__ = ("outcomes", "failure")
    OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    outcomes: _containers.RepeatedCompositeFieldContainer[_trajectory_pb2.Outcome]
    failure: _trajectory_pb2.Failed
    def __init__(self, outcomes: _Optional[_Iterable[_Union[_trajectory_pb2.Outcome, _Mapping]]] = ..., failure: _Optional[_Union[_trajectory_pb2.Failed, _Mapping]] = ...) -> None: ...
