"""Runs whose last step waits for the test.

What a test does to a run at work comes while it is at work, however late the test gets to it: the
groups of the last step are not scored before the test says so.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deploy.config import RunConfig
from deploy.processes import ticket_source
from tests.odd_rewards import set_gate
from tests.runs import changed
from vision.tasks.registry import build_task


class LastStep:
    """The last step of a run in ordered mode.

    Attributes:
      changes: to the config of the run, by dotted keys. Its numbers stay the same.
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        directory: Path,
        changes: Mapping[str, Any] | None = None,
        seconds: float = 0.2,
    ) -> None:
        """Holds it back.

        Args:
          values: the config of the run.
          directory: for the gate's file.
          changes: to the config.
          seconds: that every group takes.
        """
        self._gate, self._seconds = directory / "last-step", seconds
        set_gate(self._gate, f"{seconds} held")
        options = {"gate": str(self._gate), "held": examples_of_last_step(values, changes)}
        self.changes: dict[str, Any] = {
            **(changes or {}),
            "rewards.terms": [{"path": "tests.odd_rewards:GatedReward", "options": options}],
            # A worker that holds a group of the last step holds no other.
            "rewards.groups_per_lease": 1,
        }

    def begin(self) -> None:
        """Lets the run go on to its end."""
        set_gate(self._gate, str(self._seconds))


def examples_of_last_step(
    values: Mapping[str, Any], changes: Mapping[str, Any] | None = None
) -> list[str]:
    """The examples that a run sees in its last step, and in none before."""
    config = RunConfig.model_validate(changed(values, changes or {}))
    source = ticket_source(config, build_task(config.task))
    groups = config.learner.groups_per_step
    seen = [source.ticket(o).example_id for o in range(config.learner.steps * groups)]
    assert not set(seen[:-groups]) & set(seen[-groups:]), "fewer steps, or more examples"
    return seen[-groups:]
