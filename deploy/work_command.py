"""`rewardtune work`: samplers and reward workers of a run, outside of Ray."""

from typing import Annotated

import typer

from deploy.cli_config import Overrides
from deploy.cli_flat import flat
from deploy.cli_output import friendly
from deploy.edge_options import ClientOptions

work_app = typer.Typer(
    no_args_is_help=True, help="Work for a run from outside of Ray, as long as it lasts."
)

Replay = Annotated[str, typer.Option(help="HOST:PORT of `rewardtune serve replay`.")]
Config = Annotated[
    str | None, typer.Option(help="The run's YAML config; default: what the server has.")
]
Name = Annotated[
    str | None, typer.Option(help="Tells this worker from all others; default: of this machine.")
]
Grace = Annotated[
    float, typer.Option(min=0, help="Seconds for the work at hand when asked to stop.")
]


@work_app.command()
@friendly
@flat
def sampler(
    replay: Replay,
    weights: Annotated[str, typer.Option(help="HOST:PORT of `rewardtune serve weights`.")],
    client: ClientOptions,
    overrides: Overrides = None,
    config: Config = None,
    name: Name = None,
    grace: Grace = 20.0,
) -> None:
    """Sample for a run from another process, as one of its samplers."""
    from deploy.serve import leave, log_to_stderr
    from deploy.work import work

    log_to_stderr()
    peers = client.peer(replay), client.peer(weights)
    leave(work("sampler", *peers, config, overrides or [], name, grace))


@work_app.command()
@friendly
@flat
def reward(
    replay: Replay,
    client: ClientOptions,
    overrides: Overrides = None,
    config: Config = None,
    name: Name = None,
    grace: Grace = 20.0,
) -> None:
    """Score for a run from another process, as one of its reward workers."""
    from deploy.serve import leave, log_to_stderr
    from deploy.work import work

    log_to_stderr()
    leave(work("reward", client.peer(replay), None, config, overrides or [], name, grace))
