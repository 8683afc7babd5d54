"""Published schemas of the Kubernetes objects that deploy/k8s makes, unknown fields refused.

They lie in tests/golden/kubernetes_schemas.json.gz, descriptions left out. Run as a program, this
file makes them anew from what publishes them (the Python packages are on PyPI):

    python -m tests.kubernetes_schemas CRDS SCHEMAS OPERATOR

  CRDS: folder of KubeRay's CustomResourceDefinitions (../shared/data/kuberay_crds).
  SCHEMAS: kubernetes-json-schema/v1.37.0-local-strict of the package kubernetes-validate 1.37.0.
  OPERATOR: folder with KIND.json of the Prometheus operator's kinds (`OPERATOR_KINDS`), each
    `KIND.model_json_schema(by_alias=True)` of cloudcoil-models-prometheus-operator 0.80.1.0.
"""

import gzip
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator

GOLDEN = Path(__file__).parent / "golden" / "kubernetes_schemas.json.gz"
RAY_KINDS = ("RayCluster", "RayJob")
OPERATOR_KINDS = ("PodMonitor", "PrometheusRule")
KINDS = {
    "apps/v1 Deployment": "deployment-apps-v1",
    "apps/v1 StatefulSet": "statefulset-apps-v1",
    "autoscaling/v2 HorizontalPodAutoscaler": "horizontalpodautoscaler-autoscaling-v2",
    "networking.k8s.io/v1 NetworkPolicy": "networkpolicy-networking-v1",
    "scheduling.k8s.io/v1 PriorityClass": "priorityclass-scheduling-v1",
    "v1 ConfigMap": "configmap-v1",
    "v1 Namespace": "namespace-v1",
    "v1 PersistentVolumeClaim": "persistentvolumeclaim-v1",
    "v1 Service": "service-v1",
}
_REFERENCE = "#/$defs/"  # at the end of whatever file is named
_PROSE = ("description", "title")


class Schemas:
    """Validators by `apiVersion kind`."""

    def __init__(self) -> None:
        self._schemas: dict[str, Any] = json.loads(gzip.decompress(GOLDEN.read_bytes()))

    def faults(self, thing: Mapping[str, Any]) -> list[str]:
        """What an object breaks of its schema, a line each; raises KeyError for unknown kinds."""
        kind = f"{thing['apiVersion']} {thing['kind']}"
        schema = self._schemas["objects"][kind]
        validator = Draft202012Validator(schema | {"$defs": self._schemas["definitions"]})
        return [f"{kind} {error.json_path}: {error.message}" for error in _leaves(validator, thing)]


def _leaves(validator: Draft202012Validator, thing: Any) -> Iterator[Any]:
    for error in validator.iter_errors(thing):
        yield from error.context or [error]


def strict(schema: Any) -> Any:
    """JSON schema of an `openAPIV3Schema`: unknown fields are refused.

    What has a default need not be given; a value that is an integer or a string may be either. What
    the schema leaves open (`x-kubernetes-preserve-unknown-fields`, a bare object) stays open.
    """
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    fields = schema.get("properties")
    made = {name: strict(value) for name, value in schema.items() if name != "properties"}
    if schema.get("x-kubernetes-int-or-string"):
        made.pop("type", None)
        made["type"] = ["integer", "string"]
        made.pop("anyOf", None)
    if fields is not None:
        made["properties"] = {name: strict(value) for name, value in fields.items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            made["additionalProperties"] = False
        required = [n for n in schema.get("required", ()) if "default" not in fields.get(n, {})]
        made["required"] = required
    return made


def _without_prose(value: Any, names: bool = False) -> Any:
    """Drops descriptions; `names`: the keys are names of fields, and a field may be called so."""
    if isinstance(value, list):
        return [_without_prose(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: _without_prose(item, key in ("properties", "$defs") and not names)
        for key, item in value.items()
        if names or key not in _PROSE
    }


def _redirect(value: Any, used: set[str]) -> Any:
    """References into the file of definitions become references into this one."""
    if isinstance(value, list):
        return [_redirect(item, used) for item in value]
    if not isinstance(value, dict):
        return value
    made = {}
    for key, item in value.items():
        if key == "$ref" and isinstance(item, str):
            name = item.rpartition(_REFERENCE)[2]
            used.add(name)
            made[key] = f"#/$defs/{name}"
        else:
            made[key] = _redirect(item, used)
    return made


def _refuse_unknown(value: Any) -> Any:
    """The same for pydantic's schemas, which leave objects open."""
    if isinstance(value, list):
        return [_refuse_unknown(item) for item in value]
    if not isinstance(value, dict):
        return value
    made = {key: _refuse_unknown(item) for key, item in value.items()}
    if isinstance(value.get("properties"), dict):
        made["additionalProperties"] = False
    return made


def make(crds: Path, schemas: Path, operator: Path) -> None:
    """Writes the golden file."""
    objects: dict[str, Any] = {}
    definitions: dict[str, Any] = {}
    wanted: set[str] = {"io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"}
    metadata = {"$ref": "#/$defs/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"}
    for path in sorted(crds.glob("*.yaml")):
        crd = yaml.safe_load(path.read_text())
        (version,) = (v for v in crd["spec"]["versions"] if v["name"] == "v1")
        schema = strict(_without_prose(version["schema"]["openAPIV3Schema"]))
        schema["properties"]["metadata"] = metadata
        objects[f"ray.io/v1 {crd['spec']['names']['kind']}"] = schema
    for kind, name in KINDS.items():
        found = json.loads((schemas / f"{name}.json").read_text())
        found.pop("$schema", None)
        objects[kind] = _redirect(_without_prose(found), wanted)
    known = json.loads((schemas / "_definitions.json").read_text())["$defs"]
    while missing := sorted(wanted - set(definitions)):
        for name in missing:
            definitions[name] = _redirect(_without_prose(known[name]), wanted)
    for kind in OPERATOR_KINDS:
        found = _without_prose(json.loads((operator / f"{kind}.json").read_text()))
        definitions |= {name: _refuse_unknown(it) for name, it in found.pop("$defs").items()}
        found["properties"]["metadata"] = metadata
        objects[f"monitoring.coreos.com/v1 {kind}"] = _refuse_unknown(found)
    text = json.dumps({"objects": objects, "definitions": definitions}, sort_keys=True)
    GOLDEN.write_bytes(gzip.compress(text.encode(), 9, mtime=0))
    print(f"{GOLDEN}: {GOLDEN.stat().st_size} bytes, {len(objects)} kinds")


if __name__ == "__main__":
    make(*(Path(argument) for argument in sys.argv[1:4]))
