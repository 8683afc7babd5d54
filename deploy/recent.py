"""What a run did in the last half minute, from the statuses that its controller writes.

Totals since the start hide what is the matter now. Nothing is counted anew: a group that is in
`to_train` or acknowledged has been scored, and one that is in `to_score` has been sampled, so how
many have passed each stage stands in the queue's figures, whoever did the work and wherever.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

WINDOW_SECONDS = 30.0
ROLES = ("learner", "sampler", "reward", "evaluator")
LEARNER_WAITING = "waiting"


@dataclass(frozen=True)
class _Sample:
    """The totals of one status.

    Attributes:
      passed: groups that have left each stage.
      workers: (restarts, groups, seconds working, seconds waiting) by name, where it tells them.
    """

    time: float
    step: int
    passed: Mapping[str, int]
    workers: Mapping[str, tuple[int, int, float, float]]


class Recent:
    """Remembers as many statuses as the last half minute needs, and the first."""

    def __init__(self) -> None:
        self._samples: deque[_Sample] = deque(maxlen=10_000)
        self._first: _Sample | None = None

    def observe(self, status: Mapping[str, Any], now: float) -> dict[str, Any]:
        """Takes a status in; returns what is to be added to it: `throughput` and `roles`.

        Args:
          status: see `deploy.run_status`; `recent` is added to its workers.
          now: seconds of a clock that never goes back.
        """
        sample = _sample(status, now)
        if self._samples and _went_back(self._samples[-1], sample):
            self._samples.clear()  # the learner resumed from its checkpoint
            self._first = None
        if status["state"] == "starting":
            self._samples.clear()  # as long as nobody can work, nothing is slow
        elif self._first is None:
            self._first = sample
        self._samples.append(sample)
        # A step may take longer than the window: one must have ended in it.
        while len(self._samples) > 2 and self._old_enough(self._samples[1], sample):
            self._samples.popleft()
        base = self._samples[0]
        state = status["state"]
        shares = {w["name"]: _recent(w, state, base, sample) for w in status["workers"]}
        for worker in status["workers"]:
            worker["recent"] = shares[worker["name"]]
        return {
            "throughput": self._throughput(base, sample),
            "roles": {
                role: _role(role, status, shares)
                for role in ROLES
                if any(worker["role"] == role for worker in status["workers"])
            },
        }

    def _old_enough(self, candidate: _Sample, newest: _Sample) -> bool:
        return newest.time - candidate.time >= WINDOW_SECONDS and candidate.step < newest.step

    def _throughput(self, base: _Sample, newest: _Sample) -> dict[str, Any]:
        first = self._first or newest
        return {
            "seconds": newest.time - base.time,
            "steps": {"recent": _steps(base, newest), "average": _steps(first, newest)},
            "groups": {
                stage: {
                    "recent": _rate(base, newest, stage),
                    "average": _rate(first, newest, stage),
                }
                for stage in newest.passed
            },
        }


def _sample(status: Mapping[str, Any], now: float) -> _Sample:
    queue = status["queue"]
    acked = queue["trained"] + queue["dropped"]
    held = {stage: of["ready"] + of["leased"] for stage, of in queue["stages"].items()}
    scored = acked + held["to_train"]
    return _Sample(
        time=now,
        step=status["step"],
        passed={"to_sample": scored + held["to_score"], "to_score": scored, "to_train": acked},
        workers={
            worker["name"]: (worker["restarts"], *spent)
            for worker in status["workers"]
            if (spent := _spent(worker)) is not None
        },
    )


def _spent(worker: Mapping[str, Any]) -> tuple[int, float, float] | None:
    """(groups, seconds working, seconds waiting) since its process started, as far as it tells."""
    if worker["role"] == "learner" and "seconds" in worker:
        waiting = worker["seconds"].get(LEARNER_WAITING, 0.0)
        steps = worker["step"] - worker.get("resumed", 0)
        return steps, sum(worker["seconds"].values()) - waiting, waiting
    if "working" in worker:
        return worker.get("groups", 0), worker["working"], worker["waiting"]
    return None


def _went_back(before: _Sample, after: _Sample) -> bool:
    return any(after.passed[stage] < count for stage, count in before.passed.items())


def _rate(before: _Sample, after: _Sample, stage: str) -> float | None:
    seconds = after.time - before.time
    return (after.passed[stage] - before.passed[stage]) / seconds if seconds > 0 else None


def _steps(before: _Sample, after: _Sample) -> float | None:
    seconds = after.time - before.time
    return (after.step - before.step) / seconds if seconds > 0 else None


def _recent(
    worker: Mapping[str, Any], state: str, base: _Sample, newest: _Sample
) -> dict[str, Any]:
    """Of a worker: groups and seconds since the base; its share of work, None where unknown."""
    now = newest.workers.get(worker["name"])
    if now is None:
        return {"groups": 0, "working": 0.0, "waiting": 0.0, "busy": None}
    before = base.workers.get(worker["name"])
    if before is None or before[0] != now[0]:  # a process that was started since began at 0
        before = (now[0], 0, 0.0, 0.0)
    groups, working, waiting = (max(0, b - a) for a, b in zip(before[1:], now[1:], strict=True))
    total = working + waiting
    busy = working / total if total > 0 else None
    if worker["role"] == "learner" and not groups:
        # It tells its seconds when a step ends; in a long one only what it does is known.
        busy = 0.0 if state == LEARNER_WAITING else 1.0
    return {"groups": groups, "working": working, "waiting": waiting, "busy": busy}


def _role(
    role: str, status: Mapping[str, Any], recent: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """A role's workers by state, their share of work lately, and what a group costs one of them."""
    workers = [worker for worker in status["workers"] if worker["role"] == role]
    states: dict[str, int] = {}
    for worker in workers:
        states[worker["state"]] = states.get(worker["state"], 0) + 1
    # Also of workers that have ended: the last status of a run tells what it did last.
    ours = [recent[worker["name"]] for worker in workers]
    known = [one for one in ours if one["busy"] is not None]
    working, waiting = (sum(one[key] for one in known) for key in ("working", "waiting"))
    groups = sum(one["groups"] for one in known)
    if role == "learner":
        groups *= status["groups_per_step"]
    busy = working / (working + waiting) if working + waiting > 0 else None
    if role == "learner" and known:
        busy = known[0]["busy"]
    return {
        "workers": states,
        "busy": busy,
        "seconds_per_group": working / groups if groups else None,
    }
