"""Each check of `rewardtune doctor`, where all is well and in its failing state."""

import json
import random
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deploy.cli import app
from deploy.config import RunConfig
from deploy.doctor import cluster
from deploy.doctor.auth import Access, check_auth, find_access
from deploy.doctor.cluster import answer_probe, check_room, missing_files
from deploy.doctor.command import check_upload
from deploy.doctor.facts import (
    check_disks,
    check_gpus,
    check_versions,
    compare_versions,
    node_facts,
)
from deploy.doctor.finding import fail
from deploy.doctor.network import check_dashboard, check_port, check_redis, reward_servers
from replay.pacing import PacingConfig
from tests.redis_server import MISSING, redis_server

HERE = {
    "host": "here",
    "python": "3.11.7",
    "versions": {"rewardtune": "0.1.0", "ray": "2.60.0", "protobuf": "5.29.1", "jax": "0.10.2"},
    "cuda_plugins": [],
    "driver": None,
    "disks": {},
}
CONFIG = RunConfig.model_validate(
    {
        "name": "run",
        "task": {"kind": "detection"},
        "model": {"preset": "tiny"},
        "rewards": {"terms": [{"path": "rewards.detection:RecallReward"}]},
    }
)


def versions(**changes):
    return HERE | {"versions": HERE["versions"] | changes}


def levels(findings):
    return [finding.level for finding in findings]


def assert_failing(finding, *words):
    assert finding.level == "fail"
    assert finding.fix
    for word in words:
        assert word in f"{finding.message} {finding.fix}", finding


# -- this machine -------------------------------------------------------------------------------


def test_this_machine_is_well():
    facts = node_facts()
    assert levels(check_versions(facts, needs_model=True)) == ["ok"]
    assert facts["disks"]["temporary files of Ray"]["free"] > 0


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (HERE | {"python": "3.10.2"}, ("python is 3.10.2", "3.11")),
        (versions(ray="2.9.3"), ("ray is 2.9.3", "2.60")),
        (versions(protobuf="3.20.3"), ("protobuf is 3.20.3", "4.25")),
        (versions(ray=None), ("ray is missing",)),
    ],
)
def test_a_version_that_is_too_old_is_named_with_what_is_needed(facts, words):
    (finding,) = check_versions(facts, needs_model=True)
    assert_failing(finding, *words)


def test_jax_is_missed_only_where_a_model_is_needed():
    bare = HERE | {"versions": {k: v for k, v in HERE["versions"].items() if k != "jax"}}
    assert levels(check_versions(bare, needs_model=False)) == ["ok"]
    assert_failing(check_versions(bare, needs_model=True)[0], "JAX is missing", "[model]")


def test_a_full_disk_fails_and_one_that_is_nearly_full_warns():
    def with_free(gigabytes, what="runs", path="/data/runs", total=1e12):
        disk = {"path": path, "free": gigabytes * 1e9, "total": total}
        return check_disks(HERE | {"disks": {what: disk}}, "node")

    assert_failing(with_free(0.5)[0], "0.5 GB free", "/data/runs")
    assert levels(with_free(6.0)) == ["warn"]
    assert levels(with_free(40.0, total=1e12)) == ["warn"]  # Ray counts shares: 4 % are left
    assert levels(with_free(400.0)) == ["ok"]
    assert "--shm-size" in with_free(0.1, "object store", "/dev/shm")[0].fix
    assert "--temp-dir" in with_free(0.1, "temporary files of Ray", "/tmp")[0].fix


def test_an_upload_that_ray_would_refuse_is_found_before_it_is_tried(tmp_path, monkeypatch):
    monkeypatch.setattr("deploy.submit.GCS_STORAGE_MAX_SIZE", 2**20)
    (tmp_path / "code.py").write_text("pass\n")
    assert check_upload(tmp_path).level == "ok"
    (tmp_path / "model.bin").write_bytes(random.Random(0).randbytes(2 * 2**20))
    assert_failing(check_upload(tmp_path), "model.bin", ".rayignore")
    (tmp_path / ".rayignore").write_text("model.bin\n")
    assert check_upload(tmp_path).level == "ok"


# -- auth ---------------------------------------------------------------------------------------


def test_the_token_is_found_where_ray_looks_for_it(tmp_path):
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("from-home\n")
    named = tmp_path / "token"
    named.write_text("from-file")
    assert find_access({}, tmp_path).token == "from-home"
    assert find_access({"RAY_AUTH_TOKEN_PATH": str(named)}, tmp_path).token == "from-file"
    both = {"RAY_AUTH_TOKEN_PATH": str(named), "RAY_AUTH_TOKEN": "from-variable"}
    assert find_access(both, tmp_path).token == "from-variable"


def test_a_token_is_never_shown(tmp_path):
    access = find_access({"RAY_AUTH_TOKEN": "secret-word", "RAY_AUTH_MODE": "token"}, tmp_path)
    assert "secret-word" not in repr(access)
    assert "secret-word" not in check_auth(access, "head:6379").message


def test_a_machine_without_a_way_in_is_told(tmp_path):
    empty = tmp_path / "empty"
    empty.write_text("")
    gone = {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "gone")}
    assert_failing(check_auth(find_access(gone, tmp_path), "head:6379"), "No such file")
    blank = {"RAY_AUTH_TOKEN_PATH": str(empty)}
    assert_failing(check_auth(find_access(blank, tmp_path), "head:6379"), "is empty")
    assert_failing(check_auth(Access("token"), "head:6379"), "there is none", "get-auth-token")
    assert_failing(check_auth(Access("on"), "head:6379"), "'on'")
    assert check_auth(Access(""), "head:6379").level == "warn"
    assert check_auth(Access("disabled", "x", "t"), "head:6379").level == "warn"
    assert check_auth(Access("token", "x", "t"), "head:6379").level == "ok"
    assert check_auth(Access("", "x", "t"), "head:6379").level == "ok"
    assert check_auth(Access(""), None).level == "ok"


