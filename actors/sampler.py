"""The sampler: leases a block of tickets, samples K predictions for each, completes them.

Invariant: what a sampler makes of an ordinal depends on the run's seed, the ordinal and the policy
version alone. A block is always decoded whole, as one batch of one shape, even when only some of
its ordinals are still missing, so the numbers do not depend on who did the work.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from actors.engine import Engine
from protos.trajectory import FailureKind, PolicyNotHeld, Sampled, Ticket, failure_kind
from replay.lease_keeper import LeaseKeeper
from replay.pulling import LOAD_SECONDS, PullingWorker, WorkerStatus
from replay.queue import Lease, QueueUnavailable, ReplayQueue, Stage
from vision.tasks.task import Task

logger = logging.getLogger(__name__)

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 2.0
"""Between two questions for a policy that is not there yet."""

LoadWeights = Callable[[int | None], tuple[int, dict[str, Any]]]


@dataclass
class SamplerStatus(WorkerStatus):
    """What a sampler has done so far; times in seconds."""

    tokens: int = 0
    policy_version: int = -1
    loading_weights: float = 0.0


class Sampler(PullingWorker):
    """Samples blocks until the queue closes or it is told to stop."""

    def __init__(
        self,
        task: Task,
        engine: Engine,
        engine_name: str,
        queue: ReplayQueue,
        keeper: LeaseKeeper,
        load_weights: LoadWeights,
        ticket: Callable[[int], Ticket],
        worker: str,
        block: int,
        samples_per_group: int,
        split: str = "train",
    ):
        self.status = SamplerStatus(worker)
        super().__init__(queue, Stage.TO_SAMPLE, 1, self.status)
        self._task = task
        self._engine = engine
        self._engine_name = engine_name
        self._keeper = keeper
        self._load_weights = load_weights
        self._ticket = ticket
        self._block = block
        self._samples_per_group = samples_per_group
        self._split = split

    def _work(self, leases: list[Lease]) -> None:
        self._keeper.hold(leases)
        try:
            loaded = self._policy(leases)
            if loaded is None:
                return
            with self._keeper.working_on(leases):
                payloads, failed = self._sample(leases, *loaded)
            if failed:
                self._queue.fail(failed)
            if payloads:
                self._queue.complete(payloads)
            self.status.groups += len(payloads)
        except QueueUnavailable:
            self._keeper.hand_back(leases)  # that there is no room for them is not their fault
            raise
        finally:
            self._keeper.drop(leases)

    def _images(
        self, tickets: list[Ticket]
    ) -> tuple[np.ndarray, dict[int, tuple[str, FailureKind]]]:
        """[block, H, W, 3] float32, zero where an example failed, and why, by ordinal."""
        images = np.zeros((len(tickets), *self._task.image_size, 3), np.float32)
        broken: dict[int, tuple[str, FailureKind]] = {}
        give_up = time.monotonic() + LOAD_SECONDS
        for row, ticket in enumerate(tickets):
            try:
                images[row] = self._when_there(partial(self._image, ticket), give_up)
            except Exception as error:  # noqa: BLE001  # costs its own group, with its reason
                reason = f"example {ticket.example_id}: {type(error).__name__}: {error}"
                about = {"ordinal": ticket.ordinal, "example": ticket.example_id}
                logger.warning(
                    "%s: ordinal %d: %s", self.status.worker, ticket.ordinal, reason, extra=about
                )
                broken[ticket.ordinal] = reason, failure_kind(error)
        return images, broken

    def _image(self, ticket: Ticket) -> np.ndarray:
        return self._task.load(self._split, ticket.example_id, ticket.augmentation_seed).image

    def _policy(self, leases: list[Lease]) -> tuple[int, dict[str, Any]] | None:
        """What to sample a block with; None where nobody wants the block any more, or this ends.

        Where it cannot be had the block goes back untried: that is not its fault.
        """
        began = time.monotonic()
        try:
            with self._keeper.working_on([]):  # a load that hangs ends this process, too
                loaded = self._loaded(leases, self._ticket(leases[0].ordinal).policy_version)
        except Exception:
            self._keeper.hand_back(leases)
            raise
        if loaded is not None:
            self.status.policy_version = loaded[0]
        self.status.loading_weights += time.monotonic() - began
        return loaded

    def _loaded(
        self, leases: list[Lease], version: int | None
    ) -> tuple[int, dict[str, Any]] | None:
        """The policy, which is waited for as long as somebody wants the block.

        A learner that goes back to a checkpoint takes back what it had published after it, and a
        moment later the leases that ask for that. A store that was started anew is empty until the
        learner has finished its step, and read its checkpoint.
        """
        give_up, pause = time.monotonic() + self._keeper.deadline / 2, FIRST_PAUSE
        while True:
            try:
                return self._load_weights(version)
            except PolicyNotHeld:
                if not self._queue.renew([lease.id for lease in leases]):
                    return None
                if self._stopping:
                    self._keeper.hand_back(leases)
                    return None
                if time.monotonic() > give_up:
                    raise
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)

    def _sample(
        self, leases: list[Lease], version: int, params: dict[str, Any]
    ) -> tuple[list[tuple[str, bytes]], list[tuple[str, str, FailureKind]]]:
        """What to complete, and what to fail, by the leases' ids."""
        first = leases[0].ordinal // self._block * self._block
        tickets = [self._ticket(ordinal) for ordinal in range(first, first + self._block)]
        images, broken = self._images(tickets)
        samples = self._engine.sample(
            params,
            images,
            np.array([ticket.sampling_seed for ticket in tickets], dtype=np.uint64),
            self._samples_per_group,
        )
        self.status.tokens += int(samples.lengths.sum())
        payloads = []
        failed = [(lease.id, *broken[lease.ordinal]) for lease in leases if lease.ordinal in broken]
        for lease in leases:
            if lease.ordinal in broken:
                continue
            row = lease.ordinal - first
            sampled = Sampled(
                ticket=tickets[row],
                tokens=samples.tokens[row],
                logprobs=samples.logprobs[row],
                policy_version=version,
                engine=self._engine_name,
            )
            payloads.append((lease.id, sampled.to_bytes()))
        return payloads, failed
