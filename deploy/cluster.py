"""The Ray cluster under a run: joining it, and what it can place."""

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import AuthenticationError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from deploy.coming_nodes import demanded, nodes_coming
from deploy.config import ClusterConfig, thread_environment
from deploy.environment import compilation_cache
from learner.stop import StopRequest, TrainingInterrupted
from replay.resources import Resources

logger = logging.getLogger(__name__)

# Ray ends the actors of a driver that is gone within seconds.
ENDING_SECONDS = 15.0


class PlacementError(RuntimeError):
    """The cluster cannot hold what the config asks for; the message has both."""


class NameTaken(RuntimeError):
    """Another run of this name is at work in the cluster."""


@dataclass(frozen=True)
class Request:
    """What a role asks for, `count` times; it can begin with `least` of them."""

    role: str
    count: int
    resources: Resources
    least: int = 1

    def amounts(self) -> dict[str, float]:
        """By Ray's resource names, for one process."""
        asked = {"CPU": self.resources.num_cpus, "GPU": self.resources.num_gpus}
        asked |= self.resources.custom
        return {name: amount for name, amount in asked.items() if amount}

    def __str__(self) -> str:
        wanted = ", ".join(f"{name} {amount:g}" for name, amount in self.amounts().items())
        labels = "".join(f", label {k}={v}" for k, v in self.resources.labels.items())
        return f"{self.role} ({self.count} of them, each {wanted or 'no resources'}{labels})"


def connect(config: ClusterConfig, job_name: str) -> bool:
    """Joins a cluster or starts one on this machine; returns whether it was started here.

    A program that has called `ray.init` itself keeps its own cluster.

    Raises:
      PlacementError: the address does not answer.
    """
    if ray.is_initialized():
        return False
    with _own_sigterm_handler():
        return _init(config, job_name)


@contextmanager
def _own_sigterm_handler() -> Iterator[None]:
    """Keeps the program's handler of SIGTERM, such as that of `StopRequest`.

    `ray.init` puts one in its place that exits at once: the run would count as failed, and leave no
    checkpoint.
    """
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if callable(before) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _init(config: ClusterConfig, job_name: str) -> bool:
    address = config.address or os.environ.get("RAY_ADDRESS")
    # Ray refuses a variable that a job's runtime environment sets too; ours holds that one's value.
    os.environ.setdefault("RAY_OVERRIDE_JOB_RUNTIME_ENV", "1")
    environment = {"env_vars": {"PYTHONPATH": _python_path()}}
    if address is None:
        ray.init(
            include_dashboard=False,
            log_to_driver=False,
            namespace=job_name,
            runtime_env=environment,
            # Ray says at WARNING that it made a token for this cluster of one job.
            logging_level=logging.ERROR,
        )
        return True
    try:
        ray.init(
            address=address,
            log_to_driver=False,
            namespace=job_name,
            runtime_env=environment,
            logging_level=logging.WARNING,
        )
    except (AuthenticationError, ConnectionError, RuntimeError) as error:
        raise PlacementError(
            f"no Ray cluster at {address!r}: {error}. Start one with `ray start --head`, or leave "
            "cluster.address out to start one on this machine"
        ) from error
    return False


def _python_path() -> str:
    repository = str(Path(__file__).resolve().parent.parent)
    paths = [str(Path.cwd()), repository, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return os.pathsep.join(dict.fromkeys(path for path in paths if path))


def check_name_is_free(run: str, actors: Sequence[str]) -> None:
    """Looks for another run of this name in the cluster; waits a little for one that is ending.

    Args:
      run: its name.
      actors: names that it is about to give; those of a run that has ended are free.

    Raises:
      NameTaken: one is at work.
    """
    patient_until = time.monotonic() + ENDING_SECONDS
    while taken := [actor for actor in actors if _is_there(actor)]:
        if time.monotonic() > patient_until:
            raise NameTaken(
                f"a run named {run} is at work in this Ray cluster (it has {', '.join(taken)}): "
                "give this one another name with name=NAME, or stop that one; `rewardtune status "
                "--address HOST:PORT` shows it"
            )
        time.sleep(0.2)


def _is_there(actor: str) -> bool:
    try:
        ray.get_actor(actor)
    except ValueError:
        return False
    return True


def actor_options(resources: Resources, name: str) -> dict[str, Any]:
    """Ray's options for a role's process."""
    environment = thread_environment(resources.threads) | compilation_cache()
    options: dict[str, Any] = {
        "name": name,
        "num_cpus": resources.num_cpus,
        "num_gpus": resources.num_gpus,
        "resources": resources.custom,
        "max_restarts": -1,
        "max_concurrency": 4,
        "runtime_env": {"env_vars": environment},
    }
    if resources.labels:
        options["label_selector"] = dict(resources.labels)
    return options


def beside_the_driver() -> dict[str, Any]:
    """Ray's options for what should live as long as the driver, and needs no CPU: its node.

    Not softly: Ray then places what asks for no resources anywhere.
    """
    here = ray.get_runtime_context().get_node_id()
    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(here, soft=False)}


