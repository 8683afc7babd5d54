"""`rewardtune serve`: what processes outside of a run may reach of it, over gRPC."""

from pathlib import Path
from typing import Annotated

import typer

from deploy.cli_config import ConfigPath, Overrides, read_config
from deploy.cli_flat import flat
from deploy.cli_output import friendly
from deploy.edge_options import ServerOptions

serve_app = typer.Typer(no_args_is_help=True, help="Serve rewards, a queue or weights to others.")

Port = Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")]


@serve_app.command()
@friendly
@flat
def reward(
    config: ConfigPath,
    server: ServerOptions,
    overrides: Overrides = None,
    port: Port = 50061,
    threads: Annotated[int, typer.Option(min=1, help="Groups judged at a time.")] = 1,
) -> None:
    """Serve a config's reward over gRPC, for `rewards.remote:RemoteReward`."""
    from deploy.serve import leave, serve_reward

    leave(serve_reward(read_config(config, overrides), server.at(port), threads))


@serve_app.command()
@friendly
@flat
def human(
    config: ConfigPath,
    server: ServerOptions,
    overrides: Overrides = None,
    mode: Annotated[str, typer.Option(help="compare: put samples in order; rate: 1 to 5.")] = (
        "compare"
    ),
    answers: Annotated[
        Path | None, typer.Option(help="Keeps the answers; default: runs/NAME_answers.jsonl.")
    ] = None,
    page_host: Annotated[str, typer.Option(help="Where the page is; 0.0.0.0 for all.")] = (
        "127.0.0.1"
    ),
    page_port: Port = 8061,
    port: Port = 50062,
) -> None:
    """Let people judge samples on a web page, for `rewards.remote:RemoteReward`."""
    from deploy.serve import serve_human

    resolved = read_config(config, overrides)
    serve_human(resolved, mode, answers, server.at(port), page_host, page_port)


@serve_app.command()
@friendly
@flat
def replay(
    config: ConfigPath,
    server: ServerOptions,
    overrides: Overrides = None,
    redis: Annotated[
        str | None, typer.Option(help="The queue is on this Redis: replay.url of the run.")
    ] = None,
    port: Port = 50063,
    wait: Annotated[
        float, typer.Option(min=0, help="Seconds for a run to make its queue on Redis.")
    ] = 0.0,
) -> None:
    """Serve the queue of a run at work to samplers, reward workers and learners outside of Ray."""
    from deploy.edges import serve_replay
    from deploy.serve import log_to_stderr

    changes = [*(overrides or []), *([f"replay.url={redis}"] if redis else [])]
    log_to_stderr()
    serve_replay(read_config(config, changes), server.at(port), wait)


@serve_app.command()
@friendly
@flat
def weights(
    config: ConfigPath, server: ServerOptions, overrides: Overrides = None, port: Port = 50064
) -> None:
    """Serve the policies of a run at work, and take over those of a learner outside of Ray."""
    from deploy.edges import serve_weights
    from deploy.serve import log_to_stderr

    log_to_stderr()
    serve_weights(read_config(config, overrides), server.at(port))
