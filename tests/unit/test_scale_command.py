"""What `rewardtune scale` understands, and which run it means."""

import json
import time

import pytest

from deploy import scale_command, targets
from deploy.config_file import ConfigError
from deploy.run_directory import RunDirectoryError


def write_status(directory, name, state="training", age=0.0):
    run = directory / "runs" / name
    run.mkdir(parents=True)
    status = {"run": name, "state": state, "time": time.time() - age, "cluster": f"at-{name}:1"}
    status |= {"workers": [], "step": 3, "steps": 5}
    (run / "status.json").write_text(json.dumps(status))


def test_targets_are_numbers_of_workers_or_auto():
    assert scale_command.parse_targets(["rewards=16", "actors=4"]) == {"rewards": 16, "actors": 4}
    assert scale_command.parse_targets(["rewards=auto"]) == {"rewards": "auto"}


@pytest.mark.parametrize(
    "change", ["learner=2", "rewards", "rewards=1.5", "rewards=-1", "actors=5000", "actors=auto"]
)
def test_what_cannot_be_scaled_is_refused_by_name(change):
    with pytest.raises(ConfigError, match=change):
        scale_command.parse_targets([change])


def test_the_one_run_at_work_is_meant(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_status(tmp_path, "over", state="finished")
    write_status(tmp_path, "killed", age=1000)
    with pytest.raises(ConfigError, match=r"no run in .* is at work"):
        scale_command._status_of(None)
    write_status(tmp_path, "first")
    assert scale_command._status_of(None)["cluster"] == "at-first:1"
    write_status(tmp_path, "second")
    with pytest.raises(ConfigError, match="choose one: --run first, --run second"):
        scale_command._status_of(None)


def test_a_run_is_named_by_name_or_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_status(tmp_path, "mine")
    for name in ("mine", "runs/mine", str(tmp_path / "runs" / "mine")):
        assert scale_command._status_of(name)["run"] == "mine"
    with pytest.raises(RunDirectoryError, match=r"no status of .other."):
        scale_command._status_of("other")


def test_a_run_that_has_ended_is_not_looked_for_in_a_cluster(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")  # else the process begins again with it

    def no_cluster(address):
        raise ConfigError(f"no Ray cluster at {address!r}: refused")

    monkeypatch.setattr(targets, "join_cluster", no_cluster)
    write_status(tmp_path, "over", state="finished")
    with pytest.raises(ConfigError, match=r"run over has ended \(finished, step 3 of 5\)"):
        scale_command.join_cluster_of("over", None)
    write_status(tmp_path, "killed", age=1000)
    with pytest.raises(ConfigError, match=r"run killed is no longer running: .* 1000 s old.*at-k"):
        scale_command.join_cluster_of("killed", None)
    write_status(tmp_path, "alive")
    with pytest.raises(ConfigError, match=r"^no Ray cluster at 'at-alive:1'"):
        scale_command.join_cluster_of("alive", None)
