"""Shows a run's status as text. The keys of a status are those of `deploy.run_status`."""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from deploy.bottleneck import ENDED, has_ended

# The controller writes a status every second; one much older has nobody to write it.
SILENT_SECONDS = 30.0
# A larger pool is shown by its roles, and those of its workers that have something to tell.
MOST_WORKERS = 16
SHOWN_REASONS = 5


def is_silent(status: Mapping[str, Any]) -> bool:
    """Whether a run that has not ended says nothing any more: its command was killed."""
    return status["state"] not in ENDED and time.time() - status["time"] >= SILENT_SECONDS


def is_over(status: Mapping[str, Any]) -> bool:
    """Whether nothing more will come of it."""
    return has_ended(status) or time.time() - status["time"] >= SILENT_SECONDS


def show_status(console: Console, status: Mapping[str, Any]) -> None:
    """Prints where a run is, what it waits for and how its workers are."""
    console.print(render_status(status), highlight=False)


def render_status(status: Mapping[str, Any]) -> Group:
    """The same, to be drawn again and again."""
    return Group(*_parts(status))


def _parts(status: Mapping[str, Any]) -> Iterator[RenderableType]:
    yield Text(headline(status))
    if (bottleneck := status.get("bottleneck")) and not is_silent(status):
        yield Text(bottleneck["sentence"], style="bold")
    if facts := "  ".join(_facts(status)):
        yield Text(facts)
    if hacking := status.get("reward_hacking"):
        yield Text(f"warning: {hacking['message']}", style="yellow")
    yield _stages(status)
    queue = status["queue"]
    yield Text(
        f"groups: {queue['out']} of {queue['window']} out, {queue['trained']} trained, "
        f"{queue['dropped']} dropped, {queue['quarantined']} quarantined, "
        f"{queue['redelivered']} redelivered, {queue['expired']} leases expired"
    )
    if queue.get("waiting"):
        yield Text(queue["waiting"], style="yellow")
    if status.get("roles"):
        yield _roles(status)
    workers = _worth_telling(status["workers"])
    if workers:
        yield _workers(workers)
    if outside := status.get("outside"):
        held = ", ".join(f"{worker['name']} ({worker['leases']} leased)" for worker in outside)
        yield Text(f"outside of Ray: {held}")
    if hidden := len(status["workers"]) - len(workers):
        yield Text(f"{hidden} more workers run; --json has them all")
    for worker in workers:
        if parts := told_apart(worker):
            told = ", ".join(f"{part} {_seconds(spent)}" for part, spent in parts.items())
            yield Text(f"work of {worker['name']}: {told}")
    # What users' code raised is text, also where it looks like markup.
    for worker in status["workers"]:
        if worker.get("last_failure"):
            yield Text(f"{worker['name']} was started again: {worker['last_failure']}")
    for reason in queue["last_reasons"][-SHOWN_REASONS:]:
        yield Text(f"failure: {reason}")


def headline(status: Mapping[str, Any]) -> str:
    """Name, state, step, and how fast it goes."""
    age = time.time() - status["time"]
    line = f"{status['run']}: {status['state']}, step {status['step']} of {status['steps']}"
    rate = status.get("throughput", {}).get("steps", {}).get("recent")
    if rate and status["state"] not in ENDED:
        line += f", {rate:.3g} steps/s, {_duration((status['steps'] - status['step']) / rate)} left"
    return f"{line} ({age:.0f} s ago{' — no longer running' if is_silent(status) else ''})"


def _facts(status: Mapping[str, Any]) -> Iterator[str]:
    metrics = status["metrics"]
    for name in ("reward/mean", "policy/entropy"):
        if name in metrics:
            yield f"{name} {metrics[name]:.4g}"
    staleness = status.get("staleness", {})
    if staleness.get("mean") is not None:
        yield (
            f"staleness {staleness['mean']:.2g}, at most {staleness['max']:g} "
            f"of {staleness['bound']} versions"
        )
    busy = status.get("roles", {}).get("learner", {}).get("busy")
    if busy is not None:
        yield f"learner idle {_share(1 - busy)}"
    if behind := status.get("evaluation", {}).get("behind"):
        yield f"to evaluate: {behind}"


