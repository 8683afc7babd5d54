"""Whether an autoscaler would bring a Ray cluster the nodes that it lacks.

Ray's own monitor runs on each head, also where it can only look on; Kubernetes' runs beside it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HEAD = "node:__internal_head__"
_MONITOR, _CONFIG, _ADDRESS = "monitor.py", "--autoscaling-config=", "--gcs-address="


def monitors(processes: Path = Path("/proc")) -> list[list[str]]:
    """The command lines of Ray's monitors on the machine that runs this."""
    found = []
    for file in processes.glob("[0-9]*/cmdline"):  # none where there is no /proc, as on macOS
        try:
            words = file.read_bytes().decode(errors="replace").split("\0")
        except OSError:  # it has ended, or is another user's
            continue
        if any("autoscaler" in word and word.endswith(_MONITOR) for word in words):
            found.append(words)
    return found


def brings_nodes(of_head: Sequence[Sequence[str]], port: str, reports: bool) -> bool:
    """Whether an autoscaler is at work.

    Args:
      of_head: the command lines of the monitors on the head's machine.
      port: of the cluster; there may be several on a machine.
      reports: whether the cluster has been told of an autoscaler's decisions.
    """
    ours = [
        words
        for words in of_head
        if any(word.startswith(_ADDRESS) and word.endswith(f":{port}") for word in words)
    ]
    if ours:  # without a config it only looks on, and reports all the same
        return any(word.startswith(_CONFIG) and word != _CONFIG for w in ours for word in w)
    return reports


def reports_decisions(gcs_address: str) -> bool:
    """Whether something has told the cluster what it decided: Ray's monitor, or one elsewhere."""
    from ray.autoscaler.v2.sdk import get_cluster_status

    version = get_cluster_status(gcs_address).stats.autoscaler_version
    return version not in (None, "", "0")


def heads(nodes: Mapping[str, Any]) -> dict[str, Any]:
    """The head among the nodes that `ray.nodes` tells of."""
    return {name: node for name, node in nodes.items() if HEAD in node["Resources"]}
