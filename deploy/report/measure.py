"""Judges the policies of a run: greedy decoding on a split, and sampled rewards."""

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np

from actors.engine import Engine
from actors.evaluation import greedy_predictions, split_examples
from deploy.report.distribution import describe_rewards
from deploy.report.measured import Curve, Picture, PictureRow, PolicyFigures, Report
from deploy.report.pictures import data_uri, evenly_spaced
from deploy.report.records import HELD_OUT_PREFIX, RunRecords, find_policies, load_policy
from deploy.report.timings import SECONDS_PREFIX, process_times
from protos.trajectory import Scored
from rewards.judge import judge_group
from rewards.reward import Reward
from vision.tasks.task import Example, Task

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Extent:
    """How much a report looks at.

    Attributes:
      split: where the policies are judged.
      examples: the first so many of it; None: all.
      pictures: examples that are drawn.
      samples_per_group, sampled_examples: N samples for each of so many examples.
    """

    split: str
    examples: int | None
    pictures: int
    samples_per_group: int
    sampled_examples: int


def measure(records: RunRecords, extent: Extent, progress: Progress) -> Report:
    """Builds task, engine and reward of a run, and measures all that its report shows.

    Raises:
      ValueError: the split is empty; or what building the task, reward or policies raises.
    """
    import jax

    from deploy.processes import build_engine
    from rewards.combine import build_reward
    from vision.tasks.registry import build_task

    config = records.config
    task = build_task(config.task)
    engine = build_engine(config, task)
    reward = None if config.rewards is None else build_reward(config.rewards, task)
    examples = split_examples(task, extent.split, extent.examples)
    if not examples:
        raise ValueError(f"the split {extent.split!r} of {records.directory} has no examples")
    sources, missing = find_policies(records, task.headline)
    if reward is None:
        missing.append("The run has no reward (pretraining): there is no reward distribution.")
    judge = _Judge(task, engine, reward, examples, records, extent, progress)
    model = config.model.build(task)
    policies, predictions, rewards = [], [], []
    for source in sources:
        params = jax.device_put(load_policy(source, records, model))
        greedy, greedy_rewards = judge.greedy(params, source.label)
        figures = PolicyFigures(
            source.key,
            source.label,
            source.origin,
            source.step,
            task.evaluate(examples, greedy),
            _mean(greedy_rewards),
            0 if reward is None else int(np.isnan(greedy_rewards).sum()),
            judge.distribution(params, source.label, greedy_rewards),
        )
        policies.append(figures)
        predictions.append(greedy)
        rewards.append(greedy_rewards)
    return Report(
        run=config.name,
        task=config.task.kind,
        headline=task.headline,
        split=extent.split,
        examples=len(examples),
        of_examples=len(task.example_ids(extent.split)),
        policies=policies,
        curves=training_curves(records),
        held_out_split=str(records.evaluations[0]["split"]) if records.evaluations else "",
        held_out=_curves(records.evaluations, ("split", "seconds")),
        timings=process_times(records),
        missing=[*records.missing, *missing],
        made=_made(extent),
        settings=records.settings,
        pictures=[
            _row(
                task,
                examples[i],
                policies[:2],
                [p[i] for p in predictions[:2]],
                [r[i] for r in rewards],
            )
            for i in evenly_spaced(extent.pictures, len(examples))
        ],
    )


