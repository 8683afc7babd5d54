"""`rewardtune submit`: starts a tuning run as a job on a Ray cluster."""

from pathlib import Path
from typing import Annotated

import typer

from deploy.cli_config import ConfigPath, Overrides
from deploy.cli_output import console


def submit(
    config: ConfigPath,
    overrides: Overrides = None,
    address: Annotated[
        str | None,
        typer.Option(help="The head's job server, http://HEAD:8265; default: as Ray finds it."),
    ] = None,
    runs: Annotated[
        Path | None, typer.Option(help="Where the run's directory is made: absolute, shared.")
    ] = None,
    working_dir: Annotated[
        Path, typer.Option(help="What is uploaded, less what .gitignore and .rayignore name.")
    ] = Path(),
    runtime_env: Annotated[
        Path | None, typer.Option(help="YAML of Ray's runtime environment: env_vars, pip, ...")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Show its log until it ends; Ctrl-C leaves it running.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option(help="Remove what the run's directory holds, and start.")
    ] = False,
) -> None:
    """Tune on a Ray cluster, as a job; submit again to resume."""
    from deploy import submit as jobs
    from deploy.config import RunConfig
    from deploy.config_file import read_config
    from deploy.follow import follow as follow_job

    changes = [*(overrides or []), *([f"runs={runs}"] if runs is not None else [])]
    resolved = read_config(config, changes, RunConfig)
    job = jobs.describe_job(config, changes, resolved, working_dir, runtime_env, overwrite)
    client = jobs.connect_to_jobs(address)
    with jobs.packed(working_dir, job.files) as package:
        size = package.stat().st_size / 2**20
        name = jobs.submit(client, job, package)
    where = f"--address {client.get_address()}"
    directory = job.metadata["directory"]
    _say(f"submitted {name} ({size:.1f} MiB); the run is in {directory}")
    if not follow:
        _say(f"its log: ray job logs --follow {where} {name}")
        _say(f"to stop it: ray job stop {where} {name}")
        return
    try:
        code = follow_job(client, name)
    except KeyboardInterrupt:
        _say(f"\nno longer followed; {name} goes on")
        _say(f"its log: ray job logs --follow {where} {name}")
        _say(f"to stop it: ray job stop {where} {name}")
        raise typer.Exit(130) from None
    if code:
        raise typer.Exit(code)


def _say(line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)
