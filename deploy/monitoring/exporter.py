"""Exports a run's metrics through Ray, from the controller's status.

The controller knows the totals of the queue and of every worker, so it alone exports: no series
belongs to a worker, and none is left behind, or counted twice, when one dies. A worker that died
since it was last asked (once a second) takes what it did since then with it.
"""

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any, Protocol

from ray.util.metrics import Counter, Gauge

from deploy.config import RunConfig
from deploy.monitoring.catalogue import (
    BY_NAME,
    ENDED,
    METRICS,
    ROLES,
    RUN_STATES,
    WORKER_STATES,
    Metric,
)

Reading = tuple[str, float, dict[str, str]]
"""Name of a gauge, its value, its labels."""
Total = tuple[str, str, float, dict[str, str]]
"""Name of a counter, whose total it is, the total, its labels."""


class Recorder(Protocol):
    """What the values go to."""

    def set(self, name: str, value: float, labels: dict[str, str]) -> None:
        """Sets a gauge."""
        ...

    def add(self, name: str, value: float, labels: dict[str, str]) -> None:
        """Adds to a counter; 0 makes it appear."""
        ...


class RayRecorder:
    """Exports through this process of Ray, which must be connected."""

    def __init__(self, run: str) -> None:
        self._run = {"run": run}
        self._gauges: dict[str, Gauge] = {}
        self._counters: dict[str, _Counter] = {}
        for metric in METRICS:
            keys = ("run", *metric.labels)
            text = f"{metric.help} ({metric.unit})"
            if metric.kind == "gauge":
                self._gauges[metric.name] = Gauge(metric.ray_name, text, keys)
            else:
                self._counters[metric.name] = _Counter(metric.ray_name, text, keys)

    def set(self, name: str, value: float, labels: dict[str, str]) -> None:
        """See `Recorder.set`."""
        self._gauges[name].set(float(value), self._run | labels)

    def add(self, name: str, value: float, labels: dict[str, str]) -> None:
        """See `Recorder.add`."""
        self._counters[name].add(float(value), self._run | labels)


class _Counter(Counter):
    """A counter that can appear before it counts: `rate` sees its first increment only so."""

    def add(self, value: float, tags: dict[str, str]) -> None:
        """Adds 0 or more."""
        self._record(value, tags=tags)


class RunMetrics:
    """Turns a run's statuses into gauges and counters.

    A total is of one process or of the queue, and begins at 0 with it. One that has become smaller
    has begun anew: all of it is new.
    """

    def __init__(self, config: RunConfig, recorder: Recorder | None = None) -> None:
        """Exports nothing yet.

        Args:
          config: of the run.
          recorder: where to; None: through Ray, which need not be there before the first `update`.
        """
        self._config = config
        self._recorder = recorder
        self._last: dict[tuple[str, ...], float] = {}

    def update(self, status: Mapping[str, Any]) -> None:
        """Exports what `deploy.run_status` says."""
        if self._recorder is None:
            self._recorder = RayRecorder(self._config.name)
        if not self._last:
            self._seed(self._recorder)
        for name, value, labels in self._gauges(status):
            self._recorder.set(name, value, labels)
        for name, owner, total, labels in self._totals(status):
            key = (name, owner, *labels.values())
            before = self._last.get(key, 0.0)
            self._recorder.add(name, total - before if total >= before else total, labels)
            self._last[key] = total

    def _seed(self, recorder: Recorder) -> None:
        for metric in METRICS:
            for labels in usual_labels(metric) if metric.seeded else ():
                if metric.kind == "counter":
                    recorder.add(metric.name, 0.0, labels)
                else:
                    recorder.set(metric.name, 0.0, labels)

    def _gauges(self, status: Mapping[str, Any]) -> Iterator[Reading]:
        yield "status_timestamp_seconds", status["time"], {}
        yield "step", status["step"], {}
        yield "step_target", status["steps"], {}
        yield "staleness_bound_versions", self._config.lag, {}
        for state in RUN_STATES:
            yield "run_state", state == status["state"], {"state": state}
        for role in BY_NAME["bottleneck"].labels["role"]:
            yield "bottleneck", role == status["bottleneck"]["role"], {"role": role}
        yield "reward_hacking", status["reward_hacking"] is not None, {}
        yield from _queue_gauges(status["queue"])
        yield from _learning_gauges(status["metrics"])
        yield from _worker_gauges(status)

    def _totals(self, status: Mapping[str, Any]) -> Iterator[Total]:
        for state in ENDED:
            yield "ended_total", "run", state == status["state"], {"state": state}
        queue = status["queue"]
        yield "groups_total", "queue", queue["quarantined"], {"outcome": "quarantined"}
        for event in ("expired", "redelivered"):
            yield "leases_total", "queue", queue[event], {"event": event}
        for worker in status["workers"]:
            name, role, restarts = worker["name"], worker["role"], worker["restarts"]
            yield "worker_restarts_total", name, restarts, {"role": role}
            name = f"{name}.{restarts}"  # all else begins anew with a process
            if worker is status["workers"][0]:
                yield from self._step_totals(name, worker)
            if role == "learner":
                yield from _learner_totals(name, worker)
            elif role in BY_NAME["worker_groups_total"].labels["role"]:
                yield from _worker_totals(name, role, worker)

    def _step_totals(self, name: str, learner: Mapping[str, Any]) -> Iterator[Total]:
        """Of the first learner: where there are several hosts, they train a step together."""
        # A resumed process begins at its checkpoint's step.
        steps = learner.get("step", 0) - learner.get("resumed", 0)
        yield "steps_total", name, steps, {}
        groups = steps * self._config.learner.groups_per_step
        yield "groups_total", name, groups, {"outcome": "trained"}


