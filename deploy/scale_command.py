"""`rewardtune scale`: changes how many workers a running run has."""

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from deploy.bottleneck import ENDED
from deploy.cli_output import AsJson, console
from deploy.config_file import ConfigError
from deploy.environment import use_token_of_this_machine
from deploy.run_directory import read_status
from deploy.status import is_over, is_silent
from deploy.status_command import RUNS, find_run, statuses_below

if TYPE_CHECKING:
    from deploy.targets import RunningRun, Target

MOST = {"actors": 4096, "rewards": 65536}
TAKEN_UP_SECONDS = 15.0


def scale(
    changes: Annotated[
        list[str] | None,
        typer.Argument(help="actors=N, rewards=N or rewards=auto; without any, shows the workers."),
    ] = None,
    run: Annotated[
        str | None, typer.Option(help="The run's name or directory, where several are at work.")
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="The Ray cluster, when it is not the run's own: HOST:PORT.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Change how many samplers and reward workers a run has, while it goes on."""
    targets = parse_targets(changes or [])
    name = join_cluster_of(run, address)
    chosen = _choose(name)
    shown = chosen.show()
    if targets:
        _check_auto(targets, shown)
        before = shown
        shown = _wait_taken_up(chosen, chosen.want(targets))
        if not as_json:
            for section in targets:
                was, now = (s["pools"].get(section, {}) for s in (before, shown))
                console.print(f"{section}: {was.get('target', '?')} → {_target(now)}")
    if as_json:
        print(json.dumps(shown, indent=1))
    else:
        _show(shown)


def parse_targets(changes: Sequence[str]) -> dict[str, "Target"]:
    """`rewards=16 actors=4` as targets.

    Raises:
      ConfigError: another word, or a number out of range. 0: only workers outside of Ray.
    """
    targets: dict[str, Target] = {}
    for change in changes:
        section, _, text = change.partition("=")
        if section not in MOST:
            raise ConfigError(f"{change!r}: only rewards=N and actors=N can be scaled")
        if section == "rewards" and text == "auto":
            targets[section] = "auto"
            continue
        if not text.isdigit() or int(text) > MOST[section]:
            raise ConfigError(f"{change!r}: the number of workers must be 0 to {MOST[section]}")
        targets[section] = int(text)
    return targets


def join_cluster_of(run: str | None, address: str | None) -> str | None:
    """Joins the Ray cluster of a run; returns the run's name as far as it is known.

    Without an address, files tell: the run's directory, or those in `runs` that are at work.

    Raises:
      ConfigError: no cluster, or none that can be told.
    """
    from deploy.targets import join_cluster

    name = Path(run).name if run is not None else None
    address = address or os.environ.get("RAY_ADDRESS")
    if address is None:
        status = _status_of(run)
        if status["state"] in ENDED:
            raise ConfigError(
                f"the run {status['run']} has ended ({status['state']}, step {status['step']} of "
                f"{status['steps']}): only one that is at work can be scaled"
            )
        name, address = status["run"], status["cluster"]
        use_token_of_this_machine()
        try:
            join_cluster(address)
        except ConfigError as error:
            if not is_silent(status):
                raise
            age = time.time() - status["time"]
            raise ConfigError(
                f"the run {name} is no longer running: its last status is {age:.0f} s old, and "
                f"there is {error}"
            ) from error
        return name
    join_cluster(address)
    return name


def _status_of(run: str | None) -> Mapping[str, Any]:
    if run is not None:
        return read_status(find_run(run))
    at_work = [status for status in statuses_below(RUNS) if not is_over(status)]
    if not at_work:
        raise ConfigError(
            "no run in ./runs is at work; name its directory with --run, or its Ray cluster with "
            "--address HOST:PORT"
        )
    if len(at_work) > 1:
        raise ConfigError(f"several runs are at work, choose one: {_options(at_work)}")
    return at_work[0]


def _options(runs: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(f"--run {run['run']}" for run in runs)


def _choose(name: str | None) -> "RunningRun":
    from deploy.targets import running_runs

    runs = running_runs()
    known = ", ".join(f"--run {run.name}" for run in runs)
    if name is None:
        if len(runs) == 1:
            return runs[0]
        raise ConfigError(
            f"several runs are at work in this cluster, choose one: {known}"
            if runs
            else "no run is at work in this cluster"
        )
    chosen = [run for run in runs if run.name == name]
    if not chosen:
        raise ConfigError(f"no run {name} is at work in this cluster; at work: {known or 'none'}")
    return chosen[0]


def _check_auto(targets: Mapping[str, "Target"], shown: Mapping[str, Any]) -> None:
    if targets.get("rewards") == "auto" and not shown["pools"].get("rewards", {}).get("autoscale"):
        raise ConfigError(
            "rewards=auto: this run's config has no rewards.autoscale, so nothing would decide"
        )


def _wait_taken_up(run: "RunningRun", revision: int) -> dict[str, Any]:
    deadline = time.monotonic() + TAKEN_UP_SECONDS
    while True:
        shown = run.show()
        if shown["seen"] >= revision:
            return shown
        if time.monotonic() > deadline:
            raise TimeoutError(
                f"the run has not taken it up within {TAKEN_UP_SECONDS:g} s: its controller may "
                "wait for the queue; it acts as soon as it can"
            )
        time.sleep(0.1)


def _target(pool: Mapping[str, Any]) -> str:
    number = str(pool.get("target", "?"))
    return f"auto (now {number})" if pool.get("by") == "autoscale" else number


def _show(shown: Mapping[str, Any]) -> None:
    table = Table("pool", "target", "set by", "workers", title=shown["run"], title_justify="left")
    for section, pool in shown["pools"].items():
        states = ", ".join(f"{count} {state}" for state, count in pool["workers"].items())
        table.add_row(section, str(pool["target"]), pool["by"], states)
    console.print(table)
