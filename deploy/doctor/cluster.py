"""What a Ray cluster is asked: its nodes' versions, GPUs, disks and files, and what fits on it."""

import contextlib
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.doctor.autoscaler import brings_nodes, heads, monitors, reports_decisions
from deploy.doctor.facts import (
    Facts,
    check_disks,
    check_gpus,
    compare_versions,
    directories_of,
    node_facts,
)
from deploy.doctor.finding import Finding, fail, ok, warn

if TYPE_CHECKING:
    from deploy.config import RunConfig

NODE_SECONDS = 60.0


def check_cluster(
    address: str, here: Facts, config: "RunConfig | None", runs: Path
) -> list[Finding]:
    """Joins the cluster and looks at it.

    Args:
      address: HOST:PORT of its head, or auto.
      here: facts of this machine.
      config: of the run that is to be started there, where there is one.
      runs: where runs are written.
    """
    import ray

    from deploy.cluster import PlacementError, connect
    from deploy.config import ClusterConfig

    try:
        connect(ClusterConfig(address=address), "rewardtune-doctor")
    except PlacementError as error:
        return [fail("cluster", _first_sentences(str(error)), _how_to_join(str(error)))]
    try:
        nodes = {_name(node): node for node in ray.nodes() if node["Alive"]}
        found = [ok("cluster", f"{address} has {len(nodes)} node(s): {', '.join(nodes)}")]
        answers, faults = _ask_all(nodes, node_facts, directories_of(runs))
        found += faults
        found += compare_versions(here, answers)
        found += check_gpus(
            answers, {n: node["Resources"].get("GPU", 0.0) for n, node in nodes.items()}
        )
        for name, facts in answers.items():
            found += check_disks(facts, name)
        able = {name: nodes[name] for name in answers}  # of the others it has been told
        found += check_shared(runs, able) if able else []
        if config is not None:
            found += check_files(config, able) if able else []
            autoscaler, faults = _has_autoscaler(able)
            found += faults
            found += check_room(config, list(nodes.values()), autoscaler)
        return found
    finally:
        ray.shutdown()


def _has_autoscaler(nodes: Mapping[str, Any]) -> tuple[bool, list[Finding]]:
    import ray

    address = ray.get_runtime_context().gcs_address
    answers, faults = _ask_all(heads(nodes), monitors)
    of_head = [words for found in answers.values() for words in found]
    port = address.rpartition(":")[2]
    return brings_nodes(of_head, port, reports_decisions(address)), faults


def _name(node: Mapping[str, Any]) -> str:
    return f"{node['NodeManagerAddress']}/{node['NodeID'][:6]}"


def _first_sentences(message: str) -> str:
    return message.strip().splitlines()[0]


def _how_to_join(message: str) -> str:
    """What the message of a failed connection calls for."""
    text = message.lower()
    if "version mismatch" in text:
        return "use the cluster's versions of Ray and Python here: pip install ray==VERSION"
    token = (
        "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the cluster's token"
    )
    if "token" in text or "auth" in text:
        return token
    # Ray does not say that it was refused; it tries until its patience ends.
    return (
        "start it with `ray start --head`, or give its address, HOST:6379; where its port answers, "
        f"it wants another token: {token}"
    )


def _ask_all(
    nodes: Mapping[str, Any], question: Callable[..., Any], *arguments: Any
) -> tuple[dict[str, Any], list[Finding]]:
    """A function's answers from every node, and what is the matter with those that have none."""
    import ray
    from ray.exceptions import GetTimeoutError, RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    calls = {
        name: ray.remote(num_cpus=0, max_retries=0)(question)
        .options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
        .remote(*arguments)
        for name, node in nodes.items()
    }
    deadline = time.monotonic() + NODE_SECONDS  # of all together: many may be lost
    answers, faults = {}, []
    for name, call in calls.items():
        try:
            answers[name] = ray.get(call, timeout=max(0.0, deadline - time.monotonic()))
        except GetTimeoutError:
            faults.append(
                fail(
                    "nodes",
                    f"node {name} has not run a task within {NODE_SECONDS:g} s",
                    "look at `ray status` and the node's logs in /tmp/ray/session_latest/logs",
                )
            )
        except (RayError, ImportError) as error:
            faults.append(
                fail(
                    "nodes",
                    f"node {name} cannot run RewardTune: {str(error).strip().splitlines()[-1]}",
                    "install it there at the same path and in the same version: pip install -e .",
                )
            )
    return answers, faults