# -- addresses ----------------------------------------------------------------------------------


def test_a_port_that_answers_a_closed_one_and_what_is_no_address():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        assert check_port("edge", address, "start it").level == "ok"
    assert_failing(check_port("edge", address, "start it"), "nothing listens", "start it")
    assert_failing(check_port("edge", "no-port", "start it"), "HOST:PORT")
    assert_failing(check_port("edge", "no.such.host.invalid:1", "start it"), "is not known")


@pytest.fixture
def dashboard() -> Iterator[tuple[str, dict[str, int]]]:
    """An HTTP server that answers as Ray's does; its status can be set."""
    answers = {"status": 200}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            authorised = self.headers.get("Authorization") == "Bearer good"
            self.send_response(answers["status"] if authorised else 401)
            self.end_headers()
            self.wfile.write(json.dumps({"ray_version": "2.60.0"}).encode())

        def log_message(self, *arguments: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}", answers
    server.shutdown()
    server.server_close()


def test_a_dashboard_of_another_version_without_the_token_or_not_there_at_all(dashboard):
    address, answers = dashboard
    good = {"Authorization": "Bearer good"}
    assert check_dashboard(address, "2.60.0", good).level == "ok"
    assert_failing(check_dashboard(address, "2.60.0", {}), "401", "RAY_AUTH_TOKEN")
    assert_failing(check_dashboard(address, "2.61.0", good), "Ray 2.60.0", "2.61.0")
    answers["status"] = 500
    assert check_dashboard(address, "2.60.0", good).level == "warn"
    assert check_dashboard("127.0.0.1:1", "2.60.0", good).level == "warn"


def test_reward_servers_of_a_config_are_those_it_would_ask():
    terms = [
        {"path": "rewards.remote:RemoteReward", "options": {"address": "h:50061"}},
        {"path": "rewards.detection:RecallReward", "options": {}},
    ]
    assert reward_servers({"terms": terms}) == ["h:50061"]


@pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
def test_redis_is_well_unfit_closed_or_slower_than_it_should_be():
    with redis_server("--maxmemory", "100mb", "--maxmemory-policy", "noeviction") as server:
        assert levels(check_redis(PacingConfig(url=server.url))) == ["ok"]
        server.client().config_set("appendfsync", "everysec")
        (doubt,) = check_redis(PacingConfig(url=server.url))
        assert (doubt.level, "appendfsync everysec" in doubt.message) == ("warn", True)
        server.client().config_set("maxmemory-policy", "allkeys-lru")
        (unfit,) = check_redis(PacingConfig(url=server.url))
        assert_failing(unfit, "maxmemory-policy allkeys-lru", "noeviction")
    named = PacingConfig(url="redis://user@127.0.0.1:1/0", password_env="NOT_SET_ANYWHERE")
    assert_failing(check_redis(named)[0], "NOT_SET_ANYWHERE")


# -- a cluster ----------------------------------------------------------------------------------


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


def test_gpus_that_cannot_be_used_are_found():
    able = HERE | {"driver": "580.65", "cuda_plugins": ["jax-cuda12-plugin"]}
    assert levels(check_gpus({"a": able, "b": HERE}, {"a": 8.0, "b": 0.0})) == ["ok"]
    assert_failing(check_gpus({"a": HERE}, {"a": 1.0})[0], "nvidia-smi finds none")
    assert_failing(check_gpus({"a": able | {"cuda_plugins": []}}, {"a": 1.0})[0], "jax[cuda12]")
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
    labelled = CONFIG.model_copy(deep=True)
    labelled.rewards.resources.labels = {"pool": "reward"}
    assert_failing(check_room(labelled, [node()])[0], "pool=reward")
    many = CONFIG.model_copy(deep=True)
    many.rewards.count = 100
    assert levels(check_room(many, [node()])) == ["warn"]


# -- the command --------------------------------------------------------------------------------


def test_the_command_ends_with_an_error_where_something_fails(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    well = CliRunner().invoke(app, ["doctor", "--json"])
    assert well.exit_code == 0, well.output
    assert {finding["check"] for finding in json.loads(well.output)} >= {"versions", "disk", "auth"}
    ill = CliRunner().invoke(app, ["doctor", "--json", "--edge", "127.0.0.1:1"])
    assert ill.exit_code == 1
    edge = next(f for f in json.loads(ill.output) if f["check"] == "edge")
    assert edge["level"] == "fail"
    text = CliRunner().invoke(app, ["doctor", "--edge", "127.0.0.1:1"]).output
    assert "fail  edge: nothing listens at 127.0.0.1:1" in text
    assert "→ start it" in text


def test_a_config_that_is_none_is_a_finding(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("name: run\nlearner: {step: 3}\n")
    result = CliRunner().invoke(app, ["doctor", str(path), "--json"])
    assert result.exit_code == 1
    finding = json.loads(result.output)[0]
    assert (finding["check"], finding["level"]) == ("config", "fail")
    assert "learner.step" in finding["message"]


def test_a_cluster_that_is_not_there_is_found_by_its_port(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["doctor", "--json", "--address", "127.0.0.1:1"])
    assert result.exit_code == 1
    port = next(f for f in json.loads(result.output) if f["check"] == "cluster port")
    assert (port["level"], "ray start --head" in port["fix"]) == ("fail", True)
