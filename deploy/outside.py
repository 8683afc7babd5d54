"""A learner outside of Ray (`learner.outside`), as the controller sees it: by what it publishes.

The controller can neither start nor end it. It is done when it has closed the queue.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

from deploy.workers import Worker
from learner.weight_store import RayWeights

LOOK_SECONDS = 1.0


class OutsideLearner(Worker):
    """Takes the place of the learner's `Worker`."""

    def __init__(self, weights: RayWeights, steps: int, closed: Callable[[], bool]) -> None:
        """Watches.

        Args:
          weights: where it publishes.
          steps: how many it trains.
          closed: whether the queue is.
        """
        super().__init__("learner", "learner", lambda name: None)
        self._weights, self._steps, self._closed = weights, steps, closed
        self._looked = 0.0

    @property
    def state(self) -> str:
        """outside or ended."""
        return "outside" if self.finished is None else "ended"

    def begin(self) -> None:
        """It begins by itself."""

    def check(self, on_death: Callable[[Worker, str], None]) -> None:
        """Looks at how far it has come."""
        now = time.monotonic()
        if self.finished is not None or now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        closed = self._closed()  # before the version is asked for: it publishes, then closes
        self.status = self._progress("training")
        if closed:
            done = self.status["step"] == self._steps
            self.finished = {**self.status, "state": "finished" if done else "stopped"}

    def ask_to_stop(self) -> None:
        """It is told by the queue, which is closed when the run ends."""
        self.finished = self._progress("stopped")

    def _progress(self, state: str) -> dict[str, Any]:
        step = self._weights.newest_version() or 0
        return {"state": state if step else "waiting for a learner", "step": step}

    def remove(self) -> Mapping[str, Any]:
        """There is nothing to end."""
        self.removed = True
        return {}


def publish_initial(weights: RayWeights, params: Mapping[str, Any]) -> None:
    """Lets a learner that has nothing but addresses begin from the run's initial policy."""
    if weights.newest_version() is None:
        weights.publish(0, params, "float32", last=False)
