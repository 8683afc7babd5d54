"""The weight store over gRPC, for samplers, evaluators and learners outside of Ray.

A download that breaks goes on from where it broke; an upload is begun again. What has arrived is
checked against its manifest before anything uses it.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grpc
import numpy as np
from google.protobuf.message import Message

from learner.packed_weights import (
    Manifest,
    VersionNotHeld,
    WeightsError,
    WeightsUnavailable,
    check_sum,
    pack_weights,
    unpack_weights,
)
from learner.weights_wire import (
    FENCED,
    MAX_WAIT,
    SERVICE,
    Assembly,
    chunks,
    data_message,
    manifest_message,
    read_data,
    read_manifest,
    total_bytes,
)
from protos import weights_pb2 as pb
from protos.edge_client import CallFailed, EdgeClient, Peer
from protos.trajectory import WireError, parse, serialise
from replay.queue import LearnerFenced

logger = logging.getLogger(__name__)

# A version may be published anew while it is being downloaded, by a learner that went back.
ANEW_ALLOWED = 5
SLOWEST_BYTES_A_SECOND = 2**20
_DOWNLOAD, _PUBLISH = f"/{SERVICE}/Download", f"/{SERVICE}/Publish"


class RemoteWeights:
    """`learner.weight_store.RayWeights` of `rewardtune serve weights`."""

    def __init__(self, peer: Peer) -> None:
        """Prepares to connect; the first call does.

        Raises:
          EdgeError, TokenError: a setting of the peer that cannot work.
        """
        self._client = EdgeClient(peer, "weight store")
        self._timeout = peer.timeout
        self._loaded: tuple[Manifest, dict[str, Any]] | None = None
        self._epoch: str | None = None

    def fence(self, epoch: str) -> None:
        """A learner takes over: what it publishes from now on carries its epoch."""
        self._epoch = epoch
        self._ask("FencePublishers", pb.FencePublishersRequest(epoch=epoch))

    def publish(self, version: int, params: Mapping[str, Any], dtype: str, last: bool) -> None:
        """Publishes a version; returns when the store owns it.

        Raises:
          LearnerFenced: another learner has taken over.
          WeightsUnavailable: the server did not answer.
          WeightsError: it refuses the version.
        """
        self.publish_packed(*pack_weights(version, params, dtype), last, self._epoch)

    def publish_packed(
        self,
        manifest: Manifest,
        arrays: Mapping[str, np.ndarray],
        last: bool,
        epoch: str | None,
    ) -> None:
        """Publishes what is packed."""
        begin = pb.PublishRequest.Begin(manifest=manifest_message(manifest), last=last, epoch=epoch)

        def parts() -> Iterator[bytes]:
            yield serialise(pb.PublishRequest(begin=begin))
            for chunk in chunks(arrays):
                yield data_message(pb.PublishRequest.DATA_FIELD_NUMBER, chunk)

        timeout = self._timeout + total_bytes(manifest) / SLOWEST_BYTES_A_SECOND
        try:
            self._client.repeat(_PUBLISH, lambda: self._client.upload(_PUBLISH, parts(), timeout))
        except CallFailed as error:
            raise _as_the_store_says(error) from error

    def newest_version(self) -> int | None:
        """The highest published version."""
        answer = self._ask("GetNewestVersion", pb.GetNewestVersionRequest())
        message = parse(pb.GetNewestVersionResponse(), answer)
        return message.version if message.HasField("version") else None

    def manifest(self, version: int | None) -> Manifest:
        """What a version is (None: the newest)."""
        answer = self._ask("GetManifest", pb.GetManifestRequest(version=version))
        return read_manifest(parse(pb.GetManifestResponse(), answer).manifest)

    def packed(self, version: int | None) -> tuple[Manifest, Mapping[str, np.ndarray]]:
        """A version (None: the newest) as it was published."""
        for _ in range(ANEW_ALLOWED):
            manifest = self.manifest(version)
            arrays = self._download(manifest)
            if arrays is not None:
                return manifest, arrays
            logger.warning("weights version %d was published anew meanwhile", manifest.version)
        raise WeightsUnavailable(
            f"{self._client.name}: version {version} was published anew {ANEW_ALLOWED} times "
            "while it was downloaded"
        )

    def load(self, version: int | None) -> tuple[int, dict[str, Any]]:
        """A version (None: the newest) and its parameters; the last one loaded is kept.

        Raises:
          VersionNotHeld: the store has others.
          WeightsUnavailable: the server did not answer.
          WeightsError: what came is not what its manifest says.
        """
        manifest = self.manifest(version)
        if self._loaded is None or self._loaded[0] != manifest:
            manifest, arrays = self.packed(version)
            self._loaded = (manifest, unpack_weights(manifest, arrays, summed=True))
        return manifest.version, self._loaded[1]

    def next_to_evaluate(self, wait: float) -> int | None:
        """See `WeightStore.next_to_evaluate`."""
        wait = min(wait, MAX_WAIT)
        answer = self._ask("GetNextToEvaluate", pb.GetNextToEvaluateRequest(wait=wait), wait)
        message = parse(pb.GetNextToEvaluateResponse(), answer)
        return message.version if message.HasField("version") else None

    def evaluated(self, version: int) -> None:
        """See `WeightStore.evaluated`."""
        self._ask("FinishEvaluation", pb.FinishEvaluationRequest(version=version))

    def to_evaluate(self) -> Sequence[int]:
        """See `WeightStore.to_evaluate`."""
        answer = self._ask("ListToEvaluate", pb.ListToEvaluateRequest())
        return list(parse(pb.ListToEvaluateResponse(), answer).versions)

    def disconnect(self) -> None:
        """Ends this connection."""
        self._client.close()

    def _download(self, manifest: Manifest) -> dict[str, np.ndarray] | None:
        """The arrays, each byte once however often it breaks; None: published anew meanwhile."""
        assembly = Assembly(manifest)

        def attempt() -> None:
            request = pb.DownloadRequest(
                version=manifest.version, checksum=manifest.checksum, offset=assembly.received
            )
            for part in self._client.download(_DOWNLOAD, serialise(request)):
                octets = read_data(pb.DownloadResponse.DATA_FIELD_NUMBER, part)
                if octets is None:
                    raise WireError("a part of the download is not one of data")
                assembly.add(octets)

        try:
            self._client.repeat(_DOWNLOAD, attempt, lambda: assembly.received)
            arrays = assembly.arrays()
        except CallFailed as error:
            if error.code is grpc.StatusCode.ABORTED:
                return None
            raise _as_the_store_says(error) from error
        except WireError as error:
            raise WeightsError(f"{self._client.name}: {error}") from error
        check_sum(manifest, assembly.checksum)
        return arrays

    def _ask(self, method: str, request: Message, wait: float = 0.0) -> bytes:
        try:
            return self._client.call(f"/{SERVICE}/{method}", serialise(request), wait)
        except CallFailed as error:
            raise _as_the_store_says(error) from error


def _as_the_store_says(error: CallFailed) -> Exception:
    kind, _, reason = error.reason.partition(": ")
    if error.code is grpc.StatusCode.FAILED_PRECONDITION and kind == FENCED:
        return LearnerFenced(reason)
    if error.code is grpc.StatusCode.NOT_FOUND:
        return VersionNotHeld(error.reason)
    if error.code is grpc.StatusCode.INVALID_ARGUMENT:
        return WeightsError(error.reason)
    return WeightsUnavailable(str(error))