def check_placement(requests: Sequence[Request], config: ClusterConfig, stop: StopRequest) -> None:
    """Finds requests that no node could ever meet, and a cluster too small for one of each role.

    Has an autoscaler bring nodes for them. Waits `placement_seconds`, and as long as it is bringing
    some.

    Raises:
      PlacementError: with what was asked, and what the nodes have.
      TrainingInterrupted: asked to stop while it waits.
    """
    faults = infeasible(requests, _nodes())
    if faults:
        with demanded(
            [request.amounts() for request in requests],
            [request.resources.labels for request in requests],
        ):
            _wait_for_nodes(requests, config, stop)
    for doubt in crowded(requests, _nodes()):
        logger.warning("%s", doubt)


def _wait_for_nodes(requests: Sequence[Request], config: ClusterConfig, stop: StopRequest) -> None:
    patient_until = time.monotonic() + config.placement_seconds
    told = 0
    while faults := infeasible(requests, _nodes()):
        coming = nodes_coming()
        if coming > told:
            logger.warning("%s. Nodes that Ray brings: %d", "; ".join(faults), coming)
        if coming:
            patient_until = time.monotonic() + config.placement_seconds
        told = coming
        if stop.requested:
            raise TrainingInterrupted("stopped before it began: it waited for nodes")
        if time.monotonic() > patient_until:
            raise PlacementError("; ".join(faults) + f". {describe_nodes(_nodes())}")
        time.sleep(0.5)


def _nodes() -> list[Mapping[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def infeasible(requests: Sequence[Request], nodes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Requests that no node could meet, or one of each role that the nodes have no room for."""
    requests = [request for request in requests if request.count]
    faults = [
        f"no node can hold {request}"
        for request in requests
        if not any(_fits(request, node) for node in nodes)
    ]
    if faults:
        return faults
    for name, asked in _totals(requests, fewest=True).items():
        have = sum(node["Resources"].get(name, 0.0) for node in nodes)
        if asked > have + 1e-6:
            roles = ", ".join(str(request) for request in requests)
            faults.append(
                f"one process of each role (of the learner one a host) needs {name} {asked:g}, "
                f"the cluster has {have:g}: {roles}"
            )
    return faults


def crowded(requests: Sequence[Request], nodes: Sequence[Mapping[str, Any]]) -> list[str]:
    """What all processes together ask for beyond what the nodes have."""
    doubts = []
    for name, asked in _totals(requests, fewest=False).items():
        have = sum(node["Resources"].get(name, 0.0) for node in nodes)
        if asked > have + 1e-6:
            doubts.append(
                f"all processes together ask for {name} {asked:g}, the cluster has {have:g}: some "
                "stay pending unless nodes are added"
            )
    return doubts


def _totals(requests: Sequence[Request], fewest: bool) -> dict[str, float]:
    totals: dict[str, float] = {}
    for request in requests:
        for name, amount in request.amounts().items():
            totals[name] = totals.get(name, 0.0) + amount * (
                request.least if fewest else request.count
            )
    return totals


def _fits(request: Request, node: Mapping[str, Any]) -> bool:
    labels = node.get("Labels", {})
    return all(
        node["Resources"].get(name, 0.0) + 1e-6 >= amount
        for name, amount in request.amounts().items()
    ) and all(labels.get(name) == value for name, value in request.resources.labels.items())


def describe_nodes(nodes: Sequence[Mapping[str, Any]]) -> str:
    """What the cluster has, a node each."""
    lines = []
    for node in nodes:
        amounts = ", ".join(
            f"{name} {amount:g}"
            for name, amount in sorted(node["Resources"].items())
            if not name.startswith("node:") and "memory" not in name
        )
        labels = {k: v for k, v in node.get("Labels", {}).items() if not k.startswith("ray.io/")}
        shown = f" with labels {labels}" if labels else ""
        lines.append(f"node {node['NodeManagerAddress']} has {amounts}{shown}")
    return "The cluster: " + ("; ".join(lines) or "no node")
