"""Settings of the reward workers and of the reward that they compute."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

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


class RewardsConfig(BaseModel):
    """The reward, and the pool of workers that compute it."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    terms: list[RewardTerm] = Field(min_length=1)
    """The reward is the weighted sum of these."""
    count: int = Field(1, ge=0, le=65536)
    """Reward worker processes; 0: only those outside of Ray, `rewardtune work reward`."""
    groups_per_lease: int = Field(8, ge=1, le=1024)
    """Groups taken from the queue at once; a call costs about as much as the work of a few."""
    deadline_seconds: float = Field(60.0, gt=0)
    """A group that takes longer ends its worker; the group is tried again elsewhere, and goes to
    quarantine after replay.max_deliveries."""
    lease_seconds: float = Field(15.0, gt=0)
    """A worker that shows no sign of life for so long loses its groups and is replaced."""
    resources: Resources = Resources()
    """For each worker."""
