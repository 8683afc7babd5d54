"""`rewardtune serve`: what processes outside of a run may reach of it, over gRPC."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploy.cli_config import ConfigPath, Overrides, read_config
from deploy.cli_output import friendly

if TYPE_CHECKING:
    from protos.edge import EdgeOptions

serve_app = typer.Typer(no_args_is_help=True, help="Serve rewards, a queue or weights to others.")

Host = Annotated[str, typer.Option(help="Address of this machine; 0.0.0.0 for all.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")]
TokenEnv = Annotated[
    str | None, typer.Option(help="Environment variable with the token that callers must send.")
]
TokenFile = Annotated[Path | None, typer.Option(help="File with that token.")]
TlsCertificate = Annotated[Path | None, typer.Option(help="PEM certificate chain, for TLS.")]
TlsKey = Annotated[Path | None, typer.Option(help="Its PEM key.")]
TlsClientCa = Annotated[
    Path | None, typer.Option(help="PEM certificates that must have signed the callers' own.")
]


def _edge_options(
    host: str,
    port: int,
    token_env: str | None,
    token_file: Path | None,
    certificate: Path | None,
    key: Path | None,
    client_ca: Path | None,
) -> "EdgeOptions":
    from protos.edge import EdgeOptions
    from protos.tokens import TokenSource

    token = TokenSource(token_env, token_file)
    return EdgeOptions(host, port, token, certificate, key, client_ca)


@serve_app.command()
@friendly
def reward(
    config: ConfigPath,
    overrides: Overrides = None,
    host: Host = "127.0.0.1",
    port: Port = 50061,
    threads: Annotated[int, typer.Option(min=1, help="Groups judged at a time.")] = 1,
    token_env: TokenEnv = None,
    token_file: TokenFile = None,
    tls_certificate: TlsCertificate = None,
    tls_key: TlsKey = None,
    tls_client_ca: TlsClientCa = None,
) -> None:
    """Serve a config's reward over gRPC, for `rewards.remote:RemoteReward`."""
    from deploy.serve import leave, serve_reward

    options = _edge_options(
        host, port, token_env, token_file, tls_certificate, tls_key, tls_client_ca
    )
    leave(serve_reward(read_config(config, overrides), options, threads))


@serve_app.command()
@friendly
def human(
    config: ConfigPath,
    overrides: Overrides = None,
    mode: Annotated[str, typer.Option(help="compare: put samples in order; rate: 1 to 5.")] = (
        "compare"
    ),
    answers: Annotated[
        Path | None, typer.Option(help="Keeps the answers; default: runs/NAME_answers.jsonl.")
    ] = None,
    page_host: Host = "127.0.0.1",
    page_port: Port = 8061,
    host: Host = "127.0.0.1",
    port: Port = 50062,
    token_env: TokenEnv = None,
    token_file: TokenFile = None,
    tls_certificate: TlsCertificate = None,
    tls_key: TlsKey = None,
    tls_client_ca: TlsClientCa = None,
) -> None:
    """Let people judge samples on a web page, for `rewards.remote:RemoteReward`."""
    from deploy.serve import serve_human

    options = _edge_options(
        host, port, token_env, token_file, tls_certificate, tls_key, tls_client_ca
    )
    serve_human(read_config(config, overrides), mode, answers, options, page_host, page_port)


@serve_app.command()
@friendly
def replay(
    config: ConfigPath,
    overrides: Overrides = None,
    redis: Annotated[
        str | None, typer.Option(help="The queue is on this Redis: replay.url of the run.")
    ] = None,
    host: Host = "127.0.0.1",
    port: Port = 50063,
    token_env: TokenEnv = None,
    token_file: TokenFile = None,
    tls_certificate: TlsCertificate = None,
    tls_key: TlsKey = None,
    tls_client_ca: TlsClientCa = None,
) -> None:
    """Serve the queue of a run at work to samplers, reward workers and learners outside of Ray."""
    from deploy.edges import serve_replay
    from deploy.serve import leave, log_to_stderr

    options = _edge_options(
        host, port, token_env, token_file, tls_certificate, tls_key, tls_client_ca
    )
    changes = [*(overrides or []), *([f"replay.url={redis}"] if redis else [])]
    log_to_stderr()
    leave(serve_replay(read_config(config, changes), options))


@serve_app.command()
@friendly
def weights(
    config: ConfigPath,
    overrides: Overrides = None,
    host: Host = "127.0.0.1",
    port: Port = 50064,
    token_env: TokenEnv = None,
    token_file: TokenFile = None,
    tls_certificate: TlsCertificate = None,
    tls_key: TlsKey = None,
    tls_client_ca: TlsClientCa = None,
) -> None:
    """Serve the policies of a run at work, and take over those of a learner outside of Ray."""
    from deploy.edges import serve_weights
    from deploy.serve import leave, log_to_stderr

    options = _edge_options(
        host, port, token_env, token_file, tls_certificate, tls_key, tls_client_ca
    )
    log_to_stderr()
    leave(serve_weights(read_config(config, overrides), options))
