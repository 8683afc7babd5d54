"""Finds what is wrong with a run before any actor starts."""

from actors.engines import check_engine
from deploy.config import RunConfig
from deploy.config_file import ConfigError
from deploy.processes import load_initial
from deploy.queues import redis_connection
from rewards.combine import build_reward
from rewards.config import RewardsConfig
from vision.tasks.registry import build_task
from vision.tasks.task import Task

START_SECONDS = 5.0
"""A Redis that does not answer so long when a run starts is not there."""


def check_tune(config: RunConfig) -> Task:
    """Builds what the actors will build: the task with its data, the reward, the initial policy.

    Returns:
      The task.

    Raises:
      ConfigError: settings that would fail or mean nothing.
      EngineUnavailable: the samplers' engine is not installed.
      AnnotationError, ImageError, RewardLoadError, CheckpointMismatch, ...: what the parts say.
    """
    rewards = check_rewards(config)
    check_engine(config.actors)
    if config.initial is None:
        raise ConfigError(
            "initial: missing; tuning starts from a checkpoint (`rewardtune pretrain` makes one: "
            "runs/NAME/final.npz)"
        )
    check_queue(config)
    task = build_task(config.task)
    check_stage_one(task)
    reward = build_reward(rewards, task)
    missing = set(task.auxiliary_arrays) - set(reward.provides)
    if missing and config.learner.reinforce.auxiliary_weight:
        raise ConfigError(
            f"learner.reinforce.auxiliary_weight is {config.learner.reinforce.auxiliary_weight}, "
            f"but the reward does not provide {sorted(missing)}, which the task's auxiliary loss "
            "needs; set it to 0, or add a reward that provides it (with weight 0 if need be)"
        )
    check_split(task, "train", config.learner.groups_per_step, "learner.groups_per_step")
    if config.evaluation.every:
        check_split(task, config.evaluation.split, 1, "evaluation.split")
    load_initial(config, config.model.build(task), task)
    return task


def check_rewards(config: RunConfig) -> RewardsConfig:
    """The config's rewards; raises `ConfigError` where it has none."""
    if config.rewards is None:
        raise ConfigError(
            "rewards: missing; there must be at least one term, such as "
            "rewards: {terms: [{path: 'rewards.detection:MeanAveragePrecisionReward'}]}"
        )
    return config.rewards


def check_queue(config: RunConfig) -> None:
    """Asks Redis, where the config names one, whether it loses nothing.

    Raises:
      RedisUnfit: a setting of it, and what to set.
      QueueUnavailable: it does not answer, or does not let us in.
    """
    if config.replay.url is None:
        return
    soon = config.replay.model_copy(update={"patience_seconds": START_SECONDS})
    connection = redis_connection(soon)
    from replay.redis_fitness import check_fitness

    try:
        check_fitness(connection)
    finally:
        connection.close()


def check_stage_one(task: Task) -> None:
    """Reads stage I of a task that is written in its code words: better once now than in workers.

    Raises:
      ValueError: the task's settings name no checkpoint.
      CheckpointMismatch: it is of other codes, tokens or planes, or of another image size.
    """
    codec = getattr(task, "stage_one", None)
    if codec is not None:
        codec.load()


def check_split(task: Task, split: str, at_least: int, setting: str) -> None:
    """Raises `ConfigError` where a split has too few examples."""
    count = len(task.example_ids(split))
    if count < at_least:
        raise ConfigError(
            f"{setting}: the split {split!r} has {count} examples, {at_least} are needed"
        )
