"""Ends a worker's process on its node, for good. Ray itself cannot end one that is stopped.

A node that is lost answers after seconds, or never. Nobody waits for it but a thread of its own:
the controller goes on meanwhile.
"""

import logging
import os
import signal
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

logger = logging.getLogger(__name__)

NODE_SECONDS = 10.0
PROCESSES = Path("/proc")
_NAME = "kill-"


def this_process() -> dict[str, Any]:
    """What `kill_process` must know of this one: a number alone may be another's by then."""
    return {
        "pid": os.getpid(),
        "begun": _begun(os.getpid()),
        "node": ray.get_runtime_context().get_node_id(),
    }


def kill_process(where: Mapping[str, Any]) -> None:
    """SIGKILLs a process as it told it by `this_process`, unless it has ended.

    Returns before that is done where the node is another one. That it could not be done is logged:
    a process on a node that is lost is lost with it.
    """
    kill_processes([where])


def kill_processes(wheres: Iterable[Mapping[str, Any]]) -> None:
    """`kill_process` of many, by one task a node: each takes a process of Ray's there."""
    by_node: dict[str, list[tuple[int, int]]] = {}
    for where in wheres:
        by_node.setdefault(where["node"], []).append((where["pid"], where["begun"]))
    for node, processes in by_node.items():
        if node == ray.get_runtime_context().get_node_id():
            _kill(processes)
            continue
        name = f"{_NAME}{node}-{processes}"
        if any(thread.name == name for thread in threading.enumerate()):
            continue  # a worker that stays silent is told to end every second
        threading.Thread(
            target=_kill_elsewhere, args=(node, processes), name=name, daemon=True
        ).start()


def wait_for_kills(seconds: float = NODE_SECONDS) -> None:
    """Waits until what `kill_process` began is done, at most so long for all of it.

    The tasks that do it on other nodes end with the driver.
    """
    deadline = time.monotonic() + seconds
    for thread in threading.enumerate():
        if thread.name.startswith(_NAME):
            thread.join(max(0.0, deadline - time.monotonic()))


def _kill_elsewhere(node: str, processes: Sequence[tuple[int, int]]) -> None:
    task = ray.remote(num_cpus=0)(_kill).options(
        scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
    )
    try:
        ray.get(task.remote(processes), timeout=NODE_SECONDS)
    except (GetTimeoutError, RayError) as error:
        which = ", ".join(str(pid) for pid, _ in processes)
        about = {"subject": f"node {node}"}
        logger.warning("could not end process %s on node %s: %s", which, node, error, extra=about)


def _kill(processes: Sequence[tuple[int, int]]) -> None:
    """By number and beginning."""
    for pid, begun in processes:
        try:
            if _begun(pid) == begun:
                os.kill(pid, signal.SIGKILL)
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended


def _begun(pid: int) -> int:
    """When a process began, in clock ticks since its machine started.

    0 where there is no /proc, as on macOS: its number must do there.
    """
    if not PROCESSES.is_dir():
        return 0
    # Its name stands second in parentheses, and may hold anything; the 22nd value is the time.
    return int((PROCESSES / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()[19])