def usual_labels(metric: Metric) -> Iterator[dict[str, str]]:
    """Every combination of a metric's label values."""
    for values in product(*metric.labels.values()):
        yield dict(zip(metric.labels, values, strict=True))


def _queue_gauges(queue: Mapping[str, Any]) -> Iterator[Reading]:
    for stage, values in queue["stages"].items():
        for state in ("ready", "leased"):
            yield "queue_groups", values[state], {"stage": stage, "state": state}
        yield "queue_oldest_wait_seconds", values["oldest_wait"], {"stage": stage}
        for quantile, key in (("0.5", "wait_p50"), ("0.95", "wait_p95")):
            labels = {"stage": stage, "quantile": quantile}
            yield "queue_wait_seconds", values[key], labels
    yield "queue_out_groups", queue["out"], {}
    yield "queue_window_groups", queue["window"], {}
    yield "queue_unreachable", bool(queue.get("waiting")), {}


_LEARNING: tuple[tuple[str, str, dict[str, str]], ...] = (
    ("reward/mean", "reward_mean", {}),
    ("reward/unscored_share", "reward_unscored_ratio", {}),
    ("policy/entropy", "policy_entropy_nats", {}),
    ("optimizer/gradient_norm", "gradient_norm", {}),
    ("staleness/mean", "staleness_versions", {"stat": "mean"}),
    ("staleness/max", "staleness_versions", {"stat": "max"}),
)


def _learning_gauges(metrics: Mapping[str, float]) -> Iterator[Reading]:
    """A step without a scored sample has no mean: the one before stays."""
    for key, name, labels in _LEARNING:
        if key in metrics:
            yield name, metrics[key], labels


def _worker_gauges(status: Mapping[str, Any]) -> Iterator[Reading]:
    workers = status["workers"]
    for role, state in product(ROLES, WORKER_STATES):
        count = sum((w["role"], w["state"]) == (role, state) for w in workers)
        yield "workers", count, {"role": role, "state": state}
    versions = [w["policy_version"] for w in workers if w.get("policy_version", -1) >= 0]
    if versions:
        yield "sampler_lag_versions", max(0, status["step"] - min(versions)), {}


def _learner_totals(name: str, learner: Mapping[str, Any]) -> Iterator[Total]:
    yield "groups_total", name, learner.get("dropped", 0), {"outcome": "dropped"}
    for part, seconds in learner.get("seconds", {}).items():
        yield "learner_seconds_total", name, seconds, {"part": part}


def _worker_totals(name: str, role: str, worker: Mapping[str, Any]) -> Iterator[Total]:
    if "groups" not in worker:  # it has not answered yet
        return
    for activity in ("working", "waiting"):
        labels = {"role": role, "activity": activity}
        yield "worker_seconds_total", name, worker[activity], labels
    yield "worker_groups_total", name, worker["groups"], {"role": role}
    if role == "sampler":
        yield "sampler_tokens_total", name, worker["tokens"], {}
        yield "sampler_weights_seconds_total", name, worker["loading_weights"], {}
        return
    for part, seconds in worker["parts"].items():
        yield "reward_seconds_total", name, seconds, {"part": part}
    for kind in ("group", "sample"):
        yield "reward_failures_total", name, worker[f"failed_{kind}s"], {"kind": kind}
