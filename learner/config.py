"""What can be set about training, with the ranges that make sense and what each value means."""

import re
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from replay.resources import Resources


class Settings(BaseModel):
    """A group of settings: unknown keys are refused, values are fixed once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class OptimizerConfig(Settings):
    """How gradients become updates.

    An update is `-schedule(step) * multiplier * (learning_rate * direction + weight_decay * p)`:
    the decay is decoupled from the learning rate (the paper's numbers mean this) and follows the
    schedule, which goes from 0 to 1 (warm-up) and, with cosine, back to 0.
    """

    name: Literal["adafactor", "adamw"] = "adafactor"
    """adafactor: big_vision's variant, factored second moments; adamw: the familiar one."""

    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-5
    """Peak learning rate, before the multipliers."""

    schedule: Literal["constant", "cosine"] = "constant"
    """What the learning rate does after the warm-up."""

    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps of linear warm-up; the first step already moves (1 / warmup_steps)."""

    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay of the momentum; 0: none."""

    beta2: Annotated[float, Field(gt=0, lt=1)] = 0.98
    """AdamW: decay of the second moment. Adafactor takes 1 - t^-0.8, see `beta2_cap`."""

    beta2_cap: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Adafactor: the most that the second moment's decay may reach (0.95 in UViM's settings)."""

    weight_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of each kernel that a step takes away, whatever the learning rate; biases, norms and
    embeddings do not decay."""

    clip_norm: Annotated[float, Field(gt=0)] | None = 1.0
    """Gradients of a larger global norm are scaled down to it; null: never."""

    multipliers: list[tuple[str, Annotated[float, Field(ge=0)]]] = []
    """(regular expression, factor) pairs on the update of parameters whose whole path matches, as
    in ["encoder/.*", 0.1]; the first match counts, 0 freezes, and each must match something."""

    @field_validator("multipliers")
    @classmethod
    def _compiles(cls, value: list[tuple[str, float]]) -> list[tuple[str, float]]:
        for pattern, _ in value:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is not a regular expression: {error}") from error
        return value


class EncoderWarmupConfig(Settings):
    """A dense loss on the encoder alone, standing in for a pretrained backbone."""

    steps: Annotated[int, Field(gt=0)] = 2500
    """Optimizer steps."""

    batch_size: Annotated[int, Field(gt=0)] = 16
    """Images a step."""

    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-3
    """Peak of AdamW's cosine schedule."""


class SupervisedConfig(Settings):
    """What every training on ground truth has: how long, in which batches, what it leaves."""

    steps: Annotated[int, Field(gt=0)] = 3500
    """Optimizer steps."""

    batch_size: Annotated[int, Field(gt=0)] = 16
    """Images a step, over all devices."""

    microbatches: Annotated[int, Field(gt=0)] = 1
    """Parts that a batch is computed in, one after the other, to save memory; same gradients."""

    devices: Annotated[int, Field(gt=0)] = 1
    """JAX devices that share a batch."""

    shards: Annotated[int, Field(gt=0)] = 1
    """Devices that share one copy of parameters and optimizer state, for models that do not fit
    one; `devices` must be a multiple of it."""

    optimizer: OptimizerConfig = OptimizerConfig(
        name="adamw", learning_rate=1e-3, schedule="cosine", warmup_steps=200
    )
    """The paper's detection pretraining: adafactor, 1e-3, cosine, warm-up 20k."""

    checkpoint_every: Annotated[int, Field(gt=0)] = 1000
    """Steps between checkpoints; the last step always leaves one."""

    keep_checkpoints: Annotated[int, Field(gt=0)] = 2
    """Newest checkpoints that are kept, beside the best."""

    evaluate_every: Annotated[int, Field(ge=0)] = 0
    """Steps between evaluations; 0: only after the last step."""

    log_every: Annotated[int, Field(gt=0)] = 50
    """Steps between lines of metrics."""

    @model_validator(mode="after")
    def _batch_divides(self) -> Self:
        _check_divides("batch_size", self.batch_size, self.microbatches, self.devices)
        _check_shards(self.devices, self.shards)
        if self.optimizer.warmup_steps >= self.steps:
            raise ValueError(
                f"optimizer.warmup_steps {self.optimizer.warmup_steps} must be below steps"
                f" {self.steps}: the learning rate would never arrive"
            )
        return self

    def deciding(self) -> str:
        """What decides the numbers; how often it logs, saves or evaluates does not."""
        watching = {"checkpoint_every", "keep_checkpoints", "evaluate_every", "log_every"}
        return self.model_dump_json(exclude=watching)


class PretrainConfig(SupervisedConfig):
    """Maximum likelihood (the paper's Algorithm 1)."""

    encoder_warmup: EncoderWarmupConfig | None = None
    """Train the encoder on a dense loss first; null: no."""


class StageOneConfig(SupervisedConfig):
    """Training of UViM's stage I, the autoencoder whose code words are a task's tokens."""

    optimizer: OptimizerConfig = OptimizerConfig(
        name="adamw", learning_rate=1e-3, schedule="cosine", warmup_steps=100
    )
    """UViM's: adafactor, 4e-4, weight decay 4e-5, cosine, warm-up 4k."""

    code_dropout: Literal["random", "none"] = "random"
    """random: the decoder sees a uniformly random number of an example's code words, at random
    places, so that each word tells something by itself (UViM, section 3.1); none: all of them."""

    commitment_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the mean squared distance of the encoder's vectors to their words (UViM: 0)."""

    dictionary_momentum: Annotated[float, Field(gt=0, lt=1)] = 0.995
    """Decay, a step, of the averages that the words are."""

    min_count: Annotated[float, Field(gt=0)] = 0.1
    """A word whose average count falls below it is unused: it becomes half of the most frequent."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the computation in training; parameters and dictionary stay float32."""

    remat: bool = False
    """Compute layers again in the backward pass, to save memory."""


