"""What a job is, before any cluster sees it."""

import shlex
import subprocess
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest

from deploy import submit
from deploy.config import RunConfig
from deploy.config_file import ConfigError, read_config
from deploy.processes import identity_digest, resolve_checkpoint
from deploy.run_directory import RunDirectoryError, check_outlives_job
from deploy.uploaded import UPLOADED

REPOSITORY = Path(__file__).resolve().parents[2]
PRESET = "configs/quickstart/detection_map.yaml"


def describe(path=PRESET, *overrides, directory=REPOSITORY, runtime_env=None, overwrite=False):
    config = read_config(path, overrides, RunConfig)
    return submit.describe_job(path, overrides, config, directory, runtime_env, overwrite)


def names_in(directory: Path) -> set[str]:
    with submit.packed(directory) as package, ZipFile(package) as contents:
        return {name for name in contents.namelist() if not name.endswith("/")}


def test_a_job_is_the_command_that_one_would_type_on_the_head():
    job = describe(PRESET, "runs=/shared/my runs", "seed=3", overwrite=True)
    assert shlex.split(job.entrypoint) == [
        *("exec", "python", "-m", "deploy.cli", "tune", PRESET),
        *("runs=/shared/my runs", "seed=3", "--overwrite"),
    ]
    assert job.metadata["run"] == "detection_map"
    assert job.metadata["directory"] == "/shared/my runs/detection_map"
    assert job.name.startswith("detection_map-")


def test_a_relative_runs_is_refused_with_what_to_give():
    with pytest.raises(ConfigError, match=r"'runs', a relative path: .* Give --runs PATH"):
        describe()


def test_a_stopped_job_has_the_time_that_its_learner_may_take():
    job = describe(PRESET, "runs=/shared", "cluster.stop_seconds=100")
    assert int(job.runtime_env["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"]) > 100


def test_a_runtime_environment_is_passed_on(tmp_path):
    path = tmp_path / "environment.yaml"
    path.write_text("pip: [einops]\nenv_vars: {QUEUE: a, RAY_JOB_STOP_WAIT_TIME_S: '7'}\n")
    environment = describe(PRESET, "runs=/shared", runtime_env=path).runtime_env
    assert environment["pip"] == ["einops"]
    assert environment["env_vars"] == {"QUEUE": "a", "RAY_JOB_STOP_WAIT_TIME_S": "7"}
    path.write_text("working_dir: /elsewhere\n")
    with pytest.raises(ConfigError, match="without working_dir"):
        describe(PRESET, "runs=/shared", runtime_env=path)


@pytest.mark.parametrize("text", ["env_vars:\n", "env_vars: {}\n", "pip: [einops]\n"])
def test_a_runtime_environment_without_variables_gets_ours(tmp_path, text):
    path = tmp_path / "environment.yaml"
    path.write_text(text)
    environment = describe(PRESET, "runs=/shared", runtime_env=path).runtime_env
    assert list(environment["env_vars"]) == ["RAY_JOB_STOP_WAIT_TIME_S"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("env_vars: {A: b\n", "not valid YAML"),
        ("env_vars: {KEY: 's3cret}\n", r"not valid YAML: found unexpected .* \(line 2, column 1\)"),
        ("", "must be a mapping"),
        ("- pip\n", "must be a mapping"),
        ("env_vars: [A]\n", r"env_vars.*Dict"),
        ("env_vars: {A: 1}\n", "value 1 is of type"),
        ("pip: 3\n", "pip"),
        ("3: a\n", "Ray does not take it"),
    ],
)
def test_a_runtime_environment_that_is_none_is_refused_before_anything_is_sent(
    tmp_path, text, told
):
    path = tmp_path / "environment.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=rf"--runtime-env .*environment.yaml: .*{told}"):
        describe(PRESET, "runs=/shared", runtime_env=path)
    with pytest.raises(ConfigError, match=r"gone\.yaml: cannot be read: No such file"):
        describe(PRESET, "runs=/shared", runtime_env=tmp_path / "gone.yaml")


