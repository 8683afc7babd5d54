"""Ray's autoscaler v2 brings nodes for a run's workers, and takes them when they are drained.

Its provider is Ray's fake one: a node is one more raylet on this machine.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.integration.test_commands import write_config
from tests.odd_rewards import set_gate
from tests.ray_head import REPOSITORY, Head, ray_head

REWARD_NODES = {
    "reward": {
        "resources": {"CPU": 1},
        "labels": {"pool": "reward"},
        "node_config": {},
        "min_workers": 0,
        "max_workers": 3,
    }
}


def reward_nodes(head: Head, cwd: Path) -> int:
    """Living nodes of the pool, by Ray's own command."""
    listed = head.run(
        *("ray", "list", "nodes", "--address", head.jobs, "--filter", "state=ALIVE"),
        *("--format", "json", "--detail"),
        cwd=cwd,
    )
    assert listed.returncode == 0, listed.stderr
    if listed.stdout.startswith("No resource"):
        return 0
    return sum(node["labels"].get("pool") == "reward" for node in json.loads(listed.stdout))


def wait_for(condition: Callable[[], bool], seconds: float = 260.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(3.0)  # Ray's command costs seconds of CPU


def test_nodes_come_for_pending_reward_workers_and_go_when_these_have_drained(
    tmp_path: Path, tiny_values: dict[str, Any]
) -> None:
    gate = tmp_path / "gate"
    set_gate(gate, "2")  # slower than any machine samples and trains
    gated = {"path": "tests.odd_rewards:GatedReward", "options": {"gate": str(gate)}}
    values = tiny_values | {"name": "elastic", "runs": str(tmp_path / "runs")}
    # Each role has its pool: a sampler on a node of the reward workers would keep it.
    on_head = {"num_cpus": 0.5, "labels": {"pool": "head"}}
    values["actors"] = values["actors"] | {"resources": on_head}
    values["learner"] = values["learner"] | {
        "steps": 100_000,
        "checkpoint_every": 100_000,
        "resources": on_head,
    }
    values["rewards"] = values["rewards"] | {
        "terms": [gated],
        "resources": {"num_cpus": 1, "labels": {"pool": "reward"}},
        "autoscale": {"min": 1, "max": 3, "target_wait": 1.0, "settle_seconds": 5},
    }
    config = write_config(tmp_path, values)
    with ray_head(num_cpus=2, autoscaling=REWARD_NODES) as head:
        head.environment["PYTHONPATH"] = str(REPOSITORY)
        assert reward_nodes(head, tmp_path) == 0
        asked = head.run(
            *("rewardtune", "doctor", str(config), "--address", head.address, "--json"),
            *("--dashboard", head.jobs),
            cwd=tmp_path,
        )
        (room,) = (found for found in json.loads(asked.stdout) if found["check"] == "room")
        assert room["level"] == "warn"
        assert "autoscaler may bring it" in room["message"]
        tune = head.start(
            *("python", "-m", "deploy.cli", "tune", str(config), f"cluster.address={head.address}"),
            cwd=tmp_path,
        )
        try:
            # There is no node for a reward worker at first; then the load asks for three of them.
            wait_for(lambda: reward_nodes(head, tmp_path) == 3 or tune.poll() is not None)
            assert tune.poll() is None, tune.communicate()[0]
            set_gate(gate, "0.0")
            wait_for(lambda: reward_nodes(head, tmp_path) == 1 or tune.poll() is not None)
            assert tune.poll() is None, tune.communicate()[0]
            tune.terminate()
            output, _ = tune.communicate(timeout=120)
        finally:
            if tune.poll() is None:
                tune.kill()
        assert tune.returncode == 130, output
        assert "no node can hold reward" in output
        assert "Nodes that Ray brings: 1" in output
    status = json.loads((tmp_path / "runs" / "elastic" / "status.json").read_text())
    assert status["state"] == "stopped"
    assert (status["queue"]["expired"], status["queue"]["quarantined"]) == (0, 0)
