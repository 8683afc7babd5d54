"""What a run has left in its directory, read for a report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from actors.evaluator import BEST_FILE, read_evaluations
from deploy.config import RunConfig
from deploy.reward_hacking import comparable
from deploy.run_directory import (
    CONFIG_FILE,
    EVALUATION_FILE,
    STATUS_FILE,
    RunDirectoryError,
    read_run,
    read_status,
)
from learner.metrics import METRICS_FILE, read_metrics
from learner.tune import FINAL_FILE
from vision.tasks.task import Task, token_names

CHECKPOINTS_DIRECTORY = "checkpoints"
# Pretraining writes its held-out metrics among the others, under this prefix.
HELD_OUT_PREFIX = "validation/"


@dataclass(frozen=True)
class RunRecords:
    """A run as its files tell it.

    Attributes:
      settings: the resolved config, YAML.
      metrics: lines of metrics.jsonl, by step.
      evaluations: held-out metrics, by step, on the same examples.
      status: the last status.json; empty when there is none.
      missing: a sentence for each thing that the run has not left.
    """

    directory: Path
    config: RunConfig
    settings: str
    metrics: Sequence[Mapping[str, Any]] = ()
    evaluations: Sequence[Mapping[str, Any]] = ()
    status: Mapping[str, Any] = field(default_factory=dict)
    missing: Sequence[str] = ()

    @property
    def last_step(self) -> int:
        """The last step that the metrics tell of; 0 without any."""
        return int(self.metrics[-1]["step"]) if self.metrics else 0


@dataclass(frozen=True)
class PolicySource:
    """A policy of the run: where its parameters are.

    Attributes:
      key: `before`, `after` or `best`.
      label: what the page calls it.
      origin: the file, or what else it was made from.
      step: finished steps; None where it is not known.
    """

    key: str
    label: str
    origin: str
    step: int | None


def read_records(directory: Path) -> RunRecords:
    """Reads what is there.

    Raises:
      RunDirectoryError: there is no run, it trained stage I, which is no policy, or it has left no
        policy and no metrics.
      ValueError: a file is broken in the middle.
    """
    config = read_run(directory)
    if config.stage_one is not None and not (directory / STATUS_FILE).exists():
        raise RunDirectoryError(
            f"{directory} trained stage I, code words and no policy, so that there is nothing to "
            f"judge before and after. Its held-out metrics stand in {EVALUATION_FILE}, its curves "
            f"in {METRICS_FILE} and tensorboard/; report the run of stage II that reads its "
            f"{FINAL_FILE}"
        )
    missing = []
    metrics: list[dict[str, Any]] = []
    if (directory / METRICS_FILE).exists():
        metrics = list(read_metrics(directory))
    if not metrics:
        missing.append(f"No {METRICS_FILE}: there are no training curves and no learner's times.")
    every = read_evaluations(directory)
    evaluations = comparable(every) or _evaluations_in(metrics)
    if len(evaluations) < len(every):
        missing.append(
            f"{len(every) - len(evaluations)} evaluations of an earlier part of the run: they were "
            "made on other examples than the last one."
        )
    if not evaluations:
        missing.append(
            "No held-out evaluations during the run: the curves show training only "
            "(evaluation.every sets how often a run evaluates)."
        )
    status: dict[str, Any] = {}
    if (directory / STATUS_FILE).exists():
        status = read_status(directory)
    elif config.rewards is not None:
        missing.append(f"No {STATUS_FILE}: where the workers spent their time is not known.")
    if not metrics and not _has_policy(directory):
        raise RunDirectoryError(
            f"{directory}: nothing to report yet: no {METRICS_FILE}, no {FINAL_FILE}, no "
            f"{BEST_FILE} and no checkpoint; has `rewardtune tune` run?"
        )
    settings = (directory / CONFIG_FILE).read_text()
    return RunRecords(directory, config, settings, metrics, evaluations, status, missing)


def _has_policy(directory: Path) -> bool:
    files = (directory / FINAL_FILE, directory / BEST_FILE)
    return any(path.exists() for path in files) or bool(_checkpoint_steps(directory))


def _checkpoint_steps(directory: Path) -> list[int]:
    paths = (directory / CHECKPOINTS_DIRECTORY).glob("*")
    return sorted(int(path.name) for path in paths if path.name.isdigit())


def _evaluations_in(metrics: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The held-out metrics among those of pretraining."""
    found = []
    for line in metrics:
        held_out = {
            name.removeprefix(HELD_OUT_PREFIX): value
            for name, value in line.items()
            if name.startswith(HELD_OUT_PREFIX)
        }
        if held_out:
            found.append({"step": line["step"], "split": "validation", **held_out})
    return found


def find_policies(records: RunRecords, headline: str) -> tuple[list[PolicySource], list[str]]:
    """The policies that can be judged, and what is missing of them.

    `before` is always there. `after` is the final policy, or of a run that has not ended the one
    of its newest checkpoint. `best` is the best by `headline` on the held-out split, left out
    when it is `after`.
    """
    config, directory = records.config, records.directory
    initial = f"random, of seed {config.seed}" if config.initial is None else str(config.initial)
    policies = [PolicySource("before", "before", initial, 0)]
    missing = []
    after_step: int | None = None
    if (directory / FINAL_FILE).exists():
        after_step = records.last_step or None
        policies.append(PolicySource("after", "after", FINAL_FILE, after_step))
    elif steps := _checkpoint_steps(directory):
        after_step = steps[-1]
        origin = f"{CHECKPOINTS_DIRECTORY}/{after_step}"
        policies.append(PolicySource("after", f"after {after_step:,} steps", origin, after_step))
        missing.append(
            f"No {FINAL_FILE}: the run has not ended. “After” is its newest checkpoint, step "
            f"{after_step}; the command that started the run resumes it."
        )
    else:
        missing.append(f"No {FINAL_FILE} and no checkpoint: there is no “after” to judge.")
    scored = [line for line in records.evaluations if headline in line]
    best = max(scored, key=lambda line: float(line[headline]), default=None)
    if (directory / BEST_FILE).exists():
        step = None if best is None else int(best["step"])
        if step is None or step != after_step:
            split = "the run" if best is None else str(best["split"])
            policies.append(PolicySource("best", f"best on {split}", BEST_FILE, step))
    return policies, missing


def load_policy(source: PolicySource, records: RunRecords, model: Any, task: Task) -> Any:
    """The parameters of a policy.

    Raises:
      CheckpointError, CheckpointMismatch: the file is missing, broken, or of another model.
    """
    from deploy.processes import load_initial
    from learner.checkpoints import Checkpoints
    from vision.models.checkpoint import load_npz
    from vision.models.sequence import abstract_params

    if source.key == "before":
        return load_initial(records.config, model, task)
    if source.origin.endswith(".npz"):
        return load_npz(records.directory / source.origin, model, token_names(task))
    with Checkpoints(records.directory / CHECKPOINTS_DIRECTORY) as checkpoints:
        assert source.step is not None
        return checkpoints.restore_params(abstract_params(model), source.step)[1]
