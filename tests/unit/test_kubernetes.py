"""What the objects of deploy/k8s say of each other, of the run and of the repository."""

import math
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import yaml
from redis import Redis
from redis.exceptions import AuthenticationError
from typer.testing import CliRunner

from deploy.cli import app
from deploy.config import RunConfig
from deploy.config_file import read_config
from deploy.monitoring.catalogue import METRICS
from deploy.submit import LAST_WORDS_SECONDS
from tests import redis_server
from tests.kubernetes_objects import (
    OVERLAYS,
    REPOSITORY,
    Object,
    build,
    cluster_spec,
    groups,
    of_kind,
    pod_specs,
    values_of,
)

RUNS = {
    "gpu-job-reward-server": "remote.yaml",
    "gpu-job-reward-workers": "outside.yaml",
    "tpu-slice-job": "slice.yaml",
}
CLUSTER_WIDE = {"Namespace", "PriorityClass"}
TPU_TOPOLOGY = "cloud.google.com/gke-tpu-topology"
SECRETS = {"rewardtune-ray-token", "rewardtune-redis", "rewardtune-reward-token"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_objects_name_is_there(overlay):
    objects = build(overlay)
    names = {(thing["kind"], thing["metadata"]["name"]) for thing in objects}
    text = yaml.safe_dump(objects)
    pods = list(pod_specs(objects).values())
    assert {("PriorityClass", pod["priorityClassName"]) for pod in pods} <= names
    for volume in (volume for pod in pods for volume in pod["volumes"]):
        if "configMap" in volume:
            assert ("ConfigMap", volume["configMap"]["name"]) in names
        if "persistentVolumeClaim" in volume:
            assert ("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]) in names
    for service, port in re.findall(r"(rewardtune-[\w-]+):(6379|50061|50063)", text):
        (found,) = (t for t in of_kind(objects, "Service") if t["metadata"]["name"] == service)
        assert [p["port"] for p in found["spec"]["ports"]] == [int(port)]
    for pod in pods:
        for container in pod["containers"]:
            mounts = {mount["name"] for mount in container["volumeMounts"]}
            claimed = {"data"} if container["name"] == "redis" else set()
            assert mounts <= {volume["name"] for volume in pod["volumes"]} | claimed


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_all_is_in_one_namespace_and_no_image_or_secret_is_left_open(overlay):
    objects = build(overlay)
    for thing in objects:
        if thing["kind"] not in CLUSTER_WIDE:
            assert thing["metadata"]["namespace"] == "rewardtune", thing["metadata"]
    images = {str(image) for image in values_of(objects, "image")}
    ours = r"registry\.example\.com/rewardtune-\w+:\d+\.\d+\.\d+(-\w+)?"
    others = r"redis:\d+\.\d+\.\d+-bookworm"  # to the patch: a pod that moves takes no other
    assert all(re.fullmatch(f"{ours}|{others}", image) for image in images), images
    # Secrets are made by commands of docs/kubernetes.md and are no part of the repository.
    assert not list(of_kind(objects, "Secret"))
    named = {ref["name"] for ref in values_of(objects, "secretKeyRef")}
    named |= set(values_of(objects, "secretName"))
    assert named <= SECRETS
    documented = (REPOSITORY / "docs/kubernetes.md").read_text()
    assert all(f"secret generic {name}" in documented for name in SECRETS)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_pod_runs_as_root_or_may_become_it(overlay):
    for name, pod in pod_specs(build(overlay)).items():
        context = pod["securityContext"]
        assert context["runAsNonRoot"] is True, name
        assert context["runAsUser"] > 0, name
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}, name
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False, name
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}, name
            assert container["resources"]["limits"]["memory"], name


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_cluster_has_token_autoscaler_v2_redis_and_an_idle_head(overlay):
    spec = cluster_spec(build(overlay))
    assert spec["authOptions"] == {"mode": "token", "secretName": "rewardtune-ray-token"}
    assert spec["enableInTreeAutoscaling"]
    assert spec["autoscalerOptions"]["version"] == "v2"
    assert spec["gcsFaultToleranceOptions"]["backend"] == "redis"
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    pinned = dict(
        line.split("==")
        for line in (REPOSITORY / "constraints.txt").read_text().split()
        if "==" in line
    )
    assert spec["rayVersion"] == pinned["ray"]
    for pod in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
        # A pod that restarts would be a second Ray node of the same name to autoscaler v2.
        assert pod["template"]["spec"]["restartPolicy"] == "Never"
    assert (
        next(g for g in spec["workerGroupSpecs"] if g["groupName"] == "reward")["minReplicas"] == 0
    )


