"""`rewardtune soak`, on the command line."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from deploy.cli_config import ConfigPath, Overrides, read_config
from deploy.cli_output import console
from deploy.config_file import ConfigError
from deploy.soak.schedule import HARMLESS, chosen_kinds


def soak(
    config: ConfigPath,
    overrides: Overrides = None,
    faults: Annotated[int, typer.Option(min=1, help="How many faults, one after the other.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="The schedule follows from it.")] = 0,
    kinds: Annotated[
        str,
        typer.Option(help="all; harmless (no group is lost to them); or names, with commas."),
    ] = "all",
    redis: Annotated[
        Path | None,
        typer.Option(help="A redis-server, which is started for the queue, killed and stopped."),
    ] = None,
    lease_seconds: Annotated[
        float, typer.Option(min=1, help="How long a stopped process goes unnoticed.")
    ] = 5.0,
    patience_seconds: Annotated[
        float, typer.Option(min=1, help="The longest that a fault may take to be mended.")
    ] = 180.0,
    compare: Annotated[
        bool, typer.Option(help="Train the same steps undisturbed, and compare the weights.")
    ] = True,
    output: Annotated[Path | None, typer.Option(help="Also write all records, as JSON.")] = None,
) -> None:
    """Kill, stop and mislead a run's processes by a schedule; check that nothing is lost."""
    from deploy.soak.report import by_kind, show
    from deploy.soak.soak import Plan, Soak

    if os.environ.get("RAY_ADDRESS"):
        raise ConfigError(
            "RAY_ADDRESS is set: the soak runs on a Ray cluster of its own on this machine, since "
            "processes of other nodes cannot be killed from here; unset it"
        )
    resolved = read_config(config, overrides)
    if resolved.cluster.address is not None or resolved.learner.outside:
        raise ConfigError(
            "cluster.address or learner.outside is set: the soak can kill what runs on this "
            "machine, on a Ray cluster of its own; leave both out"
        )
    if resolved.learner.hosts > 1:
        raise ConfigError(
            f"learner.hosts is {resolved.learner.hosts}: the soak knows a learner of one process, "
            "and would hit none of these; set learner.hosts=1"
        )
    possible = chosen_kinds(None, redis is not None)
    names = {"all": possible, "harmless": [name for name in possible if name in HARMLESS]}
    chosen = names.get(kinds) or chosen_kinds(kinds.split(","), redis is not None)
    plan = Plan(tuple(chosen), faults, seed, redis, lease_seconds, patience_seconds, compare)
    result = Soak(resolved, plan, lambda line: print(line, flush=True)).run()
    result["by_kind"] = by_kind(result["faults"])
    if output is not None:
        output.write_text(json.dumps(result, indent=1) + "\n")
    show(console, result)
    if result["violations"]:
        raise typer.Exit(1)
