"""Rewards of a user's own, for tests: one that works, and some that do not."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from protos.trajectory import InfrastructureError, Outcome, Scored
from vision.tasks.detection import Detections
from vision.tasks.task import Example, Task


class SmoothReward:
    """Prefers boxes in the upper left: an untrained model gets spread of rewards from it."""

    provides = ("match_iou",)

    def __init__(self, task: Task):
        self._boxes = task.auxiliary_arrays["match_iou"]

    def score(self, examples: Sequence[Example], predictions: Sequence[Any]) -> list[Outcome]:
        return [self._scored(prediction) for prediction in predictions]

    def _scored(self, prediction: Detections) -> Scored:
        boxes = prediction.boxes
        reward = -float(boxes.mean()) / 192 if len(boxes) else 0.0
        return Scored(reward, {"match_iou": np.zeros(self._boxes, np.float32)})


class FaultyReward(SmoothReward):
    """Works, except on chosen examples, where it does as `fault` says.

    `marks` is a directory in which it notes each time that it fell ill, so that `once` faults can
    be told from lasting ones.
    """

    def __init__(self, task: Task, fault: str, every: int = 6, marks: str = "", once: bool = False):
        super().__init__(task)
        self._fault, self._every, self._once = fault, every, once
        self._marks = Path(marks) if marks else None

    def score(self, examples: Sequence[Example], predictions: Sequence[Any]) -> list[Outcome]:
        outcomes = super().score(examples, predictions)
        number = int("".join(c for c in examples[0].example_id if c.isdigit()))
        if number % self._every or not self._falls_ill(number):
            return outcomes
        return self._ill(outcomes)

    def _falls_ill(self, number: int) -> bool:
        if self._marks is None:
            return True
        mark = self._marks / str(number)
        if self._once and mark.exists():
            return False
        mark.touch()
        return True

    def _ill(self, outcomes: list[Outcome]) -> list[Outcome]:
        if self._fault == "raises":
            raise ValueError("this example is cursed")
        if self._fault == "infrastructure":
            raise InfrastructureError("the scoring service did not answer")
        if self._fault == "hangs":
            time.sleep(3600)
        if self._fault == "nan":
            return [Scored(float("nan"), outcomes[0].auxiliary), *outcomes[1:]]
        if self._fault == "huge":
            return [Scored(3e38, outcomes[0].auxiliary), *outcomes[1:]]
        if self._fault == "wrong length":
            return outcomes[:-1]
        raise AssertionError(self._fault)


class SlowReward(SmoothReward):
    """Takes its time, on all or every so many examples, so that others overtake."""

    def __init__(self, task: Task, seconds: float, every: int = 1):
        super().__init__(task)
        self._seconds, self._every = seconds, every

    def score(self, examples: Sequence[Example], predictions: Sequence[Any]) -> list[Outcome]:
        number = int("".join(c for c in examples[0].example_id if c.isdigit()))
        if number % self._every == 0:
            time.sleep(self._seconds)
        return super().score(examples, predictions)


class HeldReward(SmoothReward):
    """Keeps the first group that it sees until the learner has trained some steps without it."""

    def __init__(self, task: Task, metrics: str, steps: int):
        super().__init__(task)
        self._metrics, self._steps = Path(metrics), steps

    def score(self, examples: Sequence[Example], predictions: Sequence[Any]) -> list[Outcome]:
        mark = self._metrics.with_name("held")
        try:
            mark.touch(exist_ok=False)
        except FileExistsError:
            return super().score(examples, predictions)
        while len(self._metrics.read_text().splitlines()) < self._steps:
            time.sleep(0.05)
        return super().score(examples, predictions)


class GatedReward(SmoothReward):
    """Scores no group while a gate is shut, and takes the seconds that stand in it else.

    While it says "0.5 held" the examples that are `held` wait, and the others take 0.5 s.
    """

    def __init__(self, task: Task, gate: str, held: Sequence[str] = ()):
        super().__init__(task)
        self._gate, self._held = Path(gate), frozenset(held)

    def score(self, examples: Sequence[Example], predictions: Sequence[Any]) -> list[Outcome]:
        while (seconds := self._seconds(examples[0].example_id)) is None:
            time.sleep(0.05)
        time.sleep(seconds)
        return super().score(examples, predictions)

    def _seconds(self, example_id: str) -> float | None:
        seconds, _, some = self._gate.read_text().partition(" ")
        shut = seconds == "shut" or (some == "held" and example_id in self._held)
        return None if shut else float(seconds)


def set_gate(gate: Path, to: str) -> None:
    """Shuts it ("shut"), for some ("0.5 held") or not ("0.5": seconds a group); readers see the
    old or the new.
    """
    beside = gate.with_suffix(".new")
    beside.write_text(to)
    beside.replace(gate)
