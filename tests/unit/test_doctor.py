"""Each check of `rewardtune doctor`, where all is well and in its failing state."""

import json
import random
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from typer.testing import CliRunner

from deploy.cli import app
from deploy.doctor.auth import Access, check_auth, find_access
from deploy.doctor.command import check_upload
from deploy.doctor.facts import (
    check_disks,
    check_versions,
    node_facts,
)
from deploy.doctor.finding import failed
from deploy.doctor.network import (
    check_dashboard,
    check_graphs,
    check_port,
    check_redis,
    reward_servers,
)
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
            told = {"ray_version": "2.60.0", "msg": f"{self.path} is well"}
            self.wfile.write(json.dumps(told).encode())

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


def test_graphs_without_prometheus_or_grafana_are_told_and_stop_nothing(dashboard):
    address, answers = dashboard
    good = {"Authorization": "Bearer good"}
    found = check_graphs(address, good)
    assert [finding.message for finding in found] == [
        *("/api/prometheus_health is well", "/api/grafana_health is well")
    ]
    answers["status"] = 500
    found = check_graphs(address, good)
    assert [(finding.check, finding.level) for finding in found] == [
        *(("Prometheus", "info"), ("Grafana", "info"))
    ]
    assert "RAY_PROMETHEUS_HOST" in found[0].fix
    assert "RAY_GRAFANA_HOST" in found[1].fix
    assert not failed(found)


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
