"""The policies of a sampler: loaded while it still samples with the one before."""

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from deploy.looking import look_again_and_again
from learner.packed_weights import Manifest, WeightsError

logger = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
KEPT = 2
"""In ordered mode the next policy is published before the last block of the one before is begun."""


class Weights(Protocol):
    """`learner.weight_store.RayWeights`, or `learner.remote_weights.RemoteWeights`."""

    def manifest(self, version: int | None) -> Manifest:
        """What a version is (None: the newest)."""
        ...

    def load(self, version: int | None) -> tuple[int, dict[str, Any]]:
        """A version and its parameters, checked."""
        ...


class Policies:
    """Loads a version when it is published, in a thread, and puts it where it is used.

    A sampler pauses for a new version no longer than that is still to take when its block is done.
    """

    def __init__(self, weights: Weights, put: Callable[[Any], Any] = lambda params: params) -> None:
        """Begins to look.

        Args:
          weights: the run's.
          put: a version's parameters to the device.
        """
        self._weights, self._put = weights, put
        self._held: deque[tuple[Manifest, Any]] = deque(maxlen=KEPT)
        self._lock = threading.Lock()
        # As long as the process, which has one sampler.
        look_again_and_again(self._look, LOOK_SECONDS, "policies", threading.Event())

    def load(self, version: int | None) -> tuple[int, Any]:
        """A version (None: the newest) and its parameters on the device.

        Raises:
          WeightsError: as `Weights.load`.
        """
        # A version may be published anew, by a learner that went back: its number is not enough.
        manifest = self._weights.manifest(version)
        return manifest.version, self._get(manifest)

    def _get(self, manifest: Manifest) -> Any:
        with self._lock:
            for held, params in self._held:
                if held == manifest:
                    return params
            _, loaded = self._weights.load(manifest.version)
            params = self._put(loaded)
            self._held.append((manifest, params))
            return params

    def _look(self) -> None:
        try:
            self._get(self._weights.manifest(None))
        except WeightsError as error:  # who asks for a version is told so
            logger.debug("no policy is loaded ahead: %s", error)


def to_device(params: Any) -> Any:
    """Parameters as JAX's arrays; on a CPU they may be the store's own memory, without a copy."""
    import jax

    return jax.device_put(params, may_alias=True)
