"""Settings of the samplers and of the evaluator."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from replay.resources import Resources


class SamplerConfig(BaseModel):
    """The pool of samplers."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    count: int = Field(1, ge=0, le=4096)
    """Sampler processes; 0: only those outside of Ray, `rewardtune work sampler`. `rewardtune
    scale` changes it while a run goes on."""
    engine: Literal["jax", "torch", "auto"] = "jax"
    """What runs the decoding loop; auto: torch where samplers have GPUs (`resources.num_gpus`),
    else jax. torch needs the extra `torch`."""
    cuda_graphs: bool = True
    """torch, on GPUs that can: launch all kernels of a position as one."""
    groups_per_block: int = Field(16, ge=1, le=4096)
    """Images decoded as one batch; divides learner.groups_per_step."""
    temperature: float = Field(1.0, gt=0, le=10)
    """Divides the logits when sampling; the recorded logprobs stay those of temperature 1."""
    deadline_seconds: float = Field(600.0, gt=0)
    """A block that takes longer, compilation included, ends its sampler and is sampled anew."""
    lease_seconds: float = Field(15.0, gt=0)
    """A sampler that shows no sign of life for so long loses its block and is replaced."""
    resources: Resources = Resources()
    """For each sampler."""

    @property
    def chosen_engine(self) -> Literal["jax", "torch"]:
        """The engine that `engine` means: one for the whole pool, so that all draw the same."""
        if self.engine == "auto":
            return "torch" if self.resources.num_gpus > 0 else "jax"
        return self.engine


class EvaluatorResources(Resources):
    """The evaluator works beside the others, and asks for no CPU of its own."""

    num_cpus: float = Field(0.0, ge=0)
    """Logical CPUs that Ray sets aside."""


class EvaluationConfig(BaseModel):
    """Held-out evaluation while a run goes on."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    every: int = Field(50, ge=0)
    """Steps between evaluations; 0 turns the evaluator off. When more than 8 versions wait for a
    slow evaluator, some are skipped, which the log says: never the oldest or the newest."""
    split: str = "validation"
    """Where choices are made; the test split is for reports."""
    examples: int | None = Field(None, ge=1)
    """Only the first so many examples of the split; all when not set."""
    batch_size: int = Field(50, ge=1)
    """Images decoded at once."""
    resources: EvaluatorResources = EvaluatorResources()
    """Of the one evaluator process."""
