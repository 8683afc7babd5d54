"""Scored groups as the arrays of a training step."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from learner.objectives import GroupBatch
from protos.trajectory import Scored, ScoredGroup
from vision.tasks.task import Task


class GroupShapeError(ValueError):
    """A scored group does not have the shapes of this run."""


@dataclass(frozen=True)
class TrainingGroup:
    """One ordinal's outcome; `scored` is None for a quarantined group, which has its reasons."""

    ordinal: int
    scored: ScoredGroup | None
    reasons: tuple[str, ...] = ()

    @property
    def version(self) -> int | None:
        """The policy version that sampled it."""
        return None if self.scored is None else self.scored.sampled.policy_version


def group_batch(
    task: Task,
    groups: Sequence[TrainingGroup],
    samples: int,
    split: str = "train",
    threads: int = 1,
    version: int | None = None,
) -> GroupBatch:
    """Stacks groups, in their order; a quarantined group is a row without scored samples.

    Args:
      threads: load so many examples at once; each has a row of its own, so the batch is the same.
      version: of the policy that is trained; groups that it sampled are `current`.
    Raises:
      GroupShapeError: tokens of another number of samples or length than the run's.
      Exception: what the task's `load` raises; of several faults, the one of the first row.
    """
    height, width = task.image_size
    shape = (len(groups), samples)
    batch = GroupBatch(
        images=np.zeros((len(groups), height, width, 3), np.float32),
        tokens=np.zeros((*shape, task.max_length), np.int32),
        behaviour_logprobs=np.zeros((*shape, task.max_length), np.float32),
        rewards=np.zeros(shape, np.float32),
        scored=np.zeros(shape, bool),
        current=np.array(
            [group.version is not None and group.version == version for group in groups]
        ),
        auxiliary={
            name: np.zeros((*shape, *size), np.float32)
            for name, size in task.auxiliary_arrays.items()
        },
    )

    def fill(row: int) -> None:
        scored = groups[row].scored
        if scored is not None:
            _fill(batch, row, task, scored, split)

    with ThreadPoolExecutor(threads, thread_name_prefix="load") as pool:
        for _ in pool.map(fill, range(len(groups))):
            pass
    return batch


def _fill(batch: GroupBatch, row: int, task: Task, scored: ScoredGroup, split: str) -> None:
    sampled, ticket = scored.sampled, scored.sampled.ticket
    if sampled.tokens.shape != batch.tokens[row].shape:
        raise GroupShapeError(
            f"ordinal {ticket.ordinal}: tokens {list(sampled.tokens.shape)} (samples, length), "
            f"this run trains {list(batch.tokens[row].shape)}"
        )
    batch.images[row] = task.load(split, ticket.example_id, ticket.augmentation_seed).image
    batch.tokens[row] = sampled.tokens
    batch.behaviour_logprobs[row] = sampled.logprobs
    for sample, outcome in enumerate(scored.outcomes):
        if not isinstance(outcome, Scored):
            continue
        batch.scored[row, sample] = True
        batch.rewards[row, sample] = outcome.reward
        for name, array in batch.auxiliary.items():
            given = outcome.auxiliary.get(name)
            if given is not None and given.shape != array.shape[2:]:
                raise GroupShapeError(
                    f"ordinal {ticket.ordinal}: {name} has shape {list(given.shape)}, the task's "
                    f"auxiliary loss takes {list(array.shape[2:])}"
                )
            if given is not None:
                array[row, sample] = given


def reward_sums(groups: Sequence[TrainingGroup]) -> dict[str, tuple[float, int]]:
    """What a reward tells beside its number: the factors of a product, the terms of a sum.

    Returns:
      for each auxiliary array of no dimensions, as 'reward/NAME', its sum over the samples that
      carry it, and their number; empty where none does.
    """
    values: dict[str, list[float]] = {}
    for group in groups:
        for outcome in group.scored.outcomes if group.scored is not None else ():
            for name, array in outcome.auxiliary.items() if isinstance(outcome, Scored) else ():
                if array.ndim == 0:
                    values.setdefault(f"reward/{name}", []).append(float(array))
    return {name: (float(np.sum(each)), len(each)) for name, each in sorted(values.items())}
