"""The evaluator: scores published policies on a held-out split while the run goes on.

It has no state that matters: an evaluation that was lost is done again. The best policy so far is
kept as `best.npz`.
"""

import json
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from actors.config import EvaluationConfig
from actors.engine import Engine
from actors.evaluation import evaluate_policy, split_examples
from protos.tensorboard import SummaryWriter
from vision.models.checkpoint import save_npz
from vision.tasks.task import Task, token_names

logger = logging.getLogger(__name__)

EVALUATIONS_FILE = "evaluations.jsonl"
BEST_FILE = "best.npz"


class EvaluationWeights(Protocol):
    """What the evaluator asks of the weight store."""

    def load(self, version: int | None) -> tuple[int, dict[str, Any]]:
        """A version's parameters."""
        ...

    def next_to_evaluate(self, wait: float) -> int | None:
        """The oldest version that waits for an evaluation."""
        ...

    def evaluated(self, version: int) -> None:
        """It is done."""
        ...


class Evaluator:
    """Evaluates one version after the other until it is told to stop."""

    def __init__(
        self,
        task: Task,
        engine: Engine,
        weights: EvaluationWeights,
        config: EvaluationConfig,
        run_directory: Path,
    ):
        self._task, self._engine, self._weights, self._config = task, engine, weights, config
        self._run_directory = run_directory
        self._stopping = False
        self._examples = split_examples(task, config.split, config.examples)
        self._events = SummaryWriter(str(run_directory / "tensorboard" / "evaluation"))
        done = read_evaluations(run_directory)
        comparable = [line for line in done if self._same_examples(line)]
        self._best = max((line[task.headline] for line in comparable), default=float("-inf"))
        self.status: dict[str, Any] = done[-1] if done else {}

    def _same_examples(self, line: dict[str, Any]) -> bool:
        return (line["split"], line["examples"]) == (self._config.split, len(self._examples))

    def stop(self) -> None:
        """Ends `run` after the evaluation at hand."""
        self._stopping = True

    def run(self) -> dict[str, Any]:
        """The evaluator's life; returns the last evaluation."""
        while not self._stopping:
            version = self._weights.next_to_evaluate(1.0)
            if version is not None:
                self._evaluate(version)
                self._weights.evaluated(version)
        return self.status

    def _evaluate(self, version: int) -> None:
        began = time.monotonic()
        _, params = self._weights.load(version)
        metrics = evaluate_policy(
            self._task, self._engine, params, self._examples, self._config.batch_size
        )
        line = {
            "step": version,
            "split": self._config.split,
            "examples": len(self._examples),
            "seconds": round(time.monotonic() - began, 3),
            **metrics,
        }
        if metrics[self._task.headline] > self._best:
            self._best = metrics[self._task.headline]
            path, names = self._run_directory / BEST_FILE, token_names(self._task)
            save_npz(path, params, token_names=names)
        append_evaluation(self._run_directory, line)
        for name, value in metrics.items():
            self._events.add_scalar(f"{self._config.split}/{name}", value, version)
        self._events.flush()
        self.status = line
        logger.info("evaluated version %d: %s", version, metrics, extra={"step": version})


def append_evaluation(run_directory: Path, line: Mapping[str, Any]) -> None:
    """Adds a line to the evaluations; one that a full disk cut short stays a line of its own."""
    with (run_directory / EVALUATIONS_FILE).open("ab+") as file:
        end = file.seek(0, os.SEEK_END)
        if end:
            file.seek(end - 1)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(json.dumps(line).encode() + b"\n")


def read_evaluations(run_directory: Path) -> list[dict[str, Any]]:
    """The evaluations of a run so far, by step; of a step that was evaluated again, the last."""
    path = run_directory / EVALUATIONS_FILE
    if not path.exists():
        return []
    lines = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    by_step = {line["step"]: line for line in lines}
    return [by_step[step] for step in sorted(by_step)]