def test_a_config_that_the_head_would_not_get_is_refused(tmp_path):
    outside = tmp_path / "mine.yaml"
    outside.write_text("name: mine\ntask: {kind: detection}\nmodel: {preset: tiny}\n")
    with pytest.raises(ConfigError, match="not in the working directory"):
        describe(str(outside), "runs=/shared")
    inside = describe(str(outside), "runs=/shared", directory=tmp_path)
    assert "tune mine.yaml" in inside.entrypoint


def test_the_commit_is_told_and_whether_there_are_changes(tmp_path):
    def git(*arguments: str) -> None:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(["git", "-C", tmp_path, *identity, *arguments], check=True)

    assert "commit" not in describe(PRESET, "runs=/shared", directory=tmp_path).metadata
    git("init", "--quiet")
    git("commit", "--quiet", "--allow-empty", "--message", "first")
    commit = describe(PRESET, "runs=/shared", directory=tmp_path).metadata["commit"]
    assert len(commit) == 40
    (tmp_path / "new.py").touch()
    changed = describe(PRESET, "runs=/shared", directory=tmp_path).metadata["commit"]
    assert changed == f"{commit} with changes"


def test_the_repository_is_uploaded_with_checkpoints_and_without_what_a_job_does_not_need():
    names = names_in(REPOSITORY)
    tops = {name.split("/")[0] for name in names}
    assert {"actors", "configs", "deploy", "learner", "replay", "rewards", "vision"} <= tops
    assert "checkpoints/quickstart_detection.npz" in names
    assert "docs/examples/cluster.yaml" in names  # the docs tell to submit it
    assert not {".git", ".venv", "runs", "experiments"} & tops
    assert not [name for name in names if name.startswith("docs/") and name.endswith(".md")]
    assert not any("__pycache__" in name for name in names)


