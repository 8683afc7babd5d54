"""Settings of the reward workers and of the reward that they compute."""

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from replay.resources import Resources


class RewardTerm(BaseModel):
    """One reward of a weighted sum."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    path: str = Field(pattern=r"^[\w.]+:\w+$")
    """`module:Class`: one of ours, or your own on the Python path."""
    weight: float = 1.0
    """Its factor in the sum."""
    options: dict[str, Any] = {}
    """Keyword arguments of its constructor."""


class AutoscaleConfig(BaseModel):
    """A pool of reward workers that grows and shrinks with its work."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    min: int = Field(1, ge=1, le=65536)
    """The fewest workers."""
    max: int = Field(ge=1, le=65536)
    """The most."""
    target_wait: float = Field(5.0, gt=0)
    """Seconds that a group should take from sampled to scored. Below what scoring one group takes,
    every group gets a worker, up to `max`."""
    settle_seconds: float = Field(60.0, gt=0)
    """Workers are given up only after fewer have sufficed for so long."""

    @model_validator(mode="after")
    def _range(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min is {self.min} and max {self.max}: min must not be above max")
        return self


class RewardsConfig(BaseModel):
    """The reward, and the pool of workers that compute it."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    terms: list[RewardTerm] = Field(min_length=1)
    """The reward is the weighted sum of these."""
    count: int = Field(1, ge=0, le=65536)
    """Reward worker processes; 0: only those outside of Ray, `rewardtune work reward`. With
    `autoscale`, those to begin with; `rewardtune scale` changes it while a run goes on."""
    autoscale: AutoscaleConfig | None = None
    """How many workers there are follows the backlog."""
    groups_per_lease: int = Field(8, ge=1, le=1024)
    """Groups taken from the queue at once; a call costs about as much as the work of a few."""
    deadline_seconds: float = Field(60.0, gt=0)
    """A group that takes longer ends its worker; the group is tried again elsewhere, and goes to
    quarantine after replay.max_deliveries."""
    lease_seconds: float = Field(15.0, gt=0)
    """A worker that shows no sign of life for so long loses its groups and is replaced."""
    resources: Resources = Resources()
    """For each worker."""

    @property
    def initial_count(self) -> int:
        """Workers to begin with."""
        if self.autoscale is None:
            return self.count
        return max(self.autoscale.min, min(self.count, self.autoscale.max))
