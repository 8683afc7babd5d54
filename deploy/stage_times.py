"""What a group costs each stage: from a run's status, or measured here, stage after stage.

Measuring runs the real roles on a real queue, in this process and one at a time: the learner asks
for groups, and where none are ready the samplers' work is done first, then the reward workers'. So
no stage slows another down, as they would side by side on a small machine.
"""

import asyncio
import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.sizing import StageTimes

if TYPE_CHECKING:
    from deploy.config import RunConfig
    from replay.memory import MemoryReplayQueue
    from replay.queue import Lease

WARM_UP = 1  # rounds that compile, and load what is loaded once
ROLES = {"sampler": "samplers", "reward": "reward workers", "learner": "the learner"}


class NoStageTimes(ValueError):
    """A group's costs cannot be told, and what would help."""


def times_of_status(status: Mapping[str, Any]) -> StageTimes:
    """What a group cost in the last half minute of a run.

    Raises:
      NoStageTimes: a role has not finished a group in it.
    """
    costs = {role: status.get("roles", {}).get(role, {}).get("seconds_per_group") for role in ROLES}
    missing = [ROLES[role] for role, cost in costs.items() if not cost]
    if missing:
        raise NoStageTimes(
            f"run {status['run']} does not tell what a group costs {' and '.join(missing)}: it is "
            "too young, or of an older version; give a config instead, to measure here"
        )
    return StageTimes(costs["sampler"], costs["reward"], costs["learner"])


def measure_stage_times(
    config: "RunConfig", steps: int, progress: Callable[[str], None]
) -> StageTimes:
    """Samples, scores and trains a few steps in this process.

    Args:
      config: of a run that could be tuned.
      steps: to train after the first, which compiles.
      progress: told what is going on.

    Raises:
      NoStageTimes: the reward is computed elsewhere; no group could be scored.
      ConfigError, ...: see `deploy.checks.check_tune`.
    """
    from deploy.config import thread_environment

    # Before JAX is loaded. Roles of different `threads` are measured with the learner's.
    os.environ.update(thread_environment(config.learner.resources.threads))
    from deploy.checks import check_tune
    from deploy.runs import prepare_data
    from rewards.combine import build_reward
    from rewards.reward import is_submitted

    values = config.model_dump(mode="json")
    values["replay"] |= {"url": None, "password_env": None, "password_file": None}
    values["learner"] |= {"steps": WARM_UP + steps, "checkpoint_every": 10**6, "outside": False}
    values["learner"] |= {"mismatch_every": 0}
    values["evaluation"] |= {"every": 0}
    config = type(config).model_validate(values)
    prepare_data(config)
    task = check_tune(config)
    assert config.rewards is not None
    if is_submitted(build_reward(config.rewards, task)):
        raise NoStageTimes(
            "the reward is computed elsewhere: what it costs there cannot be measured here; give "
            "a run, runs/NAME"
        )
    with tempfile.TemporaryDirectory() as directory:
        return _measure(config, task, Path(directory), progress)


