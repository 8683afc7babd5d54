"""What a soak found, for people and for programs."""

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from deploy.soak.injector import Mended
from deploy.soak.ledger import Verdict
from deploy.soak.schedule import Fault


@dataclass(frozen=True)
class FaultRecord:
    """One fault; times in seconds.

    Attributes:
      at: since the soak began.
      step: the run's when it was hit.
      noticed_after: from the hit to when the run noticed; None: there is nothing to notice.
      mended_after: from then (or the hit) to completed work of the replacement, or the next step.
      ended_run: the last words of a command that the fault ended; the soak resumed it.
      left: processes that should have gone.
      lost, twice: ordinals, by all that was trained by then.
      load: of the machine, over the last minute: how many processes wanted a core.
    """

    index: int
    kind: str
    victim: str
    pid: int | None
    example_id: str | None
    step: int
    at: float
    noticed_after: float | None
    mended_after: float
    ended_run: str | None
    left: list[str]
    lost: int
    twice: int
    load: float

    @classmethod
    def of(
        cls,
        fault: Fault,
        mended: Mended,
        step: int,
        began: float,
        ended: str | None,
        left: list[str],
        verdict: Verdict,
    ) -> "FaultRecord":
        """From what the injector and the ledger say."""
        noticed = mended.at if mended.noticed is None else mended.noticed
        return cls(
            index=fault.index,
            kind=fault.kind.name,
            victim=mended.victim,
            pid=mended.pid,
            example_id=mended.example_id,
            step=step,
            at=round(mended.at - began, 1),
            noticed_after=None if mended.noticed is None else round(noticed - mended.at, 2),
            mended_after=round(mended.mended - noticed, 2),
            ended_run=ended,
            left=left,
            lost=len(verdict.lost),
            twice=len(verdict.twice),
            load=round(os.getloadavg()[0], 1),
        )

    def line(self, of: int) -> str:
        """For the terminal, while the soak goes on."""
        noticed = self.noticed_after
        told = "" if noticed is None else f"noticed after {noticed:.1f} s, "
        where = self.victim if self.pid is None else f"{self.victim} {self.pid}"
        return (
            f"{self.index + 1}/{of} step {self.step}: {self.kind} ({where}): "
            f"{told}mended {self.mended_after:.1f} s later; "
            f"lost {self.lost}, twice {self.twice}"
        )


def machine() -> dict[str, Any]:
    """What it ran on."""
    return {
        "cpus": os.cpu_count(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "load_average": [round(load, 1) for load in os.getloadavg()],
    }


def by_kind(faults: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Recovery times a kind: how many, median and worst."""
    rows = []
    for kind in sorted({fault["kind"] for fault in faults}):
        each = [fault for fault in faults if fault["kind"] == kind]
        noticed = sorted(f["noticed_after"] for f in each if f["noticed_after"] is not None)
        mended = sorted(f["mended_after"] for f in each)
        rows.append(
            {
                "kind": kind,
                "faults": len(each),
                "noticed_median": noticed[len(noticed) // 2] if noticed else None,
                "noticed_worst": noticed[-1] if noticed else None,
                "mended_median": mended[len(mended) // 2],
                "mended_p95": mended[len(mended) * 95 // 100],
                "mended_worst": mended[-1],
                "ended_run": sum(f["ended_run"] is not None for f in each),
            }
        )
    return rows


def show(console: Console, result: Mapping[str, Any]) -> None:
    """Prints the table and the verdict."""
    table = Table()
    table.add_column("fault", no_wrap=True)
    for title in ("times", "noticed (s)", "worst", "mended (s)", "p95", "worst"):
        table.add_column(title, justify="right")
    for row in by_kind(result["faults"]):
        cells = ("noticed_median", "noticed_worst", "mended_median", "mended_p95", "mended_worst")
        shown = ["" if row[cell] is None else f"{row[cell]:.1f}" for cell in cells]
        table.add_row(row["kind"], str(row["faults"]), *shown)
    console.print(table)
    verdict = result["verdict"]
    console.print(
        f"{len(result['faults'])} faults in {result['seconds']:.0f} s; {verdict['steps']} steps "
        f"({result['steps_redone']} more were trained again after going back to a checkpoint): "
        f"{verdict['trained']} groups trained, {verdict['quarantined']} quarantined, "
        f"{verdict['unscored']} not scored, {verdict['dropped']} dropped; "
        f"{len(verdict['lost'])} lost, {len(verdict['twice'])} trained twice",
        highlight=False,
    )
    ended = sum(fault["ended_run"] is not None for fault in result["faults"])
    if ended:
        console.print(f"{ended} faults ended the run; the same command resumed it")
    equal = result["weights_equal_undisturbed"]
    if equal is not None:
        word = "are, bit for bit, those" if equal else "are NOT those"
        console.print(f"the final weights {word} of an undisturbed run")
    for violation in result["violations"]:
        console.print(f"violation: {violation}", style="red", highlight=False, markup=False)
