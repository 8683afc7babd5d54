"""What `rewardtune doctor` asks the nodes of a cluster, and what it makes of their answers."""

from pathlib import Path

from deploy.config import RunConfig
from deploy.doctor import cluster
from deploy.doctor.autoscaler import brings_nodes, monitors
from deploy.doctor.cluster import answer_probe, check_room, missing_files
from deploy.doctor.facts import TORCH_CUDA, check_gpus, compare_versions, node_facts
from deploy.doctor.finding import fail
from tests.unit.test_doctor import HERE, assert_failing, levels, versions

CONFIG = RunConfig.model_validate(
    {
        "name": "run",
        "task": {"kind": "detection"},
        "model": {"preset": "tiny"},
        "rewards": {"terms": [{"path": "rewards.detection:RecallReward"}]},
    }
)


def test_nodes_with_other_versions_are_named():
    assert levels(compare_versions(HERE, {"a": HERE})) == ["ok"]
    (finding,) = compare_versions(HERE, {"a": HERE, "b": versions(ray="2.59.0")})
    assert_failing(finding, "node b has ray 2.59.0", "2.60.0")
    (finding,) = compare_versions(HERE, {"a": HERE | {"python": "3.12.1"}})
    assert_failing(finding, "python 3.12.1", "3.11.7")
    (finding,) = compare_versions(HERE, {"a": versions(protobuf="6.33.0")})
    assert finding.level == "warn"
    bare = HERE | {"versions": {k: v for k, v in HERE["versions"].items() if k != "jax"}}
    assert levels(compare_versions(HERE, {"reward node": bare})) == ["ok"]


def gpu_facts(**cuda):
    built = {"jaxlib": "0.10.2", "jax-cuda12-plugin": "0.10.2", "jax-cuda12-pjrt": "0.10.2"}
    plugins = {"driver": "580.65", "cuda_plugins": ["jax-cuda12-plugin"]}
    return HERE | plugins | {"cuda": built | {k.replace("_", "-"): v for k, v in cuda.items()}}


def test_cuda_builds_that_jax_would_leave_out_or_that_differ_between_nodes_are_found():
    gpus = {"a": 1.0, "b": 1.0}
    able = gpu_facts()
    (odd,) = check_gpus({"a": able, "b": gpu_facts(jax_cuda12_plugin="0.9.1")}, gpus)[:1]
    assert_failing(odd, "node b has jax-cuda12-plugin 0.9.1 and jaxlib 0.10.2", "==0.10.2")
    assert_failing(check_gpus({"a": gpu_facts(jax_cuda12_pjrt="0.9")}, {"a": 1.0})[0], "pjrt 0.9")
    built = dict.fromkeys(("jaxlib", "jax_cuda12_plugin", "jax_cuda12_pjrt"), "0.10.1")
    found = check_gpus({"a": able, "b": gpu_facts(**built)}, gpus)
    assert levels(found) == ["warn", "warn"]
    assert "jax-cuda12-plugin differs (a: 0.10.2, b: 0.10.1)" in found[0].message
    torch = [able | {"cuda": able["cuda"] | {TORCH_CUDA: version}} for version in ("12.6", "13.0")]
    (finding,) = check_gpus(dict(zip("ab", torch, strict=True)), gpus)
    assert finding.message == "torch's CUDA differs (a: 12.6, b: 13.0)"
    local = gpu_facts(jax_cuda12_plugin="0.10.2+cuda12.local")
    assert levels(check_gpus({"a": local}, {"a": 1.0})) == ["ok"]
    cpu_only = able | {"cuda_plugins": [], "cuda": {"jaxlib": "0.10.2"}}
    cpu_only |= {"versions": HERE["versions"] | {"torch": "2.13.0+cpu"}}
    assert_failing(check_gpus({"a": cpu_only}, {"a": 1.0})[0], "no CUDA build of JAX or torch")
    assert "cuda" not in HERE  # a node with an older RewardTune tells nothing of it
    assert node_facts()["cuda"]["jaxlib"]


