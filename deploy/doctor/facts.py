"""What a machine has: the same facts of this one and of each node of a cluster.

`node_facts` runs as a Ray task on a node: it must need nothing that a reward worker does not have.
"""

import importlib.util
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from deploy.doctor.finding import Finding, fail, ok, warn

# Whose versions should agree wherever they are: what travels between processes is theirs, or
# results depend on them. Ray refuses others of Python and of itself.
PACKAGES = ("rewardtune", "ray", "protobuf", "numpy", "numba", "jax", "flax", "torch")
MUST_AGREE = ("python", "rewardtune", "ray")
CUDA_PLUGINS = ("jax-cuda12-plugin", "jax-cuda13-plugin")
# Which must be of jaxlib's version: JAX leaves out another one, and computes on the CPU.
CUDA_PARTS = (*CUDA_PLUGINS, "jax-cuda12-pjrt", "jax-cuda13-pjrt")
TORCH_CUDA = "torch's CUDA"
OLDEST_PYTHON = (3, 11)
OLDEST_RAY = (2, 60)
OLDEST_PROTOBUF = (4, 25)

Facts = Mapping[str, Any]


def node_facts(directories: Sequence[str] = ()) -> dict[str, Any]:
    """Versions, GPUs and disks of the machine that runs this.

    Args:
      directories: also tell the free space where these are, or would be.
    """
    places = {"temporary files of Ray": "/tmp", **{path: path for path in directories}}
    if Path("/dev/shm").exists():
        places["object store"] = "/dev/shm"
    return {
        "host": platform.node(),
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
        "cuda_plugins": [name for name in CUDA_PLUGINS if _version(name)],
        "cuda": _cuda(),
        "driver": _nvidia_driver(),
        "disks": {
            what: {"path": path, "free": usage.free, "total": usage.total}
            for what, path in places.items()
            if (usage := _usage(path)) is not None
        },
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _cuda() -> dict[str, str]:
    """Versions of jaxlib and of JAX's CUDA build, and of the CUDA that torch is built for."""
    found = {name: v for name in ("jaxlib", *CUDA_PARTS) if (v := _version(name))}
    spec = importlib.util.find_spec("torch")
    file = None if spec is None or spec.origin is None else Path(spec.origin).parent / "version.py"
    if file is not None and file.is_file():  # torch itself takes seconds to import
        built = re.search(r"^cuda\b[^=]*= *'([^']+)'", file.read_text(), re.MULTILINE)
        if built is not None:
            found[TORCH_CUDA] = built[1]
    return found


def _nvidia_driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.split()[0] if answer.stdout.split() else None


def _usage(path: str) -> Any:
    """Of the nearest directory that exists."""
    for place in (Path(path).absolute(), *Path(path).absolute().parents):
        if place.exists():
            return shutil.disk_usage(place)
    return None


def check_versions(facts: Facts, needs_model: bool) -> list[Finding]:
    """Whether this machine has what a command needs.

    Args:
      facts: of it.
      needs_model: whether it is to run samplers or the learner.
    """
    versions = facts["versions"]
    found = []
    oldest = (
        ("python", facts["python"], OLDEST_PYTHON),
        ("ray", versions.get("ray"), OLDEST_RAY),
        ("protobuf", versions.get("protobuf"), OLDEST_PROTOBUF),
    )
    for name, version, needed in oldest:
        wanted = ".".join(map(str, needed))
        if version is None or _numbers(version) < needed:
            found.append(
                fail(
                    "versions",
                    f"{name} is {version or 'missing'}; RewardTune needs {wanted} or newer",
                    f"pip install -c constraints.txt -e ., which brings {name} {wanted} or newer"
                    if name != "python"
                    else f"make the environment with Python {wanted} or newer",
                )
            )
    if needs_model and "jax" not in versions:
        found.append(
            fail(
                "versions",
                "JAX is missing, which samplers, learner and evaluator need",
                "pip install -c constraints.txt -e '.[model]'",
            )
        )
    if not found:
        told = ", ".join(f"{name} {version}" for name, version in versions.items())
        found.append(ok("versions", f"Python {facts['python']}, {told}"))
    return found


def _numbers(version: str) -> tuple[int, ...]:
    numbers = []
    for part in version.split(".")[:2]:
        digits = "".join(c for c in part if c.isdigit())
        numbers.append(int(digits or 0))
    return tuple(numbers)


def compare_versions(here: Facts, nodes: Mapping[str, Facts]) -> list[Finding]:
    """Whether the nodes of a cluster have what this machine has.

    Args:
      here: of this machine.
      nodes: by their names.
    """
    found = []
    ours = {"python": here["python"], **here["versions"]}
    for node, facts in nodes.items():
        theirs = {"python": facts["python"], **facts["versions"]}
        odd = [
            (name, ours[name], theirs[name])
            for name in ours
            if name in theirs and theirs[name] != ours[name]
        ]
        for name, mine, other in odd:
            message = f"node {node} has {name} {other}, this machine {mine}"
            fix = f"install the same on both: pip install -c constraints.txt {name}=={mine}"
            if name == "python":
                fix = f"make the node's environment with Python {mine}"
            strict = name in MUST_AGREE
            found.append((fail if strict else warn)("cluster versions", message, fix))
        if "rewardtune" in ours and "rewardtune" not in theirs:
            found.append(
                warn(
                    "cluster versions",
                    f"node {node} has RewardTune on its path, but not installed",
                    "pip install -e . in the repository there, to be sure of its requirements",
                )
            )
    if not found:
        found.append(ok("cluster versions", f"the same on {len(nodes)} node(s) as here"))
    return found


def check_gpus(nodes: Mapping[str, Facts], gpus: Mapping[str, float]) -> list[Finding]:
    """Whether nodes that offer GPUs to Ray can compute on them.

    Args:
      nodes: facts by node.
      gpus: how many GPUs each offers to Ray.
    """
    found = []
    drivers = {}
    for node, facts in nodes.items():
        if not gpus.get(node):
            continue
        drivers[node] = facts["driver"]
        if facts["driver"] is None:
            found.append(
                fail(
                    "GPUs",
                    f"node {node} offers {gpus[node]:g} GPU to Ray, but nvidia-smi finds none",
                    "start its container with the NVIDIA runtime, or `ray start --num-gpus 0`",
                )
            )
        elif not facts["cuda_plugins"] and TORCH_CUDA not in _cuda_of(facts):
            found.append(
                fail(
                    "GPUs",
                    f"node {node} has a GPU, but no CUDA build of JAX or torch: its processes "
                    "would compute on the CPU",
                    "pip install 'jax[cuda12]' there",
                )
            )
        found += _check_cuda_parts(node, _cuda_of(facts))
    found += _compare_cuda({node: _cuda_of(nodes[node]) for node in drivers})
    if len(set(drivers.values())) > 1:
        told = ", ".join(f"{node}: {driver}" for node, driver in drivers.items())
        found.append(
            warn("GPUs", f"the drivers differ ({told})", "use one driver version on all nodes")
        )
    if not found:
        count = sum(gpus.values())
        found.append(ok("GPUs", f"{count:g} in the cluster" if count else "none in the cluster"))
    return found


def _cuda_of(facts: Facts) -> Mapping[str, str]:
    told: Mapping[str, str] = facts.get("cuda", {})  # a node with an older RewardTune tells none
    return told


def _check_cuda_parts(node: str, cuda: Mapping[str, str]) -> list[Finding]:
    """Whether JAX would use its CUDA build."""
    jaxlib = cuda.get("jaxlib")
    odd = [name for name in CUDA_PARTS if name in cuda and _dotted(cuda[name]) != _dotted(jaxlib)]
    return [
        fail(
            "GPUs",
            f"node {node} has {name} {cuda[name]} and jaxlib {jaxlib}: JAX leaves it out, and its "
            "processes would compute on the CPU",
            f"pip install '{name}=={jaxlib}' there",
        )
        for name in odd
    ]


def _dotted(version: str | None) -> str:
    """The numbers that a version begins with, which are all that JAX compares."""
    found = re.match(r"\d+(\.\d+)*", version or "")
    return found[0] if found else ""


def _compare_cuda(nodes: Mapping[str, Mapping[str, str]]) -> list[Finding]:
    """Whether nodes with GPUs compute with the same builds: other ones change the last bits."""
    found = []
    for name in (*CUDA_PARTS, TORCH_CUDA):
        versions = {node: cuda[name] for node, cuda in nodes.items() if name in cuda}
        if len(set(versions.values())) > 1:
            told = ", ".join(f"{node}: {version}" for node, version in versions.items())
            fix = "install the same on all nodes with GPUs"
            found.append(warn("GPUs", f"{name} differs ({told})", fix))
    return found


def check_disks(facts: Facts, node: str, least_gb: float = 2.0) -> list[Finding]:
    """Whether there is room where a run writes.

    Args:
      facts: of a machine.
      node: its name.
      least_gb: below it a run fails soon; below the fifth part more, or 5 % of the disk, it may.
    """
    found = []
    for what, disk in facts["disks"].items():
        free = disk["free"] / 1e9
        told = f"{free:.1f} GB free for {what} ({disk['path']}) on {node}"
        fix = "remove what is not needed, or choose another disk"
        if what == "object store":
            fix = "give the container more shared memory (--shm-size), or free /dev/shm"
        elif disk["path"] == "/tmp":
            fix = "free it, or start Ray with --temp-dir on another disk"
        if free < least_gb:
            found.append(fail("disk", told, fix))
        elif free < 5 * least_gb or disk["free"] < 0.05 * disk["total"]:
            # Ray stops to write objects where a disk is 95 % full.
            found.append(warn("disk", told, fix))
    if not found:
        smallest = min(disk["free"] for disk in facts["disks"].values()) / 1e9
        found.append(ok("disk", f"at least {smallest:.0f} GB free on {node}"))
    return found


def directories_of(runs: Path) -> list[str]:
    """Where a run writes on a node, beside Ray's own files."""
    cache = os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))
    return [str(runs), cache]