class ReinforceConfig(Settings):
    """The policy-gradient objective (the paper's Algorithm 2); the options are off by default."""

    use_samples: Literal["one", "all"] = "all"
    """one: the first scored sample is trained on and the others are its baseline, as in the
    paper; all: every sample is trained on, each with the others as its baseline."""

    max_importance_weight: Annotated[float, Field(ge=1)] | None = None
    """Weigh each token by min(p_now / p_sampled, this), against the lag of the samples; null: no
    weights."""

    clip: Annotated[float, Field(gt=0, lt=1)] | None = None
    """PPO's clipped surrogate with this range, in place of the plain policy gradient."""

    normalise_advantage: bool = False
    """Divide a group's advantages by the spread of its rewards."""

    kl_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of KL(policy || the policy that tuning started from); costs a forward pass."""

    entropy_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of a bonus for entropy."""

    auxiliary_weight: Annotated[float, Field(ge=0)] = 0.3
    """Weight of the task's supervised loss on the samples (detection: confidence; paper: 0.3)."""

    length_reduction: Literal["sum", "mean"] = "sum"
    """How a sequence's tokens add up; sum is Algorithm 2."""

    @model_validator(mode="after")
    def _one_correction(self) -> Self:
        if self.clip is not None and self.max_importance_weight is not None:
            raise ValueError(
                "clip and max_importance_weight both correct for old samples, and together would"
                " do so twice: set one of them to null"
            )
        return self


class TuneConfig(Settings):
    """Reward tuning: how long, with which objective, and what it leaves behind."""

    steps: Annotated[int, Field(gt=0)] = 200
    """Optimizer steps; each trains one batch of groups."""

    groups_per_step: Annotated[int, Field(ge=1, le=65536)] = 16
    """G, the images of a step, over all devices."""

    samples_per_group: Annotated[int, Field(ge=2, le=256)] = 8
    """K, samples of one example; the paper takes 2 (captioning 8)."""

    microbatches: Annotated[int, Field(gt=0)] = 1
    """Parts that a batch is computed in, one after the other, to save memory; same gradients."""

    hosts: Annotated[int, Field(gt=0)] = 1
    """Processes that train together, each on `devices` of its own; more than one find each other
    by `jax.distributed`. Each is asked for with `resources`."""

    devices: Annotated[int, Field(gt=0)] = 1
    """JAX devices of each host; those of all hosts share a batch."""

    shards: Annotated[int, Field(gt=0)] = 1
    """Devices that share one copy of parameters and optimizer state, for models that do not fit
    one; hosts * devices must be a multiple of it. One copy may span hosts."""

    reinforce: ReinforceConfig = ReinforceConfig()
    """The objective."""

    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-5)
    """The paper's tuning: adafactor, 1e-6 constant, warm-up 1k."""

    publish_every: Annotated[int, Field(gt=0)] = 1
    """Steps between published policies; `ordered` mode needs 1."""

    weights_dtype: Literal["float32", "bfloat16"] = "float32"
    """What the published weights are rounded to on their way to the samplers."""

    checkpoint_every: Annotated[int, Field(gt=0)] = 50
    """Steps between checkpoints; the last step always leaves one."""

    keep_checkpoints: Annotated[int, Field(gt=0)] = 2
    """Newest checkpoints that are kept. The best policy is kept apart, by the evaluator."""

    mismatch_every: Annotated[int, Field(ge=0)] = 10
    """Where groups lag: steps between forward passes with an older policy that compare the
    sampler's logprobs with the learner's; 0: only where groups do not lag, which costs nothing.
    Async mode may wait a little longer, for groups of a policy that it has kept."""

    loading_threads: Annotated[int, Field(ge=1, le=256)] = 4
    """Examples of a step that are loaded at once: reading and decoding their images overlaps."""

    lease_seconds: Annotated[float, Field(gt=0)] = 600.0
    """A learner that takes longer for a step, compilation included, is taken for stuck and is
    started again from its last checkpoint."""

    resources: Resources = Resources()
    """Of the learner's process, on each host."""

    outside: bool = False
    """The run starts no learner: `rewardtune learn` trains in a process outside of Ray, which
    reaches the run through `rewardtune serve replay` and `serve weights`."""

    @model_validator(mode="after")
    def _batch_divides(self) -> Self:
        _check_divides(
            "groups_per_step", self.groups_per_step, self.microbatches, self.devices, self.hosts
        )
        _check_shards(self.devices, self.shards, self.hosts)
        return self


def _check_divides(name: str, size: int, microbatches: int, devices: int, hosts: int = 1) -> None:
    if size % (microbatches * devices * hosts):
        of_hosts = (" * hosts", f" * {hosts}") if hosts > 1 else ("", "")
        raise ValueError(
            f"{name} {size} must be a multiple of microbatches * devices{of_hosts[0]} = "
            f"{microbatches} * {devices}{of_hosts[1]}: each device computes whole parts of equal "
            "size"
        )


def _check_shards(devices: int, shards: int, hosts: int = 1) -> None:
    if devices * hosts % shards:
        of_hosts = f" * hosts {hosts}" if hosts > 1 else ""
        raise ValueError(
            f"shards {shards} must divide devices {devices}{of_hosts}: each copy of the parameters "
            "lies on as many devices"
        )
