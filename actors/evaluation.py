"""Judges a policy on a split by greedy decoding; reports are made of this, and the evaluator."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from actors.engine import Engine
from vision.tasks.task import Example, Task


def split_examples(task: Task, split: str, count: int | None) -> list[Example]:
    """The first `count` examples of a split (None: all), not augmented."""
    return [task.load(split, example_id, None) for example_id in task.example_ids(split)[:count]]


def greedy_predictions(
    task: Task,
    engine: Engine,
    params: Any,
    examples: Sequence[Example],
    batch_size: int,
    progress: Callable[[int], None] | None = None,
) -> list[Any]:
    """One prediction an example, most likely token by token.

    Batches have one shape (the last is filled up with repeats), so that nothing recompiles.
    `progress` is told how many examples are done.
    """
    batch_size = min(batch_size, len(examples))
    predictions: list[Any] = []
    for first in range(0, len(examples), batch_size):
        batch = [examples[min(first + i, len(examples) - 1)] for i in range(batch_size)]
        samples = engine.greedy(params, np.stack([example.image for example in batch]))
        for row, example in enumerate(batch[: len(examples) - first]):
            predictions += task.decode(example, samples.tokens[row], samples.logprobs[row])
        if progress is not None:
            progress(len(predictions))
    return predictions


def evaluate_policy(
    task: Task, engine: Engine, params: Any, examples: Sequence[Example], batch_size: int
) -> dict[str, float]:
    """The task's metrics of greedy decoding on `examples`."""
    return task.evaluate(examples, greedy_predictions(task, engine, params, examples, batch_size))