def test_a_directory_without_ignore_files_leaves_out_the_usual(tmp_path):
    for name in ("my_reward.py", "my.yaml", "runs/old/final.npz", ".venv/lib.py", ".git/HEAD"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    assert names_in(tmp_path) == {"my_reward.py", "my.yaml"}
    (tmp_path / ".rayignore").write_text("*.py\n")
    assert names_in(tmp_path) == {"my.yaml", ".rayignore"}


def test_a_config_that_is_not_uploaded_is_refused_with_the_file_that_leaves_it_out(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "base.yaml").write_text("task: {kind: detection}\nmodel: {preset: tiny}\n")
    (tmp_path / "mine" / "run.yaml").write_text("extends: ../base.yaml\nname: mine\n")
    job = describe(str(tmp_path / "mine/run.yaml"), "runs=/shared", directory=tmp_path)
    assert list(job.files) == ["mine/run.yaml", "base.yaml"]
    with submit.packed(tmp_path, job.files):
        pass
    (tmp_path / ".rayignore").write_text("/base.yaml\n")
    with (
        pytest.raises(ConfigError, match=r"^base.yaml would not be uploaded.*\.rayignore"),
        submit.packed(tmp_path, job.files),
    ):
        pass


MINE = """
name: mine
task:
  kind: captioning
  data: {kind: coco_captions, train: {annotations: data/train.json, images: data/images}}
  tokenizer: wordpiece
  vocabulary: words/vocab.txt
model: {preset: tiny}
initial: runs/before/final.npz
rewards:
  terms:
    - {path: "my_rewards.odd:OddReward", options: {table: words/table.csv, mode: a.b}}
    - {path: "rewards.detection:RecallReward"}
"""
READ = (
    *("runs/before/final.npz", "words/vocab.txt", "words/table.csv", "data/train.json"),
    *("data/images/", "my_rewards/__init__.py", "my_rewards/odd.py"),
)


@pytest.fixture
def mine(tmp_path, monkeypatch):
    for name in (*READ, "data/images/1.png"):
        if not name.endswith("/"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text("x")
    (tmp_path / "mine.yaml").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_all_that_a_run_reads_by_relative_paths_is_needed(mine):
    job = describe("mine.yaml", "runs=/shared", "initial=/shared/x.npz", directory=mine)
    assert set(job.files) == {"mine.yaml", *READ[1:]}
    with submit.packed(mine, job.files):
        pass
    job = describe("mine.yaml", "runs=/shared", directory=mine)
    assert READ[0] in job.files
    with (
        pytest.raises(ConfigError, match=r"^runs/before/final\.npz would.*always stay.*/runs"),
        submit.packed(mine, job.files),
    ):
        pass


def test_the_autoencoder_of_a_tasks_code_words_is_needed(mine):
    (mine / "vae.npz").write_text("x")
    (mine / "color.yaml").write_text(
        "name: mine\nmodel: {preset: tiny}\n"
        "task: {kind: colorization, stage_one: {checkpoint: vae.npz}, "
        "data: {kind: photos}}\n"
    )
    assert describe("color.yaml", "runs=/shared", directory=mine).files == ["color.yaml", "vae.npz"]


@pytest.mark.parametrize("name", READ[1:])
def test_each_of_it_is_missed_where_an_ignore_file_leaves_it_out(mine, name):
    job = describe("mine.yaml", "runs=/shared", "initial=/shared/x.npz", directory=mine)
    (mine / ".rayignore").write_text(f"/{name}\n")
    with (
        pytest.raises(ConfigError, match=rf"^{name} would not be uploaded"),
        submit.packed(mine, job.files),
    ):
        pass


def test_what_a_path_means_only_here_is_refused(mine):
    (mine / "sub").mkdir()
    (mine / "sub" / "mine.yaml").write_text(MINE)
    with pytest.raises(
        ConfigError, match=r"data/train\.json is not in the working directory .*/sub"
    ):
        describe("sub/mine.yaml", "runs=/shared", "initial=/shared/x.npz", directory=mine / "sub")


def test_too_large_a_directory_is_refused_with_its_largest_files(tmp_path, monkeypatch: Any):
    monkeypatch.setattr(submit, "GCS_STORAGE_MAX_SIZE", 3 * 2**20)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "big.bin").write_bytes(bytes(2 * 2**20))
    (tmp_path / "bigger.bin").write_bytes(bytes(3 * 2**20))
    with (
        pytest.raises(ConfigError, match=r"bigger.bin 3.0 MiB, data/big.bin 2.0 MiB\. .*rayignore"),
        submit.packed(tmp_path),
    ):
        pass


def test_a_run_in_a_jobs_working_directory_is_refused(tmp_path, monkeypatch: Any):
    there = tmp_path / UPLOADED / "_ray_pkg_1"
    there.mkdir(parents=True)
    monkeypatch.chdir(there)
    check_outlives_job(tmp_path / "runs")
    with pytest.raises(RunDirectoryError, match=r"temporary copy on the head.*runs=PATH"):
        check_outlives_job(Path("runs"))
    monkeypatch.chdir(tmp_path)
    check_outlives_job(Path("runs"))


def test_a_job_that_is_submitted_again_is_the_same_run_wherever_its_copy_lies(
    tmp_path, monkeypatch
):
    digests = []
    for session, package in (("session_1", "_ray_pkg_a"), ("session_2", "_ray_pkg_b")):
        there = tmp_path / session / UPLOADED / package
        (there / "checkpoints").mkdir(parents=True)
        (there / "checkpoints" / "quickstart_detection.npz").touch()
        monkeypatch.chdir(there)
        config = read_config(PRESET, ["runs=/shared"], RunConfig).with_absolute_paths()
        assert config.initial == there / "checkpoints" / "quickstart_detection.npz"
        digests.append(identity_digest(config))
    assert digests[0] == digests[1]
    gone = tmp_path / "session_0" / UPLOADED / "_ray_pkg_c" / "checkpoints"
    found = resolve_checkpoint(gone / "quickstart_detection.npz")
    assert found.samefile(there / "checkpoints" / "quickstart_detection.npz")
