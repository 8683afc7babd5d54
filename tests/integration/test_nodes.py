"""A run over several raylets: roles go where their labels say, and a lost node costs nothing."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray.cluster_utils import Cluster

from tests.integration.test_commands import rewardtune, write_config
from tests.runs import Run


@pytest.fixture
def nodes() -> Iterator[Cluster]:
    """Three raylets on this machine: a head, one for samplers, one for reward workers."""
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False}
    )
    cluster.add_node(num_cpus=1, labels={"pool": "sampler"})
    cluster.add_node(num_cpus=1, labels={"pool": "reward"})
    yield cluster
    cluster.shutdown()


def test_roles_go_to_the_nodes_of_their_labels_and_the_bits_stay_the_same(
    nodes: Cluster, tmp_path: Path, tiny_values: dict[str, Any], undisturbed: Run
) -> None:
    config = write_config(tmp_path, tiny_values, runs=str(tmp_path), name="spread")
    result = rewardtune(
        "tune",
        str(config),
        f"cluster.address={nodes.address}",
        "actors.resources.labels={pool: sampler}",
        "rewards.resources.labels={pool: reward}",
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    workers = json.loads((tmp_path / "spread" / "status.json").read_text())["workers"]
    where = {worker["name"]: worker["node"] for worker in workers}
    assert len({where["learner"], where["sampler"], where["reward"]}) == 3
    with np.load(tmp_path / "spread" / "final.npz") as final:
        expected = undisturbed.weights()
        assert all(np.array_equal(final[name], expected[name]) for name in expected)
