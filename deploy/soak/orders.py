"""How the soak tells a reward worker, whichever of its pool, to misbehave once: by files.

An order is a file; the reward that renames it first carries it out. What it was carried out on is
written beside it before anything happens, so that a process that dies of it has left its traces.
"""

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

_OPEN, _TAKEN, _CLAIM, _DONE = ".order", ".taken", ".claim", ".done"


@dataclass(frozen=True)
class Order:
    """A misbehaviour to carry out.

    Attributes:
      fault: its index in the schedule.
      what: the victim of a `Kind` whose action is "reward".
      seconds: how long it takes, where it takes time.
    """

    fault: int
    what: str
    seconds: float


@dataclass(frozen=True)
class Claim:
    """Where an order was carried out."""

    fault: int
    example_id: str
    pid: int
    time: float


class Orders:
    """The directory, for both sides."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def give(self, order: Order) -> None:
        """From now on the next group is hit."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self._write(order.fault, _OPEN, asdict(order))

    def take(self, example_id: str) -> Order | None:
        """An order to carry out on this example, if there is one; nobody else gets it."""
        for path in self.directory.glob(f"*{_OPEN}"):
            taken = path.with_suffix(_TAKEN)
            try:
                path.rename(taken)
            except FileNotFoundError:
                continue  # another was faster
            order = Order(**json.loads(taken.read_text()))
            claim = Claim(order.fault, example_id, os.getpid(), time.time())
            self._write(order.fault, _CLAIM, asdict(claim))
            return order
        return None

    def done(self, order: Order) -> None:
        """What took time is over."""
        self._write(order.fault, _DONE, {"time": time.time()})

    def claim(self, fault: int) -> Claim | None:
        """Where the order of a fault was carried out; None: not yet."""
        path = self._path(fault, _CLAIM)
        return Claim(**json.loads(path.read_text())) if path.exists() else None

    def done_at(self, fault: int) -> float | None:
        """When it was over."""
        path = self._path(fault, _DONE)
        return float(json.loads(path.read_text())["time"]) if path.exists() else None

    def _path(self, fault: int, suffix: str) -> Path:
        return self.directory / f"{fault:05d}{suffix}"

    def _write(self, fault: int, suffix: str, values: dict[str, object]) -> None:
        path = self._path(fault, suffix)
        beside = path.with_name(f".{path.name}")
        beside.write_text(json.dumps(values))
        beside.replace(path)
