"""Where an operator says how many workers a run should have, and reads how many there are.

A named actor in the run's Ray namespace, so that a command on any machine of the cluster finds a
run by its name. It holds words only: the controller looks at it every second and acts.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import ray
from ray.exceptions import (
    ActorUnavailableError,
    AuthenticationError,
    GetTimeoutError,
    RayActorError,
    RayError,
)
from ray.util import list_named_actors

from deploy.config_file import ConfigError
from deploy.run_directory import RunGone, RunSilent, RunStarting

logger = logging.getLogger(__name__)

TARGETS = "targets"
ANSWER_SECONDS = 20.0

Target = int | Literal["auto"]


class TargetsBoard:
    """The actor."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._wanted: dict[str, Target] = {}
        self._revision = 0
        self._seen = 0
        self._pools: dict[str, Any] = {}
        self._status: dict[str, Any] = {}

    def want(self, changes: Mapping[str, Target]) -> int:
        """An operator's targets, by config section; returns their revision."""
        self._wanted.update(changes)
        self._revision += 1
        return self._revision

    def exchange(self, seen: int, pools: Mapping[str, Any]) -> tuple[int, dict[str, Target]]:
        """The controller tells what there is, and gets what is wanted."""
        self._seen, self._pools = seen, dict(pools)
        return self._revision, dict(self._wanted)

    def tell_status(self, status: Mapping[str, Any]) -> None:
        """The controller tells what it writes to status.json."""
        self._status = dict(status)

    def status(self) -> dict[str, Any]:
        """The last status; empty before the first."""
        return self._status

    def show(self) -> dict[str, Any]:
        """What the controller told last, and which revision of the targets it had seen then."""
        return {"run": self._run, "seen": self._seen, "pools": self._pools}


class TargetsReader:
    """The controller's side; it never waits."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self._call: Any = None
        self._status_call: Any = None
        self._revision = 0

    def look(self) -> Mapping[str, Target]:
        """What is wanted, if an answer has come; else nothing."""
        if self._call is None or not ray.wait([self._call], timeout=0)[0]:
            return {}
        call, self._call = self._call, None
        try:
            self._revision, wanted = ray.get(call, timeout=0)
        except RayError as error:
            # Its process is started again, empty; what was wanted before still holds.
            logger.info("targets are not known for now: %s", error)
            return {}
        return wanted

    def tell(self, pools: Mapping[str, Any]) -> None:
        """What there is, now that what `look` gave has been acted on."""
        if self._call is None:
            self._call = self._handle.exchange.remote(self._revision, dict(pools))

    def tell_status(self, status: Mapping[str, Any]) -> None:
        """For `rewardtune status --address`; left out while the last one is on its way."""
        if self._status_call is None or ray.wait([self._status_call], timeout=0)[0]:
            self._status_call = self._handle.tell_status.remote(dict(status))


@dataclass(frozen=True)
class RunningRun:
    """A run at work in the cluster that this process has joined.

    What asks it raises RunGone when it has ended, and RunSilent when it does not answer for now.
    """

    name: str
    handle: Any

    def show(self) -> dict[str, Any]:
        """See `TargetsBoard.show`."""
        return self._answer(self.handle.show.remote())

    def status(self) -> dict[str, Any]:
        """See `TargetsBoard.status`; raises RunStarting when it has told none yet."""
        status: dict[str, Any] = self._answer(self.handle.status.remote())
        if not status:
            raise RunStarting(f"run {self.name} is starting: it has told nothing yet")
        return status

    def want(self, changes: Mapping[str, Target]) -> int:
        """See `TargetsBoard.want`."""
        return self._answer(self.handle.want.remote(dict(changes)))

    def _answer(self, call: Any) -> Any:
        try:
            return ray.get(call, timeout=ANSWER_SECONDS)
        except (GetTimeoutError, ActorUnavailableError) as error:
            raise RunSilent(
                f"run {self.name} does not answer: its process is stopped or starts again, or its "
                f"node is lost; waited at most {ANSWER_SECONDS:g} s"
            ) from error
        except RayActorError as error:
            raise RunGone(f"run {self.name} is not at work any more") from error


def join_cluster(address: str) -> None:
    """Joins a Ray cluster to ask its runs.

    Raises:
      ConfigError: it does not answer, or does not let this machine in.
    """
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (AuthenticationError, ConnectionError, RuntimeError) as error:
        raise ConfigError(f"no Ray cluster at {address!r}: {error}") from error


def running_runs() -> list[RunningRun]:
    """The runs at work in this cluster, by name."""
    runs = []
    for actor in list_named_actors(all_namespaces=True):
        name, _, role = actor["name"].rpartition("/")
        if role != TARGETS or not name:
            continue
        try:
            handle = ray.get_actor(actor["name"], namespace=actor["namespace"])
        except ValueError:  # it has ended since it was listed
            continue
        runs.append(RunningRun(name, handle))
    return sorted(runs, key=lambda run: run.name)
