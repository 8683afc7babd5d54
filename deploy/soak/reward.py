"""The run's own reward, which misbehaves when the soak orders it to."""

import mmap
import resource
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from deploy.soak.orders import Order, Orders
from protos.trajectory import InfrastructureError, Outcome, Scored
from rewards.combine import build_local_reward
from rewards.config import RewardsConfig
from vision.tasks.task import Example, Task

MEMORY_BYTES = 256 * 2**20
"""What a reward that eats memory may eat: the machine is not to notice."""
BLOCK_BYTES = 16 * 2**20


class UnreliableReward:
    """Implements `rewards.reward.Reward`.

    Options:
      terms: of the run's own reward, as in `rewards.terms`.
      orders: directory of `Orders`.
    """

    def __init__(self, task: Task, terms: Sequence[Mapping[str, Any]], orders: str):
        reward = build_local_reward(RewardsConfig.model_validate({"terms": terms}), task)
        if reward is None:
            raise ValueError(
                "a reward that a server or a person computes cannot be made to misbehave here: "
                "leave the kinds reward-* out"
            )
        self._reward = reward
        self._orders = Orders(Path(orders))
        self.provides = reward.provides

    def score(self, examples: Sequence[Example], predictions: Sequence[Any]) -> list[Outcome]:
        """What the run's reward says, unless there is an order."""
        order = self._orders.take(examples[0].example_id)
        if order is None:
            return self._reward.score(examples, predictions)
        return self._misbehave(order, examples, predictions)

    def _misbehave(
        self, order: Order, examples: Sequence[Example], predictions: Sequence[Any]
    ) -> list[Outcome]:
        reason = f"soak fault {order.fault}"
        if order.what == "raises":
            raise ValueError(reason)
        if order.what == "unavailable":
            raise InfrastructureError(reason)
        if order.what in ("hangs", "delayed"):
            time.sleep(order.seconds)
            self._orders.done(order)
        if order.what == "memory":
            eat_memory(reason)
        outcomes = self._reward.score(examples, predictions)
        if order.what == "nan":
            return [_not_a_number(outcome) for outcome in outcomes]
        if order.what == "length":
            return outcomes[:-1]
        if order.what == "order":
            return outcomes[::-1]
        return outcomes


def _not_a_number(outcome: Outcome) -> Outcome:
    return replace(outcome, reward=float("nan")) if isinstance(outcome, Scored) else outcome


def eat_memory(reason: str) -> None:
    """Takes memory until there is no more, of which this process is given only a little.

    Raises:
      MemoryError: always.
    """
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = pages * resource.getpagesize() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    eaten: list[mmap.mmap] = []
    try:
        # Not what malloc has at hand: memory that the process had before and freed is no growth.
        while len(eaten) * BLOCK_BYTES <= MEMORY_BYTES:
            block = mmap.mmap(-1, BLOCK_BYTES)
            block[:: mmap.PAGESIZE] = bytes(BLOCK_BYTES // mmap.PAGESIZE)
            eaten.append(block)
    except (MemoryError, OSError):
        eaten.clear()
        raise MemoryError(reason) from None
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, hard))
    raise MemoryError(f"{reason}: the system did not hold the limit")
