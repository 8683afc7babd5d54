"""The weight store's service (`protos/weights.proto`): streams versions, and takes them over."""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

import grpc
import numpy as np

from learner.packed_weights import (
    Manifest,
    VersionNotHeld,
    WeightsUnavailable,
)
from learner.weights_wire import (
    FENCED,
    MAX_BYTES,
    MAX_WAIT,
    SERVICE,
    Assembly,
    chunks,
    data_message,
    manifest_message,
    read_data,
    read_manifest,
)
from protos import weights_pb2 as pb
from protos.edge import Download, Refused, Services, Upload
from protos.trajectory import WireError, parse, serialise
from replay.queue import LearnerFenced
from replay.waits import Waits
from replay.wire import read_name, read_seconds

logger = logging.getLogger(__name__)

T = TypeVar("T")

KEPT = 2
THREADS = 16
# An upload that brings nothing for so long is given up.
STALLED_SECONDS = 60.0


class Store(Protocol):
    """What is served: `learner.weight_store.RayWeights`. Calls may block."""

    def fence(self, epoch: str) -> None:
        """A learner takes over."""
        ...

    def publish_packed(
        self,
        manifest: Manifest,
        arrays: Mapping[str, np.ndarray],
        last: bool,
        epoch: str | None,
    ) -> None:
        """Takes over a version; `LearnerFenced` for an epoch that is not the last one."""
        ...

    def newest_version(self) -> int | None:
        """The highest version."""
        ...

    def manifest(self, version: int | None) -> Manifest:
        """What a version is (None: the newest); `VersionNotHeld`."""
        ...

    def packed(self, version: int | None) -> tuple[Manifest, Mapping[str, np.ndarray]]:
        """A version (None: the newest) as it was published; `VersionNotHeld`."""
        ...

    def next_to_evaluate(self, wait: float) -> int | None:
        """The oldest version that waits for an evaluation."""
        ...

    def evaluated(self, version: int) -> None:
        """An evaluator is done with it."""
        ...

    def to_evaluate(self) -> Sequence[int]:
        """What waits for an evaluation."""
        ...


