"""`rewardtune analyze RUN`: the reward's distribution before and after, and whether it agrees with
what is wanted (Pinto et al. 2023, section 5), for any task."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deploy.report.agreement import Agreement
from deploy.report.judge import PolicyJudge, Progress, mean_scored
from deploy.report.measure import agreement_of, curve_of, how_made
from deploy.report.measured import Curve, PolicyFigures, plain_values
from deploy.report.pictures import evenly_spaced
from deploy.report.records import RunRecords, find_policies, load_policy, read_records
from deploy.reward_hacking import TRAINING_REWARD, RewardHacking, reward_hacking_in
from deploy.run_directory import RunDirectoryError, write_atomically

ANALYSIS_FILE, FIGURE_FILE = "analysis.json", "analysis.png"


@dataclass(frozen=True)
class Analysis:
    """Rewards of a run's policies, and how they relate to the metric.

    Attributes:
      headline: the metric that decides.
      split, examples, of_examples: `examples` were sampled, evenly spaced over the `of_examples`
        of a split.
      policies: `before` first, then `after` and `best` as far as the run has left them; their
        `distribution` says what was measured, `metrics` are empty: nothing else was.
      training: the training reward by step; None: the run has left none.
      held_out_split, held_out: the headline at each evaluation of the run; None: no evaluations.
      agreement: both of them against each other.
      reward_hacking: found when the reward rose and the held-out metric fell.
      missing: sentences on what the run has not left.
      made: when, where and with what it was measured.
    """

    run: str
    task: str
    headline: str
    split: str
    examples: int
    of_examples: int
    policies: Sequence[PolicyFigures]
    training: Curve | None = None
    held_out_split: str = ""
    held_out: Curve | None = None
    agreement: Agreement | None = None
    reward_hacking: RewardHacking | None = None
    missing: Sequence[str] = ()
    made: dict[str, str] | None = None

    def to_json(self) -> dict[str, Any]:
        """All figures as plain values; what is not finite is null."""
        plain: dict[str, Any] = plain_values(asdict(self))
        for policy in plain["policies"]:
            del policy["metrics"]
        return plain


def analyze_run(
    run_directory: Path,
    split: str = "test",
    samples: int = 8,
    examples: int = 100,
    progress: Progress = lambda line: None,
) -> Analysis:
    """Samples from the run's policies, and writes analysis.json and analysis.png into the run.

    Args:
      run_directory: runs/NAME.
      split: where the policies are sampled.
      samples: N for each example.
      examples: how many examples of the split, evenly spaced over it.
      progress: is told what is being done.
    Raises:
      RunDirectoryError: there is no run, it has no reward or nothing to analyze yet, or the files
        cannot be written.
      ValueError: the split is unknown or empty.
    """
    from deploy.report.analysis_figure import write_figure

    records = read_records(run_directory)
    analysis = measure_rewards(records, split, samples, examples, progress)
    try:
        text = json.dumps(analysis.to_json(), indent=1, allow_nan=False)
        write_atomically(run_directory / ANALYSIS_FILE, text)
        write_figure(analysis, run_directory / FIGURE_FILE)
    except OSError as error:
        raise RunDirectoryError(
            f"the analysis of {run_directory} cannot be written: {error.strerror}"
        ) from error
    return analysis


def measure_rewards(
    records: RunRecords, split: str, samples: int, examples: int, progress: Progress
) -> Analysis:
    """What `analyze_run` writes."""
    import jax

    from vision.tasks.registry import build_task

    config = records.config
    if config.rewards is None:
        raise RunDirectoryError(
            f"{records.directory} has no rewards (it was pretrained, not tuned): there is no "
            "reward to analyze; `rewardtune report` shows its metrics"
        )
    task = build_task(config.task)
    ids = task.example_ids(split)
    if not ids:
        raise ValueError(f"the split {split!r} of {records.directory} has no examples")
    positions = evenly_spaced(examples, len(ids))
    sampled = [task.load(split, ids[position], None) for position in positions]
    judge = PolicyJudge.of_run(config, task, progress)
    if not judge.rewards:
        raise RunDirectoryError(
            f"{records.directory} was tuned with a reward that is computed elsewhere "
            f"({', '.join(term.path for term in config.rewards.terms)}): it is not asked here; "
            "`rewardtune report` shows the run's metrics"
        )
    sources, missing = find_policies(records, task.headline)
    model = config.model.build(task)
    policies = []
    for source in sources:
        params = jax.device_put(load_policy(source, records, model, task))
        _, greedy = judge.greedy(params, sampled, source.label)
        policies.append(
            PolicyFigures(
                source.key,
                source.label,
                source.origin,
                source.step,
                metrics={},
                reward=mean_scored(greedy),
                unscored=int(np.isnan(greedy).sum()),
                distribution=judge.distribution(
                    params, sampled, positions, samples, greedy, source.label
                ),
            )
        )
    return Analysis(
        run=config.name,
        task=config.task.kind,
        headline=task.headline,
        split=split,
        examples=len(sampled),
        of_examples=len(ids),
        policies=policies,
        training=curve_of(records.metrics, TRAINING_REWARD),
        held_out_split=str(records.evaluations[-1]["split"]) if records.evaluations else "",
        held_out=curve_of(records.evaluations, task.headline),
        agreement=agreement_of(records, task.headline),
        reward_hacking=reward_hacking_in(task.headline, records.metrics, records.evaluations),
        missing=[*records.missing, *missing],
        made=how_made(split),
    )
