"""`rewardtune plan`: how many samplers and reward workers keep the learner busy."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console

from deploy.cli_config import Overrides, read_config
from deploy.cli_output import AsJson, console
from deploy.run_directory import CONFIG_FILE, STATUS_FILE, read_status
from deploy.sizing import Plan, StageTimes, balanced, predict, window_doubt
from deploy.stage_times import measure_stage_times, times_of_status
from deploy.status import plain_table


def plan(
    target: Annotated[str, typer.Argument(help="A run, runs/NAME or NAME; or a config.")],
    overrides: Overrides = None,
    steps: Annotated[
        int, typer.Option(min=1, help="Steps to measure a config with, after the first.")
    ] = 3,
    as_json: AsJson = False,
) -> None:
    """How many samplers and reward workers a learner needs, from what a group costs each."""
    directory = _run(target)
    if directory is not None:
        status = read_status(directory)
        values = yaml.safe_load((directory / CONFIG_FILE).read_text())
        times, lag = times_of_status(status), status["staleness"]["bound"]
        counts = {
            role: sum(worker["role"] == role for worker in status["workers"])
            for role in ("sampler", "reward")
        }
    else:
        told = Console(stderr=True)
        config = read_config(target, overrides)
        times = measure_stage_times(config, steps, lambda line: told.print(line))
        values, lag = config.model_dump(mode="json"), config.lag
        counts = {"sampler": values["actors"]["count"], "reward": values["rewards"]["count"]}
    groups = values["learner"]["groups_per_step"]
    now = predict(times, counts["sampler"], counts["reward"], groups, lag)
    best = balanced(times, groups, lag)
    block, lease = values["actors"]["groups_per_block"], values["rewards"]["groups_per_lease"]
    doubt = window_doubt(best, block, lease, groups * (1 + lag))
    if as_json:
        asked: dict[str, Any] = {
            "needs": _resources(values, best),
            "groups_per_step": groups,
            "lag": lag,
        }
        asked["doubt"] = doubt
        plans = {"now": asdict(now), "balanced": asdict(best)}
        print(json.dumps({"seconds_per_group": asdict(times), **plans, **asked}, indent=1))
        return
    _show(times, now, best, groups, _resources(values, best))
    if doubt:
        console.print(doubt, style="yellow", highlight=False)


def _run(target: str) -> Path | None:
    """The directory of a run that is named; None: it is a config."""
    for place in (Path(target), Path("runs") / target):
        if (place / STATUS_FILE).is_file():
            return place
    return None


def _resources(values: dict[str, Any], plan: Plan) -> dict[str, float]:
    """What the balanced run asks of Ray, all its processes together."""
    total: dict[str, float] = {}
    counts = {
        "learner": values["learner"].get("hosts", 1),
        "actors": plan.samplers,
        "rewards": plan.rewards,
    }
    if values["evaluation"]["every"]:
        counts["evaluation"] = 1
    for section, count in counts.items():
        asked = values[section]["resources"]
        amounts = {"CPU": asked["num_cpus"], "GPU": asked["num_gpus"], **asked["custom"]}
        for name, amount in amounts.items():
            if amount:
                total[name] = total.get(name, 0.0) + count * amount
    return total


def _show(times: StageTimes, now: Plan, best: Plan, groups: int, needs: dict[str, float]) -> None:
    console.print(
        f"work a group: sampler {times.sampling:.3g} s, reward worker {times.scoring:.3g} s, "
        f"learner {times.training:.3g} s ({times.training * groups:.3g} s for a step of {groups})",
        highlight=False,
    )
    table = plain_table("", "now", "balanced")
    rows = (
        ("samplers", *(f"{plan.samplers}" for plan in (now, best))),
        ("reward workers", *(f"{plan.rewards}" for plan in (now, best))),
        ("groups/s", *(f"{plan.groups_per_second:.3g}" for plan in (now, best))),
        ("a step", *(f"{plan.step_seconds:.3g} s" for plan in (now, best))),
        *(
            (f"{name} busy", *(f"{100 * plan.busy[role]:.0f} %" for plan in (now, best)))
            for role, name in (
                ("learner", "learner"),
                ("sampler", "samplers"),
                ("reward", "reward workers"),
            )
        ),
    )
    for row in rows:
        table.add_row(*row)
    console.print(table, highlight=False)
    if not best.overlap:
        console.print("policy_lag 0: the stages take turns; with 1 they overlap", highlight=False)
    asked = ", ".join(f"{name} {amount:g}" for name, amount in needs.items())
    console.print(f"balanced, all processes ask Ray for {asked}", highlight=False)
    console.print(
        f"set it: actors.count={best.samplers} rewards.count={best.rewards}", highlight=False
    )
