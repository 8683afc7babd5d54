"""The weight store: owns the last published versions of the policy.

Invariant: a version is published once, whole, with its manifest; a reader gets exactly that version
or an error that says which versions there are. The store owns the arrays, so the death of the
learner loses nothing; on one node every reader maps the same memory.
"""

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import ray
from ray.exceptions import (
    ActorUnavailableError,
    GetTimeoutError,
    ObjectLostError,
    RayActorError,
)

from learner.packed_weights import (
    Manifest,
    VersionNotHeld,
    WeightsUnavailable,
    pack_weights,
    unpack_weights,
)
from replay.fence import fenced, is_earlier

logger = logging.getLogger(__name__)

RETRY_SECONDS = 0.1
MOST_TO_EVALUATE = 8
"""Each is a whole policy in memory."""


class WeightStore:
    """Holds the newest `keep` versions, and those an evaluator still has to see.

    An evaluator that is slower than the learner sees the oldest, which it may be at work on, and
    the newest: of more than `MOST_TO_EVALUATE` those between are skipped, the older first.

    Runs inside a Ray actor; asyncio makes it the single writer of its state.
    """

    def __init__(self, keep: int, evaluate_every: int = 0, run_config: str = ""):
        """Begins with no version.

        Args:
          keep: how many of the newest to hold.
          evaluate_every: versions between evaluations; 0: none.
          run_config: the run's config as JSON, for those who join it.
        """
        self._run_config = run_config
        self._keep = keep
        self._evaluate_every = evaluate_every
        self._versions: dict[int, tuple[Manifest, list[ray.ObjectRef]]] = {}
        self._to_evaluate: list[int] = []
        self._changed = asyncio.Condition()
        self._epoch: str | None = None
        # Of this epoch: the newest version. A learner's versions ascend, so another that is not
        # above is an upload that was begun before, and comes late.
        self._published: int | None = None

    async def run_config(self) -> str:
        """The run's config as JSON."""
        return self._run_config

    async def fence(self, epoch: str) -> None:
        """A learner takes over, with the epoch that the queue gave it: see `ReplayQueue.fence`.

        Raises:
          LearnerFenced: a later learner of the same queue has taken over already.
        """
        if self._epoch is not None and is_earlier(epoch, self._epoch):
            raise fenced(epoch)
        if epoch != self._epoch:
            self._epoch, self._published = epoch, None

    async def publish(
        self,
        manifest: Manifest,
        arrays: Mapping[str, np.ndarray],
        last: bool = False,
        epoch: str | None = None,
    ) -> None:
        """Takes over a version; `last` marks the run's final one, which is always evaluated.

        A learner's repetition of a version that it has published changes nothing, however late it
        comes.

        Raises:
          LearnerFenced: a learner has taken over, and the epoch is not its own.
        """
        if self._is_repeated(manifest.version, epoch):
            return
        reference = await asyncio.to_thread(ray.put, dict(arrays))
        async with self._changed:
            if self._is_repeated(manifest.version, epoch):  # meanwhile
                return
            self._published = manifest.version
            self._forget_after(manifest.version)
            self._versions[manifest.version] = (manifest, [reference])
            due = self._evaluate_every and (manifest.version % self._evaluate_every == 0 or last)
            if due and manifest.version not in self._to_evaluate:
                self._to_evaluate.append(manifest.version)
                self._skip_evaluations()
            self._forget_old()
            self._changed.notify_all()

    def _is_repeated(self, version: int, epoch: str | None) -> bool:
        """Whether this learner has published it already."""
        if epoch != self._epoch:
            raise fenced(epoch or "that is not told")
        return epoch is not None and self._published is not None and version <= self._published

    def _forget_after(self, version: int) -> None:
        """A learner that went back to a checkpoint makes what it had published after it anew."""
        for later in [held for held in self._versions if held > version]:
            del self._versions[later]
        self._to_evaluate = [waiting for waiting in self._to_evaluate if waiting <= version]

    def _skip_evaluations(self) -> None:
        while len(self._to_evaluate) > MOST_TO_EVALUATE:
            oldest, skipped, *_ = sorted(self._to_evaluate)
            self._to_evaluate.remove(skipped)
            logger.warning(
                "version %d is skipped by the evaluator: %d wait already, from version %d on; "
                "raise evaluation.every, or give the evaluator more to compute with",
                skipped,
                MOST_TO_EVALUATE,
                oldest,
                extra={"step": skipped},
            )

    def _forget_old(self) -> None:
        newest = sorted(self._versions)[-self._keep :]
        for version in set(self._versions) - set(newest) - set(self._to_evaluate):
            del self._versions[version]

    async def newest_version(self) -> int | None:
        """The highest version published so far."""
        return max(self._versions, default=None)

    async def get(
        self, version: int | None, wait: float = 0.0
    ) -> tuple[Manifest, list[ray.ObjectRef]]:
        """A version (None: the newest): its manifest, and in a list the reference to its arrays.

        Args:
          version: as it says.
          wait: seconds to wait for a first version, in a store that was started anew.

        Raises:
          VersionNotHeld: as it says.
        """
        async with self._changed:
            if not self._versions and wait > 0:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait_for(lambda: self._versions), wait)
        chosen = max(self._versions, default=None) if version is None else version
        if chosen is None or chosen not in self._versions:
            raise VersionNotHeld(
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

    Every wait has a timeout, after which the error says what was asked for. A store whose process
    died, and is started anew, is waited for; it is empty until the learner publishes again.
    """

    def __init__(self, handle: Any, timeout: float = 60.0):
        self._handle = handle
        self._timeout = timeout
        self._loaded: tuple[Manifest, dict[str, Any]] | None = None
        self._epoch: str | None = None

    def _ask(self, what: str, method: str, *arguments: Any, wait: float = 0.0) -> Any:
        """The store's answer; `wait` are seconds that it was asked to wait."""
        give_up = time.monotonic() + self._timeout
        while True:
            try:
                return self._get(getattr(self._handle, method).remote(*arguments), what, wait)
            except ActorUnavailableError as error:
                if time.monotonic() > give_up:
                    raise WeightsUnavailable(
                        f"the weight store could not answer '{what}': its process died and was "
                        f"not started anew within {self._timeout:g} s. Ray says: {error}"
                    ) from error
                time.sleep(RETRY_SECONDS)

    def _get(self, reference: Any, what: str, wait: float = 0.0) -> Any:
        timeout = self._timeout + wait
        try:
            return ray.get(reference, timeout=timeout)
        except ActorUnavailableError:
            raise
        except GetTimeoutError as error:
            raise WeightsUnavailable(
                f"the weight store did not answer '{what}' within {timeout:g} s; is its "
                f"node overloaded or lost? The cluster has {ray.available_resources()} free"
            ) from error
        except RayActorError as error:
            raise WeightsUnavailable(
                f"the weight store could not answer '{what}': its actor died or is out of reach. "
                f"The run resumes from its last checkpoint. Ray says: {error}"
            ) from error

    def fence(self, epoch: str) -> None:
        """A learner takes over: what it publishes from now on carries its epoch."""
        self._epoch = epoch
        self._ask("fence", "fence", epoch)

    def publish(self, version: int, params: Mapping[str, Any], dtype: str, last: bool) -> None:
        """Publishes a version; returns when the store owns it.

        Raises:
          LearnerFenced: another learner has taken over.
        """
        self.publish_packed(*pack_weights(version, params, dtype), last, self._epoch)

    def publish_packed(
        self,
        manifest: Manifest,
        arrays: Mapping[str, np.ndarray],
        last: bool,
        epoch: str | None,
    ) -> None:
        """Publishes what someone else packed."""
        self._ask(f"publish {manifest.version}", "publish", manifest, arrays, last, epoch)

    def run_config(self) -> str:
        """The run's config as JSON."""
        told: str = self._get(self._handle.run_config.remote(), "run config")
        return told

    def manifest(self, version: int | None) -> Manifest:
        """What a version is (None: the newest)."""
        return self._ask(f"get {version}", "get", version)[0]

    def packed(self, version: int | None) -> tuple[Manifest, Mapping[str, np.ndarray]]:
        """A version (None: the newest) as it was published."""
        manifest, references = self._ask(f"get {version}", "get", version)
        return manifest, self._get(references[0], f"arrays of version {manifest.version}")

    def newest_version(self) -> int | None:
        """The highest published version."""
        version: int | None = self._ask("newest version", "newest_version")
        return version

    def load(self, version: int | None) -> tuple[int, dict[str, Any]]:
        """A version (None: the newest) and its parameters; the last one loaded is kept."""
        give_up = time.monotonic() + self._timeout
        while True:
            manifest, references = self._ask(
                f"get {version}", "get", version, self._timeout, wait=self._timeout
            )
            if self._loaded is not None and self._loaded[0] == manifest:
                return manifest.version, self._loaded[1]
            try:
                arrays = self._get(references[0], f"arrays of version {manifest.version}")
            except ObjectLostError as error:  # they died with the store, which is started anew
                if time.monotonic() > give_up:
                    raise WeightsUnavailable(
                        f"the arrays of version {manifest.version} are lost: {error}"
                    ) from error
                time.sleep(RETRY_SECONDS)
                continue
            self._loaded = (manifest, unpack_weights(manifest, arrays))

    def next_to_evaluate(self, wait: float) -> int | None:
        """See `WeightStore.next_to_evaluate`."""
        version: int | None = self._ask("evaluation", "next_to_evaluate", wait, wait=wait)
        return version

    def evaluated(self, version: int) -> None:
        """See `WeightStore.evaluated`."""
        self._ask(f"evaluated {version}", "evaluated", version)

    def to_evaluate(self) -> Sequence[int]:
        """See `WeightStore.to_evaluate`."""
        versions: Sequence[int] = self._ask("to evaluate", "to_evaluate")
        return versions
