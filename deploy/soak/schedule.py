"""Which faults, when, to whom: a pure function of a seed.

A fault is due a number of trained steps after the one before it was mended, and not at a second: a
seed means the same schedule on a fast machine and on a slow one.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Action = Literal["kill", "stop", "reward"]

MOST_STEPS_APART = 5
MOST_SECONDS_LATE = 0.5


@dataclass(frozen=True)
class Kind:
    """A kind of fault.

    Attributes:
      name: on the command line and in results.
      action: SIGKILL or SIGSTOP of a process, or a reward that misbehaves once.
      victim: the role or service, or what the reward does.
      costs_a_group: it may change what is trained: the weights are not those of a run without it.
      needs: "memory" or "redis": the queue that it is a fault of.
    """

    name: str
    action: Action
    victim: str
    costs_a_group: bool = False
    needs: Literal["memory", "redis"] | None = None


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("kill-sampler", "kill", "sampler"),
        Kind("kill-reward", "kill", "reward"),
        Kind("kill-learner", "kill", "learner"),
        Kind("kill-queue", "kill", "queue", needs="memory"),
        Kind("kill-redis", "kill", "redis", needs="redis"),
        Kind("kill-weights", "kill", "weights"),
        Kind("kill-command", "kill", "command"),
        Kind("stop-sampler", "stop", "sampler"),
        Kind("stop-reward", "stop", "reward"),
        Kind("stop-learner", "stop", "learner"),
        Kind("stop-queue", "stop", "queue", needs="memory"),
        Kind("stop-weights", "stop", "weights"),
        Kind("stop-redis", "stop", "redis", needs="redis"),
        Kind("reward-delayed", "reward", "delayed"),
        Kind("reward-unavailable", "reward", "unavailable"),
        Kind("reward-hangs", "reward", "hangs"),
        Kind("reward-memory", "reward", "memory"),
        Kind("reward-raises", "reward", "raises", costs_a_group=True),
        Kind("reward-nan", "reward", "nan", costs_a_group=True),
        Kind("reward-length", "reward", "length", costs_a_group=True),
        Kind("reward-order", "reward", "order", costs_a_group=True),
    )
}
HARMLESS = tuple(kind.name for kind in KINDS.values() if not kind.costs_a_group)
"""After any of these the weights are, bit for bit, those of an undisturbed run (ordered mode)."""


@dataclass(frozen=True)
class Fault:
    """One fault of a schedule.

    Attributes:
      index: its place, from 0.
      kind: what happens.
      worker: which of the role's workers.
      steps: trained steps since the fault before was mended, after which it is due.
      late: seconds after that step, so that it meets every phase of a step.
    """

    index: int
    kind: Kind
    worker: int
    steps: int
    late: float


def make_schedule(
    kinds: Sequence[str], count: int, seed: int, workers: Mapping[str, int]
) -> list[Fault]:
    """`count` faults: the kinds in ever new order, each as often as the others.

    Args:
      kinds: names of `KINDS`.
      count: how many.
      seed: the schedule follows from it.
      workers: how many workers a role has; 1 where it is not named.
    """
    chance = random.Random(seed)
    faults: list[Fault] = []
    while len(faults) < count:
        for name in chance.sample(list(kinds), len(kinds)):
            kind = KINDS[name]
            faults.append(
                Fault(
                    index=len(faults),
                    kind=kind,
                    worker=chance.randrange(workers.get(kind.victim, 1)),
                    steps=chance.randint(1, MOST_STEPS_APART),
                    late=round(chance.uniform(0.0, MOST_SECONDS_LATE), 3),
                )
            )
    return faults[:count]


def chosen_kinds(wanted: Sequence[str] | None, redis: bool) -> list[str]:
    """The kinds to draw from: those asked for, or all that this run can have.

    Args:
      wanted: names, or None for all.
      redis: whether the queue is in a Redis that the soak started.

    Raises:
      ValueError: an unknown kind, or one that this run cannot have.
    """
    backend = "redis" if redis else "memory"
    possible = [name for name, kind in KINDS.items() if kind.needs in (None, backend)]
    if wanted is None:
        return possible
    for name in wanted:
        if name not in KINDS:
            raise ValueError(f"--kinds names {name!r}; there are {', '.join(KINDS)}, harmless, all")
        if name not in possible:
            raise ValueError(
                f"--kinds names {name}, and the queue is in {backend}"
                + ("" if redis else ": --redis PATH starts a redis-server for it")
            )
    return list(wanted)