class WeightsService:
    """One run's weights, to be served by a `protos.edge.EdgeServer`."""

    def __init__(
        self, store: Store, shapes: Mapping[str, Sequence[int]] | None = None, most: int = MAX_BYTES
    ) -> None:
        """Prepares to answer.

        Args:
          store: of the run.
          shapes: the run's parameters; what is published must have them. None: not checked.
          most: bytes that a published version may have.
        """
        self._store, self._most = store, most
        self._shapes = None if shapes is None else {n: tuple(s) for n, s in shapes.items()}
        self._threads = ThreadPoolExecutor(THREADS, "weights")
        self._waits = Waits("weights-wait")
        self._stopping = False
        self._kept: OrderedDict[tuple[int, int], Mapping[str, np.ndarray]] = OrderedDict()

    def services(self) -> Services:
        """The methods, from bytes to bytes."""
        return {
            SERVICE: {
                "GetNewestVersion": self._newest,
                "GetManifest": self._manifest,
                "Download": Download(self._download),
                "Publish": Upload(self._publish),
                "FencePublishers": self._fence,
                "GetNextToEvaluate": self._next_to_evaluate,
                "FinishEvaluation": self._finish_evaluation,
                "ListToEvaluate": self._list_to_evaluate,
            }
        }

    def stop(self) -> None:
        """Ends waits; to be called before the server stops."""
        self._stopping = True

    def close(self) -> None:
        """Ends the threads, when the server has stopped; one that hangs is not waited for."""
        self._waits.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _newest(self, data: bytes) -> bytes:
        parse(pb.GetNewestVersionRequest(), data)
        return serialise(
            pb.GetNewestVersionResponse(version=await self._ask(self._store.newest_version))
        )

    async def _manifest(self, data: bytes) -> bytes:
        message = parse(pb.GetManifestRequest(), data)
        version = message.version if message.HasField("version") else None
        manifest = await self._ask(lambda: self._store.manifest(version))
        return serialise(pb.GetManifestResponse(manifest=manifest_message(manifest)))

    async def _download(self, data: bytes) -> AsyncIterator[bytes]:
        message = parse(pb.DownloadRequest(), data)
        arrays = await self._arrays(message.version, message.checksum)
        total = sum(array.nbytes for array in arrays.values())
        if message.offset > total:
            raise WireError(f"offset {message.offset} of version {message.version} with {total}")
        for chunk in chunks(arrays, message.offset):
            yield data_message(pb.DownloadResponse.DATA_FIELD_NUMBER, chunk)

    async def _arrays(self, version: int, checksum: int) -> Mapping[str, np.ndarray]:
        """Those of exactly this publication; several readers share them."""
        kept = self._kept.get((version, checksum))
        if kept is not None:
            return kept
        manifest, arrays = await self._ask(lambda: self._store.packed(version))
        if manifest.checksum != checksum:
            raise Refused(
                grpc.StatusCode.ABORTED,
                f"weights version {version} was published anew: ask for its manifest again",
            )
        self._kept[version, checksum] = arrays
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return arrays

    async def _publish(self, requests: AsyncIterator[bytes]) -> bytes:
        first = parse(pb.PublishRequest(), await _next(requests) or b"")
        if first.WhichOneof("part") != "begin":
            raise WireError("Publish must begin with a manifest")
        begin = first.begin
        epoch = read_name("epoch", begin.epoch) if begin.HasField("epoch") else None
        manifest = read_manifest(begin.manifest, self._most)
        self._check_shapes(manifest)
        try:
            assembly = Assembly(manifest)
            while (data := await _next(requests)) is not None:
                octets = read_data(pb.PublishRequest.DATA_FIELD_NUMBER, data)
                if octets is None:
                    raise WireError("Publish has one manifest, and after it only data")
                await asyncio.to_thread(assembly.add, octets)
        except MemoryError as error:
            reason = f"no memory for weights version {manifest.version}"
            raise Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, reason) from error
        arrays = assembly.arrays()
        if assembly.checksum != manifest.checksum:
            raise WireError(
                f"weights version {manifest.version}: the checksum differs from its manifest"
            )
        await self._ask(
            lambda: self._store.publish_packed(manifest, arrays, begin.last, epoch),
        )
        logger.info("weights version %d was published", manifest.version)
        return serialise(pb.PublishResponse())

    def _check_shapes(self, manifest: Manifest) -> None:
        if self._shapes is None or manifest.shapes == self._shapes:
            return
        for name in sorted(self._shapes.keys() | manifest.shapes.keys()):
            ours, theirs = self._shapes.get(name), manifest.shapes.get(name)
            if ours != theirs:
                raise WireError(
                    f"weights version {manifest.version}: {name} is {_shown(theirs)}, in this "
                    f"run's model {_shown(ours)}"
                )

    async def _fence(self, data: bytes) -> bytes:
        epoch = read_name("epoch", parse(pb.FencePublishersRequest(), data).epoch)
        await self._ask(lambda: self._store.fence(epoch))
        return serialise(pb.FencePublishersResponse())

    async def _next_to_evaluate(self, data: bytes) -> bytes:
        message = parse(pb.GetNextToEvaluateRequest(), data)
        wait = read_seconds("wait", message.wait, MAX_WAIT)
        version = await self._waits.until_found(
            wait,
            self._store.next_to_evaluate,
            self._ask,
            lambda found: found is not None or self._stopping,
        )
        return serialise(pb.GetNextToEvaluateResponse(version=version))

    async def _finish_evaluation(self, data: bytes) -> bytes:
        version = parse(pb.FinishEvaluationRequest(), data).version
        await self._ask(lambda: self._store.evaluated(version))
        return serialise(pb.FinishEvaluationResponse())

    async def _list_to_evaluate(self, data: bytes) -> bytes:
        parse(pb.ListToEvaluateRequest(), data)
        versions = await self._ask(self._store.to_evaluate)
        return serialise(pb.ListToEvaluateResponse(versions=versions))

    async def _ask(self, ask: Callable[[], T], threads: ThreadPoolExecutor | None = None) -> T:
        """What the store says, with its refusals as statuses."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(threads or self._threads, ask)
        except VersionNotHeld as error:
            raise Refused(grpc.StatusCode.NOT_FOUND, str(error)) from error
        except WeightsUnavailable as error:
            raise Refused(grpc.StatusCode.UNAVAILABLE, str(error)) from error
        except LearnerFenced as error:
            reason = f"{FENCED}: {error}"
            raise Refused(grpc.StatusCode.FAILED_PRECONDITION, reason) from error


async def _next(requests: AsyncIterator[bytes]) -> bytes | None:
    """The next message; None at the end."""
    try:
        return await asyncio.wait_for(anext(requests), STALLED_SECONDS)
    except StopAsyncIteration:
        return None
    except TimeoutError as error:
        reason = f"the upload brought nothing for {STALLED_SECONDS:g} s"
        raise Refused(grpc.StatusCode.DEADLINE_EXCEEDED, reason) from error


def _shown(shape: tuple[int, ...] | None) -> str:
    return "not there" if shape is None else str(list(shape))
