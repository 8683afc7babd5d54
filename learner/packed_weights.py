"""A policy as it is published: flat arrays of the wire's dtype, and a manifest to check them by.

It knows nothing of Ray: learners and samplers outside of it use the same.
"""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import ml_dtypes
import numpy as np

from protos.trajectory import PolicyNotHeld
from vision.models.arrays import flatten, unflatten

WIRE_DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


class WeightsError(RuntimeError):
    """Weights that are not there, or do not match their manifest."""


class VersionNotHeld(WeightsError, PolicyNotHeld):
    """The store has other versions."""


class WeightsUnavailable(WeightsError):
    """The store did not answer; the message says what was asked and what is known."""


class WeightPublisher(Protocol):
    """Where policies go."""

    def fence(self, epoch: str) -> None:
        """A learner takes over, with the queue's epoch: what others publish is refused."""
        ...

    def publish(self, version: int, params: Mapping[str, Any], dtype: str, last: bool) -> None:
        """Takes a policy over; returns when it can be read."""
        ...


@dataclass(frozen=True)
class Manifest:
    """What a published version must be.

    Attributes:
      version: the learner's step after which it was published; 0 is the initial policy.
      dtype: 'float32' or 'bfloat16', on the wire.
      shapes: parameter path -> shape.
      checksum: CRC-32 over the arrays' bytes in the order of their sorted names.
    """

    version: int
    dtype: str
    shapes: Mapping[str, tuple[int, ...]]
    checksum: int


def checksum_of(arrays: Mapping[str, np.ndarray]) -> int:
    """CRC-32 over the arrays' bytes in the order of their sorted names."""
    value = 0
    for name in sorted(arrays):
        octets = np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8)
        value = zlib.crc32(octets.data, value)
    return value


def pack_weights(
    version: int, params: Mapping[str, Any], dtype: str
) -> tuple[Manifest, dict[str, np.ndarray]]:
    """Parameters (nested, float32) as arrays of the wire dtype, with their manifest."""
    arrays = {
        name: np.asarray(array).astype(WIRE_DTYPES[dtype], copy=False)
        for name, array in flatten(params).items()
    }
    shapes = {name: array.shape for name, array in arrays.items()}
    return Manifest(version, dtype, shapes, checksum_of(arrays)), arrays


def check_sum(manifest: Manifest, checksum: int) -> None:
    """Raises `WeightsError` where the bytes that came are not those of the manifest."""
    if checksum != manifest.checksum:
        raise WeightsError(
            f"weights version {manifest.version}: checksum differs from the manifest; load it again"
        )


def unpack_weights(
    manifest: Manifest, arrays: Mapping[str, np.ndarray], summed: bool = False
) -> dict[str, Any]:
    """The parameter tree in float32, checked against its manifest.

    Args:
      manifest: of the version.
      arrays: its parameters.
      summed: the checksum has been compared already, while they arrived.

    Raises:
      WeightsError: a parameter is missing, has another shape or dtype, or the checksum differs.
    """
    where = f"weights version {manifest.version}"
    if set(arrays) != set(manifest.shapes):
        odd = sorted(set(arrays) ^ set(manifest.shapes))
        raise WeightsError(f"{where}: parameters do not match the manifest: {odd[:3]}")
    for name, array in arrays.items():
        if array.shape != manifest.shapes[name] or array.dtype != WIRE_DTYPES[manifest.dtype]:
            raise WeightsError(
                f"{where}: {name} is {array.dtype}{list(array.shape)}, the manifest says "
                f"{manifest.dtype}{list(manifest.shapes[name])}"
            )
    if not summed:
        check_sum(manifest, checksum_of(arrays))
    return unflatten({n: a.astype(np.float32, copy=False) for n, a in arrays.items()})
