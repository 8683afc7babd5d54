"""Runs as Ray jobs, against a head that wants a token: submitted, followed, stopped, resumed."""

import json
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests.last_step import examples_of_last_step
from tests.odd_rewards import set_gate
from tests.ray_head import REPOSITORY, Head, ray_head
from tests.runs import Run


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with ray_head() as running:
        yield running


@pytest.fixture
def project(tmp_path: Path, tiny_values: dict[str, Any]) -> Path:
    """A user's directory: a config, a reward of their own beside it, the initial checkpoint."""
    directory = tmp_path / "project"
    directory.mkdir()
    shutil.copy(tiny_values["initial"], directory / "initial.npz")
    (directory / "my_reward.py").write_text(
        "from tests.odd_rewards import GatedReward\n\n\nclass MyReward(GatedReward):\n    pass\n"
    )
    for package in (
        "actors",
        "configs",
        "deploy",
        "learner",
        "protos",
        "replay",
        "rewards",
        "vision",
    ):
        (directory / package).symlink_to(REPOSITORY / package)
    (directory / "tests").mkdir()
    for name in ("__init__.py", "odd_rewards.py"):
        shutil.copy(REPOSITORY / "tests" / name, directory / "tests" / name)
    values = tiny_values | {"name": "job", "initial": "initial.npz"}
    options = {"gate": str(directory / "gate"), "held": examples_of_last_step(tiny_values)}
    values["rewards"] = values["rewards"] | {
        "terms": [{"path": "my_reward:MyReward", "options": options}],
        "groups_per_lease": 1,
    }
    del values["runs"]
    set_gate(directory / "gate", "0")
    (directory / "config.yaml").write_text(yaml.safe_dump(values))
    return directory


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def status_of(run: Path) -> dict[str, Any]:
    path = run / "status.json"
    return json.loads(path.read_text()) if path.exists() else {"step": -1, "state": "none"}


def assert_same(run: Path, undisturbed: Run) -> None:
    with np.load(run / "final.npz") as final:
        expected = undisturbed.weights()
        assert all(np.array_equal(final[name], expected[name]) for name in expected)


def actors_alive(head: Head, cwd: Path) -> list[str]:
    """The cluster's living actors, as Ray's own command tells them."""
    listed = head.run(
        *("ray", "list", "actors", "--address", head.jobs, "--filter", "state=ALIVE"),
        *("--format", "json", "--limit", "1000"),
        cwd=cwd,
    )
    assert listed.returncode == 0, listed.stderr
    if listed.stdout.startswith("No resource"):
        return []
    return [actor["class_name"] for actor in json.loads(listed.stdout)]


def test_a_submitted_run_is_followed_to_its_end_and_gives_the_same_bits(
    head: Head, project: Path, tmp_path: Path, undisturbed: Run
) -> None:
    runs = tmp_path / "runs"
    done = head.run(
        *("rewardtune", "submit", "config.yaml", "--address", head.jobs, "--follow"),
        *("--runs", str(runs)),
        cwd=project,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "tuning 6/6" in done.stdout
    assert_same(runs / "job", undisturbed)
    listed = head.run("ray", "job", "list", "--address", head.jobs, cwd=project)
    assert str(runs / "job") in listed.stdout

    again = head.run(
        *("rewardtune", "submit", "config.yaml", "seed=5", "--address", head.jobs, "--follow"),
        *("--runs", str(runs)),
        cwd=project,
    )
    assert again.returncode == 1, again.stdout
    assert "seed was 0, now 5" in again.stdout


def test_a_job_without_the_token_is_refused(head: Head, project: Path, tmp_path: Path) -> None:
    stranger = Head(head.address, head.jobs, head.environment | {"RAY_AUTH_TOKEN": "f" * 64})
    refused = stranger.run(
        *("rewardtune", "submit", "config.yaml", "--address", head.jobs),
        *("--runs", str(tmp_path / "runs")),
        cwd=project,
    )
    assert refused.returncode == 1
    assert "RAY_AUTH_TOKEN" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_run_by_rays_own_command_is_stopped_with_a_checkpoint_and_resumed(
    head: Head, project: Path, tmp_path: Path, undisturbed: Run
) -> None:
    runs = tmp_path / "runs"
    # Ray's own 3 s are enough on a machine that has nothing else to do, see benchmarks/operating.
    patience = json.dumps({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "120"}})
    submit = ("ray", "job", "submit", "--address", head.jobs, "--working-dir", ".")
    submit += ("--runtime-env-json", patience)
    tune = ("rewardtune", "tune", "config.yaml")
    refused = head.run(*submit, "--", *tune, cwd=project)
    assert refused.returncode != 0
    assert "Add runs=PATH" in refused.stdout

    # The checkpoint that is there is that of the stop.
    tune = (*tune, f"runs={runs}", "learner.checkpoint_every=100")
    set_gate(project / "gate", "0.3 held")  # so that it does not end before it is stopped
    begun = head.run(*submit, "--no-wait", "--", *tune, cwd=project)
    assert begun.returncode == 0, begun.stdout + begun.stderr
    wait_for(lambda: status_of(runs / "job")["step"] >= 2)
    set_gate(project / "gate", "shut")
    newest = head.run("python", "-c", _NEWEST_JOB, head.jobs, cwd=project)
    job = json.loads(newest.stdout)
    stopped = head.run("ray", "job", "stop", "--address", head.jobs, job, cwd=project)
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    status = status_of(runs / "job")
    assert status["state"] == "stopped", status
    assert (runs / "job" / "checkpoints" / str(status["step"])).is_dir()
    wait_for(lambda: not actors_alive(head, project))

    # The gate makes it another upload, which lies elsewhere on the head.
    set_gate(project / "gate", "0")
    resumed = head.run(*submit, "--", *tune, cwd=project)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert_same(runs / "job", undisturbed)