def run_config(objects: list[Object], name: str, folder: Path) -> RunConfig:
    """A config of the map that is mounted, with the image's folder being this repository."""
    (mounted,) = (t for t in of_kind(objects, "ConfigMap") if name in t["data"])
    for file, text in mounted["data"].items():
        (folder / file).write_text(text.replace("/app/", f"{REPOSITORY}/"))
    return read_config(folder / name, [], RunConfig)


def per_pod(group: Object, resource: str) -> float:
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    names = {"CPU": "cpu", "GPU": "nvidia.com/gpu", "TPU": "google.com/tpu"}
    return float(limits.get(names[resource], 0))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pools_hold_what_the_run_asks_of_them(overlay, tmp_path):
    objects = build(overlay)
    config = run_config(objects, RUNS.get(overlay, "run.yaml"), tmp_path)
    roles = [
        (config.learner.hosts, config.learner.resources),
        (config.actors.count, config.actors.resources),
        (config.rewards.count, config.rewards.resources),
        (1, config.evaluation.resources),
    ]
    asked: dict[tuple[str, str], float] = {}
    for count, resources in (role for role in roles if role[0]):
        assert set(resources.labels) == {"pool"}
        (pool,) = (g for g in groups(objects).values() if g["labels"] == resources.labels)
        amounts = {"CPU": resources.num_cpus, "GPU": resources.num_gpus} | resources.custom
        for name, amount in amounts.items():
            # One of each pool is there when the run starts, and holds one process of the role.
            assert pool["replicas"] >= 1
            assert amount <= per_pod(pool, name)
            key = (pool["groupName"], name)
            asked[key] = asked.get(key, 0.0) + count * amount
    for (pool, name), amount in asked.items():
        group = groups(objects)[pool]
        pods = group["maxReplicas"] * group.get("numOfHosts", 1)
        assert amount <= per_pod(group, name) * pods
    assert config.learner.devices in (
        per_pod(groups(objects)["learner"], "GPU"),
        per_pod(groups(objects)["learner"], "TPU"),
    )


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_replica_of_the_learners_group_has_as_many_hosts_as_the_run(overlay, tmp_path):
    objects = build(overlay)
    config = run_config(objects, RUNS.get(overlay, "run.yaml"), tmp_path)
    learner = groups(objects)["learner"]
    assert learner["numOfHosts"] == config.learner.hosts
    assert learner["minReplicas"] == learner["replicas"] == learner["maxReplicas"] == 1
    topology = learner["template"]["spec"].get("nodeSelector", {}).get(TPU_TOPOLOGY)
    if topology is not None:  # a slice is taken whole: its chips are those of all its hosts
        chips = math.prod(int(side) for side in topology.split("x"))
        assert chips == config.learner.hosts * config.learner.devices
        assert config.learner.resources.custom == {"TPU": config.learner.devices}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_run_that_is_stopped_has_time_to_leave_its_checkpoint(overlay, tmp_path):
    objects = build(overlay)
    config = run_config(objects, RUNS.get(overlay, "run.yaml"), tmp_path)
    head = cluster_spec(objects)["headGroupSpec"]["template"]["spec"]
    # As `rewardtune submit` gives it to a job, which here is KubeRay's to submit.
    job = config.cluster.stop_seconds + LAST_WORDS_SECONDS
    assert variables_of(head)["RAY_JOB_STOP_WAIT_TIME_S"] == f"{job:g}"
    for pod in (head, groups(objects)["learner"]["template"]["spec"]):
        drain = float(variables_of(pod)["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
        assert job < drain < pod["terminationGracePeriodSeconds"]


def variables_of(pod: Object) -> dict[str, str]:
    return {variable["name"]: variable.get("value", "") for variable in pod["containers"][0]["env"]}


def test_job_runs_a_config_that_is_mounted():
    for overlay in OVERLAYS:
        for job in of_kind(build(overlay), "RayJob"):
            path = Path(job["spec"]["entrypoint"].split()[2])
            assert str(path.parent) == "/etc/rewardtune"
            assert path.name == RUNS.get(overlay, "run.yaml")
            (_,) = (t for t in of_kind(build(overlay), "ConfigMap") if path.name in t["data"])
            assert job["spec"]["shutdownAfterJobFinishes"]


def test_job_and_cluster_of_a_learner_are_the_same():
    for kind in ("gpu", "tpu"):
        assert cluster_spec(build(f"{kind}-job")) == cluster_spec(build(f"{kind}-cluster"))


def test_reward_servers_scale_by_the_cpu_that_they_request(tmp_path):
    objects = build("gpu-job-reward-server")
    (scaler,) = of_kind(objects, "HorizontalPodAutoscaler")
    (deployment,) = of_kind(objects, "Deployment")
    assert scaler["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert "replicas" not in deployment["spec"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    threads = container["args"][container["args"].index("--threads") + 1]
    assert container["resources"]["requests"]["cpu"] == threads
    served = run_config(objects, "served.yaml", tmp_path)
    asked = run_config(objects, "remote.yaml", tmp_path)
    assert served.task == asked.task
    assert served.rewards.terms != asked.rewards.terms
    (term,) = asked.rewards.terms
    assert term.options["token_file"] in container["args"]


def test_reward_workers_outside_scale_by_the_backlog_that_the_run_exports(tmp_path):
    objects = build("gpu-job-reward-workers")
    config = run_config(objects, "outside.yaml", tmp_path)
    assert config.rewards.count == 0
    (scaler,) = of_kind(objects, "HorizontalPodAutoscaler")
    workers, replay = sorted(
        of_kind(objects, "Deployment"), key=lambda t: t["metadata"]["name"], reverse=True
    )
    assert scaler["spec"]["scaleTargetRef"]["name"] == workers["metadata"]["name"]
    assert "replicas" not in workers["spec"]
    (metric,) = scaler["spec"]["metrics"]
    told = {one.exported: one for one in METRICS}
    labels = metric["external"]["metric"]["selector"]["matchLabels"]
    exported = told[metric["external"]["metric"]["name"]]
    assert labels.pop("run") == config.name
    assert all(value in exported.labels[name] for name, value in labels.items())
    (work,) = workers["spec"]["template"]["spec"]["containers"]
    (serve,) = replay["spec"]["template"]["spec"]["containers"]
    grace = float(work["args"][work["args"].index("--grace") + 1])
    assert grace < workers["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert config.replay.password_env in {variable["name"] for variable in serve["env"]}
    spec = cluster_spec(objects)
    for asks in (
        spec["headGroupSpec"],
        *(groups(objects)[name] for name in ("sampler", "learner")),
    ):
        assert config.replay.password_env in variables_of(asks["template"]["spec"])
    for container in (work, serve):  # the commands are ours
        shown = CliRunner().invoke(app, [*container["command"][1:3], "--help"])
        flags = [given for given in container["args"] if given.startswith("--")]
        assert all(flag in shown.output for flag in flags)


def test_redis_keeps_everything():
    (config,) = (
        t for t in of_kind(build("gpu-job"), "ConfigMap") if t["metadata"]["name"].endswith("redis")
    )
    lines = dict(
        line.split(maxsplit=1)
        for line in config["data"]["redis.conf"].splitlines()
        if line and not line.startswith("#")
    )
    assert lines["appendonly"] == "yes"
    assert lines["maxmemory-policy"] == "noeviction"
    (redis,) = of_kind(build("gpu-job"), "StatefulSet")
    assert redis["spec"]["volumeClaimTemplates"][0]["metadata"]["name"] == "data"
    assert lines["dir"] == "/data"


def test_redis_is_reached_from_the_head_alone():
    policies = {t["metadata"]["name"]: t for t in of_kind(build("gpu-job"), "NetworkPolicy")}
    refuse = policies["rewardtune-refuse"]["spec"]
    assert refuse == {"podSelector": {}, "policyTypes": ["Ingress"]}
    (rule,) = policies["rewardtune-redis"]["spec"]["ingress"]
    sources = [source["podSelector"]["matchLabels"]["ray.io/node-type"] for source in rule["from"]]
    assert sources == ["head", "redis-cleanup"]


def test_kueue_finds_the_queue_on_the_job():
    (job,) = of_kind(build("gpu-job-kueue"), "RayJob")
    assert job["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "rewardtune"}
    (plain,) = of_kind(build("gpu-job"), "RayJob")
    assert "labels" not in plain["metadata"]


def test_monitors_read_ports_that_pods_have():
    objects = build("gpu-cluster")
    spec = cluster_spec(objects)
    pods = {"head": [spec["headGroupSpec"]], "worker": spec["workerGroupSpecs"]}
    for monitor in of_kind(objects, "PodMonitor"):
        node = monitor["spec"]["selector"]["matchLabels"]["ray.io/node-type"]
        wanted = {endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]}
        for group in pods[node]:
            ports = group["template"]["spec"]["containers"][0]["ports"]
            assert wanted <= {port["name"] for port in ports}


@pytest.fixture
def folder() -> Iterator[Path]:
    """A socket's path may have 107 bytes: pytest's directories are longer."""
    with TemporaryDirectory(prefix="rt-redis-") as name:
        yield Path(name)


@pytest.mark.skipif(redis_server.MISSING is not None, reason=str(redis_server.MISSING))
def test_redis_command_starts_with_the_password_keeps_its_data_and_ends_on_sigterm(folder):
    objects = build("gpu-job")
    (stateful,) = of_kind(objects, "StatefulSet")
    (container,) = stateful["spec"]["template"]["spec"]["containers"]
    (mounted,) = (t["data"] for t in of_kind(objects, "ConfigMap") if "redis.conf" in t["data"])
    socket = folder / "s"
    text = mounted["redis.conf"].replace("dir /data", f"dir {folder}")
    (folder / "redis.conf").write_text(f"{text}\nport 0\nunixsocket {socket}\n")
    shell, option, script = container["command"]
    script = script.replace("/etc/redis/redis.conf", f"{folder}/redis.conf")
    script = script.replace("exec redis-server", f"exec {redis_server.executable()}")

    @contextmanager
    def running() -> Iterator[Redis]:
        process = subprocess.Popen(
            [shell, option, script], env={"REDIS_PASSWORD": "word"}, stdout=subprocess.DEVNULL
        )
        client = Redis(unix_socket_path=str(socket), password="word", protocol=2)
        try:
            for _ in range(200):
                if socket.exists():
                    break
                time.sleep(0.05)
            yield client
            process.terminate()
            assert process.wait(20) == 0  # Redis itself has the signal, and wrote its log
        finally:
            client.close()
            process.kill()
            process.wait()

    with running() as client:
        with pytest.raises(AuthenticationError):
            Redis(unix_socket_path=str(socket), protocol=2).ping()
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        assert client.config_get("maxmemory") == {"maxmemory": str(2**30)}
        client.set("a", "kept")
    with running() as client:
        assert client.get("a") == b"kept"
