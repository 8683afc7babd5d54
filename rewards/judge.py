"""Calls a reward and turns all that may go wrong into typed failures.

Invariant: what comes back is either one `Scored`, `Abstained` or `Failed` a sample, or one
`GroupFailure` with its reason. A failure is never a number, and a reward can be trained on.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from numbers import Real
from typing import Any, TypeVar

import numpy as np

from protos.trajectory import (
    DTYPES,
    Abstained,
    Failed,
    FailureKind,
    Outcome,
    Scored,
    failure_kind,
)
from rewards.reward import AnyReward, Group, Reward, is_submitted
from vision.tasks.errors import describe, shorten
from vision.tasks.task import Example

LARGEST = 1e6
"""Nothing beyond is trained on, in size: the learner computes in float32, where the square of a
gradient that was weighed with more may be infinite, which would end the run."""

_T = TypeVar("_T")


class RewardContractError(ValueError):
    """A reward returned something that is not one outcome a sample."""


@dataclass(frozen=True)
class GroupFailure:
    """Why no sample of a group could be judged."""

    kind: FailureKind
    reason: str


def judge_group(
    reward: Reward, example: Example, predictions: Sequence[Any]
) -> tuple[Outcome, ...] | GroupFailure:
    """Outcomes of the K predictions of one example; never raises what the reward raised.

    An exception fails the group, with the kind that `failure_kind` finds; a result of the wrong
    length or type is a data failure. A reward that is not finite or beyond `LARGEST`, or an
    auxiliary array that is not finite, fails its own sample only.
    """
    try:
        return judge(reward, [example] * len(predictions), predictions)
    except Exception as error:  # noqa: BLE001  # users' code may raise anything: it becomes typed
        return group_failure(error)


def group_failure(error: BaseException) -> GroupFailure:
    """What an exception of a reward means for its group."""
    return GroupFailure(failure_kind(error), describe(error))


def start(reward: AnyReward, group: Group) -> Future[tuple[Outcome, ...]]:
    """Begins to judge a group; the future holds the checked outcomes or what was raised.

    A reward that is computed here is done when this returns; one that is computed elsewhere
    answers later, in a thread of its own. Nothing is raised here.
    """
    if is_submitted(reward):
        try:
            submitted = reward.submit(group)
        except Exception as error:  # noqa: BLE001  # users' code: it stands in the future, typed
            return failed(error)
        return when_all([submitted], lambda: checked(reward, submitted.result(), len(group)))
    answer: Future[tuple[Outcome, ...]] = Future()
    try:
        examples, predictions = [group.example] * len(group), group.predictions
        with group.timed("scoring"):
            outcomes = judge(reward, examples, predictions)
        answer.set_result(outcomes)
    except Exception as error:  # noqa: BLE001  # as above, and a broken example
        answer.set_exception(error)
    return answer


def failed(error: BaseException) -> Future[Any]:
    """A future that raises."""
    answer: Future[Any] = Future()
    answer.set_exception(error)
    return answer


def when_all(parts: Sequence[Future[Any]], result: Callable[[], _T]) -> Future[_T]:
    """A future of what `result` returns or raises once all parts are done.

    `result` runs in the thread that finishes last. Cancelling the future cancels the parts.
    """
    answer: Future[_T] = Future()
    lock = threading.Lock()
    left = len(parts)

    def part_done(_: Future[Any]) -> None:
        nonlocal left
        with lock:
            left -= 1
            if left:
                return
        if not answer.set_running_or_notify_cancel():
            return
        try:
            answer.set_result(result())
        except BaseException as error:  # noqa: BLE001  # whoever waits for the answer gets it
            answer.set_exception(error)

    def answer_done(_: Future[_T]) -> None:
        if answer.cancelled():
            for part in parts:
                part.cancel()

    answer.add_done_callback(answer_done)
    for part in parts:
        part.add_done_callback(part_done)
    return answer


def judge(
    reward: Reward, examples: Sequence[Example], predictions: Sequence[Any]
) -> tuple[Outcome, ...]:
    """The reward's outcomes, checked; raises what the reward raises.

    Raises:
      RewardContractError: not a list of one `Scored`, `Abstained` or `Failed` for each prediction.
    """
    return checked(reward, reward.score(examples, predictions), len(predictions))


def checked(reward: AnyReward, outcomes: object, count: int) -> tuple[Outcome, ...]:
    """The outcomes of `count` samples; a number that cannot be trained on becomes `Failed`.

    Raises:
      RewardContractError: as of `judge`.
    """
    name = type(reward).__name__
    if not isinstance(outcomes, Sequence):
        raise RewardContractError(
            f"{name}.score returned {type(outcomes).__name__}; expected a list of outcomes"
        )
    if len(outcomes) != count:
        raise RewardContractError(
            f"{name}.score returned {len(outcomes)} outcomes for {count} predictions; "
            "expected one for each"
        )
    return tuple(_checked(reward, index, outcome) for index, outcome in enumerate(outcomes))


def _checked(reward: AnyReward, index: int, outcome: object) -> Outcome:
    name = type(reward).__name__
    if isinstance(outcome, Abstained | Failed):
        named = isinstance(outcome, Abstained) or isinstance(outcome.kind, FailureKind)
        if not (named and isinstance(outcome.reason, str)):
            raise RewardContractError(
                f"{name}.score returned {shorten(repr(outcome))} for sample {index}; its reason "
                "must be text, and the kind of a failure a FailureKind"
            )
        return outcome
    if not isinstance(outcome, Scored):
        raise RewardContractError(
            f"{name}.score returned {shorten(repr(outcome))} for sample {index}; expected Scored, "
            "Abstained or Failed"
        )
    value = outcome.reward
    # NumPy's scalars, zero-dimensional arrays of any library included, are welcome as numbers.
    if not isinstance(value, Real):
        if not (hasattr(value, "item") and getattr(value, "shape", None) == ()):
            raise RewardContractError(
                f"{name}.score gave sample {index} the reward {shorten(repr(value))}; expected a "
                "number"
            )
        value = value.item()
    if not abs(value) <= LARGEST:  # NaN is not, either
        why = f"; at most {LARGEST:,.0f} in size can be trained on" if abs(value) > LARGEST else ""
        return Failed(f"{name} gave the reward {value}{why}", FailureKind.DATA)
    missing = [wanted for wanted in reward.provides if wanted not in outcome.auxiliary]
    if missing:
        raise RewardContractError(
            f"{name} says it provides {missing}, but sample {index} carries "
            f"{sorted(outcome.auxiliary)}"
        )
    for key, array in outcome.auxiliary.items():
        dtype = np.asarray(array).dtype.name
        if not isinstance(key, str) or dtype not in DTYPES:
            raise RewardContractError(
                f"{name} gave sample {index} the auxiliary array {key!r} of {dtype}; expected a "
                f"name that is text, and one of {', '.join(DTYPES)}"
            )
        if not np.all(np.isfinite(array)):
            return Failed(f"{name} gave {key} values that are not finite", FailureKind.DATA)
    return Scored(float(value), outcome.auxiliary)
