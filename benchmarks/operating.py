"""How long an operator waits: from `submit` to the first step, for a status, for a larger pool.

A Ray head with token authentication runs already, as it would in a cluster. The quick start's
checkpoint is tuned, with caches warm: one short run goes before.

    python -m benchmarks.operating        # writes benchmarks/results/operating.json
"""

import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray

from tests.ray_head import REPOSITORY, Head, ray_head

RESULTS = Path(__file__).parent / "results" / "operating.json"
CONFIG = "configs/quickstart/detection_map.yaml"
REPEATS = 3
STATUSES = 7
FEW, MANY = 2, 6
SECONDS_A_GROUP = 0.5
STEADY_SECONDS = 20.0
WINDOW_SECONDS = 3.0
# A reward that only sleeps: what is measured is the pool, not the two cores.
REWARD = {"path": "tests.odd_rewards:SlowReward", "options": {"seconds": SECONDS_A_GROUP}}
SLEEPING = [
    f"rewards.terms={json.dumps([REWARD])}",
    *("rewards.groups_per_lease=1", "rewards.resources.num_cpus=0.01", f"rewards.count={FEW}"),
    *("learner.steps=100000", "replay.policy_lag=3", "evaluation.every=0"),
    *("learner.reinforce.auxiliary_weight=0", "learner.checkpoint_every=100000"),
]


def submit(head: Head, runs: Path, name: str, *overrides: str) -> None:
    done = head.run(
        *("rewardtune", "submit", CONFIG, f"name={name}", *overrides),
        *("--address", head.jobs, "--runs", str(runs)),
        cwd=REPOSITORY,
    )
    assert done.returncode == 0, done.stderr


def status(run: Path) -> dict[str, Any]:
    try:
        return json.loads((run / "status.json").read_text())
    except FileNotFoundError:
        return {"step": 0, "state": "submitted", "workers": []}


def wait_for(condition: Callable[[], bool], seconds: float = 600.0) -> None:
    """Until it holds; on a new machine the first run makes its data, which takes a minute."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > seconds:
            raise TimeoutError(f"it did not come to be within {seconds:g} s")
        time.sleep(0.1)


def stop(head: Head, run: Path) -> float:
    """Seconds from `ray job stop` until the run has left its checkpoint and said so."""
    script = (
        "import sys; from ray.job_submission import JobSubmissionClient as Client\n"
        "jobs = [job for job in Client(sys.argv[1]).list_jobs() if job.submission_id]\n"
        "print(max(jobs, key=lambda job: job.start_time).submission_id)"
    )
    job = head.run("python", "-c", script, head.jobs, cwd=REPOSITORY).stdout.strip()
    began = time.monotonic()
    head.run("ray", "job", "stop", "--no-wait", "--address", head.jobs, job, cwd=REPOSITORY)
    wait_for(lambda: status(run)["state"] == "stopped")
    return time.monotonic() - began


def first_steps(head: Head, runs: Path) -> dict[str, Any]:
    seconds, stops = [], []
    for number in range(REPEATS + 1):  # the first one warms the caches
        run = runs / f"first-{number}"
        began = time.monotonic()
        submit(head, runs, run.name)
        wait_for(lambda run=run: (run / "metrics.jsonl").is_file())
        wait_for(lambda run=run: bool((run / "metrics.jsonl").read_text()))
        seconds.append(time.monotonic() - began)
        stops.append(stop(head, run))
    return {
        "submit_to_first_step_seconds": {
            "caches_cold_or_warm": round(seconds[0], 1),
            "caches_warm": [round(value, 1) for value in seconds[1:]],
            "median": round(statistics.median(seconds[1:]), 1),
        },
        "stop_to_checkpoint_seconds": [round(value, 1) for value in stops],
    }


def statuses(head: Head, run: Path) -> dict[str, Any]:
    """Seconds that `rewardtune status` takes beside the run, by its directory and its cluster."""
    asked = {"directory": [str(run)], "cluster": [run.name, "--address", head.address]}
    seconds: dict[str, list[float]] = {way: [] for way in asked}
    for _ in range(STATUSES):
        for way, arguments in asked.items():
            began = time.monotonic()
            done = head.run("rewardtune", "status", *arguments, cwd=REPOSITORY)
            seconds[way].append(time.monotonic() - began)
            assert done.returncode == 0, done.stderr
    return {
        way: {"median": round(statistics.median(each), 2), "worst": round(max(each), 2)}
        for way, each in seconds.items()
    }


def scored(run: Path) -> int:
    """Groups that have been scored: those that wait to be trained, or have been."""
    queue = status(run)["queue"]
    waiting = queue["stages"]["to_train"]
    return int(queue["trained"] + waiting["ready"] + waiting["leased"])


def rate(run: Path, seconds: float) -> float:
    """Groups scored a second, over so long."""
    before, began = scored(run), time.monotonic()
    time.sleep(seconds)
    return (scored(run) - before) / (time.monotonic() - began)


def scaling(head: Head, runs: Path) -> dict[str, Any]:
    run = runs / "scaled"
    submit(head, runs, run.name, *SLEEPING)
    wait_for(lambda: status(run)["step"] >= 2)
    answers = statuses(head, run)
    before = rate(run, STEADY_SECONDS)
    began = time.monotonic()
    done = head.run(
        *("rewardtune", "scale", f"rewards={MANY}", "--run", run.name, "--address", head.address),
        cwd=REPOSITORY,
    )
    assert done.returncode == 0, done.stderr
    commanded = time.monotonic() - began
    history = [(time.monotonic(), scored(run))]
    half_way = before * (1 + MANY / FEW) / 2
    shows = None
    while shows is None:
        time.sleep(0.25)
        now = time.monotonic()
        history.append((now, scored(run)))
        assert now - began < 120, history
        earlier = [(when, count) for when, count in history if now - when >= WINDOW_SECONDS]
        if earlier:
            when, count = earlier[-1]
            if (history[-1][1] - count) / (now - when) >= half_way:
                shows = now - began
    time.sleep(5)
    after = rate(run, STEADY_SECONDS)
    stop(head, run)
    return {
        "workers": [FEW, MANY],
        "seconds_a_group": SECONDS_A_GROUP,
        "groups_a_second": [round(before, 2), round(after, 2)],
        "status_seconds": answers,
        "scale_command_seconds": round(commanded, 1),
        f"scale_to_half_way_in_a_window_of_{WINDOW_SECONDS:g}_s_seconds": round(shows, 1),
    }


def main() -> None:
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout.strip()
    with tempfile.TemporaryDirectory() as directory, ray_head() as head:
        runs = Path(directory)
        results = {
            "command": "python -m benchmarks.operating",
            "commit": commit,
            "machine": f"{os.cpu_count()} CPUs, {platform.machine()}, {platform.system()}",
            "python": platform.python_version(),
            "ray": ray.__version__,
            "load_average_before": [round(load, 2) for load in os.getloadavg()],
            **first_steps(head, runs),
            "scaling_up": scaling(head, runs),
        }
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
