"""Batches of ground truth for maximum likelihood, loaded ahead in a background thread.

Which examples a step sees is a pure function of (seed, step), so a resumed run continues as if it
had never stopped.
"""

import queue
import threading
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, Generic, TypeVar

import numpy as np

from learner.objectives import LikelihoodBatch
from replay.tickets import seed_of
from vision.tasks.task import Example, Task

Loaded = TypeVar("Loaded")
BATCHES_AHEAD = 4


class TrainingExamples:
    """The training split in a seeded order, without end: epoch after epoch, each permuted anew."""

    def __init__(self, task: Task, seed: int, batch_size: int) -> None:
        """The order of `seed`; raises ValueError when the split holds less than a batch."""
        self._task, self._seed, self._batch_size = task, seed, batch_size
        self._ids = task.example_ids("train")
        if len(self._ids) < batch_size:
            raise ValueError(
                f"batch_size {batch_size} is more than the {len(self._ids)} training examples;"
                f" use {len(self._ids)} at most"
            )
        # Two epochs are kept: the loading thread may be in the next one already.
        self._order = lru_cache(maxsize=2)(self._permutation)

    def example_id(self, ordinal: int) -> str:
        """The id of the ordinal-th example of the run."""
        epoch, position = divmod(ordinal, len(self._ids))
        return self._ids[int(self._order(epoch)[position])]

    def batch_ids(self, step: int) -> list[str]:
        """The example ids of a step (from 0)."""
        return [self.example_id(ordinal) for ordinal in self._ordinals(step)]

    def load(self, step: int) -> list[tuple[Example, int]]:
        """The augmented examples of a step, each with a seed for its target."""
        return [
            (
                self._task.load(
                    "train",
                    self.example_id(ordinal),
                    seed_of(self._seed, "augmentation", ordinal),
                ),
                seed_of(self._seed, "target", ordinal),
            )
            for ordinal in self._ordinals(step)
        ]

    def likelihood_batch(self, step: int) -> LikelihoodBatch:
        """Images and target tokens of a step."""
        loaded = self.load(step)
        return LikelihoodBatch(
            images=np.stack([example.image for example, _ in loaded]).astype(np.float32),
            tokens=np.stack(
                [self._task.target_tokens(example, seed) for example, seed in loaded]
            ).astype(np.int32),
        )

    def _permutation(self, epoch: int) -> np.ndarray:
        random = np.random.default_rng(seed_of(self._seed, "epoch", epoch))
        return random.permutation(len(self._ids))

    def _ordinals(self, step: int) -> range:
        return range(step * self._batch_size, (step + 1) * self._batch_size)


class LoadedAhead(Generic[Loaded]):
    """Iterates over `load(step)` for steps [first, last), computed ahead in a thread.

    Use as a context manager, so that the thread ends when the consumer does. What `load` raises is
    raised here, at the step where it happened.
    """

    def __init__(self, load: Callable[[int], Loaded], first: int, last: int) -> None:
        self._load, self._steps = load, range(first, last)
        self._queue: queue.Queue[tuple[Loaded | None, BaseException | None]]
        self._queue = queue.Queue(maxsize=BATCHES_AHEAD)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="load-ahead", daemon=True)

    def __iter__(self) -> Iterator[Loaded]:
        for _ in self._steps:
            loaded, error = self._queue.get()
            if error is not None:
                raise error
            assert loaded is not None
            yield loaded

    def __enter__(self) -> "LoadedAhead[Loaded]":
        self._thread.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._ended.set()
        while not self._queue.empty():  # The thread may wait for room.
            self._queue.get_nowait()
        self._thread.join()

    def _run(self) -> None:
        for step in self._steps:
            try:
                item: tuple[Loaded | None, BaseException | None] = (self._load(step), None)
            except Exception as error:  # noqa: BLE001 - handed to the consumer, who raises it
                item = (None, error)
            while not self._ended.is_set():
                try:
                    self._queue.put(item, timeout=0.1)
                    break
                except queue.Full:
                    continue
            if self._ended.is_set() or item[1] is not None:
                return
