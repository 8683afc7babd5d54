"""Objects of deploy/k8s against the published schemas, which refuse what is wrong."""

from typing import Any

import pytest

from tests.kubernetes_objects import OVERLAYS, build, of_kind
from tests.kubernetes_schemas import KINDS, OPERATOR_KINDS, RAY_KINDS, Schemas


@pytest.fixture(scope="session")
def schemas() -> Schemas:
    return Schemas()


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_object_is_valid_by_its_published_schema(overlay, schemas):
    faults = [fault for thing in build(overlay) for fault in schemas.faults(thing)]
    assert faults == []


def test_schemas_know_every_kind_that_is_built():
    known = {*KINDS, *(f"ray.io/v1 {kind}" for kind in RAY_KINDS)}
    known |= {f"monitoring.coreos.com/v1 {kind}" for kind in OPERATOR_KINDS}
    kinds = {f"{t['apiVersion']} {t['kind']}" for overlay in OVERLAYS for t in build(overlay)}
    assert kinds == known


MISSPELT, MISSING = "misspelt", "missing"
GROUP = "spec.workerGroupSpecs.0"
MUTANTS = [
    ("RayCluster", "spec.enableInTreeAutoscaling", MISSPELT),
    ("RayCluster", "spec.enableInTreeAutoscaling", "yes"),
    ("RayCluster", "spec.authOptions.mode", "bearer"),
    ("RayCluster", "spec.autoscalerOptions.version", "v3"),
    ("RayCluster", "spec.gcsFaultToleranceOptions.redisAddress", MISSPELT),
    ("RayCluster", "spec.headGroupSpec", MISSING),
    ("RayCluster", "spec.headGroupSpec.rayStartParams.num-cpus", 0),
    ("RayCluster", f"{GROUP}.minReplicas", "1"),
    ("RayCluster", f"{GROUP}.groupName", MISSING),
    ("RayCluster", f"{GROUP}.labels", MISSPELT),
    ("RayCluster", f"{GROUP}.template.spec.containers", MISSING),
    ("RayCluster", f"{GROUP}.template.spec.containers.0.name", MISSING),
    ("RayCluster", f"{GROUP}.template.spec.containers.0.resources.limits", MISSPELT),
    ("RayCluster", f"{GROUP}.template.spec.securityContext.runAsNonRoot", "true"),
    ("RayCluster", "metadata.labels", ["a"]),
    ("RayJob", "spec.entrypoint", MISSPELT),
    ("RayJob", "spec.backoffLimit", "3"),
    ("RayJob", "spec.rayClusterSpec.workerGroupSpecs.2.numOfHosts", "one"),
    ("RayJob", "spec.rayClusterSpec.headGroupSpec.template", MISSING),
    ("StatefulSet", "spec.serviceName", MISSPELT),
    ("StatefulSet", "spec.selector", MISSING),
    ("StatefulSet", "spec.template.spec.containers.0.env.0.valueFrom.secretKeyRef.key", MISSING),
    ("Deployment", "spec.template.spec.containers.0.readinessProbe.grpc.port", "grpc"),
    ("Deployment", "spec.template", MISSING),
    ("HorizontalPodAutoscaler", "spec.maxReplicas", MISSING),
    ("HorizontalPodAutoscaler", "spec.metrics.0.resource.target.averageUtilization", MISSPELT),
    ("NetworkPolicy", "spec.podSelector", MISSPELT),
    ("PodMonitor", "spec.podMetricsEndpoints", MISSPELT),
    ("PodMonitor", "spec.selector", MISSING),
    ("PrometheusRule", "spec.groups.0.rules.0.expr", MISSPELT),
    ("PrometheusRule", "spec.groups.1.rules.0.labels.severity", 1),
    ("PriorityClass", "value", MISSPELT),
    ("PriorityClass", "value", "3000"),
    ("PersistentVolumeClaim", "spec.accessModes", "ReadWriteMany"),
    ("Service", "spec.ports.0.port", MISSING),
    ("ConfigMap", "data", MISSPELT),
    ("Namespace", "metadata.label", {"a": "b"}),
]


@pytest.mark.parametrize(("kind", "path", "change"), MUTANTS)
def test_schemas_refuse_mutants(kind, path, change, schemas):
    overlay = "gpu-cluster" if kind == "RayCluster" else "gpu-job-reward-server"
    thing = next(of_kind(build(overlay), kind))
    *parents, last = path.split(".")
    inner: Any = thing
    for step in parents:
        inner = inner[int(step) if isinstance(inner, list) else step]
    if change == MISSPELT:
        inner[last[:-1]] = inner.pop(last)
    elif change == MISSING:
        del inner[last]
    else:
        inner[last] = change
    faults = schemas.faults(thing)
    assert faults
    assert all(fault.startswith(f"{thing['apiVersion']} {kind} $") for fault in faults)
