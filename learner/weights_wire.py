"""Policies on the wire: `learner.packed_weights` to and from `protos/weights.proto`.

A version's bytes are its arrays in the order of their sorted names, as its checksum runs over them.
"""

import math
import zlib
from collections.abc import Iterator, Mapping

import numpy as np

from learner.packed_weights import WIRE_DTYPES, Manifest
from protos import weights_pb2 as pb
from protos.trajectory import WireError, uint64

SERVICE = "rewardtune.v1.WeightsService"
FENCED = "REASON_FENCED"
MAX_WAIT = 60.0
CHUNK_BYTES = 2 * 2**20
MAX_BYTES = 64 * 2**30
_BYTES = 2  # protobuf's wire type of a bytes field
MAX_PARAMETERS, MAX_AXES, MAX_NAME = 100_000, 16, 500


def manifest_message(manifest: Manifest) -> pb.Manifest:
    """A manifest."""
    return pb.Manifest(
        version=uint64("version", manifest.version),
        dtype=manifest.dtype,
        parameters=[
            pb.Manifest.Parameter(name=name, shape=manifest.shapes[name])
            for name in sorted(manifest.shapes)
        ],
        checksum=manifest.checksum,
    )


def read_manifest(message: pb.Manifest, most: int = MAX_BYTES) -> Manifest:
    """A manifest that can be kept: `WireError` for one that no parameter tree has.

    Args:
      most: bytes that the whole may take.
    """
    if message.dtype not in WIRE_DTYPES:
        raise WireError(f"dtype is {message.dtype!r}; it must be one of {', '.join(WIRE_DTYPES)}")
    if not 0 < len(message.parameters) <= MAX_PARAMETERS:
        raise WireError(f"{len(message.parameters)} parameters; 1 .. {MAX_PARAMETERS} may travel")
    shapes: dict[str, tuple[int, ...]] = {}
    parents: set[str] = set()
    last = ""
    for parameter in message.parameters:
        name, shape = parameter.name, tuple(parameter.shape)
        parts = name.split("/")
        if not all(parts) or len(name) > MAX_NAME or name <= last:
            raise WireError(
                f"parameter {name[:MAX_NAME]!r} after {last!r}: names must ascend, and have no "
                f"empty part and at most {MAX_NAME} characters"
            )
        if len(shape) > MAX_AXES:
            raise WireError(f"{name} has {len(shape)} axes; at most {MAX_AXES} are possible")
        parents.update("/".join(parts[:end]) for end in range(1, len(parts)))
        shapes[name] = shape
        last = name
    both = sorted(parents & set(shapes))
    if both:
        raise WireError(f"{both[0]!r} is a parameter, and holds others")
    manifest = Manifest(message.version, message.dtype, shapes, message.checksum)
    if total_bytes(manifest) > most:
        raise WireError(f"the parameters take {total_bytes(manifest)} bytes; at most {most} may")
    return manifest


def total_bytes(manifest: Manifest) -> int:
    """How many bytes a version has."""
    item = WIRE_DTYPES[manifest.dtype].itemsize
    return sum(math.prod(shape) * item for shape in manifest.shapes.values())


def data_message(field: int, octets: np.ndarray) -> bytes:
    """A message whose bytes field `field` holds these octets, as protobuf writes it.

    Protobuf would copy them three times.
    """
    head, left = bytearray([field << 3 | _BYTES]), octets.size
    while left > 0x7F:
        head.append(left & 0x7F | 0x80)
        left >>= 7
    head.append(left)
    return b"".join((head, octets.data))


def read_data(field: int, message: bytes) -> memoryview | None:
    """The octets of a message as `data_message` writes it, not copied; None: it is another one."""
    if not message or message[0] != field << 3 | _BYTES:
        return None
    size, shift = 0, 0
    for start in range(1, min(len(message), 6)):
        size |= (message[start] & 0x7F) << shift
        shift += 7
        if message[start] < 0x80:
            octets = memoryview(message)[start + 1 :]
            return octets if len(octets) == size else None
    return None


def chunks(arrays: Mapping[str, np.ndarray], offset: int = 0) -> Iterator[np.ndarray]:
    """A version's octets from an offset on, in messages' worth; views, not copies."""
    for name in sorted(arrays):
        octets = np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8)
        if offset >= octets.size:
            offset -= octets.size
            continue
        for start in range(offset, octets.size, CHUNK_BYTES):
            yield octets[start : start + CHUNK_BYTES]
        offset = 0


class Assembly:
    """A version that arrives in order, a chunk after the other."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.received = 0
        self.checksum = 0
        # Takes memory as it is written: a manifest alone costs nothing.
        self._octets = np.empty(total_bytes(manifest), np.uint8)

    @property
    def missing(self) -> int:
        """How many bytes are to come."""
        return self._octets.size - self.received

    def add(self, data: bytes | memoryview) -> None:
        """Takes the next bytes, and sums them up.

        Raises:
          WireError: they are more than the manifest says.
        """
        if len(data) > self.missing:
            raise WireError(
                f"weights version {self.manifest.version}: more than the {self._octets.size} bytes "
                "of its manifest"
            )
        end = self.received + len(data)
        self._octets[self.received : end] = np.frombuffer(data, np.uint8)
        self.checksum = zlib.crc32(data, self.checksum)
        self.received = end

    def arrays(self) -> dict[str, np.ndarray]:
        """The parameters, as views; `WireError` where bytes are missing."""
        if self.missing:
            raise WireError(
                f"weights version {self.manifest.version}: {self.received} bytes of "
                f"{self._octets.size}"
            )
        dtype = WIRE_DTYPES[self.manifest.dtype].newbyteorder("<")
        found, start = {}, 0
        for name in sorted(self.manifest.shapes):
            shape = self.manifest.shapes[name]
            end = start + math.prod(shape) * dtype.itemsize
            found[name] = self._octets[start:end].view(dtype).reshape(shape)
            start = end
        return found
