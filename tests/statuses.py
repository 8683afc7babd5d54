"""Statuses of runs that never were, as `deploy.run_status` and `deploy.recent` make them."""

import time
from typing import Any

from deploy.recent import Recent


class Imagined:
    """A run of which a test says how fast each stage is; `status()` after `seconds` of it.

    Attributes:
      workers: by role, how many; each is busy for `busy[role]` of its time.
      per_second: groups that leave a stage in a second, by stage.
      held: (ready, leased) groups of a stage.
    """

    def __init__(self, **changes: Any) -> None:
        self.workers = {"learner": 1, "sampler": 2, "reward": 4}
        self.busy: dict[str, float] = {"learner": 0.5, "sampler": 0.5, "reward": 0.5}
        self.per_second = 4.0
        self.groups_per_step = 8
        self.held = {"to_sample": (0, 4), "to_score": (0, 4), "to_train": (4, 0)}
        self.state = "training"
        self.states: dict[str, str] = {}
        self.lag = 1
        self.behind = 0
        self.waiting: str | None = None
        self.in_flight = 0
        self.window = 16
        for name, value in changes.items():
            setattr(self, name, value)

    def at(self, seconds: float) -> dict[str, Any]:
        """The status so long after the start, without what `Recent` adds."""
        trained = int(self.per_second * seconds)
        step = trained // self.groups_per_step
        return {
            "run": "imagined",
            "time": time.time(),
            "state": self.state,
            "step": step,
            "steps": 1000,
            "groups_per_step": self.groups_per_step,
            "metrics": {},
            "reward_hacking": None,
            "queue": {
                "stages": {
                    stage: {
                        "ready": ready,
                        "leased": leased,
                        "oldest_wait": 0.0,
                        "wait_p50": 0.1,
                        "wait_p95": 0.4,
                    }
                    for stage, (ready, leased) in self.held.items()
                },
                "out": sum(map(sum, self.held.values())),
                "window": self.window,
                "trained": trained,
                "dropped": 0,
                "quarantined": 0,
                "redelivered": 0,
                "expired": 0,
                "last_reasons": [],
                "waiting": self.waiting,
            },
            "staleness": {"mean": 1.0, "max": 1.0, "bound": self.lag},
            "evaluation": {"every": 0, "behind": self.behind},
            "workers": [
                self._worker(role, index, seconds, step)
                for role, count in self.workers.items()
                for index in range(count)
            ],
        }

    def _worker(self, role: str, index: int, seconds: float, step: int) -> dict[str, Any]:
        told: dict[str, Any] = {}
        share = self.busy.get(role)
        if share is not None and role == "learner":
            if self.per_second:  # it tells when a step ends
                seconds = step * self.groups_per_step / self.per_second
            spent = {"training": share * seconds, "waiting": (1 - share) * seconds}
            told = {"step": step, "seconds": spent}
        elif share is not None:
            groups = int(self.per_second * seconds / self.workers[role])
            told = {
                "groups": groups,
                "working": share * seconds,
                "waiting": (1 - share) * seconds,
            }
        if role == "reward":
            told["in_flight"] = self.in_flight
        return {
            "name": f"{role}-{index}",
            "role": role,
            "state": self.states.get(role, "running"),
            "pid": 100 + index,
            "node": "aa" * 28,
            "address": "10.0.0.1",
            "restarts": 0,
            "last_failure": None,
            **told,
        }

    def status(self, seconds: float = 60.0) -> dict[str, Any]:
        """The whole status, looked at every second until then."""
        recent = Recent()
        for second in range(int(seconds) + 1):
            status = self.at(float(second))
            added = recent.observe(status, float(second))
        return status | added
