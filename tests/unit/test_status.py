"""What `rewardtune status` shows of a run that goes on, and of one that has ended."""

import asyncio
import io
import time
from dataclasses import replace

from rich.console import Console

from deploy.config import RunConfig
from deploy.controller import run_status
from deploy.reward_hacking import RewardHacking
from deploy.status import show_status
from deploy.workers import Worker
from replay.memory import MemoryReplayQueue
from replay.tickets import TicketSource

CONFIG = RunConfig.model_validate(
    {
        "name": "run",
        "task": {"kind": "detection"},
        "model": {"preset": "tiny"},
        "rewards": {"terms": [{"path": "rewards.detection:RecallReward"}]},
    }
)
HACKING = RewardHacking("mAP", (0, 40), (80, 120), 0.5, 0.4, 0.01, 1.0, 2.0)


def stats():
    source = TicketSource(0, ["a"], "ordered", 1, CONFIG.learner.groups_per_step)
    return asyncio.run(MemoryReplayQueue(CONFIG.queue_config(), source).stats())


def workers():
    roles = ("learner", "sampler", "reward", "evaluator")
    made = [Worker(role, role, lambda name: None) for role in roles]
    for worker in made[:3]:
        worker.running = object()
    return made


def shown(status, width=300):
    console = Console(file=io.StringIO(), width=width)
    show_status(console, status)
    return console.file.getvalue()


def test_workers_that_were_removed_have_ended_whatever_they_did():
    ours = workers()
    before = run_status(CONFIG, ours, stats(), None)
    assert [w["state"] for w in before["workers"]] == ["running"] * 3 + ["pending"]
    ours[0].finished = {"state": "finished", "step": 200}
    for worker in ours:
        worker.remove()
    after = run_status(CONFIG, ours, stats(), None)
    assert [w["state"] for w in after["workers"]] == ["ended"] * 4
    assert (after["state"], after["step"]) == ("finished", 200)
    assert "running" not in shown(after)


def test_what_working_went_into_is_shown():
    ours = workers()
    ours[1].status = {"working": 5.0, "loading_weights": 2.0, "waiting": 0.0}
    ours[2].status = {"working": 4.0, "parts": {"decoding": 3.25, "scoring": 0.5}, "waiting": 1.0}
    text = shown(run_status(CONFIG, ours, stats(), None))
    assert f"work of {ours[1].name}: loading weights 2.0 s\n" in text
    assert f"work of {ours[2].name}: decoding 3.2 s, scoring 0.5 s\n" in text


def test_every_worker_has_one_line_in_a_terminal_of_80_columns():
    ours = workers()
    for worker in ours[:3]:
        worker.status = {"working": 12345.0, "waiting": 12345.0, "groups": 123456}
    status = run_status(CONFIG, ours, stats(), None)
    for worker in status["workers"]:
        worker |= {"pid": 1234567, "address": "192.168.100.100", "recent": {"busy": 1.0}}
    lines = shown(status, width=80).splitlines()
    (header,) = [number for number, line in enumerate(lines) if line.startswith("worker ")]
    names = [worker.name for worker in ours]
    assert [line.split()[0] for line in lines[header + 1 :][: len(names)]] == names


def test_reward_hacking_is_shown():
    without = run_status(CONFIG, workers(), stats(), None)
    assert without["reward_hacking"] is None
    assert "warning" not in shown(without)
    status = run_status(CONFIG, workers(), stats(), HACKING)
    assert status["reward_hacking"]["metric_last"] == 0.4
    assert f"warning: {HACKING}" in shown(status)


def test_reasons_are_shown_as_they_are():
    reason = "ValueError: no [/data/image.png], tokens are int32[k, 36]"
    status = run_status(CONFIG, workers(), stats(), None)
    status["queue"]["last_reasons"] = [reason]
    assert f"failure: {reason}" in shown(status)


def test_the_status_of_a_run_before_there_were_warnings_is_shown():
    status = run_status(CONFIG, workers(), stats(), None)
    del status["reward_hacking"]
    assert "run: starting" in shown(status)


def test_an_old_status_tells_a_run_that_ended_from_one_that_vanished():
    status = run_status(CONFIG, workers(), stats(), None) | {"time": time.time() - 3600}
    assert "no longer running" in shown(status | {"state": "training"})
    for state in ("finished", "stopped", "failed"):
        assert "no longer running" not in shown(status | {"state": state})


def test_a_queue_that_is_waited_for_is_shown():
    status = run_status(CONFIG, workers(), stats(), None)
    assert "waiting for" not in shown(status)
    status["queue"] |= {"waiting": "waiting for Redis at redis://h:1/0: no answer"}
    assert "waiting for Redis at redis://h:1/0: no answer" in shown(status)


def test_workers_outside_of_ray_are_named_with_what_they_hold():
    held = {"reward@gpu-7": 2, "sampler@x": 0, "reward": 1, "learner": 4}
    status = run_status(CONFIG, workers(), replace(stats(), held_by_worker=held), None)
    assert status["outside"] == [
        {"name": "reward@gpu-7", "role": "reward", "leases": 2},
        {"name": "sampler@x", "role": "sampler", "leases": 0},
    ]
    assert "outside of Ray: reward@gpu-7 (2 leased), sampler@x (0 leased)" in shown(status)
    assert "outside of Ray" not in shown(run_status(CONFIG, workers(), stats(), None))
