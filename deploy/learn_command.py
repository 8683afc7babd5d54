"""`rewardtune learn`: trains a run from outside of Ray."""

from pathlib import Path
from typing import Annotated

import typer

from deploy.cli_config import Overrides
from deploy.cli_output import console


def learn(
    replay: Annotated[str, typer.Option(help="HOST:PORT of `rewardtune serve replay`.")],
    weights: Annotated[str, typer.Option(help="HOST:PORT of `rewardtune serve weights`.")],
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
    token_env: Annotated[
        str | None, typer.Option(help="Environment variable with the servers' token.")
    ] = None,
    token_file: Annotated[Path | None, typer.Option(help="File with it.")] = None,
    tls: Annotated[bool, typer.Option(help="Encrypt; check by the system's certificates.")] = False,
    ca_file: Annotated[Path | None, typer.Option(help="PEM certificates to check against.")] = None,
    certificate: Annotated[
        Path | None, typer.Option(help="PEM certificate of this client, for mutual TLS.")
    ] = None,
    key: Annotated[Path | None, typer.Option(help="Its PEM key.")] = None,
    insecure: Annotated[
        bool, typer.Option(help="The token may travel in plain text: the network is trusted.")
    ] = False,
    patience: Annotated[
        float, typer.Option(min=0.001, help="Seconds that a lost server is waited for.")
    ] = 120.0,
) -> None:
    """Train a run with `learner.outside=true` from another process; run again to resume."""
    from deploy.learn import learn as train
    from protos.edge_client import Peer

    def peer(address: str) -> Peer:
        return Peer(
            address,
            token_env,
            token_file,
            tls,
            ca_file,
            certificate,
            key,
            insecure,
            patience=patience,
        )

    place = directory.absolute()
    result = train(peer(replay), peer(weights), place, config, overrides or [], start_over)
    console.print(f"finished after step {result['step']}; checkpoints: {directory}")
