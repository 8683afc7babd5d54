"""What one worker process asks of Ray; the same words for every role."""

from pydantic import BaseModel, ConfigDict, Field


class Resources(BaseModel):
    """Resources of one process."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    num_cpus: float = Field(1.0, ge=0)
    """Logical CPUs that Ray sets aside; fractions share a core."""
    num_gpus: float = Field(0.0, ge=0)
    """GPUs; without one the process runs on the CPU."""
    custom: dict[str, float] = {}
    """Further Ray resources, such as {'TPU': 4}."""
    labels: dict[str, str] = {}
    """Ray node labels that its node must carry, such as {'pool': 'reward'}."""
    threads: int = Field(1, ge=1, le=256)
    """Threads of XLA, numba and BLAS in the process. Results depend on it in the last bit, so all
    workers of a role have the same."""
