"""`rewardtune learn`: trains a run from outside of Ray."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from deploy.cli_config import Overrides
from deploy.cli_flat import flat
from deploy.cli_output import console
from deploy.edge_options import ClientOptions


@flat
def learn(
    replay: Annotated[str, typer.Option(help="HOST:PORT of `rewardtune serve replay`.")],
    weights: Annotated[str, typer.Option(help="HOST:PORT of `rewardtune serve weights`.")],
    client: ClientOptions,
    overrides: Overrides = None,
    config: Annotated[
        str | None, typer.Option(help="The run's YAML config; default: what the server has.")
    ] = None,
    directory: Annotated[
        Path, typer.Option(help="Keeps this learner's checkpoints and metrics.")
    ] = Path("runs/learner"),
    start_over: Annotated[
        bool, typer.Option(help="Without a checkpoint, begin a trained run anew.")
    ] = False,
    host: Annotated[
        int, typer.Option(min=0, help="Which of learner.hosts this is; 0 keeps the checkpoints.")
    ] = 0,
    coordinator: Annotated[
        str | None, typer.Option(help="HOST:PORT of host 0 for the others; the port is free.")
    ] = None,
) -> None:
    """Train a run with `learner.outside=true` from another process; run again to resume.

    Of a learner of several hosts each runs this, with its own --host and one --coordinator.
    """
    from deploy.learn import learn as train
    from deploy.serve import leave
    from learner.hosts import HostLost

    try:
        result = train(
            client.peer(replay),
            client.peer(weights),
            directory.absolute(),
            config,
            overrides or [],
            start_over,
            host,
            coordinator,
        )
    except HostLost as error:
        again = "the same command on every host resumes from the last checkpoint"
        print(f"rewardtune: HostLost: {error}; {again}", file=sys.stderr, flush=True)
        leave(1)  # at its end JAX would wait for the others, and abort this process
    console.print(f"finished after step {result['step']}; checkpoints: {directory}")
