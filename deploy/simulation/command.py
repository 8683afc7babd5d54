"""`rewardtune simulate`: seeds to try, on the command line."""

import json
import sys
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from deploy.simulation.run import Simulation, simulate

_DEFAULT = Simulation()


def simulate_runs(
    seed: Annotated[int, typer.Option(min=0, help="The first seed.")] = _DEFAULT.seed,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds, from the first on.")] = 1,
    mode: Annotated[str, typer.Option(help="ordered or async.")] = _DEFAULT.mode,
    policy_lag: Annotated[int, typer.Option(min=0, max=64)] = _DEFAULT.policy_lag,
    steps: Annotated[int, typer.Option(min=1)] = _DEFAULT.steps,
    groups_per_step: Annotated[int, typer.Option(min=1)] = _DEFAULT.groups_per_step,
    block: Annotated[int, typer.Option(min=1)] = _DEFAULT.block,
    samplers: Annotated[int, typer.Option(min=1)] = _DEFAULT.samplers,
    rewards: Annotated[int, typer.Option(min=1)] = _DEFAULT.rewards,
    groups_per_lease: Annotated[int, typer.Option(min=1)] = _DEFAULT.groups_per_lease,
    checkpoint_every: Annotated[int, typer.Option(min=1)] = _DEFAULT.checkpoint_every,
    worker_mtbf: Annotated[
        float, typer.Option(min=0, help="Virtual seconds between faults of one worker; 0: none.")
    ] = _DEFAULT.worker_mtbf,
    service_mtbf: Annotated[
        float, typer.Option(min=0, help="The same for learner, queue, weights, network and run.")
    ] = _DEFAULT.service_mtbf,
    message_faults: Annotated[
        float, typer.Option(min=0, help="So many times as often messages are slow, lost, doubled.")
    ] = _DEFAULT.message_faults,
    learner_hosts: Annotated[
        int, typer.Option(min=1, help="Each leases its share of a step.")
    ] = _DEFAULT.learner_hosts,
    learner_connected: Annotated[
        bool, typer.Option(help="The learner's calls arrive at most once, none after its death.")
    ] = _DEFAULT.learner_connected,
    outside_workers: Annotated[
        float, typer.Option(min=0, max=1, help="Share of workers that come by an edge.")
    ] = _DEFAULT.outside_workers,
    out: Annotated[Path | None, typer.Option(help="Also write the figures here, as JSON.")] = None,
) -> None:
    """Simulate whole runs in virtual time, with faults, and check that nothing is lost."""
    settings: dict[str, Any] = {
        name: value
        for name, value in locals().items()
        if name in {each.name for each in fields(Simulation)}
    }
    if mode not in ("ordered", "async"):
        raise ValueError(f"--mode is {mode!r}; it must be ordered or async")
    runs = []
    for number in range(seed, seed + seeds):
        figures = simulate(Simulation(**settings | {"seed": number}), progress=_tell)
        runs.append(figures)
        print(
            f"seed {number}: trace {figures['trace']}, {figures['events']:,} events, "
            f"{figures['leases']:,} leases, {figures['virtual_seconds']:,.0f} virtual seconds in "
            f"{figures['cpu_seconds']:g} of CPU; trained {figures['trained']:,}, quarantined "
            f"{figures['quarantined']:,}, dropped {figures['dropped']:,}, lost 0, twice 0",
            flush=True,
        )
    if out is not None:
        out.write_text(json.dumps(runs[0] if seeds == 1 else runs, indent=2) + "\n")


def _tell(how_far: str) -> None:
    print(f"  {how_far}", file=sys.stderr, flush=True)
