"""Shows a run's status as text."""

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from deploy.report.timings import told_apart

# The controller writes a status every second; one much older has nobody to write it.
SILENT_SECONDS = 30.0
ENDED = ("finished", "stopped", "failed")


def show_status(console: Console, status: Mapping[str, Any]) -> None:
    """Prints where a run is, what waits in its queue and how its workers are."""
    age = time.time() - status["time"]
    alive = "" if age < SILENT_SECONDS or status["state"] in ENDED else " — no longer running"
    console.print(
        f"{status['run']}: {status['state']}, step {status['step']} of {status['steps']}"
        f" ({age:.0f} s ago{alive})"
    )
    metrics = status["metrics"]
    if metrics:
        console.print(
            "  ".join(
                f"{name} {metrics[name]:.4g}"
                for name in ("reward/mean", "policy/entropy", "staleness/mean", "seconds/waiting")
                if name in metrics
            )
        )
    if hacking := status.get("reward_hacking"):
        console.print(
            f"warning: {hacking['message']}", style="yellow", highlight=False, markup=False
        )
    queue = status["queue"]
    table = Table("stage", "ready", "leased", "wait p50 (s)", "wait p95 (s)")
    for stage, values in queue["stages"].items():
        table.add_row(
            stage,
            str(values["ready"]),
            str(values["leased"]),
            f"{values['wait_p50']:.2f}",
            f"{values['wait_p95']:.2f}",
        )
    console.print(table)
    console.print(
        f"groups: {queue['out']} of {queue['window']} out, {queue['trained']} trained, "
        f"{queue['dropped']} dropped, {queue['quarantined']} quarantined, "
        f"{queue['redelivered']} redelivered"
    )
    if queue.get("waiting"):
        console.print(queue["waiting"], style="yellow", highlight=False)
    table = Table("worker", "state", "process", "restarts", "groups", "working", "of it", "waiting")
    for worker in status["workers"]:
        table.add_row(
            worker["name"],
            worker["state"],
            str(worker["pid"] or ""),
            str(worker["restarts"]),
            str(worker.get("groups", "")),
            _seconds(worker.get("working")),
            ", ".join(f"{part} {_seconds(spent)}" for part, spent in told_apart(worker).items()),
            _seconds(worker.get("waiting")),
        )
    console.print(table)
    for reason in queue["last_reasons"][-5:]:
        # What users' code raised is text, also where it looks like markup.
        console.print(f"failure: {reason}", highlight=False, markup=False)


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.1f} s"