def _measure(
    config: "RunConfig", task: Any, directory: Path, progress: Callable[[str], None]
) -> StageTimes:
    from actors.sampler import Sampler
    from deploy.policies import to_device
    from deploy.processes import (
        build_engine,
        build_learner,
        load_initial,
        ticket_source,
    )
    from learner.metrics import METRICS_FILE
    from learner.stop import StopRequest
    from replay.lease_keeper import LeaseKeeper
    from replay.memory import MemoryReplayQueue
    from rewards.combine import build_reward
    from rewards.worker import RewardWorker

    assert config.rewards is not None
    tickets = ticket_source(config, task)
    queue: Any = QueueInTurn(MemoryReplayQueue(config.queue_config(), tickets))
    torch = config.actors.chosen_engine == "torch"
    weights = _Policies(lambda params: params if torch else to_device(params))
    keeper = LeaseKeeper(queue, 3600.0, float("inf"), lambda reason: None)
    sampler = Sampler(
        task=task,
        engine=build_engine(config, task),
        engine_name=config.actors.chosen_engine,
        queue=queue,
        keeper=keeper,
        load_weights=weights.load,
        ticket=tickets.ticket,
        worker="sampler",
        block=config.actors.groups_per_block,
        samples_per_group=config.learner.samples_per_group,
    )
    reward = RewardWorker(
        task=task,
        reward=build_reward(config.rewards, task),
        queue=queue,
        keeper=keeper,
        worker="reward",
        groups_per_lease=config.rewards.groups_per_lease,
    )
    rounds: list[tuple[int, float, float]] = []

    def fill() -> None:
        """Samples as much as the window has room for, and scores it."""
        progress(f"sampling and scoring, round {len(rounds) + 1}")
        before = sampler.status.groups
        sampling = _seconds(sampler.run)
        scoring = _seconds(reward.run)
        rounds.append((sampler.status.groups - before, sampling, scoring))

    queue.fill = fill
    initial = load_initial(config, config.model.build(task), task)
    learner = build_learner(config, task, queue, weights, directory, initial)
    try:
        learner.run(StopRequest())
    finally:
        keeper.close()
        queue.end()
    measured = [of_round for of_round in rounds[WARM_UP:] if of_round[0]]
    trained = _training_seconds(directory / METRICS_FILE)[WARM_UP:]
    if not measured or not trained:
        raise NoStageTimes(f"no group was sampled after the first round; {queue.stats()}")
    return StageTimes(
        sampling=statistics.median(seconds / groups for groups, seconds, _ in measured),
        scoring=statistics.median(seconds / groups for groups, _, seconds in measured),
        training=statistics.median(trained) / config.learner.groups_per_step,
    )


def _seconds(work: Callable[[], Any]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def _training_seconds(metrics: Path) -> list[float]:
    """The learner's work of each step: all but waiting."""
    return [
        sum(
            value
            for name, value in json.loads(line).items()
            if name.startswith("seconds/") and name != "seconds/waiting"
        )
        for line in metrics.read_text().splitlines()
    ]


class QueueInTurn:
    """A queue in memory for roles that take turns in one process.

    A sampler or reward worker that finds nothing is told that the run is over, and its `run` ends;
    a learner that finds nothing has the others work first.
    """

    def __init__(self, queue: "MemoryReplayQueue") -> None:
        self.fill: Callable[[], None] = lambda: None
        self._queue = queue
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def lease(
        self,
        stage: str,
        n: int,
        ttl: float | None,
        worker: str,
        wait: float = 0.0,
        epoch: str | None = None,
        first: int | None = None,
    ) -> "list[Lease]":
        """See `ReplayQueue.lease`; never waits."""
        from replay.queue import QueueClosed, Stage

        leases: list[Lease] = self._ask("lease", stage, n, ttl, worker, 0.0, epoch, first)
        if not leases and stage != Stage.TO_TRAIN:
            raise QueueClosed("nothing is ready")
        if not leases:
            self.fill()
            leases = self._ask("lease", stage, n, ttl, worker, 0.0, epoch, first)
            if not leases:
                reasons = self._ask("stats").last_reasons[-3:]
                raise NoStageTimes(f"no group could be trained; the last reasons: {list(reasons)}")
        return leases

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return partial(self._ask, name)

    def _ask(self, name: str, *arguments: Any, **named: Any) -> Any:
        call = getattr(self._queue, name)(*arguments, **named)
        return asyncio.run_coroutine_threadsafe(call, self._loop).result()

    def end(self) -> None:
        """Ends its thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class _Policies:
    """The weight store of one process."""

    def __init__(self, put: Callable[[Any], Any]) -> None:
        self._put = put
        self._versions: dict[int, Any] = {}
        self._used: tuple[int, Any] = -1, None

    def fence(self, epoch: str) -> None:
        """There is one learner."""

    def publish(self, version: int, params: Any, dtype: str, last: bool) -> None:
        """Keeps a policy."""
        self._versions[version] = params

    def load(self, version: int | None) -> tuple[int, Any]:
        """A version, or the newest, where it is used."""
        chosen = max(self._versions) if version is None else version
        if chosen != self._used[0]:
            self._used = chosen, self._put(self._versions[chosen])
        return self._used
