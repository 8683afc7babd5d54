"""Where each process of a run spent its time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deploy.report.records import RunRecords
from deploy.status import told_apart

SECONDS_PREFIX = "seconds/"
WAITING = "waiting"
# Pretraining writes means of a step since the line before, not the seconds of one step.
STEP, STEP_WAITING = "seconds/step", "seconds/waiting_for_data"


@dataclass(frozen=True)
class ProcessTime:
    """Seconds of one process by what it did."""

    process: str
    seconds: Mapping[str, float]
    restarts: int = 0


def process_times(records: RunRecords) -> list[ProcessTime]:
    """The learner from its metrics, workers from the last status, the evaluator from its lines."""
    times = []
    restarts = {
        str(worker.get("name")): int(worker.get("restarts") or 0)
        for worker in records.status.get("workers", ())
    }
    if learner := learner_seconds(records.metrics):
        times.append(ProcessTime("learner", learner, _learner_restarts(restarts)))
    for worker in records.status.get("workers", ()):
        if seconds := _worker_seconds(worker):
            name = str(worker["name"])
            times.append(ProcessTime(name, seconds, restarts[name]))
    evaluating = sum(float(line.get("seconds", 0)) for line in records.evaluations)
    if evaluating:
        times.append(
            ProcessTime("evaluator", {"evaluating": evaluating}, restarts.get("evaluator", 0))
        )
    return times


def _learner_restarts(restarts: Mapping[str, int]) -> int:
    """The hosts of a learner are started again together."""
    return restarts.get("learner", restarts.get("learner-0", 0))


def learner_seconds(metrics: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Totals of the learner's seconds/*."""
    total: dict[str, float] = {}
    before = 0
    for line in metrics:
        step = int(line["step"])
        if STEP in line:
            steps, waiting = step - before, float(line.get(STEP_WAITING, 0.0))
            parts = {"training": steps * (float(line[STEP]) - waiting), WAITING: steps * waiting}
        else:
            parts = {
                name.removeprefix(SECONDS_PREFIX).replace("_", " "): float(value)
                for name, value in line.items()
                if name.startswith(SECONDS_PREFIX)
            }
        for name, seconds in parts.items():
            total[name] = total.get(name, 0.0) + seconds
        before = step
    return total


def kinds_of_time(timings: Sequence[ProcessTime]) -> list[str]:
    """What the processes did; waiting last, so that in a chart work starts at one line."""
    kinds = dict.fromkeys(kind for time in timings for kind in time.seconds)
    return sorted(kinds, key=lambda kind: kind == WAITING)


def _worker_seconds(worker: Mapping[str, Any]) -> dict[str, float]:
    if "working" not in worker:
        return {}
    parts = told_apart(worker)
    seconds = {
        "working": float(worker["working"]) - sum(parts.values()),
        **parts,
        WAITING: float(worker.get("waiting", 0.0)),
    }
    return {name: value for name, value in seconds.items() if value > 0}
