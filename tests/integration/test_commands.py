"""The command line as a user calls it, in processes of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).resolve().parents[2]


def rewardtune(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "deploy.cli", *arguments],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(REPOSITORY)}


def write_config(directory: Path, values: dict[str, Any], **changes: Any) -> Path:
    path = directory / "config.yaml"
    path.write_text(yaml.safe_dump(values | changes))
    return path


def processes_of(directory: Path) -> list[int]:
    """Worker processes that have a log of this run open."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and any(
            target.startswith(str(directory)) for target in _open_files(process)
        ):
            found.append(int(process.name))
    return found


def _open_files(process: Path) -> Iterator[str]:
    """Those of a process that is there; it may close some meanwhile, and end."""
    with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
        for link in (process / "fd").iterdir():
            with suppress(FileNotFoundError, ProcessLookupError):
                yield os.readlink(link)


def test_pretrain_tune_evaluate_and_status_work_one_after_the_other(
    tmp_path: Path, tiny_values: dict[str, Any]
) -> None:
    values = tiny_values | {"runs": str(tmp_path), "initial": None}
    values["pretrain"] = {"steps": 4, "batch_size": 4, "optimizer": {"name": "adamw"}}
    config = write_config(tmp_path, values, name="first")
    done = rewardtune("pretrain", str(config), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    checkpoint = tmp_path / "first" / "final.npz"
    assert "mAP" in done.stdout
    assert checkpoint.exists()

    tuned = rewardtune(
        "tune", str(config), "name=second", f"initial={checkpoint}", "learner.steps=2", cwd=tmp_path
    )
    assert tuned.returncode == 0, tuned.stderr
    status = json.loads(
        rewardtune("status", str(tmp_path / "second"), "--json", cwd=tmp_path).stdout
    )
    assert (status["state"], status["step"]) == ("finished", 2)
    assert {worker["state"] for worker in status["workers"]} == {"ended"}
    assert status["reward_hacking"] is None
    assert "finished, step 2 of 2" in rewardtune("status", "second", cwd=tmp_path).stdout

    few = ("--samples", "2", "--examples", "3")
    analyzed = rewardtune("analyze", "second", *few, "--json", cwd=tmp_path)
    assert analyzed.returncode == 0, analyzed.stderr
    analysis = json.loads(analyzed.stdout)
    assert analysis == json.loads((tmp_path / "second" / "analysis.json").read_text())
    sampled = [policy["distribution"] for policy in analysis["policies"]]
    assert [(d["samples"], d["examples"], d["unscored"]) for d in sampled] == [(2, 3, 0)] * 2
    assert (tmp_path / "second" / "analysis.png").exists()

    final = str(tmp_path / "second" / "final.npz")
    judged = rewardtune("evaluate", str(config), "--checkpoint", final, "--json", cwd=tmp_path)
    assert 0 <= json.loads(judged.stdout)["mAP"] <= 1


def test_ctrl_c_leaves_a_resumable_checkpoint_and_no_process(
    tmp_path: Path, tiny_values: dict[str, Any]
) -> None:
    slow = {"path": "tests.odd_rewards:SlowReward", "options": {"seconds": 0.5}}
    values = tiny_values | {"runs": str(tmp_path), "name": "long"}
    values["rewards"] = values["rewards"] | {"terms": [slow]}
    values["learner"] = values["learner"] | {"steps": 500, "checkpoint_every": 500}
    config = write_config(tmp_path, values)
    tune = subprocess.Popen(
        [sys.executable, "-m", "deploy.cli", "tune", str(config)],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        status = tmp_path / "long" / "status.json"
        wait_for(lambda: status.exists() and json.loads(status.read_text())["step"] >= 2, tune)
        # As a terminal does it: to the whole process group.
        os.killpg(tune.pid, signal.SIGINT)
        _, errors = tune.communicate(timeout=120)
    finally:
        if tune.poll() is None:
            tune.kill()
    assert tune.returncode == 130, errors
    assert "the same command resumes" in errors
    step = json.loads(status.read_text())["step"]
    assert (tmp_path / "long" / "checkpoints" / str(step)).is_dir()
    wait_for(lambda: not processes_of(tmp_path / "long"))
    resumed = rewardtune("tune", str(config), f"learner.steps={step + 1}", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr


def wait_for(condition: Any, process: subprocess.Popen[str] | None = None) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < deadline
        assert process is None or process.poll() is None, process.communicate()[1]
        time.sleep(0.1)


def test_an_unknown_key_ends_with_the_nearest_one_and_no_traceback(tmp_path: Path) -> None:
    result = rewardtune("tune", "configs/quickstart/detection_map.yaml", "seeed=1", cwd=tmp_path)
    assert result.returncode == 1
    assert "did you mean 'seed'?" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_reward_that_does_not_import_is_found_before_ray_starts(
    tmp_path: Path, tiny_values: dict[str, Any]
) -> None:
    config = write_config(tmp_path, tiny_values, runs=str(tmp_path))
    term = "rewards.terms=[{path: 'my_rewards:Mine'}]"
    result = rewardtune("tune", str(config), term, cwd=tmp_path)
    assert result.returncode == 1
    assert "cannot import 'my_rewards'" in result.stderr
    assert not (tmp_path / "tiny").exists()


def test_a_checkpoint_of_another_shape_is_found_before_ray_starts(
    tmp_path: Path, tiny_values: dict[str, Any]
) -> None:
    config = write_config(tmp_path, tiny_values, runs=str(tmp_path))
    result = rewardtune("tune", str(config), "model.decoder.width=32", cwd=tmp_path)
    assert result.returncode == 1
    assert "CheckpointMismatch" in result.stderr
    assert not (tmp_path / "tiny").exists()


def test_score_detection_prints_the_figures_of_coco(tmp_path: Path, shared_data: Path) -> None:
    boxes = shared_data / "coco_boxes_100"
    result = rewardtune(
        "score",
        "detection",
        "--annotations",
        str(boxes / "instances_val2014_100.json"),
        "--predictions",
        str(boxes / "instances_val2014_fakebbox100_results.json"),
        "--json",
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    figures = json.loads(result.stdout)
    assert abs(figures["AP"] - 0.5045806987249628) < 1e-12
    assert figures["reward_map"] > 0
