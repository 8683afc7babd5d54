"""What a run tells of itself: the contents of `status.json`."""

import time
from collections.abc import Sequence
from typing import Any

from deploy.config import RunConfig
from deploy.reward_hacking import RewardHacking
from deploy.workers import Worker
from replay.queue import Stats


def run_status(
    config: RunConfig, workers: Sequence[Worker], stats: Stats, hacking: RewardHacking | None
) -> dict[str, Any]:
    """What `rewardtune status` shows."""
    learner = workers[0]
    learned = learner.finished or learner.status
    return {
        "run": config.name,
        "time": time.time(),
        "state": learned.get("state", "starting"),
        "step": learned.get("step", 0),
        "steps": config.learner.steps,
        "metrics": learned.get("metrics", {}),
        "reward_hacking": None if hacking is None else hacking.to_json(),
        "queue": {
            "stages": {
                str(stage): {
                    "ready": of_stage.ready,
                    "leased": of_stage.leased,
                    "wait_p50": of_stage.wait_p50,
                    "wait_p95": of_stage.wait_p95,
                }
                for stage, of_stage in stats.stages.items()
            },
            "out": stats.out,
            "window": stats.window,
            "trained": stats.acked - stats.dropped,
            "dropped": stats.dropped,
            "quarantined": stats.quarantined,
            "redelivered": stats.redelivered,
            "expired": stats.expired,
            "last_reasons": list(stats.last_reasons),
        },
        "workers": [
            {
                "name": worker.name,
                "state": worker.state,
                "pid": worker.where.get("pid"),
                "node": worker.where.get("node"),
                "restarts": worker.restarts,
                **{
                    k: v
                    for k, v in worker.status.items()
                    if k not in ("worker", "state", "metrics")
                },
            }
            for worker in workers
        ],
    }
