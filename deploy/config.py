"""The config of a run: every section belongs to a package, here they meet and are cross-checked."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from actors.config import EvaluationConfig, SamplerConfig
from deploy.uploaded import all_as_uploaded
from learner.config import PretrainConfig, StageOneConfig, TuneConfig
from replay.config import QueueConfig
from replay.pacing import PacingConfig
from rewards.config import RewardsConfig
from vision.models.config import ModelConfig
from vision.models.presets import model_config
from vision.tasks.registry import TaskConfig
from vision.tasks.task import Task


class TrunkSettings(BaseModel):
    """What of a preset's trunk to replace."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    depth: int | None = Field(None, ge=1)
    """Layers."""
    width: int | None = Field(None, ge=1)
    """Size of a token's vector."""
    heads: int | None = Field(None, ge=1)
    """Attention heads."""
    mlp_dim: int | None = Field(None, ge=1)
    """Hidden size of the MLPs."""


class ModelSettings(BaseModel):
    """A preset, and what to replace in it."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    preset: str
    """A name of `vision.models.presets`, from `tiny` to `vit_l16`."""
    stem: str | None = None
    """`patch` or `conv`."""
    patch_size: int | None = Field(None, ge=1)
    """Pixels a side of one encoder token."""
    encoder: TrunkSettings = TrunkSettings()
    """Of the image's trunk."""
    decoder: TrunkSettings = TrunkSettings()
    """Of the tokens' trunk."""
    positions: str | None = None
    """How position embeddings start: `normal` or `sincos`."""
    dtype: str | None = None
    """Type of the computation: `float32` or `bfloat16`; parameters stay float32."""
    remat: bool | None = None
    """Compute layers again in the backward pass, to save memory."""

    def build(self, task: Task) -> ModelConfig:
        """The model at a task's sizes."""
        overrides: dict[str, Any] = self.model_dump(exclude={"preset"}, exclude_none=True)
        return model_config(
            self.preset,
            vocabulary_size=task.vocabulary_size,
            max_length=task.max_length,
            image_size=task.image_size,
            ordered_tokens=task.ordered_tokens,
            **{name: value for name, value in overrides.items() if value != {}},
        )


class ClusterConfig(BaseModel):
    """Which Ray cluster runs it, and how long to wait for things there."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    address: str | None = None
    """A running cluster (`auto`, or its address); null starts one on this machine, or joins the
    one of RAY_ADDRESS."""
    start_seconds: Annotated[float, Field(gt=0)] = 120.0
    """The longest that a first worker of each role may take to start, while no node is coming."""
    placement_seconds: Annotated[float, Field(gt=0)] = 10.0
    """How long a request that no node could ever meet waits for Ray's autoscaler to bring one. As
    long as it is bringing nodes, the run waits on."""
    stop_seconds: Annotated[float, Field(gt=0)] = 60.0
    """The longest that the learner may take to finish its step and save it when asked to stop."""
    reply_seconds: Annotated[float, Field(gt=0)] = 60.0
    """The longest that the queue and the weight store may take to answer, or to be started anew.
    One that does not answer for a third of it is ended, to be started anew."""
    failures_allowed: Annotated[int, Field(ge=0)] = 5
    """Failures of the same process within 2 minutes that are mended; one more ends the run."""


class LoggingConfig(BaseModel):
    """The log files of a run's processes, runs/NAME/logs/WORKER.log."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    format: Literal["text", "json"] = "text"
    """`json`: a line is an object with time, level, run, role, worker and message, and with step,
    ordinal and example where it is about one."""


