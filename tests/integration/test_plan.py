"""`rewardtune plan CONFIG` measures the real roles, one after the other, in one process."""

import json
from pathlib import Path
from typing import Any

from tests.integration.test_commands import rewardtune, write_config


def test_a_config_is_measured_and_what_its_reward_costs_is_seen(
    tmp_path: Path, tiny_values: dict[str, Any]
) -> None:
    slow = [{"path": "tests.odd_rewards:SlowReward", "options": {"seconds": 0.2}}]
    values = tiny_values | {"rewards": tiny_values["rewards"] | {"terms": slow}}
    config = write_config(tmp_path, values, runs=str(tmp_path / "runs"))
    result = rewardtune("plan", str(config), "--steps", "2", "--json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    plan = json.loads(result.stdout)
    costs = plan["seconds_per_group"]
    assert costs["scoring"] >= 0.2
    assert min(costs.values()) > 0
    assert plan["balanced"]["rewards"] > plan["now"]["rewards"] == 1
    assert not (tmp_path / "runs").exists()
