"""Objects of deploy/k8s against the published schemas, which refuse what is wrong."""

import re
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
QUEUE_NAME, ELASTIC = "kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/elastic-job"
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


# Of what one overlay alone has: the scaler by a backlog, Kueue's names, a slice of TPU hosts.
EXTERNAL = "spec.metrics.0.external"
MUTANTS_OF_OVERLAYS = [
    ("gpu-job-reward-workers", "HorizontalPodAutoscaler", path, change)
    for path, change in [
        ("spec.scaleTargetRef", MISSING),
        ("spec.scaleTargetRef.name", MISSING),
        ("spec.scaleTargetRef.kind", MISSPELT),
        ("spec.minReplicas", "1"),
        ("spec.maxReplicas", MISSPELT),
        ("spec.metrics.0.type", MISSING),
        (EXTERNAL, MISSPELT),
        (f"{EXTERNAL}.metric", MISSING),
        (f"{EXTERNAL}.metric.name", MISSPELT),
        (f"{EXTERNAL}.metric.selector.matchLabels", MISSPELT),
        (f"{EXTERNAL}.metric.selector.matchLabels.stage", 1),
        (f"{EXTERNAL}.target.type", MISSING),
        (f"{EXTERNAL}.target.averageValue", MISSPELT),
        (f"{EXTERNAL}.target.averageValue", [4]),
        ("spec.behavior.scaleDown", MISSPELT),
        ("spec.behavior.scaleDown.stabilizationWindowSeconds", "300"),
    ]
]
MUTANTS_OF_OVERLAYS += [
    ("gpu-job-kueue", "RayJob", "metadata.labels", MISSPELT),
    ("gpu-job-kueue", "RayJob", "metadata.labels", "rewardtune"),
    ("gpu-job-kueue", "RayJob", f"metadata.labels.{QUEUE_NAME}", 1),
    ("gpu-job-kueue", "RayJob", "metadata.annotations", MISSPELT),
    ("gpu-job-kueue", "RayJob", f"metadata.annotations.{ELASTIC}", True),
    ("gpu-job-kueue", "RayJob", "spec.suspend", "true"),
    ("tpu-slice-job", "RayJob", "spec.rayClusterSpec.workerGroupSpecs.2.numOfHosts", "4"),
    ("tpu-slice-job", "RayJob", "spec.rayClusterSpec.workerGroupSpecs.2.numOfHosts", MISSPELT),
]


@pytest.mark.parametrize(("kind", "path", "change"), MUTANTS)
def test_schemas_refuse_mutants(kind, path, change, schemas):
    overlay = "gpu-cluster" if kind == "RayCluster" else "gpu-job-reward-server"
    assert_refused(overlay, kind, path, change, schemas)


@pytest.mark.parametrize(("overlay", "kind", "path", "change"), MUTANTS_OF_OVERLAYS)
def test_schemas_refuse_mutants_of_what_one_overlay_has(overlay, kind, path, change, schemas):
    assert_refused(overlay, kind, path, change, schemas)


def assert_refused(overlay: str, kind: str, path: str, change: Any, schemas: Schemas) -> None:
    thing = next(of_kind(build(overlay), kind))
    assert not schemas.faults(thing)
    *parents, last = re.split(r"\.(?!io|x-k8s)", path)  # a dot inside Kueue's names is no step
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