class TracingConfig(BaseModel):
    """OpenTelemetry traces: one for each group, across sampler, reward worker and learner."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    endpoint: str | None = Field(None, pattern=r"^(file|https?://[^\s@]+)$")
    """Where spans go: the address of an OTLP/HTTP collector, such as `http://collector:4318`,
    without user and password; `file` writes runs/NAME/traces/WORKER.jsonl; null: no traces."""
    share: float = Field(1.0, gt=0, le=1)
    """The part of the groups that is traced; all processes choose the same."""
    run_id: str = ""
    """Set by the run itself, for its workers: tells its traces from those of other runs of its
    name. It is the contents of runs/NAME/.id."""


class RunConfig(BaseModel):
    """All that determines a run."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    name: str = Field(pattern=r"^\w[\w.-]*$")
    """Names the run and its directory, runs/NAME."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Everything random follows from it."""
    runs: Path = Path("runs")
    """Where run directories are made; on a cluster, a path that all nodes share."""
    task: TaskConfig
    """What is learned."""
    model: ModelSettings
    """What learns it."""
    initial: Path | None = None
    """A `.npz` checkpoint of the whole model to start from."""
    initial_transfer: bool = False
    """`initial` is of another task: its class tokens start anew and its position embeddings are
    resampled to this image size. Coordinate buckets and everything else must be the same."""
    initial_encoder: Path | None = None
    """A `.npz` to start the encoder from, in pretraining: a ViT in big_vision's layout, or another
    task's model, as a detector. `optimizer.multipliers` gives it a learning rate of its own."""
    pretrain: PretrainConfig | None = None
    """Maximum likelihood."""
    stage_one: StageOneConfig | None = None
    """Training of UViM's stage I, for a task that has one, in place of `pretrain`; `initial` and
    the result are then checkpoints of stage I."""
    learner: TuneConfig = TuneConfig()
    """Reward tuning."""
    actors: SamplerConfig = SamplerConfig()
    """Samplers."""
    rewards: RewardsConfig | None = None
    """Rewards and their workers."""
    replay: PacingConfig = PacingConfig()
    """Order, staleness, and where the queue is."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Held-out evaluation."""
    cluster: ClusterConfig = ClusterConfig()
    """Ray."""
    logging: LoggingConfig = LoggingConfig()
    """Log files."""
    tracing: TracingConfig = TracingConfig()
    """Traces."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.pretrain is not None and self.stage_one is not None:
            raise ValueError(
                "pretrain and stage_one are both set: a run trains one of them, stage I first; "
                "set the other to null"
            )
        block = self.actors.groups_per_block
        if self.learner.groups_per_step % block:
            raise ValueError(
                f"actors.groups_per_block is {block} and learner.groups_per_step "
                f"{self.learner.groups_per_step}: the block must divide it, or a step would wait "
                "for a block that does not fit the window"
            )
        if self.replay.mode == "ordered" and self.learner.publish_every != 1:
            raise ValueError(
                f"learner.publish_every is {self.learner.publish_every}: ordered mode samples "
                "every step with its own policy version and would wait for ever; use 1, or "
                "replay.mode=async"
            )
        if self.replay.mode == "async":
            self._check_publishing_keeps_up()
        if self.initial_transfer and self.initial is None:
            raise ValueError("initial_transfer is set, but no `initial` to transfer from")
        if self.initial is not None and self.initial_encoder is not None:
            raise ValueError(
                "initial and initial_encoder are both set: the whole model's checkpoint holds an "
                "encoder already; set one of them to null"
            )
        return self

    def _check_publishing_keeps_up(self) -> None:
        every, bound = self.learner.publish_every, self.replay.max_policy_lag
        if every > bound + 1:
            raise ValueError(
                f"learner.publish_every is {every} and replay.max_policy_lag {bound}: every group "
                f"would be too old to train before a new policy is published; use at most "
                f"{bound + 1}"
            )

    def with_absolute_paths(self) -> "RunConfig":
        """The same with every path absolute: other processes have other working directories.

        A path that is not there from the working directory, but from the repository, means that.
        """
        absolute: RunConfig = _absolute(self)
        return absolute.model_copy(update={"runs": Path.cwd() / self.runs})

    @property
    def lag(self) -> int:
        """Versions between sampling and training: exactly (ordered) or at most (async)."""
        if self.replay.mode == "ordered":
            return self.replay.policy_lag
        return self.replay.max_policy_lag

    @property
    def directory(self) -> Path:
        """runs/NAME, absolute."""
        return (self.runs / self.name).absolute()

    def queue_config(self) -> QueueConfig:
        """The queue's settings."""
        assert self.rewards is not None
        return QueueConfig(
            groups_per_step=self.learner.groups_per_step,
            block=self.actors.groups_per_block,
            mode=self.replay.mode,
            lag=self.lag,
            max_deliveries=self.replay.max_deliveries,
            sample_ttl=self.actors.lease_seconds,
            score_ttl=self.rewards.lease_seconds,
            train_ttl=self.learner.lease_seconds,
            total_groups=self.learner.steps * self.learner.groups_per_step,
        )

    def identity(self) -> dict[str, Any]:
        """What must not change when a run is resumed: all that its numbers depend on."""
        values: dict[str, Any] = self.model_dump(mode="json")
        for section in ("cluster", "evaluation", "logging", "runs", "tracing"):
            del values[section]
        if self.learner.optimizer.schedule == "constant":
            del values["learner"]["steps"]
        for section, keys in _MAY_CHANGE.items():
            for key in keys if values.get(section) else ():
                values[section].pop(key, None)
        values["actors"]["engine"] = self.actors.chosen_engine
        for section in ("actors", "learner"):
            # The kind of device and the number of threads decide the last bit.
            resources = values[section].pop("resources")
            values[section]["computes_on"] = [resources["num_gpus"] > 0, resources["threads"]]
        # A job that is submitted again finds the same files elsewhere.
        uploaded: dict[str, Any] = all_as_uploaded(values)
        return uploaded


# How many workers do the work, how it is watched and how long it goes on changes no step's result.
_MAY_CHANGE = {
    "actors": ("count", "cuda_graphs", "deadline_seconds", "lease_seconds"),
    "rewards": (
        "count",
        "autoscale",
        "groups_per_lease",
        "deadline_seconds",
        "lease_seconds",
        "resources",
    ),
    "learner": (
        "checkpoint_every",
        "keep_checkpoints",
        "loading_threads",
        "lease_seconds",
        "mismatch_every",
        "outside",
    ),
    "replay": ("url", "password_env", "password_file", "ca_file", "patience_seconds"),
    "pretrain": ("checkpoint_every", "keep_checkpoints", "evaluate_every", "log_every"),
    "stage_one": ("checkpoint_every", "keep_checkpoints", "evaluate_every", "log_every"),
}


REPOSITORY = Path(__file__).resolve().parent.parent


def _absolute(value: Any) -> Any:
    if isinstance(value, BaseModel):
        changed = {name: _absolute(getattr(value, name)) for name in type(value).model_fields}
        return value.model_copy(update=changed)
    if isinstance(value, Path) and not value.is_absolute():
        here = Path.cwd() / value
        return REPOSITORY / value if not here.exists() and (REPOSITORY / value).exists() else here
    return value


def thread_environment(threads: int) -> dict[str, str]:
    """Environment variables that cap a process's compute threads."""
    count = str(threads)
    eigen = f"--xla_cpu_multi_thread_eigen={'true' if threads > 1 else 'false'}"
    return {
        "OMP_NUM_THREADS": count,
        "OPENBLAS_NUM_THREADS": count,
        "NUMBA_NUM_THREADS": count,
        # The size of XLA's thread pool on a CPU.
        "NPROC": count,
        # Of a flag that is given twice the last counts.
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {eigen}".strip(),
    }
