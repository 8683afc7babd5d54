"""How many workers keep a learner busy, from what a group costs each stage.

Let a group cost a sampler `s` seconds of work, a reward worker `r`, and the learner `t` (its work
a step over `groups_per_step`). The learner then takes in `1 / t` groups a second, and n samplers
bring `n / s`. Workers that are busy all the time leave no room for restarts and for groups that
take longer than others, so they are planned for a share `u` of their time:

    samplers = ceil(s / (t * u))        reward workers = ceil(r / (t * u))

and a run trains `min(1 / t, samplers / s, rewards / r)` groups a second, as long as its window lets
the stages overlap. With `policy_lag: 0` they take turns: a step then costs their sum.
"""

import math
from dataclasses import dataclass

UTILISATION = 0.85


@dataclass(frozen=True)
class StageTimes:
    """Seconds of work that a group costs one worker of each stage."""

    sampling: float
    scoring: float
    training: float


@dataclass(frozen=True)
class Plan:
    """Workers, and what they give.

    Attributes:
      samplers, rewards: how many.
      groups_per_second: what the run trains, at most.
      step_seconds: of one step.
      busy: the share of its time that each role works.
      overlap: whether the window lets the stages overlap.
    """

    samplers: int
    rewards: int
    groups_per_second: float
    step_seconds: float
    busy: dict[str, float]
    overlap: bool


def needed(seconds_per_group: float, groups_per_second: float) -> int:
    """Workers for so many groups a second, each busy for `UTILISATION` of its time; at least 1."""
    return max(1, math.ceil(seconds_per_group * groups_per_second / UTILISATION - 1e-9))


def balanced(times: StageTimes, groups_per_step: int, lag: int) -> Plan:
    """The fewest workers that keep the learner busy, as far as it can be."""
    rate = 1.0 / times.training
    return predict(
        times, needed(times.sampling, rate), needed(times.scoring, rate), groups_per_step, lag
    )


def predict(times: StageTimes, samplers: int, rewards: int, groups_per_step: int, lag: int) -> Plan:
    """What so many workers give."""
    costs = {  # seconds a group, all workers of the role together
        "learner": times.training,
        "sampler": times.sampling / samplers,
        "reward": times.scoring / rewards,
    }
    # Scoring overlaps with sampling in any case, but for a step's first and last groups.
    seconds = (
        max(costs.values())
        if lag > 0
        else costs["learner"] + max(costs["sampler"], costs["reward"])
    )
    return Plan(
        samplers=samplers,
        rewards=rewards,
        groups_per_second=1.0 / seconds,
        step_seconds=seconds * groups_per_step,
        busy={role: cost / seconds for role, cost in costs.items()},
        overlap=lag > 0,
    )


def window_doubt(
    plan: Plan, groups_per_block: int, groups_per_lease: int, window: int
) -> str | None:
    """What keeps so many workers from being at work at once, where something does.

    Args:
      plan: the workers.
      groups_per_block: that a sampler takes at a time.
      groups_per_lease: that a reward worker does.
      window: groups that may be out.
    """
    held = plan.samplers * groups_per_block + plan.rewards * groups_per_lease
    if held <= window:
        return None
    return (
        f"so many workers can hold {held} groups ({plan.samplers} x {groups_per_block} to sample, "
        f"{plan.rewards} x {groups_per_lease} to score), and at most {window} are out: some would "
        "wait for others. Use a smaller rewards.groups_per_lease or actors.groups_per_block, a "
        "larger learner.groups_per_step, or a larger lag"
    )
