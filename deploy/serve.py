"""The servers that `rewardtune serve` starts: from a config to an exit code."""

import asyncio
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, cast

from deploy.checks import check_rewards
from deploy.config import RunConfig
from deploy.config_file import ConfigError
from deploy.logs import RepeatLimiter
from deploy.runs import prepare_data
from protos.edge import EdgeOptions
from vision.tasks.registry import build_task

if TYPE_CHECKING:
    from rewards.human import Mode


def serve_reward(config: RunConfig, options: EdgeOptions, threads: int = 1) -> int:
    """Serves the reward of a config to other processes; returns the exit code.

    Raises:
      ConfigError: the config has no reward, or one that is remote itself.
      EdgeError, RewardLoadError: it cannot listen, or the reward cannot be built.
    """
    from rewards.combine import build_local_reward
    from rewards.service import serve

    rewards = check_rewards(config)
    prepare_data(config)
    task = build_task(config.task)
    reward = build_local_reward(rewards, task)
    if reward is None:
        raise ConfigError(
            "rewards: this reward is computed elsewhere itself; serve a config whose terms are "
            f"computed here, not {[term.path for term in rewards.terms]}"
        )
    log_to_stderr()
    return asyncio.run(
        serve(
            task,
            reward,
            options,
            rewards.deadline_seconds,
            threads,
            lambda address: print(f"serving {config.task.kind} rewards at {address}", flush=True),
        )
    )


def serve_human(
    config: RunConfig,
    mode: str,
    answers: Path | None,
    options: EdgeOptions,
    page_host: str,
    page_port: int,
) -> None:
    """Serves the rewards that people give on a web page.

    Raises:
      ConfigError: an unknown mode.
      EdgeError, AnswerError: it cannot listen, or the file of answers is broken.
    """
    from rewards.human_page import serve

    if mode not in ("compare", "rate"):
        raise ConfigError(f"--mode is {mode!r}; it must be compare or rate")
    prepare_data(config)
    path = answers or config.runs / f"{config.name}_answers.jsonl"

    def tell(address: str, url: str) -> None:
        print(f"serving people's rewards at {address}", flush=True)
        print(f"open {url} (whoever has this address may answer)", flush=True)
        print(f"answers are kept in {path}", flush=True)

    log_to_stderr()
    task = build_task(config.task)
    asyncio.run(serve(task, cast("Mode", mode), path, options, page_host, page_port, tell))


def log_to_stderr() -> None:
    """A server tells of its start, end and failures, whatever else is at WARNING; none floods."""
    root = logging.getLogger()
    for handler in list(root.handlers):
        if type(handler) is logging.StreamHandler:  # the command line's
            root.removeHandler(handler)
            root.addHandler(RepeatLimiter([handler]))
    for name in ("rewards", "protos", "replay", "learner", "deploy"):
        logging.getLogger(name).setLevel(logging.INFO)


def leave(code: int) -> NoReturn:
    """Ends the process at once: Python would wait for a thread that still computes, or hangs."""
    logging.shutdown()
    sys.stdout.flush()
    os._exit(code)
