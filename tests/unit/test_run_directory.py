"""A run's directory holds one run of one config, and its status is always whole."""

import json
import multiprocessing
import os
from pathlib import Path

import pytest
import yaml

from deploy.config import RunConfig
from deploy.run_directory import (
    CONFIG_FILE,
    RunDirectoryError,
    open_run_directory,
    read_run,
    read_status,
    run_id,
    write_atomically,
    write_status,
)


def config(runs: Path, name: str = "run", **changes) -> RunConfig:
    values = {
        "name": name,
        "runs": str(runs),
        "task": {"kind": "detection"},
        "model": {"preset": "tiny"},
        "rewards": {"terms": [{"path": "rewards.detection:RecallReward"}]},
    }
    return RunConfig.model_validate(values | changes)


def test_a_run_leaves_its_resolved_config_and_reads_back(tmp_path):
    run = config(tmp_path, seed=4)
    with open_run_directory(run) as directory:
        assert directory == tmp_path / "run"
    assert read_run(directory) == run
    values = yaml.safe_load((directory / CONFIG_FILE).read_text())
    assert values["learner"]["groups_per_step"] == run.learner.groups_per_step  # a default


def test_two_runs_in_one_directory_are_refused_naming_the_first(tmp_path):
    with (
        open_run_directory(config(tmp_path)),
        pytest.raises(RunDirectoryError, match=rf"in use by process {os.getpid()}.*name=NAME"),
        open_run_directory(config(tmp_path)),
    ):
        pass


def _hold(run: RunConfig, opened, release) -> None:
    with open_run_directory(run):
        opened.set()
        release.wait(120)


def test_the_lock_holds_between_processes_and_dies_with_its_process(tmp_path):
    context = multiprocessing.get_context("spawn")
    opened, release = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(config(tmp_path), opened, release))
    process.start()
    try:
        assert opened.wait(120)
        with (
            pytest.raises(RunDirectoryError, match=f"in use by process {process.pid}"),
            open_run_directory(config(tmp_path)),
        ):
            pass
    finally:
        process.kill()
        process.join(60)
    with open_run_directory(config(tmp_path)):
        pass


def test_runs_of_other_names_do_not_disturb_each_other(tmp_path):
    with open_run_directory(config(tmp_path, "one")), open_run_directory(config(tmp_path, "two")):
        pass


def test_the_same_settings_go_on_in_the_directory(tmp_path):
    with open_run_directory(config(tmp_path)) as directory:
        (directory / "metrics.jsonl").write_text("{}\n")
    with open_run_directory(config(tmp_path)):
        assert (directory / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("changes", "setting"),
    [
        ({"seed": 5}, r"seed was 0, now 5"),
        ({"learner": {"groups_per_step": 32}}, r"learner.groups_per_step was 16, now 32"),
        ({"replay": {"policy_lag": 0}}, r"replay.policy_lag was 1, now 0"),
        (
            {"learner": {"optimizer": {"learning_rate": 2e-5}}},
            r"learner.optimizer.learning_rate was 1e-05, now 2e-05",
        ),
    ],
)
def test_other_settings_are_refused_naming_the_setting(tmp_path, changes, setting):
    with open_run_directory(config(tmp_path)):
        pass
    with (
        pytest.raises(RunDirectoryError, match=rf"{setting}.*--overwrite"),
        open_run_directory(config(tmp_path, **changes)),
    ):
        pass
    # It is still the run that it was.
    assert read_run(tmp_path / "run") == config(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"actors": {"count": 3, "resources": {"num_cpus": 0.5}}},
        {"rewards": {"terms": [{"path": "rewards.detection:RecallReward"}], "count": 4}},
        {"learner": {"steps": 400, "checkpoint_every": 10}},
        {"cluster": {"reply_seconds": 5}},
        {"evaluation": {"every": 10}},
    ],
)
def test_settings_that_no_number_depends_on_may_change(tmp_path, changes):
    with open_run_directory(config(tmp_path)):
        pass
    changed = config(tmp_path, **changes)
    assert changed != config(tmp_path)
    with open_run_directory(changed) as directory:
        assert read_run(directory) == changed


def test_a_run_keeps_its_id_until_it_is_started_over(tmp_path):
    ids = []
    for overwrite in (False, False, True):
        with open_run_directory(config(tmp_path), overwrite=overwrite) as directory:
            ids.append(run_id(directory))
    assert ids[0] == ids[1] != ids[2]


def test_overwrite_starts_over_with_nothing_of_the_old_run(tmp_path):
    with open_run_directory(config(tmp_path)) as directory:
        (directory / "checkpoints" / "5").mkdir(parents=True)
        (directory / "metrics.jsonl").write_text("{}\n")
    with open_run_directory(config(tmp_path, seed=5), overwrite=True):
        assert {p.name for p in directory.iterdir() if not p.name.startswith(".")} == {CONFIG_FILE}
    assert read_run(directory).seed == 5


def test_a_path_that_cannot_be_a_directory_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(RunDirectoryError, match=r"file/run.*choose another with runs=PATH"),
        open_run_directory(config(tmp_path / "file")),
    ):
        pass


def test_a_directory_that_cannot_be_written_is_a_clear_error(tmp_path, monkeypatch):
    # By the system call: the tests may run as root, whom permissions do not stop.
    def refuse(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with (
        pytest.raises(RunDirectoryError, match=r"Permission denied; choose another"),
        open_run_directory(config(tmp_path)),
    ):
        pass


def test_a_full_disk_is_a_clear_error_and_frees_the_lock(tmp_path, monkeypatch):
    def full(self, *args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", full)
        with (
            pytest.raises(RunDirectoryError, match="cannot be written: No space left on device"),
            open_run_directory(config(tmp_path)),
        ):
            pass
    with open_run_directory(config(tmp_path)):
        pass


def test_a_status_is_replaced_whole(tmp_path, monkeypatch):
    write_status(tmp_path, {"run": "a", "step": 1})
    assert read_status(tmp_path) == {"run": "a", "step": 1}
    replaced = []
    replace = Path.replace

    def look_then_replace(self, target):
        # At this moment the old status stands, and the new one lies whole beside it.
        replaced.append((json.loads(Path(target).read_text()), json.loads(self.read_text())))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", look_then_replace)
    write_status(tmp_path, {"run": "a", "step": 2})
    assert replaced == [({"run": "a", "step": 1}, {"run": "a", "step": 2})]
    assert read_status(tmp_path) == {"run": "a", "step": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, "old")

    def fail(self, target):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", fail)
        with pytest.raises(OSError, match="No space left"):
            write_atomically(path, "new")
    assert path.read_text() == "old"


def test_a_directory_without_a_run_says_so(tmp_path):
    with pytest.raises(RunDirectoryError, match="no run here"):
        read_run(tmp_path)
    with pytest.raises(RunDirectoryError, match="no status here"):
        read_status(tmp_path)
    (tmp_path / "status.json").write_text('{"of": "another program"}')
    with pytest.raises(RunDirectoryError, match="is not the status of a run"):
        read_status(tmp_path)
