"""Who may call an edge, and how a client says who it is: options of several commands."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from protos.edge import EdgeOptions
    from protos.edge_client import Peer


@dataclass(frozen=True)
class ServerOptions:
    """Of what serves an edge."""

    host: Annotated[str, typer.Option(help="Address of this machine; 0.0.0.0 for all.")] = (
        "127.0.0.1"
    )
    token_env: Annotated[
        str | None, typer.Option(help="Environment variable with the token that callers must send.")
    ] = None
    token_file: Annotated[Path | None, typer.Option(help="File with that token.")] = None
    tls_certificate: Annotated[
        Path | None, typer.Option(help="PEM certificate chain, for TLS.")
    ] = None
    tls_key: Annotated[Path | None, typer.Option(help="Its PEM key.")] = None
    tls_client_ca: Annotated[
        Path | None, typer.Option(help="PEM certificates that must have signed the callers' own.")
    ] = None
    request_mib: Annotated[
        int, typer.Option(min=64, help="Memory that requests may take at once, in MiB.")
    ] = 4096

    def at(self, port: int) -> "EdgeOptions":
        """Of a server at a port."""
        from protos.edge import EdgeOptions
        from protos.tokens import TokenSource

        token = TokenSource(self.token_env, self.token_file)
        return EdgeOptions(
            self.host,
            port,
            token,
            self.tls_certificate,
            self.tls_key,
            self.tls_client_ca,
            most_bytes=self.request_mib * 2**20,
        )


@dataclass(frozen=True)
class ClientOptions:
    """Of what calls edges."""

    token_env: Annotated[
        str | None, typer.Option(help="Environment variable with the servers' token.")
    ] = None
    token_file: Annotated[Path | None, typer.Option(help="File with it.")] = None
    tls: Annotated[bool, typer.Option(help="Encrypt; check by the system's certificates.")] = False
    ca_file: Annotated[Path | None, typer.Option(help="PEM certificates to check against.")] = None
    certificate: Annotated[
        Path | None, typer.Option(help="PEM certificate of this client, for mutual TLS.")
    ] = None
    key: Annotated[Path | None, typer.Option(help="Its PEM key.")] = None
    insecure: Annotated[
        bool, typer.Option(help="The token may travel in plain text: the network is trusted.")
    ] = False
    patience: Annotated[
        float, typer.Option(min=0.001, help="Seconds that a lost server is waited for.")
    ] = 120.0

    def peer(self, address: str) -> "Peer":
        """The edge at HOST:PORT."""
        from protos.edge_client import Peer

        return Peer(
            address,
            self.token_env,
            self.token_file,
            self.tls,
            self.ca_file,
            self.certificate,
            self.key,
            self.insecure,
            patience=self.patience,
        )
