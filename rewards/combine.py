"""Rewards by import path, and weighted sums of rewards."""

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, cast

import numpy as np

from protos.trajectory import (
    Abstained,
    Failed,
    FailureKind,
    InfrastructureError,
    Outcome,
    RewardAway,
    Scored,
    failure_kind,
)
from rewards.config import RewardsConfig
from rewards.judge import RewardContractError, judge, start, when_all
from rewards.reward import AnyReward, Group, Reward, is_submitted
from vision.tasks.errors import describe
from vision.tasks.import_path import ImportPathError, check_options, find_class
from vision.tasks.task import Example, Task


class RewardLoadError(ValueError):
    """A reward of the config cannot be built."""


def _find_class(path: str) -> Any:
    """The class of 'module:Class'; `RewardLoadError` where there is none."""
    example = "rewards.detection:MeanAveragePrecisionReward"
    try:
        return find_class("reward", path, "score", example)
    except ImportPathError as error:
        raise RewardLoadError(str(error)) from error


def load_reward(path: str, task: Task, options: Mapping[str, Any]) -> AnyReward:
    """Builds `Class(task, **options)` from 'module:Class'.

    Raises:
      RewardLoadError: the module does not import, has no such class, the class is no reward, or
        it does not take the options.
    """
    reward_class = _find_class(path)
    try:
        check_options("reward", path, reward_class, options, task)
        reward = reward_class(task, **options)
    except ImportPathError as error:
        raise RewardLoadError(str(error)) from error
    except Exception as error:
        raise RewardLoadError(
            f"reward {path!r} with options {dict(options)}: {describe(error)}"
        ) from error
    if not (callable(getattr(reward, "score", None)) or is_submitted(reward)):
        raise RewardLoadError(
            f"reward {path!r}: {type(reward).__name__} has no method score(examples, predictions)"
        )
    provides = getattr(reward, "provides", None)
    if not isinstance(provides, Sequence) or isinstance(provides, str):
        raise RewardLoadError(
            f"reward {path!r}: `provides` is {provides!r}; it must name the auxiliary arrays of "
            "the outcomes: `provides = ()` when there are none"
        )
    return cast(AnyReward, reward)


class _Terms:
    """Weighted terms, and how the outcomes of all become one."""

    def __init__(self, terms: Sequence[tuple[AnyReward, float]]):
        if not terms:
            raise ValueError("a weighted sum of rewards needs at least one term")
        for reward, weight in terms:
            if not math.isfinite(weight):
                raise ValueError(f"the weight of {type(reward).__name__} is {weight}")
        self._terms: Sequence[tuple[AnyReward, float]] = list(terms)
        self._names = [f"term {i} ({type(reward).__name__})" for i, (reward, _) in enumerate(terms)]
        self.provides: Sequence[str] = tuple(
            dict.fromkeys(name for reward, _ in terms for name in reward.provides)
        )

    def _total(self, terms: Sequence[Callable[[], tuple[Outcome, ...]]]) -> list[Outcome]:
        """The sums of what the calls return, one a term; what they raise names its term."""
        by_term = [self._named(index, outcomes_of) for index, outcomes_of in enumerate(terms)]
        return [self._sum(outcomes) for outcomes in zip(*by_term, strict=True)]

    def _named(self, index: int, outcomes_of: Callable[[], tuple[Outcome, ...]]) -> Any:
        """What the call of a term returns; what it raises names the term."""
        name = self._names[index]
        try:
            return outcomes_of()
        except MemoryError as error:
            raise MemoryError(f"{name}: {describe(error)}") from error
        except RewardAway as error:
            raise RewardAway(f"{name}: {error}") from error
        except Exception as error:
            if failure_kind(error) is FailureKind.INFRASTRUCTURE:
                raise InfrastructureError(f"{name}: {error}") from error
            raise RewardContractError(f"{name}: {describe(error)}") from error

    def _sum(self, outcomes: Sequence[Outcome]) -> Outcome:
        failures, abstentions = [], []
        kind = FailureKind.INFRASTRUCTURE
        total = 0.0
        auxiliary: dict[str, np.ndarray] = {}
        for name, (_, weight), outcome in zip(self._names, self._terms, outcomes, strict=True):
            if isinstance(outcome, Failed):
                failures.append(f"{name}: {outcome.reason}")
                if outcome.kind is FailureKind.DATA:  # then trying elsewhere cannot help
                    kind = FailureKind.DATA
            elif isinstance(outcome, Abstained):
                abstentions.append(f"{name}: {outcome.reason}")
            else:
                total += weight * outcome.reward
                for key, array in outcome.auxiliary.items():
                    if key in auxiliary and not np.array_equal(auxiliary[key], array):
                        failures.append(f"{name}: its {key} differs from an earlier term's")
                        kind = FailureKind.DATA
                    auxiliary[key] = array
        if failures:
            return Failed("; ".join(failures), kind)
        if abstentions:
            return Abstained("; ".join(abstentions))
        return Scored(total, auxiliary)


class WeightedSum(_Terms):
    """Σ weight · reward; a sample is scored only where every term scores it."""

    _terms: Sequence[tuple[Reward, float]]

    def score(self, examples: Sequence[Example], predictions: Sequence[Any]) -> list[Outcome]:
        """Outcomes of the sum; failures and abstentions name their term.

        Raises:
          InfrastructureError, RewardContractError: a term raised it, or something else.
        """
        return self._total(
            [partial(judge, reward, examples, predictions) for reward, _ in self._terms]
        )


class SubmittedSum(_Terms):
    """The same where a term is computed elsewhere; the others are computed here meanwhile."""

    def __init__(self, terms: Sequence[tuple[AnyReward, float]]):
        super().__init__(terms)
        self.in_flight = min(reward.in_flight for reward, _ in terms if is_submitted(reward))

    def submit(self, group: Group) -> Future[Sequence[Outcome]]:
        """See `rewards.reward.SubmittedReward`, and `WeightedSum.score`."""
        rewards = [reward for reward, _ in self._terms]
        elsewhere_first = sorted(range(len(rewards)), key=lambda i: not is_submitted(rewards[i]))
        started = {i: start(rewards[i], group) for i in elsewhere_first}
        parts = [started[i] for i in range(len(rewards))]
        for index, part in enumerate(parts):
            if part.done() and not part.cancelled() and part.exception() is not None:
                for other in parts:  # nobody shall be asked in vain
                    other.cancel()
                return when_all([part], partial(self._named, index, part.result))
        return when_all(parts, lambda: self._total([part.result for part in parts]))


def build_reward(config: RewardsConfig, task: Task) -> AnyReward:
    """The reward of a config: its terms, loaded and weighed.

    Raises:
      RewardLoadError: a term cannot be built.
    """
    terms = [(load_reward(term.path, task, term.options), term.weight) for term in config.terms]
    if len(terms) == 1 and terms[0][1] == 1.0:
        return terms[0][0]
    if any(is_submitted(reward) for reward, _ in terms):
        return SubmittedSum(terms)
    return WeightedSum(terms)


def build_local_reward(config: RewardsConfig, task: Task) -> Reward | None:
    """The same for reports, which judge decoded predictions; None where a term is elsewhere.

    Then no server is asked, and no person.
    """
    if any(is_submitted(_find_class(term.path)) for term in config.terms):
        return None
    return cast(Reward, build_reward(config, task))
