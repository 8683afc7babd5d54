"""The weight store: owns the last published versions of the policy.

Invariant: a version is published once, whole, with its manifest; a reader gets exactly that version
or an error that says which versions there are. The store owns the arrays, so the death of the
learner loses nothing; on one node every reader maps the same memory.
"""

import asyncio
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import ray
from ray.exceptions import GetTimeoutError, RayActorError

WIRE_DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


class WeightsError(RuntimeError):
    """Weights that are not there, or do not match their manifest."""


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


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested parameter tree as {'a/b/c': array}."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{path}/"))
        else:
            flat[path] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return tree


def _checksum(arrays: Mapping[str, np.ndarray]) -> int:
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
    return Manifest(version, dtype, shapes, _checksum(arrays)), arrays


def unpack_weights(manifest: Manifest, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The parameter tree in float32, checked against its manifest.

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
    if _checksum(arrays) != manifest.checksum:
        raise WeightsError(f"{where}: checksum differs from the manifest; load it again")
    return unflatten({n: a.astype(np.float32, copy=False) for n, a in arrays.items()})


class WeightStore:
    """Holds the newest `keep` versions, and those an evaluator still has to see.

    Runs inside a Ray actor; asyncio makes it the single writer of its state.
    """

    def __init__(self, keep: int, evaluate_every: int = 0):
        self._keep = keep
        self._evaluate_every = evaluate_every
        self._versions: dict[int, tuple[Manifest, list[ray.ObjectRef]]] = {}
        self._to_evaluate: list[int] = []
        self._changed = asyncio.Condition()

    async def publish(
        self, manifest: Manifest, arrays: Mapping[str, np.ndarray], last: bool = False
    ) -> None:
        """Takes over a version; `last` marks the run's final one, which is always evaluated."""
        reference = await asyncio.to_thread(ray.put, dict(arrays))
        async with self._changed:
            self._forget_after(manifest.version)
            self._versions[manifest.version] = (manifest, [reference])
            due = self._evaluate_every and (manifest.version % self._evaluate_every == 0 or last)
            if due and manifest.version not in self._to_evaluate:
                self._to_evaluate.append(manifest.version)
            self._forget_old()
            self._changed.notify_all()

    def _forget_after(self, version: int) -> None:
        """A learner that went back to a checkpoint makes what it had published after it anew."""
        for later in [held for held in self._versions if held > version]:
            del self._versions[later]
        self._to_evaluate = [waiting for waiting in self._to_evaluate if waiting <= version]

    def _forget_old(self) -> None:
        newest = sorted(self._versions)[-self._keep :]
        for version in set(self._versions) - set(newest) - set(self._to_evaluate):
            del self._versions[version]

    async def newest_version(self) -> int | None:
        """The highest version published so far."""
        return max(self._versions, default=None)

    async def get(self, version: int | None) -> tuple[Manifest, list[ray.ObjectRef]]:
        """A version (None: the newest): its manifest, and in a list the reference to its arrays.

        Raises:
          WeightsError: it is not held.
        """
        chosen = max(self._versions, default=None) if version is None else version
        if chosen is None or chosen not in self._versions:
            raise WeightsError(
                f"weights version {version} is not held; there are {sorted(self._versions)}"
            )
        return self._versions[chosen]

    async def next_to_evaluate(self, wait: float) -> int | None:
        """The oldest version that waits for an evaluation; None when none came in `wait` s."""
        async with self._changed:
            if not self._to_evaluate:
                try:
                    await asyncio.wait_for(self._changed.wait(), wait)
                except TimeoutError:
                    return None
            return min(self._to_evaluate, default=None)

    async def evaluated(self, version: int) -> None:
        """The evaluator is done with a version."""
        async with self._changed:
            if version in self._to_evaluate:
                self._to_evaluate.remove(version)
            self._forget_old()

    async def to_evaluate(self) -> Sequence[int]:
        """Versions that still wait for an evaluation."""
        return list(self._to_evaluate)


class RayWeights:
    """The store as its clients see it, over a Ray actor handle.

    Every wait has a timeout, after which the error says what was asked for.
    """

    def __init__(self, handle: Any, timeout: float = 60.0):
        self._handle = handle
        self._timeout = timeout
        self._loaded: tuple[Manifest, dict[str, Any]] | None = None

    def _get(self, reference: Any, what: str) -> Any:
        try:
            return ray.get(reference, timeout=self._timeout)
        except GetTimeoutError as error:
            raise WeightsError(
                f"the weight store did not answer '{what}' within {self._timeout:g} s; is its "
                f"node overloaded or lost? The cluster has {ray.available_resources()} free"
            ) from error
        except RayActorError as error:
            raise WeightsError(
                f"the weight store could not answer '{what}': its actor died or is out of reach. "
                f"The run resumes from its last checkpoint. Ray says: {error}"
            ) from error

    def publish(self, version: int, params: Mapping[str, Any], dtype: str, last: bool) -> None:
        """Publishes a version; returns when the store owns it."""
        manifest, arrays = pack_weights(version, params, dtype)
        self._get(self._handle.publish.remote(manifest, arrays, last), f"publish {version}")

    def newest_version(self) -> int | None:
        """The highest published version."""
        version: int | None = self._get(self._handle.newest_version.remote(), "newest version")
        return version

    def load(self, version: int | None) -> tuple[int, dict[str, Any]]:
        """A version (None: the newest) and its parameters; the last one loaded is kept."""
        manifest, references = self._get(self._handle.get.remote(version), f"get {version}")
        if self._loaded is None or self._loaded[0] != manifest:
            arrays = self._get(references[0], f"arrays of version {manifest.version}")
            self._loaded = (manifest, unpack_weights(manifest, arrays))
        return manifest.version, self._loaded[1]

    def next_to_evaluate(self, wait: float) -> int | None:
        """See `WeightStore.next_to_evaluate`."""
        version: int | None = self._get(self._handle.next_to_evaluate.remote(wait), "evaluation")
        return version

    def evaluated(self, version: int) -> None:
        """See `WeightStore.evaluated`."""
        self._get(self._handle.evaluated.remote(version), f"evaluated {version}")

    def to_evaluate(self) -> Sequence[int]:
        """See `WeightStore.to_evaluate`."""
        versions: Sequence[int] = self._get(self._handle.to_evaluate.remote(), "to evaluate")
        return versions