def head_variables() -> dict[str, str]:
    """Those of deploy/k8s/base that say how a head ends."""
    cluster = yaml.safe_load((REPOSITORY / "deploy/k8s/base/raycluster.yaml").read_text())
    (container,) = cluster["spec"]["headGroupSpec"]["template"]["spec"]["containers"]
    return {variable["name"]: variable["value"] for variable in container["env"]}


_NEWEST_JOB = """
import json, sys
from ray.job_submission import JobSubmissionClient
jobs = [job for job in JobSubmissionClient(sys.argv[1]).list_jobs() if job.submission_id]
print(json.dumps(max(jobs, key=lambda job: job.start_time or 0).submission_id))
"""


def test_ctrl_c_leaves_a_followed_job_running_and_scale_finds_it_by_name(
    head: Head, project: Path, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    set_gate(project / "gate", "0.3")
    followed = head.start(
        *("rewardtune", "submit", "config.yaml", "name=left", "learner.steps=100000"),
        *("--runs", str(runs), "--address", head.jobs, "--follow"),
        cwd=project,
    )
    try:
        wait_for(lambda: status_of(runs / "left")["step"] >= 1)
        followed.send_signal(signal.SIGINT)
        output, _ = followed.communicate(timeout=60)
    finally:
        if followed.poll() is None:
            followed.kill()
    assert followed.returncode == 130, output
    assert "goes on" in output
    stop = next(line for line in output.splitlines() if line.startswith("to stop it: "))

    scale = ("rewardtune", "scale", "--address", head.address)
    unknown = head.run(*scale, "rewards=2", "--run", "other", cwd=tmp_path)
    assert unknown.returncode == 1
    assert "at work: --run left" in unknown.stderr
    scaled = head.run(*scale, "rewards=2", "--run", "left", "--json", cwd=tmp_path)
    assert scaled.returncode == 0, scaled.stderr
    assert json.loads(scaled.stdout)["pools"]["rewards"]["target"] == 2
    wait_for(
        lambda: [w["state"] for w in status_of(runs / "left")["workers"]].count("running") == 4
    )
    ended = head.run(*stop.removeprefix("to stop it: ").split(), cwd=project)
    assert ended.returncode == 0, ended.stderr
    assert status_of(runs / "left")["state"] == "stopped"


def test_a_run_leaves_its_checkpoint_while_its_head_is_ended_as_kubernetes_does(
    project: Path, tmp_path: Path
) -> None:
    """KubeRay stops the job and deletes the pods at once; here the head ends first: worse."""
    runs = tmp_path / "runs"
    variables = head_variables()
    with ray_head(variables=variables) as head:
        set_gate(project / "gate", "0.3 held")
        begun = head.run(
            *("ray", "job", "submit", "--address", head.jobs, "--working-dir", ".", "--no-wait"),
            *("--", "rewardtune", "tune", "config.yaml", f"runs={runs}"),
            "learner.checkpoint_every=100",
            cwd=project,
        )
        assert begun.returncode == 0, begun.stdout + begun.stderr
        wait_for(lambda: status_of(runs / "job")["step"] >= 2)
        set_gate(project / "gate", "shut")
        job = json.loads(head.run("python", "-c", _NEWEST_JOB, head.jobs, cwd=project).stdout)
        stop = ("ray", "job", "stop", "--no-wait", "--address", head.jobs, job)
        assert head.process is not None
        head.process.send_signal(signal.SIGTERM)
        assert head.run(*stop, cwd=project).returncode == 0
        head.process.wait(timeout=float(variables["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"]) + 30)
    status = status_of(runs / "job")
    assert status["state"] == "stopped", status
    assert (runs / "job" / "checkpoints" / str(status["step"])).is_dir()
