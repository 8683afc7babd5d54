"""A task, rewards and servers on this machine, which the tests of remote rewards share."""

import asyncio
import threading
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import pytest

from protos.edge import EdgeOptions, EdgeServer, Handler
from protos.reward import SERVICE, Description, ScoreRequest
from protos.trajectory import InfrastructureError, Scored
from rewards.facts import task_facts
from rewards.judge import group_failure, start
from rewards.reward import Group
from rewards.service import ComputedScorer, handlers
from vision.tasks.task import Example

WAIT = 120.0
"""Only what is broken takes so long."""


class StubTask:
    """An example is its number; a prediction is the sum of its tokens."""

    vocabulary_size = 10
    max_length = 3
    end_token = 1
    image_size = (8, 8)
    auxiliary_arrays: ClassVar = {"iou": (2,)}

    def __init__(self, examples: int = 4):
        self._ids = [str(number) for number in range(examples)]

    def example_ids(self, split):
        return self._ids

    def load(self, split, example_id, augmentation_seed):
        image = np.zeros((8, 8, 3), np.float32)
        return Example(example_id, image, int(example_id) + (augmentation_seed or 0))

    def decode(self, example, tokens, logprobs):
        return [int(row.sum()) for row in tokens]

    def draw(self, example, prediction):
        """The prediction as a brightness."""
        return np.full((64, 64, 3), 20 * (prediction or 0) % 256, np.uint8)


class SumReward:
    """Prediction plus target; on chosen examples what `odd` says: outcomes, or an exception."""

    provides = ("iou",)

    def __init__(self, odd: Mapping[str, Any] | None = None):
        self._odd = odd or {}
        self.calls = 0

    def score(self, examples, predictions):
        self.calls += 1
        odd = self._odd.get(examples[0].example_id)
        if isinstance(odd, Exception):
            raise odd
        if odd is not None:
            return odd
        return [
            Scored(e.target + p / 3, {"iou": np.full(2, p, np.float32)})
            for e, p in zip(examples, predictions, strict=True)
        ]


class Elsewhere(SumReward):
    """The failure of a reward's own infrastructure."""

    def score(self, examples, predictions):
        raise InfrastructureError("the model is being loaded")


def request(example: int = 0, samples: int = 2, seed: int | None = None) -> ScoreRequest:
    tokens = np.arange(samples * 3, dtype=np.int32).reshape(samples, 3) % 10
    return ScoreRequest("train", str(example), seed, tokens, np.zeros(tokens.shape, np.float32))


def group(task: StubTask, *arguments: Any) -> Group:
    return Group(task, request(*arguments))


class Server:
    """An edge in a thread of its own; `with Server(make_services) as server: server.address`."""

    def __init__(
        self,
        services: Callable[[], Mapping[str, Mapping[str, Handler]]],
        options: EdgeOptions | None = None,
    ):
        self._services, self._options = services, options or EdgeOptions()
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.address = ""

    def __enter__(self) -> "Server":
        self._thread.start()
        try:
            self.address = self.call(self._start())
        except BaseException:
            self._end()
            raise
        return self

    async def _start(self) -> str:
        self._server = EdgeServer(self._services(), self._options)
        return await self._server.start()

    def call(self, coroutine: Any) -> Any:
        """Runs it in the server's event loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(WAIT)

    def __exit__(self, *_: object) -> None:
        self.call(self._server.stop(0))
        self._end()

    def _end(self) -> None:
        self.call(_cancel_others())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(WAIT)
        self.loop.close()


TASK = StubTask()
SURE: Mapping[str, Any] = {"connect_seconds": WAIT, "deadline_seconds": WAIT}


async def _cancel_others() -> None:
    """What still runs in this loop, as `asyncio.run` does: calls outlive their connections."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


def serving(reward=None, task=TASK, options=None, deadline=WAIT, on_stuck=pytest.fail) -> Server:
    reward = reward or SumReward()
    return Server(lambda: handlers(task, ComputedScorer(task, reward, deadline, on_stuck)), options)


def outcome_of(reward, one=None):
    """The outcomes or the failure of a group, as a reward worker sees them."""
    answer = start(reward, one or group(TASK))
    error = answer.exception(WAIT)
    return answer.result() if error is None else group_failure(error)


def stub(score, task=TASK) -> Server:
    """A server whose Score is what a test wants, from bytes to bytes."""

    async def describe(_: bytes) -> bytes:
        return Description("Stub", (), task_facts(task)).to_bytes()

    return Server(lambda: {SERVICE: {"Describe": describe, "Score": score}})
