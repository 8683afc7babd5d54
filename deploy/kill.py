"""Ends a worker's process on its node, for good. Ray itself cannot end one that is stopped.

A node that is lost answers after seconds, or never. Nobody waits for it but a thread of its own:
the controller goes on meanwhile.
"""

import logging
import os
import signal
import threading
import time

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

logger = logging.getLogger(__name__)

NODE_SECONDS = 10.0
_NAME = "kill-"


def kill_process(node: str, pid: int) -> None:
    """SIGKILLs a worker's process; returns before that is done where the node is another one.

    That it could not be done is logged: a process on a node that is lost is lost with it.
    """
    if node == ray.get_runtime_context().get_node_id():
        _signal_if_ours(pid, signal.SIGKILL)
        return
    name = f"{_NAME}{pid}-{node}"
    threading.Thread(target=_kill_elsewhere, args=(node, pid), name=name, daemon=True).start()


def wait_for_kills(seconds: float = NODE_SECONDS) -> None:
    """Waits until what `kill_process` began is done, at most so long for all of it.

    The tasks that do it on other nodes end with the driver.
    """
    deadline = time.monotonic() + seconds
    for thread in threading.enumerate():
        if thread.name.startswith(_NAME):
            thread.join(max(0.0, deadline - time.monotonic()))


def _kill_elsewhere(node: str, pid: int) -> None:
    task = ray.remote(num_cpus=0)(_signal_if_ours).options(
        scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
    )
    try:
        ray.get(task.remote(pid, signal.SIGKILL), timeout=NODE_SECONDS)
    except (GetTimeoutError, RayError) as error:
        about = {"subject": f"process {pid} on {node}"}
        logger.warning("could not end process %d on node %s: %s", pid, node, error, extra=about)


def _signal_if_ours(pid: int, number: int) -> None:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            if not file.read().startswith(b"ray::"):
                return  # the process has ended and its number belongs to another now
        os.kill(pid, number)
    except (FileNotFoundError, ProcessLookupError):
        return
