"""`rewardtune soak` itself, in short: real faults on real runs, by the command."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.redis_server import MISSING, executable

REPOSITORY = Path(__file__).resolve().parents[2]


def soaked(tmp_path: Path, tiny_values: dict[str, Any], *options: str) -> tuple[int, dict, str]:
    """Exit code, result and output of a soak of the tiny run."""
    path, output = tmp_path / "tiny.yaml", tmp_path / "soak.json"
    values = tiny_values | {"runs": str(tmp_path)}
    few = {"resources": {"num_cpus": 0.2}}
    values["actors"] = values["actors"] | {"count": 2} | few
    values["rewards"] = values["rewards"] | {"count": 2, "deadline_seconds": 5} | few
    path.write_text(yaml.safe_dump(values))
    command = [sys.executable, "-m", "deploy.cli", "soak", str(path), "--output", str(output)]
    result = subprocess.run(
        [*command, *options],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    said = result.stdout + result.stderr
    assert output.exists(), said
    return result.returncode, json.loads(output.read_text()), said


def test_processes_that_are_killed_or_stopped_cost_nothing(
    tmp_path: Path, tiny_values: dict[str, Any]
) -> None:
    kinds = (
        "kill-sampler,kill-reward,kill-learner,kill-queue,kill-weights,reward-memory,"
        "stop-sampler,stop-reward"
    )
    code, result, said = soaked(tmp_path, tiny_values, "--faults", "8", "--kinds", kinds)
    assert code == 0, said
    assert len(result["faults"]) == 8
    assert result["violations"] == []
    assert result["verdict"]["lost"] == result["verdict"]["twice"] == []
    assert result["verdict"]["quarantined"] == 0
    assert result["weights_equal_undisturbed"] is True
    assert all(fault["ended_run"] is None and not fault["left"] for fault in result["faults"])


@pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
def test_lies_cost_their_own_group_and_redis_may_die(
    tmp_path: Path, tiny_values: dict[str, Any]
) -> None:
    kinds = "kill-redis,reward-raises,reward-nan,reward-length"
    options = ("--redis", str(executable()), "--faults", "4", "--kinds", kinds)
    code, result, said = soaked(tmp_path, tiny_values, *options)
    assert code == 0, said
    verdict = result["verdict"]
    assert verdict["lost"] == verdict["twice"] == verdict["unexplained"] == []
    # What was trained again after Redis was away may have been spared.
    assert verdict["quarantined"] <= 2
    assert verdict["unscored"] <= 1
    assert verdict["quarantined"] + verdict["unscored"] >= 1