def test_gpus_that_cannot_be_used_are_found():
    able = gpu_facts()
    assert levels(check_gpus({"a": able, "b": HERE}, {"a": 8.0, "b": 0.0})) == ["ok"]
    assert_failing(check_gpus({"a": HERE}, {"a": 1.0})[0], "nvidia-smi finds none")
    bare = able | {"cuda_plugins": [], "cuda": {}}
    assert_failing(check_gpus({"a": bare}, {"a": 1.0})[0], "jax[cuda12]")
    other = able | {"driver": "550.10"}
    (finding,) = check_gpus({"a": able, "b": other}, {"a": 1.0, "b": 1.0})
    assert (finding.level, "550.10" in finding.message) == ("warn", True)


def test_a_directory_that_a_node_does_not_share_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    probe = tmp_path / ".doctor-1"
    assert "cannot use it: No such file" in str(answer_probe(str(probe), "n"))
    probe.write_text(".doctor-1")
    assert answer_probe(str(probe), "n") is None
    assert Path(f"{probe}.n").read_text() == "n"
    probe.write_text("of another directory")
    assert "another file" in str(answer_probe(str(probe), "n"))


def test_files_that_a_node_lacks_are_listed(tmp_path):
    there = tmp_path / "there"
    there.touch()
    assert missing_files([str(there), str(tmp_path / "gone")]) == [str(tmp_path / "gone")]


def test_a_node_that_stops_answering_is_told_by_each_check_that_asks_it(tmp_path, monkeypatch):
    lost = fail("nodes", "node b has not run a task within 60 s", "look at it")

    def ask_all(nodes, question, *arguments):
        return ({"a": [] if question is missing_files else None}, [lost])

    monkeypatch.setattr(cluster, "_ask_all", ask_all)
    nodes = {"a": node(), "b": node()}
    assert cluster.check_shared(tmp_path, nodes)[0] == lost
    assert cluster.check_files(CONFIG, nodes) == [lost]


def node(**resources):
    return {
        "NodeManagerAddress": "10.0.0.1",
        "NodeID": "ab" * 28,
        "Alive": True,
        "Resources": {"CPU": 8.0, **resources},
        "Labels": {},
    }


def test_requests_that_no_node_can_meet_are_named_with_what_the_nodes_have():
    assert levels(check_room(CONFIG, [node()])) == ["ok"]
    gpu = CONFIG.model_copy(deep=True)
    gpu.actors.resources.num_gpus = 1
    assert_failing(
        check_room(gpu, [node()])[0], "no node can hold sampler", "node 10.0.0.1 has CPU 8"
    )
    assert levels(check_room(gpu, [node(GPU=1.0)])) == ["ok"]
    (waits,) = check_room(gpu, [node()], autoscaler=True)
    assert (waits.level, "autoscaler may bring it" in waits.message) == ("warn", True)
    labelled = CONFIG.model_copy(deep=True)
    labelled.rewards.resources.labels = {"pool": "reward"}
    assert_failing(check_room(labelled, [node()])[0], "pool=reward")
    many = CONFIG.model_copy(deep=True)
    many.rewards.count = 100
    assert levels(check_room(many, [node()])) == ["warn"]


def monitor(*options, port=6379):
    script = "/lib/ray/autoscaler/v2/monitor.py"
    return ["python", "-u", script, "--logs-dir=x", f"--gcs-address=10.0.0.1:{port}", *options]


def test_an_autoscaler_is_told_from_the_monitor_that_only_looks_on():
    active = monitor("--autoscaling-config=/c.yaml")
    assert brings_nodes([active], "6379", reports=True)
    assert not brings_nodes([monitor()], "6379", reports=True)
    assert not brings_nodes([monitor(), monitor("--autoscaling-config=/c", port=1)], "6379", True)
    assert brings_nodes([], "6379", reports=True)  # Kubernetes' runs in another container
    assert not brings_nodes([], "6379", reports=False)


def test_monitors_are_found_by_their_command_lines(tmp_path):
    lines = {"12": monitor(), "13": ["vim", "monitor.py"], "self": monitor()}
    for pid, words in lines.items():
        (tmp_path / pid).mkdir()
        (tmp_path / pid / "cmdline").write_bytes("\0".join(words).encode())
    (tmp_path / "14").mkdir()  # it has ended
    assert monitors(tmp_path) == [monitor()]
    assert monitors(tmp_path / "no_proc") == []
