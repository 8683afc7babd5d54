"""`rewardtune doctor`: looks at all that a run needs, before it starts."""

import json
import logging
import os
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from deploy.cli_config import Overrides, read_config
from deploy.cli_output import AsJson, console
from deploy.doctor.auth import check_auth, find_access
from deploy.doctor.facts import check_disks, check_versions, directories_of, node_facts
from deploy.doctor.finding import Finding, fail, failed, ok
from deploy.doctor.network import (
    check_dashboard,
    check_graphs,
    check_port,
    check_redis,
    reward_servers,
)

if TYPE_CHECKING:
    from deploy.config import RunConfig

STYLES = {"ok": "green", "info": "cyan", "warn": "yellow", "fail": "red"}


def doctor(
    config: Annotated[
        str | None, typer.Argument(help="The config of a run that is to be started.")
    ] = None,
    overrides: Overrides = None,
    address: Annotated[
        str | None, typer.Option(help="The Ray cluster; default: the config's, or RAY_ADDRESS.")
    ] = None,
    dashboard: Annotated[
        str | None, typer.Option(help="Its dashboard, HOST:PORT; default: port 8265 of its host.")
    ] = None,
    edge: Annotated[
        list[str] | None,
        typer.Option(help="A HOST:PORT that must answer, such as of `rewardtune serve replay`."),
    ] = None,
    working_dir: Annotated[
        Path, typer.Option(help="What `rewardtune submit` would upload.")
    ] = Path(),
    as_json: AsJson = False,
) -> None:
    """Find what a run would stumble over, each with a fix; exit code 1 where one would stop it."""
    resolved, found = (None, []) if config is None else _read(config, overrides)
    if address is None:
        address = resolved.cluster.address if resolved is not None else None
        address = address or os.environ.get("RAY_ADDRESS")
    told = []
    for finding in chain(found, _checks(resolved, address, dashboard, edge or [], working_dir)):
        told.append(finding)
        if not as_json:
            _show(finding)
    if as_json:
        print(json.dumps([finding.to_json() for finding in told], indent=1))
    if failed(told):
        raise typer.Exit(1)


def _read(path: str, overrides: list[str] | None) -> "tuple[RunConfig | None, list[Finding]]":
    """The config; and the finding that it is none."""
    from deploy.config_file import ConfigError

    try:
        return read_config(path, overrides), []
    except (ConfigError, OSError) as error:
        return None, [fail("config", str(error), f"`rewardtune config {path}` says the same")]


def _checks(
    config: "RunConfig | None",
    address: str | None,
    dashboard: str | None,
    edges: list[str],
    working_dir: Path,
) -> Iterator[Finding]:
    """All findings, quick ones first."""
    runs = (Path("runs") if config is None else config.runs).absolute()
    here = node_facts(directories_of(runs))
    yield from check_versions(here, needs_model=config is not None)
    yield from check_disks(here, "this machine")
    access = find_access(os.environ, Path.home())
    yield check_auth(access, address)
    if config is not None:
        yield ok("config", f"{config.name} is valid")
        if config.replay.url is not None:
            yield from check_redis(config.replay)
        if config.rewards is not None:
            for server in reward_servers(config.rewards.model_dump()):
                start = "start it: `rewardtune serve reward CONFIG --host 0.0.0.0`"
                yield check_port("reward server", server, start)
    for edge in edges:
        yield check_port("edge", edge, "start it: `rewardtune serve replay` or `serve weights`")
    if address is None:
        return
    yield check_upload(working_dir)
    host = address.rpartition(":")[0]
    if host:
        gcs = check_port("cluster port", address, "start the head: `ray start --head --port 6379`")
        yield gcs
        if gcs.level == "fail":
            return
    if dashboard or host:
        ray_version = here["versions"].get("ray", "")
        pages = dashboard or f"{host}:8265"
        answer = check_dashboard(pages, ray_version, access.headers)
        yield answer
        if answer.level == "ok":
            yield from check_graphs(pages, access.headers)
    from deploy.doctor.cluster import check_cluster

    yield from check_cluster(address, here, config, runs)


def check_upload(directory: Path) -> Finding:
    """Whether Ray takes the working directory of a job."""
    from deploy.config_file import ConfigError
    from deploy.submit import packed

    logging.getLogger("ray._private.runtime_env.packaging").setLevel(logging.ERROR)
    try:
        with packed(directory.absolute()) as package:
            size = package.stat().st_size / 2**20
    except (ConfigError, OSError) as error:
        return fail("upload", str(error), "name what a job does not need in .rayignore")
    return ok("upload", f"{size:.1f} MiB of the working directory would be uploaded by `submit`")


def _show(finding: Finding) -> None:
    line = Text(f"{finding.level:4}", style=STYLES[finding.level])
    console.print(line.append(f"  {finding.check}: {finding.message}", style="default"))
    if finding.fix:
        console.print(Text(f"      → {finding.fix}"))
