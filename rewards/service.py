"""The reward server: judges sequences that clients send (`protos/reward.proto`).

It holds no state: any server of the same config gives the same answers, and a client that loses
one asks another. A reward that takes longer than its deadline ends the process, as it ends a
reward worker: a thread that hangs cannot be ended otherwise. A supervisor starts it anew.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Protocol

from protos.edge import EdgeOptions, EdgeServer, Handler, stop_on_signals
from protos.reward import SERVICE, Description, ScoreRequest, ScoreResponse
from protos.trajectory import Failed, FailureKind, WireError
from rewards.facts import task_facts
from rewards.judge import group_failure, start
from rewards.reward import Group, Reward
from vision.tasks.task import Task

logger = logging.getLogger(__name__)

EXIT_STUCK = 70
SPLITS = ("train", "validation", "test")
MAX_SAMPLES = 1024


class Scorer(Protocol):
    """What a server needs to know of a reward: how it is called, and its answers."""

    @property
    def description(self) -> Description:
        """What the server tells of itself."""
        ...

    async def score(self, request: ScoreRequest) -> ScoreResponse:
        """Judges a request that fits the task."""
        ...


class RequestChecker:
    """Refuses requests that do not fit the task, before anything is loaded or computed."""

    def __init__(self, task: Task):
        self._task = task
        self._ids: dict[str, frozenset[str]] = {}

    def parse(self, data: bytes) -> ScoreRequest:
        """The request of some bytes; `WireError` where they are none that the task can read."""
        request = ScoreRequest.from_bytes(data)
        if request.split not in SPLITS:
            raise WireError(f"unknown split {request.split!r}: one of {', '.join(SPLITS)}")
        if request.split not in self._ids:
            self._ids[request.split] = frozenset(self._task.example_ids(request.split))
        if request.example_id not in self._ids[request.split]:
            raise WireError(f"the split {request.split!r} has no example {request.example_id!r}")
        samples, length = request.tokens.shape
        if length != self._task.max_length or samples > MAX_SAMPLES:
            raise WireError(
                f"tokens are [{samples}, {length}]; this task's are [K, {self._task.max_length}], "
                f"with K at most {MAX_SAMPLES}"
            )
        least, most = int(request.tokens.min()), int(request.tokens.max())
        if least < 0 or most >= self._task.vocabulary_size:
            raise WireError(
                f"tokens are in {least} .. {most}; this task's vocabulary has "
                f"{self._task.vocabulary_size}"
            )
        # A log-softmax in float32 may come out a little above 0.
        if not (request.logprobs <= 1e-3).all():
            raise WireError(
                f"example {request.example_id}: logprobs hold NaN, or more than 0, which is no "
                "probability's"
            )
        return request


def handlers(task: Task, scorer: Scorer) -> Mapping[str, Mapping[str, Handler]]:
    """The service's methods, from bytes to bytes."""
    checker = RequestChecker(task)

    async def describe(request: bytes) -> bytes:
        return scorer.description.to_bytes()

    async def score(request: bytes) -> bytes:
        return (await scorer.score(checker.parse(request))).to_bytes()

    return {SERVICE: {"Describe": describe, "Score": score}}


class ComputedScorer:
    """A reward that is computed here, `threads` groups at a time."""

    def __init__(
        self,
        task: Task,
        reward: Reward,
        deadline_seconds: float,
        on_stuck: Callable[[], None],
        threads: int = 1,
    ):
        self._task = task
        self._reward = reward
        self._deadline = deadline_seconds
        self._on_stuck = on_stuck
        self._turn = asyncio.Semaphore(threads)
        self._threads = ThreadPoolExecutor(threads, "reward")
        self._computing: set[asyncio.Task[ScoreResponse]] = set()

    @cached_property
    def description(self) -> Description:
        """See `Scorer`."""
        reward = self._reward
        return Description(type(reward).__name__, tuple(reward.provides), task_facts(self._task))

    async def score(self, request: ScoreRequest) -> ScoreResponse:
        """See `Scorer`.

        A call whose client has gone before its turn costs nothing; one that is being computed
        keeps its turn until it is done.
        """
        await self._turn.acquire()
        task = asyncio.create_task(self._score(request))
        self._computing.add(task)
        task.add_done_callback(self._done)
        return await asyncio.shield(task)

    def _done(self, task: asyncio.Task[ScoreResponse]) -> None:
        self._computing.discard(task)
        self._turn.release()

    async def _score(self, request: ScoreRequest) -> ScoreResponse:
        computed = asyncio.get_running_loop().run_in_executor(self._threads, self._compute, request)
        try:
            return await asyncio.wait_for(computed, self._deadline)
        except TimeoutError:
            reason = f"exceeded its deadline of {self._deadline:g} s"
            logger.error("example %s %s; the server ends", request.example_id, reason)
            self._on_stuck()
            return ScoreResponse((), Failed(reason, FailureKind.INFRASTRUCTURE))

    def _compute(self, request: ScoreRequest) -> ScoreResponse:
        answer = start(self._reward, Group(self._task, request))
        error = answer.exception()
        if error is None:
            return ScoreResponse(answer.result())
        failure = group_failure(error)
        logger.warning("example %s: %s", request.example_id, failure.reason)
        return ScoreResponse((), Failed(failure.reason, failure.kind))


async def serve(
    task: Task,
    reward: Reward,
    options: EdgeOptions,
    deadline_seconds: float,
    threads: int = 1,
    on_start: Callable[[str], None] = lambda address: None,
) -> int:
    """Serves until a signal, or until the reward is stuck; returns the exit code.

    Raises:
      EdgeError: it cannot listen.
    """
    stop = stop_on_signals()
    stuck = asyncio.Event()

    def on_stuck() -> None:
        stuck.set()
        stop.set()

    scorer = ComputedScorer(task, reward, deadline_seconds, on_stuck, threads)
    name = scorer.description.reward  # the facts are gathered before anybody waits for them
    server = EdgeServer(handlers(task, scorer), options)
    address = await server.start()
    logger.info("%s is served at %s", name, address)
    on_start(address)
    await stop.wait()
    logger.info("%s at %s stops", name, address)
    await server.stop()
    return EXIT_STUCK if stuck.is_set() else 0
