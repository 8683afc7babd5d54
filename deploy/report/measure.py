"""Judges the policies of a run: greedy decoding on a split, and sampled rewards."""

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np

from actors.evaluation import split_examples
from deploy.report.agreement import Agreement, measure_agreement
from deploy.report.judge import PolicyJudge, Progress, mean_scored
from deploy.report.measured import Curve, Picture, PictureRow, PolicyFigures, Report
from deploy.report.pictures import data_uri, evenly_spaced
from deploy.report.records import HELD_OUT_PREFIX, RunRecords, find_policies, load_policy
from deploy.report.timings import SECONDS_PREFIX, process_times
from deploy.reward_hacking import TRAINING_REWARD, reward_hacking_in
from vision.tasks.task import Example, Task


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
    """Builds what a run's config names, and measures all that its report shows.

    Raises:
      ValueError: the split is empty; or what building the task, reward or policies raises.
    """
    import jax

    from vision.tasks.registry import build_task

    config = records.config
    task = build_task(config.task)
    judge = PolicyJudge.of_run(config, task, progress)
    examples = split_examples(task, extent.split, extent.examples)
    if not examples:
        raise ValueError(f"the split {extent.split!r} of {records.directory} has no examples")
    sources, missing = find_policies(records, task.headline)
    if config.rewards is None:
        missing.append("The run has no reward (pretraining): there is no reward distribution.")
    elif not judge.rewards:
        missing.append("The run's reward is computed elsewhere: reports do not ask for it.")
    sampled = evenly_spaced(extent.sampled_examples, len(examples))
    model = config.model.build(task)
    policies, predictions, rewards = [], [], []
    for source in sources:
        params = jax.device_put(load_policy(source, records, model, task))
        greedy, greedy_rewards = judge.greedy(params, examples, source.label)
        figures = PolicyFigures(
            source.key,
            source.label,
            source.origin,
            source.step,
            task.evaluate(examples, greedy),
            mean_scored(greedy_rewards),
            0 if not judge.rewards else int(np.isnan(greedy_rewards).sum()),
            judge.distribution(
                params,
                [examples[i] for i in sampled],
                sampled,
                extent.samples_per_group,
                greedy_rewards[sampled],
                source.label,
            ),
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
        agreement=agreement_of(records, task.headline),
        reward_hacking=reward_hacking_in(task.headline, records.metrics, records.evaluations),
        made=how_made(extent.split),
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


def agreement_of(records: RunRecords, headline: str) -> Agreement | None:
    """Training reward against the held-out headline; None where a run has not both."""
    trained = curve_of(records.metrics, TRAINING_REWARD)
    judged = curve_of(records.evaluations, headline)
    if trained is None or judged is None:
        return None
    return measure_agreement(
        TRAINING_REWARD, trained.steps, trained.values, headline, judged.steps, judged.values
    )


def curve_of(lines: Sequence[Any], name: str) -> Curve | None:
    """One figure over the steps of lines; None where no line has it."""
    having = [line for line in lines if name in line]
    if not having:
        return None
    return Curve(name, [int(i["step"]) for i in having], [float(i[name]) for i in having])


def how_made(split: str) -> dict[str, str]:
    """When, where and with what figures were measured."""
    import os
    import time

    import jax

    return {
        "made": time.strftime("%Y-%m-%d %H:%M %Z"),
        "split": split,
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, {platform.system()}",
        "device": jax.devices()[0].device_kind,
        "python": platform.python_version(),
        "jax": version("jax"),
        "ray": version("ray"),
    }
