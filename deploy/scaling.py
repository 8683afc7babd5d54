"""Keeps a run's pools at their targets: what an operator asked for, else what autoscale finds."""

import logging
from collections import Counter
from collections.abc import Mapping
from typing import Any

from deploy.autoscale import Autoscaler, Throughput
from deploy.config import RunConfig
from deploy.pool import Pool
from deploy.targets import Target, TargetsReader
from replay.queue import Stage, Stats

logger = logging.getLogger(__name__)

ROLES = {"actors": "sampler", "rewards": "reward"}
"""What can be scaled: the config's section, and the role of its workers."""


class Scaling:
    """Acts in the controller."""

    def __init__(self, config: RunConfig, pool: Pool, targets: TargetsReader):
        assert config.rewards is not None
        self._pool, self._targets = pool, targets
        autoscale = config.rewards.autoscale
        self._autoscaler = None if autoscale is None else Autoscaler(autoscale)
        self._throughput = Throughput()
        self._held: dict[str, Target] = {}

    def obey(self) -> None:
        """Takes up what an operator has asked for."""
        self._held.update(self._targets.look())
        for section, target in self._held.items():
            if target != "auto":
                self._set(section, target)
        self._targets.tell(self.describe())

    def adjust(self, stats: Stats, now: float) -> None:
        """Lets the reward workers follow their load, where the config says so.

        Args:
          stats: the queue's.
          now: seconds of a clock that never goes back.
        """
        if self._autoscaler is None or self._held.get("rewards", "auto") != "auto":
            return
        workers = {
            worker.name: (worker.status.get("groups", 0), worker.status.get("working", 0.0))
            for worker in self._pool.of_role("reward")
            if worker.running is not None
        }
        lately = self._throughput
        lately.observe(now, workers)
        waiting = stats.stages[Stage.TO_SCORE]
        current, backlog = len(self._pool.of_role("reward")), waiting.ready + waiting.leased
        target = self._autoscaler.decide(now, current, backlog, lately.per_worker, lately.busy)
        self._set("rewards", target)

    def _set(self, section: str, target: int) -> None:
        current = len(self._pool.of_role(ROLES[section]))
        if target != current:
            logger.info("%s: %d workers, %d from now on", section, current, target)
            self._pool.scale(ROLES[section], target)

    def tell_status(self, status: Mapping[str, Any]) -> None:
        """Lets other machines of the cluster read it."""
        self._targets.tell_status(status)

    def describe(self) -> dict[str, dict[str, Any]]:
        """For each pool its target, who set it, and its workers by state."""
        described = {}
        for section, role in ROLES.items():
            states = Counter(worker.state for worker in self._pool.workers if worker.role == role)
            if self._held.get(section, "auto") != "auto":
                by = "operator"
            elif section == "rewards" and self._autoscaler is not None:
                by = "autoscale"
            else:
                by = "config"
            described[section] = {
                "target": len(self._pool.of_role(role)),
                "by": by,
                "autoscale": section == "rewards" and self._autoscaler is not None,
                "workers": dict(states),
            }
        return described
