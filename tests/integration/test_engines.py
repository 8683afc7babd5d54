"""Whatever samples, a run tells how far its logprobs are from the learner's."""

from collections.abc import Callable

import pytest

from learner.metrics import read_metrics
from tests.runs import STEPS, Run

NAMES = ("mismatch/mean", "mismatch/max", "mismatch/clipped_share")


@pytest.mark.parametrize(
    ("engine", "lag", "measured"),
    [
        ("torch", 0, list(range(1, STEPS + 1))),
        # The first step's groups are of the policy that it trains; then every other step.
        ("torch", 1, [1, 2, 4, 6]),
        ("jax", 1, [1, 2, 4, 6]),
    ],
)
def test_the_mismatch_is_measured_and_is_rounding(
    tune: Callable[..., Run], engine: str, lag: int, measured: list[int]
) -> None:
    changes = {
        "actors.engine": engine,
        "replay.policy_lag": lag,
        "learner.mismatch_every": 2,
        "learner.reinforce.max_importance_weight": 1.5,
    }
    run = tune(f"mismatch-{engine}-{lag}", changes)
    assert run.result["state"] == "finished"
    lines = list(read_metrics(run.directory))
    for name in NAMES:
        assert [line["step"] for line in lines if name in line] == measured
    shown = [line for line in lines if line["step"] in measured]
    assert all(0 <= line["mismatch/mean"] <= line["mismatch/max"] < 1e-4 for line in shown)
    assert all(line["mismatch/clipped_share"] == 0 for line in shown)
    if lag:
        # With a policy that is really older the ratios do differ.
        assert max(line["policy/drift"] for line in lines) > 10 * 1e-4