@contextlib.contextmanager
def _probe(directory: Path) -> Iterator[Path]:
    """A file of this process in a directory, which goes again with those that nodes put beside."""
    probe = directory / f".doctor-{uuid.uuid4().hex}"
    probe.write_text(probe.name)
    try:
        yield probe
    finally:
        for file in directory.glob(f"{probe.name}*"):
            file.unlink(missing_ok=True)


def answer_probe(path: str, node: str) -> str | None:
    """Reads the head's file and writes one beside it; on a node. Returns what is wrong."""
    probe = Path(path)
    for _ in range(50):  # a network's file system shows a new file after a while
        if probe.exists():
            break
        time.sleep(0.1)
    try:
        if probe.read_text() != probe.name:
            return "has another file of that name"
        probe.with_name(f"{probe.name}.{node.replace('/', '-')}").write_text(node)
    except OSError as error:
        return f"cannot use it: {error.strerror}"
    return None


def check_shared(directory: Path, nodes: Mapping[str, Any]) -> list[Finding]:
    """Whether every node reads and writes the same files below a directory."""
    fix = (
        f"mount one file system at {directory} on all nodes, or set runs=PATH to one that is "
        "shared; checkpoints, logs and metrics are written there"
    )
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with _probe(directory) as probe:
            answers, found = _ask_all(nodes, _answer_on_node, str(probe))
            found += [
                fail("shared files", f"node {name}: {directory}: {fault}", fix)
                for name, fault in answers.items()
                if fault is not None
            ]
            seen = len(list(directory.glob(f"{probe.name}.*")))
    except OSError as error:
        return [fail("shared files", f"{directory}: {error.strerror} here", fix)]
    if not found and seen < len(answers):
        message = f"{directory}: {len(answers)} nodes wrote a file, {seen} are seen here"
        found = [fail("shared files", message, fix)]
    return found or [ok("shared files", f"{len(answers)} node(s) read and write {directory}")]


def _answer_on_node(path: str) -> str | None:
    import ray

    return answer_probe(path, ray.get_runtime_context().get_node_id())


def missing_files(paths: Sequence[str]) -> list[str]:
    """Those that are not there; on a node."""
    return [path for path in paths if not Path(path).exists()]


def check_files(config: "RunConfig", nodes: Mapping[str, Any]) -> list[Finding]:
    """Whether the config's files, its data and checkpoints, are on every node."""
    paths = sorted({str(path) for path in _paths(config.model_dump()) if path.is_absolute()})
    paths = [path for path in paths if path != str(config.runs)]
    fix = "mount the same data at the same path on all nodes, or copy it there"
    found = [
        fail("data", f"{path} is not here", "correct the path in the config")
        for path in missing_files(paths)
    ]
    here = [path for path in paths if Path(path).exists()]
    answers, faults = _ask_all(nodes, missing_files, here)
    found += faults
    found += [
        fail("data", f"node {name} has no {path}", fix)
        for name, missing in answers.items()
        for path in missing
    ]
    return found or [ok("data", f"{len(paths)} file(s) of the config are on every node")]


def _paths(values: Any) -> Iterator[Path]:
    if isinstance(values, Path):
        yield values
    elif isinstance(values, Mapping):
        for value in values.values():
            yield from _paths(value)
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from _paths(value)


def check_room(
    config: "RunConfig", nodes: Sequence[Mapping[str, Any]], autoscaler: bool = False
) -> list[Finding]:
    """Whether the cluster can hold what the config asks for.

    Args:
      config: of the run.
      nodes: as `ray.nodes()` tells them.
      autoscaler: whether one may bring further nodes.
    """
    from deploy.cluster import crowded, describe_nodes, infeasible
    from deploy.pool import run_requests

    requests = run_requests(config)
    faults = infeasible(requests, nodes)
    if faults:
        fix = (
            "ask for less (resources.num_cpus, num_gpus, labels), or start nodes that have it: "
            "`ray start --address HEAD --labels pool=sampler`"
        )
        if autoscaler:
            fix = (
                "see that a node type of the autoscaler has these resources and labels; the run "
                "waits for it as long as nodes are coming, else cluster.placement_seconds"
            )
            message = "for now {}; the cluster's autoscaler may bring it. {}"
            return [
                warn("room", message.format(fault, describe_nodes(nodes)), fix) for fault in faults
            ]
        return [fail("room", f"{fault}. {describe_nodes(nodes)}", fix) for fault in faults]
    doubts = crowded(requests, nodes)
    if doubts:
        return [warn("room", doubt, "start more nodes, or fewer workers") for doubt in doubts]
    return [ok("room", "; ".join(str(request) for request in requests) + " fit")]
