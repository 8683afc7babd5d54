"""The user's side of the queue's settings: how old a sample may be when it is trained."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class PacingConfig(BaseModel):
    """Order and staleness."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    mode: Literal["ordered", "async"] = "ordered"
    """ordered: step s trains exactly the next groups, sampled policy_lag versions before: bitwise
    reproducible. async: what is ready, oldest first."""
    policy_lag: int = Field(1, ge=0, le=64)
    """ordered mode: versions between sampling and training. 0 is on-policy; 1 overlaps sampling
    with training. Checkpoints hold as many further copies of the policy."""
    max_policy_lag: int = Field(4, ge=0, le=1024)
    """async mode: the most versions between sampling and training; older groups are dropped."""
    max_deliveries: int = Field(3, ge=1, le=100)
    """Failed deliveries of a group in one stage after which it is quarantined."""
