"""`rewardtune status`: what runs are doing, from their directories or from a Ray cluster.

Nothing heavy is imported: a status is asked for often, and answers at once.
"""

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.live import Live

from deploy.cli_output import AsJson, console
from deploy.run_directory import (
    STATUS_FILE,
    RunDirectoryError,
    RunGone,
    RunSilent,
    RunStarting,
    read_status,
)
from deploy.status import headline, is_over, render_runs, render_status, show_status

if TYPE_CHECKING:
    from deploy.targets import RunningRun

LOOK_SECONDS = 1.0
# Where no terminal draws over what was there before, a line that often.
LINE_SECONDS = 10.0
RUNS = Path("runs")

Status = Mapping[str, Any]


def status(
    run: Annotated[
        str | None,
        typer.Argument(help="A run's directory or name; without it, all runs are listed."),
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show it again every second, until the run ends.")
    ] = False,
    as_json: AsJson = False,
    address: Annotated[
        str | None, typer.Option(help="Ask the runs of this Ray cluster: HOST:PORT, or auto.")
    ] = None,
) -> None:
    """What a run is doing, how fast, and what holds it up."""
    if run is None:
        if watch:
            raise RunDirectoryError("--watch: name the run to watch")
        _list(_of_cluster(address) if address else list(statuses_below(RUNS)), as_json)
        return
    look = _at(address, run) if address else lambda: read_status(find_run(run))
    if watch:
        raise typer.Exit(_watch(look, as_json))
    found = look()
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        show_status(console, found)


def find_run(run: str) -> Path:
    """The directory of a run that is named by it, or by its name.

    Raises:
      RunDirectoryError: it is not there.
    """
    places = [Path(run), RUNS / run]
    for place in places:
        if (place / STATUS_FILE).is_file():
            return place
    known = ", ".join(path.parent.name for path in sorted(RUNS.glob(f"*/{STATUS_FILE}")))
    raise RunDirectoryError(
        f"no status of {run!r}: there is no {' nor '.join(f'{p}/{STATUS_FILE}' for p in places)}; "
        f"runs with a status here: {known or 'none'}"
    )


def statuses_below(runs: Path) -> Iterator[Status]:
    """Those of all runs in a directory."""
    for path in sorted(runs.glob(f"*/{STATUS_FILE}")):
        with contextlib.suppress(RunDirectoryError):  # it has been removed since
            yield read_status(path.parent)


def _of_cluster(address: str) -> list[Status]:
    from deploy.targets import join_cluster, running_runs

    join_cluster(address)
    runs = running_runs()
    # All at once: one that does not answer holds up no other.
    with ThreadPoolExecutor(max(1, len(runs))) as asking:
        return [status for status in asking.map(_status_of, runs) if status is not None]


def _status_of(run: "RunningRun") -> Status | None:
    """For a list; None where it has ended since it was found."""
    nothing = {"run": run.name, "time": time.time()}
    try:
        return run.status()
    except RunStarting:
        return nothing | {"state": "starting"}
    except RunSilent:
        return nothing | {"state": "not answering"}
    except RunGone:
        return None


def _at(address: str, name: str) -> Callable[[], Status]:
    """What asks a cluster for a run.

    Raises:
      RunDirectoryError: it is not at work there.
    """
    from deploy.targets import join_cluster, running_runs

    join_cluster(address)
    runs = {run.name: run for run in running_runs()}
    name = Path(name).name
    if name not in runs:
        known = ", ".join(runs) or "none"
        raise RunDirectoryError(f"no run {name!r} is at work at {address}; at work: {known}")
    return runs[name].status


def _list(statuses: list[Status], as_json: bool) -> None:
    if as_json:
        print(json.dumps(statuses, indent=1))
    elif statuses:
        console.print(render_runs(statuses))
    else:
        console.print("no runs", highlight=False)


def _watch(look: Callable[[], Status], as_json: bool) -> int:
    """Shows a run until it is over; returns 1 where it failed, or is no longer there."""
    if as_json:
        shown = _watch_json(look)
    elif console.is_terminal:
        with Live(console=console, auto_refresh=False) as live:
            for shown in _statuses(look):
                live.update(render_status(shown), refresh=True)
    else:
        shown = _watch_lines(look)
    if not is_over(shown):
        print("the run is not at work any more; its directory has how it ended", file=sys.stderr)
    return 0 if shown["state"] in ("finished", "stopped") else 1


def _statuses(look: Callable[[], Status]) -> Iterator[Status]:
    """One a second; the last is of a run that is over, or that a cluster has no more.

    Of one that does not answer it is the last again, until that is too old.
    """
    found = None
    while found is None or not is_over(found):
        if found is not None:
            time.sleep(LOOK_SECONDS)
        try:
            found = look()
        except RunStarting:
            time.sleep(LOOK_SECONDS)
            continue
        except RunSilent:
            if found is None:
                raise
        except RunGone:
            if found is None:
                raise
            return
        yield found


def _watch_json(look: Callable[[], Status]) -> Status:
    told = None
    for shown in _statuses(look):
        if shown["time"] != told:
            print(json.dumps(shown), flush=True)
        told = shown["time"]
    return shown


def _watch_lines(look: Callable[[], Status]) -> Status:
    """Two lines now and then, where something has changed; at the end the whole status."""
    last, told = float("-inf"), None
    for shown in _statuses(look):
        news = (shown["state"], shown["step"])
        if news != told and time.monotonic() - last >= LINE_SECONDS:
            print(headline(shown))
            print(f"  {shown['bottleneck']['sentence']}", flush=True)
            last, told = time.monotonic(), news
    show_status(console, shown)
    return shown
