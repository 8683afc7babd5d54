"""Joining a run from outside of Ray: its config, and whether this process means the same by it."""

import json
from collections.abc import Sequence

from deploy.config import RunConfig
from deploy.config_file import ConfigError, read_config, validate_config
from deploy.same_run import OTHER_HARDWARE, check_same_run
from replay.remote_queue import ServedRun
from rewards.facts import differences, task_facts
from vision.tasks.task import Task


def joined_config(
    run: ServedRun, address: str, config: str | None, overrides: Sequence[str]
) -> RunConfig:
    """The config of a run that is served at `address`, as it is meant here.

    Args:
      run: what is served.
      address: by whom.
      config: a file; None: what the server has.
      overrides: changes to it, such as other paths or another kind of device.

    Raises:
      ConfigError: it is not a config, or not the run's.
    """
    if config is None:
        served = validate_config(json.loads(run.config), overrides, RunConfig, address)
    else:
        served = read_config(config, overrides, RunConfig)
    theirs = RunConfig.model_validate_json(run.config)
    who = f"the run {run.name} that {address} serves"
    check_same_run(served, theirs, who, may_differ=OTHER_HARDWARE)
    tracing = served.tracing.model_copy(update={"run_id": theirs.tracing.run_id})
    return served.model_copy(update={"tracing": tracing})


def check_task(task: Task, run: ServedRun, address: str) -> None:
    """Whether a token sequence means the same here as in the run.

    Raises:
      ConfigError: naming what differs, such as the examples of a split.
    """
    odd = differences(task_facts(task), run.task)
    if odd:
        raise ConfigError(
            f"the task is not that of the run {run.name} that {address} serves: {'; '.join(odd)}"
        )
