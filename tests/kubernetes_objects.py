"""The objects of deploy/k8s as kustomize builds them, and ways to take hold of their parts."""

import copy
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.kubernetes_schemas import RAY_KINDS

REPOSITORY = Path(__file__).resolve().parent.parent
OVERLAYS = sorted(path.name for path in (REPOSITORY / "deploy/k8s/overlays").iterdir())
Object = dict[str, Any]


@cache
def _built(overlay: str) -> list[Object]:
    kubectl, kustomize = shutil.which("kubectl"), shutil.which("kustomize")
    if kubectl is None and kustomize is None:
        pytest.skip("needs kubectl (1.27 or newer) or kustomize to build the overlays")
    command = [kubectl, "kustomize"] if kubectl else [kustomize, "build"]
    path = REPOSITORY / "deploy/k8s/overlays" / overlay
    done = subprocess.run([*command, path], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def build(overlay: str) -> list[Object]:
    """The objects of an overlay, to change as one likes; skips the test where nothing builds it."""
    return copy.deepcopy(_built(overlay))


def of_kind(objects: list[Object], *kinds: str) -> Iterator[Object]:
    return (thing for thing in objects if thing["kind"] in kinds)


def cluster_spec(objects: list[Object]) -> Object:
    (ray,) = of_kind(objects, *RAY_KINDS)
    return ray["spec"] if ray["kind"] == "RayCluster" else ray["spec"]["rayClusterSpec"]


def groups(objects: list[Object]) -> dict[str, Object]:
    return {group["groupName"]: group for group in cluster_spec(objects)["workerGroupSpecs"]}


def pod_specs(objects: list[Object]) -> dict[str, Object]:
    """Of every pod that the objects make, by a name for it."""
    spec = cluster_spec(objects)
    pods = {"head": spec["headGroupSpec"]["template"]["spec"]}
    pods |= {name: group["template"]["spec"] for name, group in groups(objects).items()}
    for thing in of_kind(objects, "Deployment", "StatefulSet"):
        pods[thing["metadata"]["name"]] = thing["spec"]["template"]["spec"]
    return pods


def values_of(thing: Any, key: str) -> Iterator[Any]:
    """All values under a key, however deep."""
    if isinstance(thing, dict):
        for name, value in thing.items():
            if name == key:
                yield value
            yield from values_of(value, key)
    elif isinstance(thing, list):
        for item in thing:
            yield from values_of(item, key)
