# mypy: disable-error-code="type-arg"
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Manifest(_message.Message):
    __slots__ = ("version", "dtype", "parameters", "checksum")
    class Parameter(_message.Message):
        __slots__ = ("name", "shape")
        NAME_FIELD_NUMBER: _ClassVar[int]
        SHAPE_FIELD_NUMBER: _ClassVar[int]
        name: str
        shape: _containers.RepeatedScalarFieldContainer[int]
        def __init__(self, name: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ...) -> None: ...
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    version: int
    dtype: str
    parameters: _containers.RepeatedCompositeFieldContainer[Manifest.Parameter]
    checksum: int
    def __init__(self, version: _Optional[int] = ..., dtype: _Optional[str] = ..., parameters: _Optional[_Iterable[_Union[Manifest.Parameter, _Mapping]]] = ..., checksum: _Optional[int] = ...) -> None: ...

class GetNewestVersionRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetNewestVersionResponse(_message.Message):
    __slots__ = ("version",)
    VERSION_FIELD_NUMBER: _ClassVar[int]
    version: int
    def __init__(self, version: _Optional[int] = ...) -> None: ...

class GetManifestRequest(_message.Message):
    __slots__ = ("version",)
    VERSION_FIELD_NUMBER: _ClassVar[int]
    version: int
    def __init__(self, version: _Optional[int] = ...) -> None: ...

class GetManifestResponse(_message.Message):
    __slots__ = ("manifest",)
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    manifest: Manifest
    def __init__(self, manifest: _Optional[_Union[Manifest, _Mapping]] = ...) -> None: ...

class DownloadRequest(_message.Message):
    __slots__ = ("version", "checksum", "offset")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    version: int
    checksum: int
    offset: int
    def __init__(self, version: _Optional[int] = ..., checksum: _Optional[int] = ..., offset: _Optional[int] = ...) -> None: ...

class DownloadResponse(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...

class PublishRequest(_message.Message):
    __slots__ = ("begin", "data")
    class Begin(_message.Message):
        __slots__ = ("manifest", "last", "epoch")
        MANIFEST_FIELD_NUMBER: _ClassVar[int]
        LAST_FIELD_NUMBER: _ClassVar[int]
        EPOCH_FIELD_NUMBER: _ClassVar[int]
        manifest: Manifest
        last: bool
        epoch: str
        def __init__(self, manifest: _Optional[_Union[Manifest, _Mapping]] = ..., last: bool = ..., epoch: _Optional[str] = ...) -> None: ...
    BEGIN_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    begin: PublishRequest.Begin
    data: bytes
    def __init__(self, begin: _Optional[_Union[PublishRequest.Begin, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...

class PublishResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class FencePublishersRequest(_message.Message):
    __slots__ = ("epoch",)
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    epoch: str
    def __init__(self, epoch: _Optional[str] = ...) -> None: ...

class FencePublishersResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetNextToEvaluateRequest(_message.Message):
    __slots__ = ("wait",)
    WAIT_FIELD_NUMBER: _ClassVar[int]
    wait: float
    def __init__(self, wait: _Optional[float] = ...) -> None: ...

class GetNextToEvaluateResponse(_message.Message):
    __slots__ = ("version",)
    VERSION_FIELD_NUMBER: _ClassVar[int]
    version: int
    def __init__(self, version: _Optional[int] = ...) -> None: ...

class FinishEvaluationRequest(_message.Message):
    __slots__ = ("version",)
    VERSION_FIELD_NUMBER: _ClassVar[int]
    version: int
    def __init__(self, version: _Optional[int] = ...) -> None: ...

class FinishEvaluationResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListToEvaluateRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListToEvaluateResponse(_message.Message):
    __slots__ = ("versions",)
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    versions: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, versions: _Optional[_Iterable[int]] = ...) -> None: ...
