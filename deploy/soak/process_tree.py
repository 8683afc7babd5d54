"""The processes of this machine that a run started, however far down, and signals to them."""

import ctypes
import os
import signal
from dataclasses import dataclass
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
_ENDED = "ZX"


@dataclass(frozen=True)
class Process:
    """One process of /proc."""

    pid: int
    parent: int
    state: str
    command: str


def adopt_orphans() -> None:
    """From now on, what a descendant leaves behind becomes a child of this process, not of init.

    So a run's processes can be found after the one that started them was killed.

    Raises:
      OSError: the system does not do so (it is Linux's).
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl PR_SET_CHILD_SUBREAPER")


def descendants(root: int) -> list[Process]:
    """All living processes below one; those that have ended and wait for their parent are none."""
    children: dict[int, list[Process]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (process := _look(int(entry.name))) is not None:
            children.setdefault(process.parent, []).append(process)
    found: list[Process] = []
    left = [root]
    while left:
        below = children.get(left.pop(), [])
        found += below
        left += [process.pid for process in below]
    return [process for process in found if process.state not in _ENDED]


def is_alive(pid: int) -> bool:
    """Whether it exists and has not ended."""
    process = _look(pid)
    return process is not None and process.state not in _ENDED


def send(pid: int, number: signal.Signals) -> bool:
    """Signals a process; whether it was there."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def reap_orphans(keep: int | None) -> None:
    """Takes note of the ends of adopted processes, except of one whose end someone else awaits."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == keep:
            continue
        process = _look(int(entry.name))
        if process is not None and process.parent == os.getpid() and process.state == "Z":
            os.waitpid(process.pid, os.WNOHANG)


def _look(pid: int) -> Process | None:
    try:
        name, _, rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, parent = rest.split()[:2]
    return Process(pid, int(parent), state, command or name.partition("(")[2])
