"""Options that commands share stand in one place, and reach each command as they are given."""

from dataclasses import dataclass
from typing import Annotated

import typer
from typer.testing import CliRunner

from deploy.cli import app
from deploy.cli_flat import flat
from protos.edge import EdgeOptions
from protos.edge_client import Peer


@dataclass(frozen=True)
class Shared:
    host: Annotated[str, typer.Option(help="Where.")]
    token: Annotated[str | None, typer.Option(help="Who.")] = None
    tls: Annotated[bool, typer.Option(help="How.")] = False


def test_a_dataclass_of_a_command_is_given_as_its_fields():
    told = []
    one = typer.Typer()

    @one.command()
    @flat
    def command(name: str, shared: Shared, times: int = 1) -> None:
        """What it does."""
        told.append((name, shared, times))

    run = CliRunner().invoke(one, ["me", "--host", "h", "--tls", "--times", "2"])
    assert run.exit_code == 0, run.output
    assert told == [("me", Shared("h", None, True), 2)]
    assert CliRunner().invoke(one, ["me"]).exit_code == 2  # --host is missing
    shown = CliRunner().invoke(one, ["--help"]).output
    assert "What it does." in shown
    assert "shared" not in shown


def test_every_server_and_every_client_takes_the_same_options_for_who_may_call(monkeypatch):
    monkeypatch.setattr("deploy.serve.leave", lambda code: None)
    monkeypatch.setenv("T", "s3cret")
    asked, said = [], {"step": 0}
    for module, name in (
        ("deploy.serve", "serve_reward"),
        ("deploy.serve", "serve_human"),
        ("deploy.edges", "serve_replay"),
        ("deploy.edges", "serve_weights"),
        ("deploy.learn", "learn"),
        ("deploy.work", "work"),
    ):
        monkeypatch.setattr(f"{module}.{name}", lambda *given: asked.append(given) or said)
    config = "configs/quickstart/detection_map.yaml"
    server = ["--host", "::1", "--token-env", "T", "--tls-certificate", "c", "--tls-key", "k"]
    server += ["--tls-client-ca", "ca", "--port", "7"]
    for what in ("reward", "human", "replay", "weights"):
        run = CliRunner().invoke(app, ["serve", what, config, *server])
        assert run.exit_code == 0, run.output
        (options,) = [given for given in asked.pop() if isinstance(given, EdgeOptions)]
        assert (options.host, options.port, bool(options.tokens())) == ("::1", 7, True)
        files = options.certificate, options.key, options.client_ca
        assert [str(file) for file in files] == ["c", "k", "ca"]
    client = ["--token-env", "T", "--ca-file", "a", "--certificate", "c", "--key", "k"]
    client += ["--insecure", "--patience", "3", "--replay", "h:1"]
    weights = ["--weights", "h:2"]
    for command in (["learn", *weights], ["work", "sampler", *weights], ["work", "reward"]):
        run = CliRunner().invoke(app, [*command, *client])
        assert run.exit_code == 0, run.output
        peers = [given for given in asked.pop() if isinstance(given, Peer)]
        assert [peer.address for peer in peers] == ["h:1", "h:2"][: len(peers)]
        assert len(peers) == (1 if command[-1] == "reward" else 2)
        for peer in peers:
            assert (peer.token_env, peer.insecure, peer.patience) == ("T", True, 3.0)
            assert [str(f) for f in (peer.ca_file, peer.certificate, peer.key)] == ["a", "c", "k"]