class _Judge:
    """Decodes and scores with one task, engine and reward."""

    def __init__(
        self,
        task: Task,
        engine: Engine,
        reward: Reward | None,
        examples: Sequence[Example],
        records: RunRecords,
        extent: Extent,
        progress: Progress,
    ):
        self._task, self._engine, self._reward = task, engine, reward
        self._examples, self._config, self._extent = examples, records.config, extent
        self._progress = progress
        self._sampled = evenly_spaced(extent.sampled_examples, len(examples))

    def greedy(self, params: Any, label: str) -> tuple[list[Any], np.ndarray]:
        """Greedy predictions of all examples, and their rewards [E] (NaN: not scored)."""
        total = len(self._examples)
        self._progress(f"{label}: decoding {total:,} examples")
        every, told = max(1, total // 4), 0

        def tell(done: int) -> None:
            nonlocal told
            if done // every > told and done < total:
                told = done // every
                self._progress(f"{label}: {done:,} of {total:,} decoded")

        batch = self._config.evaluation.batch_size
        predictions = greedy_predictions(
            self._task, self._engine, params, self._examples, batch, tell
        )
        pairs = zip(self._examples, predictions, strict=True)
        return predictions, np.array([self._rewards(e, [p])[0] for e, p in pairs])

    def distribution(self, params: Any, label: str, greedy: np.ndarray) -> Any:
        """The distribution of sampled rewards; None without a reward."""
        count = self._extent.samples_per_group
        if self._reward is None or not self._sampled or count < 1:
            return None
        self._progress(f"{label}: {count} samples for each of {len(self._sampled)} examples")
        # Of the split's position alone, so that all policies draw with the same seeds.
        seeds = np.random.SeedSequence(self._config.seed).generate_state(
            len(self._examples), np.uint64
        )
        size = min(self._config.actors.groups_per_block, len(self._sampled))
        rewards, logprobs = [], []
        for first in range(0, len(self._sampled), size):
            chosen = self._sampled[first : first + size]
            filled = chosen + chosen[-1:] * (size - len(chosen))  # one shape: nothing recompiles
            images = np.stack([self._examples[i].image for i in filled])
            samples = self._engine.sample(params, images, seeds[filled], count)
            for row, index in enumerate(chosen):
                example = self._examples[index]
                decoded = self._task.decode(example, samples.tokens[row], samples.logprobs[row])
                rewards.append(self._rewards(example, decoded))
                logprobs.append(samples.logprobs[row].sum(axis=-1, dtype=np.float64))
        return describe_rewards(np.stack(rewards), np.stack(logprobs), greedy[self._sampled])

    def _rewards(self, example: Example, predictions: Sequence[Any]) -> np.ndarray:
        """[N] rewards; NaN where there is none."""
        if self._reward is None:
            return np.full(len(predictions), np.nan)
        outcomes = judge_group(self._reward, example, predictions)
        if not isinstance(outcomes, tuple):
            return np.full(len(predictions), np.nan)
        return np.array([o.reward if isinstance(o, Scored) else np.nan for o in outcomes])


def training_curves(records: RunRecords) -> list[Curve]:
    """What the learner wrote, without times and held-out metrics."""
    curves = _curves(records.metrics, ("time",))
    return [c for c in curves if not c.name.startswith((SECONDS_PREFIX, HELD_OUT_PREFIX))]


def _curves(lines: Sequence[Any], without: Sequence[str]) -> list[Curve]:
    points: dict[str, tuple[list[int], list[float]]] = {}
    for line in lines:
        for name, value in line.items():
            if name != "step" and name not in without:
                steps, values = points.setdefault(name, ([], []))
                steps.append(int(line["step"]))
                values.append(float(value))
    return [Curve(name, steps, values) for name, (steps, values) in points.items()]


def _row(
    task: Task,
    example: Example,
    policies: Sequence[PolicyFigures],
    predictions: Sequence[Any],
    rewards: Sequence[float],
) -> PictureRow:
    pictures = [Picture("ground truth", data_uri(task.draw(example, None)))]
    for policy, prediction, reward in zip(policies, predictions, rewards, strict=False):
        caption = policy.label + ("" if np.isnan(reward) else f" · reward {reward:.2f}")
        pictures.append(Picture(caption, data_uri(task.draw(example, prediction))))
    return PictureRow(example.example_id, pictures)


def _mean(values: np.ndarray) -> float | None:
    return float(np.nanmean(values)) if np.isfinite(values).any() else None


def _made(extent: Extent) -> dict[str, str]:
    import os
    import time

    import jax

    return {
        "made": time.strftime("%Y-%m-%d %H:%M %Z"),
        "split": extent.split,
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, {platform.system()}",
        "device": jax.devices()[0].device_kind,
        "python": platform.python_version(),
        "jax": version("jax"),
        "ray": version("ray"),
    }