def _stages(status: Mapping[str, Any]) -> Table:
    columns = ("ready", "leased", "wait p50", "wait p95", "groups/s", "since start")
    table = plain_table("stage", *columns)
    passed = status.get("throughput", {}).get("groups", {})
    for stage, values in status["queue"]["stages"].items():
        rates = passed.get(stage, {})
        table.add_row(
            stage,
            str(values["ready"]),
            str(values["leased"]),
            f"{values['wait_p50']:.2f} s",
            f"{values['wait_p95']:.2f} s",
            _number(rates.get("recent")),
            _number(rates.get("average")),
        )
    return table


def _roles(status: Mapping[str, Any]) -> Table:
    table = plain_table("role", "workers", "working", "waiting", "work a group", "nodes")
    for role, values in status["roles"].items():
        busy, cost = values["busy"], values["seconds_per_group"]
        nodes = {worker.get("address") for worker in status["workers"] if worker["role"] == role}
        shown = sorted(node for node in nodes if node)
        table.add_row(
            role,
            ", ".join(f"{count} {state}" for state, count in values["workers"].items()),
            _share(busy),
            _share(None if busy is None else 1 - busy),
            "" if cost is None else _seconds(cost),
            ", ".join(shown[:3]) + (f" and {len(shown) - 3} more" if len(shown) > 3 else ""),
        )
    return table


def _workers(workers: Sequence[Mapping[str, Any]]) -> Table:
    table = plain_table(
        "worker", "state", "pid", "node", "starts", "groups", "busy", "waiting", "work"
    )
    table.collapse_padding = True  # for a terminal of 80 columns
    for worker in workers:
        table.add_row(
            worker["name"],
            worker["state"],
            str(worker["pid"] or ""),
            worker.get("address") or "",
            str(worker["restarts"] + 1),
            str(worker.get("groups", "")),
            _share(worker.get("recent", {}).get("busy")),
            _seconds(worker.get("waiting")),
            _seconds(worker.get("working")),
        )
    return table


def told_apart(worker: Mapping[str, Any]) -> dict[str, float]:
    """What a worker's `working` seconds went into, as far as its status says: parts above 0.

    A sampler tells its loading of weights, a reward worker what `rewards.reward.Group.seconds` has.
    """
    parts = {"loading weights": worker.get("loading_weights", 0.0), **worker.get("parts", {})}
    return {part: float(seconds) for part, seconds in parts.items() if seconds > 0}


def _worth_telling(workers: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """All of a small run; of a large one those that do not run, or did not always."""
    if len(workers) <= MOST_WORKERS:
        return list(workers)
    odd = [w for w in workers if w["state"] != "running" or w["restarts"]]
    return odd[:MOST_WORKERS]


def render_runs(statuses: Sequence[Mapping[str, Any]]) -> Table:
    """A line for each of several runs."""
    table = plain_table("run", "state", "step", "of", "steps/s", "told", "bottleneck")
    for status in statuses:
        silent = is_silent(status)
        rate = status.get("throughput", {}).get("steps", {}).get("recent")
        sentence = (status.get("bottleneck") or {}).get("sentence", "")
        table.add_row(
            Text(status["run"]),
            "no longer running" if silent else status["state"],
            str(status.get("step", "")),
            str(status.get("steps", "")),
            "" if silent or status["state"] in ENDED else _number(rate),
            # One that is starting or does not answer has told nothing.
            f"{_duration(time.time() - status['time'])} ago" if "step" in status else "",
            "" if silent or status["state"] in ENDED else Text(sentence),
        )
    return table


def plain_table(first: str, *columns: str) -> Table:
    """A table without lines."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(first, no_wrap=True)
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column in ("node", "state", "told"))
    return table


def _seconds(value: float | None) -> str:
    if value is None:
        return ""
    digits = ".0f" if value >= 1000 else ".1f" if value >= 1 else ".3g"
    return f"{value:{digits}} s"


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.0f} %"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _duration(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
