"""What a run tells of itself every second: the contents of `runs/NAME/status.json`.

`rewardtune status`, the metrics and `rewardtune scale` read nothing else. Keys:

    run, time            its name; when this was written, Unix seconds
    state                starting | waiting | training | finished | stopped | failed;
                         waiting for a learner (outside of Ray)
    step, steps          trained, and to train; groups_per_step
    metrics              of the last step, as in metrics.jsonl
    reward_hacking       null, or a warning with its figures
    queue                stages.STAGE: ready, leased (groups), oldest_wait, wait_p50, wait_p95 (s)
                         out, window: groups handed out, and the most that may be
                         trained, dropped, quarantined, redelivered, expired; last_reasons
                         backend, url, waiting (why it is waited for, or null), interruptions
    staleness            mean, max of the last step's groups; bound: the most there can be
    evaluation           every (steps, 0: never); behind: policies that wait to be evaluated
    workers              each: name, role, state (pending | running | draining | ended | outside),
                         pid, node (Ray's id), address (the node's), restarts, last_failure;
                         failed_at, ready_at, at_work_at: when its last failure was noticed, its
                         process was there again, and had completed work (Unix seconds, or null);
                         what its role tells (groups, working, waiting, ...: totals of its
                         process), and recent: groups, working, waiting (s), busy (share)
    outside              workers outside of Ray that ask the queue for work, each: name, role,
                         leases (groups it holds)
    services             queue (in memory) and weights, each: name, pid, node, restarts, failed_at
    throughput           seconds: how far back `recent` goes; groups.STAGE and steps: recent and
                         average, a second: of groups those that left the stage, whatever became of
                         them
    roles                by role: workers by state; busy: share of work, recent; seconds_per_group:
                         of work, of one worker, recent; null where there is nothing to tell from
    pools                actors, rewards: target; by: what set it (config | operator | autoscale);
                         autoscale: whether the config has it; workers by state
    bottleneck           role, sentence, more: see `deploy.bottleneck`
    cluster              address of Ray's head

`throughput`, `roles`, `workers.N.recent` come from `deploy.recent`.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from deploy.config import RunConfig
from deploy.reward_hacking import RewardHacking
from deploy.workers import Worker
from replay.queue import Stats

OUTSIDE = "@"
"""Stands in the name of a worker outside of Ray (`deploy.work`), and in no other."""


def run_status(
    config: RunConfig, workers: Sequence[Worker], stats: Stats, hacking: RewardHacking | None
) -> dict[str, Any]:
    """The status of this moment, without what takes a look at earlier ones."""
    learner = workers[0]
    learned = learner.finished or learner.status
    metrics = learned.get("metrics", {})
    return {
        "run": config.name,
        "time": time.time(),
        "state": learned.get("state", "starting"),
        "step": learned.get("step", 0),
        "steps": config.learner.steps,
        "groups_per_step": config.learner.groups_per_step,
        "metrics": metrics,
        "reward_hacking": None if hacking is None else hacking.to_json(),
        "queue": {
            "stages": {
                str(stage): {
                    "ready": of_stage.ready,
                    "leased": of_stage.leased,
                    "oldest_wait": of_stage.oldest_wait,
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
        "staleness": {
            "mean": metrics.get("staleness/mean"),
            "max": metrics.get("staleness/max"),
            "bound": config.lag,
        },
        "evaluation": _evaluation(config, workers, learned),
        "workers": [
            {
                "name": worker.name,
                "role": worker.role,
                "state": worker.state,
                "pid": worker.where.get("pid"),
                "node": worker.where.get("node"),
                "address": worker.where.get("address"),
                "restarts": worker.restarts,
                "failed_at": worker.failed_at,
                "ready_at": worker.ready_at,
                "at_work_at": worker.at_work_at,
                "last_failure": worker.failures[-1][1] if worker.failures else None,
                **{
                    k: v
                    for k, v in (worker.finished or worker.status).items()
                    if k not in ("worker", "state", "metrics")
                },
            }
            for worker in workers
        ],
        "outside": [
            {"name": name, "role": name.partition(OUTSIDE)[0], "leases": held}
            for name, held in sorted(stats.held_by_worker.items())
            if OUTSIDE in name
        ],
    }


def _evaluation(
    config: RunConfig, workers: Sequence[Worker], learned: Mapping[str, Any]
) -> dict[str, int]:
    """How often policies are evaluated, and how many of those that are due have not been."""
    every, step = config.evaluation.every, learned.get("step", 0)
    evaluator = next((worker for worker in workers if worker.role == "evaluator"), None)
    if not every or evaluator is None:
        return {"every": every, "behind": 0}
    due = [*range(0, step + 1, every)]
    if step == config.learner.steps and step % every:
        due.append(step)
    done = (evaluator.finished or evaluator.status).get("step", -1)
    return {"every": every, "behind": sum(version > done for version in due)}
