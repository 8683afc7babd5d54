"""The replay queue's settings."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class QueueConfig(BaseModel):
    """How many groups are out, in which order they are trained, and how often one is tried."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    groups_per_step: int = Field(16, ge=1, le=65536)
    """G: the groups (one image and its K samples each) of one learner step."""

    block: int = Field(16, ge=1, le=65536)
    """B: the groups that are sampled together as one batch of one shape. Divides G."""

    mode: Literal["ordered", "async"] = "ordered"
    """ordered: step s trains exactly ordinals [sG, (s+1)G). async: what is ready, oldest first."""

    lag: int = Field(0, ge=0, le=1024)
    """Policy versions between sampling and training: `policy_lag` in ordered mode (exactly),
    `max_policy_lag` in async mode (at most)."""

    max_deliveries: int = Field(3, ge=1, le=100)
    """Failed deliveries of a group in one stage after which it is quarantined."""

    sample_ttl: float = Field(120.0, gt=0, le=86400)
    """Seconds that a sampler may hold a block without renewing."""

    score_ttl: float = Field(60.0, gt=0, le=86400)
    """Seconds that a reward worker may hold a group without renewing."""

    train_ttl: float = Field(600.0, gt=0, le=86400)
    """Seconds that the learner may hold a group without renewing or acknowledging."""

    total_groups: int | None = Field(None, ge=1)
    """Groups to train in all; None: no end. In async mode dropped groups are made up for."""

    @property
    def window(self) -> int:
        """The most groups that are out at once: backpressure and the bound on staleness in one."""
        return self.groups_per_step * (1 + self.lag)

    @model_validator(mode="after")
    def _whole_blocks_and_steps(self) -> "QueueConfig":
        if self.groups_per_step % self.block:
            raise ValueError(
                f"block is {self.block} and groups_per_step {self.groups_per_step}: the block must "
                "divide it, or a step would wait for a block that does not fit the window"
            )
        if self.total_groups is not None and self.total_groups % self.groups_per_step:
            raise ValueError(
                f"total_groups is {self.total_groups}, not a multiple of groups_per_step "
                f"{self.groups_per_step}: the last step would wait for ever"
            )
        return self
