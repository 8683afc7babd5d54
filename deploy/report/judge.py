"""Decodes and scores the policies of a run: what reports and analyses measure with."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from actors.engine import Engine
from actors.evaluation import greedy_predictions
from deploy.config import RunConfig
from deploy.report.distribution import RewardDistribution, describe_rewards
from protos.trajectory import Failed, Scored
from rewards.judge import judge_group
from rewards.reward import Reward
from vision.tasks.task import Example, Task

logger = logging.getLogger(__name__)

REASONS_TOLD = 5
Progress = Callable[[str], None]


class PolicyJudge:
    """One task, engine and reward, for all policies of a run."""

    def __init__(
        self,
        task: Task,
        engine: Engine,
        reward: Reward | None,
        config: RunConfig,
        progress: Progress,
    ):
        self._task, self._engine, self._reward = task, engine, reward
        self._config, self._progress = config, progress
        self._told: set[str] = set()

    @classmethod
    def of_run(cls, config: RunConfig, task: Task, progress: Progress) -> "PolicyJudge":
        """With the engine of a run's config, and its reward where that is computed here."""
        from deploy.processes import build_engine
        from rewards.combine import build_local_reward

        reward = None if config.rewards is None else build_local_reward(config.rewards, task)
        return cls(task, build_engine(config, task), reward, config, progress)

    @property
    def rewards(self) -> bool:
        """Whether there is a reward to judge with."""
        return self._reward is not None

    def greedy(
        self, params: Any, examples: Sequence[Example], label: str
    ) -> tuple[list[Any], np.ndarray]:
        """Greedy predictions of examples, and their rewards [E] (NaN: not scored)."""
        total = len(examples)
        self._progress(f"{label}: decoding {total:,} examples")
        every, told = max(1, total // 4), 0

        def tell(done: int) -> None:
            nonlocal told
            if done // every > told and done < total:
                told = done // every
                self._progress(f"{label}: {done:,} of {total:,} decoded")

        batch = self._config.evaluation.batch_size
        predictions = greedy_predictions(self._task, self._engine, params, examples, batch, tell)
        pairs = zip(examples, predictions, strict=True)
        return predictions, np.array([self._rewards(e, [p])[0] for e, p in pairs])

    def distribution(
        self,
        params: Any,
        examples: Sequence[Example],
        positions: Sequence[int],
        count: int,
        greedy: np.ndarray,
        label: str,
    ) -> RewardDistribution | None:
        """The distribution of sampled rewards; None without a reward or anything to sample.

        Args:
          positions: of the examples in their split; the seeds are of these alone, so that all
            policies, reports and analyses draw with the same.
          count: N samples an example.
          greedy: [E], rewards of greedy decoding.
        """
        if self._reward is None or not examples or count < 1:
            return None
        self._progress(f"{label}: {count} samples for each of {len(examples)} examples")
        seeds = example_seeds(self._config.seed, positions)
        size = min(self._config.actors.groups_per_block, len(examples))
        rewards, logprobs = [], []
        for first in range(0, len(examples), size):
            # One shape, so that nothing recompiles: the last block is filled up.
            filled = [min(first + i, len(examples) - 1) for i in range(size)]
            images = np.stack([examples[i].image for i in filled])
            samples = self._engine.sample(params, images, seeds[filled], count)
            for row, example in enumerate(examples[first : first + size]):
                decoded = self._task.decode(example, samples.tokens[row], samples.logprobs[row])
                rewards.append(self._rewards(example, decoded))
                logprobs.append(samples.logprobs[row].sum(axis=-1, dtype=np.float64))
        return describe_rewards(np.stack(rewards), np.stack(logprobs), greedy)

    def _rewards(self, example: Example, predictions: Sequence[Any]) -> np.ndarray:
        """[N] rewards; NaN where there is none."""
        if self._reward is None:
            return np.full(len(predictions), np.nan)
        outcomes = judge_group(self._reward, example, predictions)
        if not isinstance(outcomes, tuple):
            self._tell(example, outcomes.reason)
            return np.full(len(predictions), np.nan)
        for outcome in outcomes:
            if isinstance(outcome, Failed):
                self._tell(example, outcome.reason)
        return np.array([o.reward if isinstance(o, Scored) else np.nan for o in outcomes])

    def _tell(self, example: Example, reason: str) -> None:
        """Why a sample has no reward: each of the first reasons once."""
        if reason not in self._told and len(self._told) < REASONS_TOLD:
            self._told.add(reason)
            logger.warning("example %s has no reward: %s", example.example_id, reason)


def example_seeds(seed: int, positions: Sequence[int]) -> np.ndarray:
    """[len(positions)] uint64: a sampling seed for each position of a split."""
    count = max(positions, default=-1) + 1
    return np.random.SeedSequence(seed).generate_state(count, np.uint64)[list(positions)]


def mean_scored(rewards: np.ndarray) -> float | None:
    """The mean of what was scored; None: nothing was."""
    return float(np.nanmean(rewards)) if np.isfinite(rewards).any() else None
