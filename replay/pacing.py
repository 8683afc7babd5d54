"""The user's side of the queue's settings: how old a trained sample may be, and where it waits."""

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from replay.redis_url import url_fault


class PacingConfig(BaseModel):
    """Order, staleness, and where the queue is."""

    # A URL may have been given with a password, which no message may repeat.
    model_config = ConfigDict(
        extra="forbid", use_attribute_docstrings=True, hide_input_in_errors=True
    )

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
    url: str | None = None
    """Redis that holds the queue, `redis://[USER@]HOST:6379/0`, with TLS `rediss://`, or
    `unix://PATH`; null: the memory of a Ray actor, which ends with the run."""
    password_env: str | None = None
    """Environment variable with the password of Redis, on every node."""
    password_file: Path | None = None
    """Or the file with it, at the same path on every node."""
    ca_file: Path | None = None
    """PEM certificates that the one of Redis is checked against; null: the system's."""
    patience_seconds: float = Field(120.0, gt=0, le=86400)
    """The longest that a lost connection to Redis, or room in its memory, is waited for; then the
    run ends, to be resumed."""

    @field_validator("url")
    @classmethod
    def _of_redis(cls, url: str | None) -> str | None:
        fault = None if url is None else url_fault(url)
        if fault is not None:
            raise ValueError(f"the URL of Redis {fault}")
        return url

    @model_validator(mode="after")
    def _password_is_named_once(self) -> Self:
        if self.password_env and self.password_file:
            raise ValueError(
                f"password_env is {self.password_env} and password_file {self.password_file}: the "
                "password is named twice; set one of them to null"
            )
        return self
