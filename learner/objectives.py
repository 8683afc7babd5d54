"""The two objectives: maximum likelihood and REINFORCE (Pinto et al. 2023, Algorithms 1 and 2).

Pure JAX. Failure is never a number: samples that were not scored are left out before anything is
averaged, and a group with fewer than two scored samples contributes nothing at all. Losses come as
sums (`LossSums`), so that the mean over the groups that count is the same however the batch was
split.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from learner.config import ReinforceConfig
from learner.mismatch import clipped_ratios, mismatch
from learner.train_state import LossFunction, LossSums
from vision.models.logprobs import entropy, mask_logits, sequence_mask, token_logprobs
from vision.tasks.task import Task

# (parameters, images [B, H, W, 3], tokens [B, K, L]) -> logits [B, K, L, V]
ApplyModel = Callable[[Any, jax.Array, jax.Array], jax.Array]
SPREAD_FLOOR = 1e-6
LARGEST_LOG_RATIO = 20.0  # exp of it is far beyond any clip, and squares of it are finite


class LikelihoodBatch(NamedTuple):
    """images [B, H, W, 3] float32, tokens [B, L] int32."""

    images: Any
    tokens: Any


class GroupBatch(NamedTuple):
    """G groups of K samples; a group that was dropped is a row with `scored` False throughout.

    Attributes:
      images: [G, H, W, 3] float32.
      tokens: [G, K, L] int32.
      behaviour_logprobs: [G, K, L] float32, under the policy that sampled.
      rewards: [G, K] float32; anything, NaN too, where not scored.
      scored: [G, K] bool.
      current: [G] bool, sampled with the very policy that is trained now.
      auxiliary: the reward's arrays, name -> [G, K, ...] float32.
    """

    images: Any
    tokens: Any
    behaviour_logprobs: Any
    rewards: Any
    scored: Any
    current: Any
    auxiliary: dict[str, Any]


@dataclass(frozen=True)
class TokenRules:
    """What the objectives must know of a task's tokens.

    Attributes:
      allowed: [L, V] bool, what may stand where.
      reinforced: [L] bool, the positions that the policy gradient trains.
      end_token: ends a sequence.
      auxiliary_loss: see `Task.auxiliary_loss`; None: the task has none.
    """

    allowed: np.ndarray
    reinforced: np.ndarray
    end_token: int
    auxiliary_loss: Callable[[Any, Any, Mapping[str, Any]], Any] | None

    @classmethod
    def of(cls, task: Task) -> "TokenRules":
        """The rules of a task."""
        return cls(
            allowed=task.allowed_tokens(),
            reinforced=task.reinforced_tokens(),
            end_token=task.end_token,
            auxiliary_loss=task.auxiliary_loss if task.auxiliary_arrays else None,
        )


def valid_groups(scored: jax.Array) -> jax.Array:
    """[G] bool: groups with at least two scored samples, the fewest that have a baseline."""
    return scored.sum(axis=1) >= 2


def leave_one_out_advantages(rewards: jax.Array, scored: jax.Array) -> jax.Array:
    """Each scored sample's reward minus the mean of the group's *other* scored samples.

    Args:
      rewards: [G, K] float32; ignored where not scored.
      scored: [G, K] bool.
    Returns:
      [G, K] float32; 0 where not scored and in groups with fewer than two scored samples.
    """
    counts = scored & valid_groups(scored)[:, None]
    rewards = jnp.where(counts, rewards, 0.0)
    n = counts.sum(axis=1, keepdims=True)
    # Centred first: r_k - mean of the others = (r_k - mean) n / (n - 1), without cancellation.
    mean = rewards.sum(axis=1, keepdims=True) / jnp.maximum(n, 1)
    return jnp.where(counts, (rewards - mean) * n / jnp.maximum(n - 1, 1), 0.0)


def reward_spread(rewards: jax.Array, scored: jax.Array) -> jax.Array:
    """[G] float32: standard deviation (n - 1) of a group's scored rewards; 0 below two."""
    n = scored.sum(axis=1)
    rewards = jnp.where(scored, rewards, 0.0)
    mean = rewards.sum(axis=1) / jnp.maximum(n, 1)
    squares = jnp.where(scored, (rewards - mean[:, None]) ** 2, 0.0).sum(axis=1)
    return jnp.sqrt(squares / jnp.maximum(n - 1, 1))


def truncated_importance_weights(
    logprobs: jax.Array, behaviour_logprobs: jax.Array, maximum: float | None
) -> jax.Array:
    """Per token min(p_now / p_sampled, maximum), a constant to the gradient; all 1 for None.

    Truncation bounds the variance, at the price of some bias (Ionides 2008; IMPALA's rho-bar).
    """
    if maximum is None:
        return jnp.ones_like(logprobs)
    ratio = jnp.exp(jax.lax.stop_gradient(logprobs) - behaviour_logprobs)
    return jnp.minimum(ratio, maximum)


def trained_samples(scored: jax.Array, use_samples: str) -> jax.Array:
    """[G, K] bool: the samples that are trained on; 'one' takes a group's first scored one."""
    trained = scored & valid_groups(scored)[:, None]
    if use_samples == "one":
        trained &= jnp.cumsum(trained, axis=1) == 1
    return trained


def make_likelihood_loss(apply: ApplyModel, rules: TokenRules) -> LossFunction:
    """The loss of Algorithm 1 on a `LikelihoodBatch`: mean negative log likelihood of a token.

    Probabilities are over the allowed tokens, as in sampling. Forced padding counts nothing.
    """

    def maximum_likelihood_loss(params: Any, batch: LikelihoodBatch, frozen: Any) -> LossSums:
        tokens = batch.tokens[:, None]  # [B, 1, L]
        logits = apply(params, batch.images, tokens)
        logprobs = token_logprobs(logits, tokens, rules.allowed)
        mask = sequence_mask(tokens, rules.end_token)
        total = -jnp.where(mask, logprobs, 0.0).sum()
        count = mask.sum().astype(jnp.float32)
        right = mask & (mask_logits(logits, rules.allowed).argmax(-1) == tokens)
        rows = jnp.float32(len(tokens))
        return LossSums(
            loss=total,
            weight=count,
            means={
                "loss/sequence": (total, rows),
                "policy/token_accuracy": (right.sum().astype(jnp.float32), count),
                "policy/length": (count, rows),
            },
            maxima={},
        )

    return maximum_likelihood_loss


def make_reinforce_loss(
    apply: ApplyModel, rules: TokenRules, config: ReinforceConfig
) -> LossFunction:
    """The loss of Algorithm 2 on a `GroupBatch`, with a leave-one-out baseline.

    For one group `-mean_k A_k sum_t w_t log p(y_kt | x)` over its trained samples, plus the task's
    auxiliary loss on the same samples and the options of `config`; then the mean over the groups
    with two scored samples or more. `frozen` holds the reference parameters when
    `config.kl_weight` is set; None otherwise.
    """

    def reinforce_loss(params: Any, batch: GroupBatch, frozen: Any) -> LossSums:
        _check_shapes(batch, rules)
        logits = apply(params, batch.images, batch.tokens)
        masked = mask_logits(logits, rules.allowed)
        own = sequence_mask(batch.tokens, rules.end_token)  # [G, K, L], without padding
        trained = trained_samples(batch.scored, config.use_samples)  # [G, K]
        mask = own & rules.reinforced & trained[..., None]

        # Both sides are made equal outside the mask, so that no ratio there can overflow.
        learned = token_logprobs(logits, batch.tokens, rules.allowed)
        logprobs = jnp.where(mask, learned, 0.0)
        behaviour = jnp.where(mask, batch.behaviour_logprobs, 0.0)
        advantages = leave_one_out_advantages(batch.rewards, batch.scored)
        spread = reward_spread(batch.rewards, batch.scored)
        if config.normalise_advantage:
            advantages /= jnp.maximum(spread, SPREAD_FLOOR)[:, None]

        ratio = jnp.exp(jax.lax.stop_gradient(logprobs) - behaviour)
        per_token = policy_gradient(logprobs, behaviour, advantages[..., None], config)
        policy_loss = _reduce(per_token, mask, config.length_reduction)
        entropies = jnp.where(mask, entropy(masked), 0.0)
        loss = policy_loss - config.entropy_weight * _reduce(
            entropies, mask, config.length_reduction
        )

        groups, tokens = trained.any(axis=1), mask.sum().astype(jnp.float32)
        sequences = trained.sum().astype(jnp.float32)
        means = {
            "loss/reinforce": (policy_loss, trained),
            "advantage/absolute": (jnp.abs(advantages), trained),
            "policy/length": (own.sum(-1), trained),
            "reward/mean": (batch.rewards, batch.scored),
            "reward/spread": (spread, valid_groups(batch.scored)),
        }
        sums = {name: _masked_sum(values, where) for name, (values, where) in means.items()}
        total = jnp.float32(batch.scored.size)
        sums |= {
            "reward/unscored_share": (total - batch.scored.sum(), total),
            "groups/dropped_share": (
                jnp.float32(len(groups)) - groups.sum(),
                jnp.float32(len(groups)),
            ),
            "policy/entropy": (entropies.sum(), tokens),
            "importance/mean": (jnp.where(mask, ratio, 0.0).sum(), tokens),
            "importance/clipped_share": (
                (mask & clipped_ratios(ratio, config)).sum().astype(jnp.float32),
                tokens,
            ),
            "policy/drift": (jnp.abs(logprobs - behaviour).sum(), tokens),
        }
        sampled_now = own & batch.current[:, None, None]
        differences, largest = mismatch(learned, batch.behaviour_logprobs, sampled_now, config)
        sums |= differences

        if config.kl_weight:
            reference = jax.lax.stop_gradient(apply(frozen, batch.images, batch.tokens))
            divergence = jnp.where(
                mask, divergence_from(masked, mask_logits(reference, rules.allowed)), 0.0
            )
            loss += config.kl_weight * _reduce(divergence, mask, config.length_reduction)
            sums["policy/kl"] = (divergence.sum(), tokens)

        if rules.auxiliary_loss is not None and config.auxiliary_weight:
            auxiliary = _auxiliary(rules.auxiliary_loss, masked, batch, trained)
            loss += config.auxiliary_weight * auxiliary
            sums["loss/auxiliary"] = (auxiliary.sum(), sequences)

        # Mean over a group's trained samples, then a sum over groups: the weight divides it.
        per_group = jnp.where(trained, loss, 0.0).sum(axis=1)
        per_group /= jnp.maximum(trained.sum(axis=1), 1)
        return LossSums(
            loss=per_group.sum(),
            weight=groups.sum().astype(jnp.float32),
            means=sums,
            maxima=largest | {"importance/max": jnp.where(mask, ratio, 0.0).max()},
        )

    return reinforce_loss


def policy_gradient(
    logprobs: jax.Array, behaviour: jax.Array, advantages: jax.Array, config: ReinforceConfig
) -> jax.Array:
    """The loss of each token: REINFORCE with truncated weights, or PPO's clipped surrogate."""
    if config.clip is None:
        weights = truncated_importance_weights(logprobs, behaviour, config.max_importance_weight)
        return -advantages * weights * logprobs
    ratio = jnp.exp(jnp.minimum(logprobs - behaviour, LARGEST_LOG_RATIO))
    clipped = jnp.clip(ratio, 1 - config.clip, 1 + config.clip)
    return -jnp.minimum(ratio * advantages, clipped * advantages)


def divergence_from(logits: jax.Array, reference: jax.Array) -> jax.Array:
    """KL(softmax(logits) || softmax(reference)) over the last axis, exact."""
    log_p, log_q = jax.nn.log_softmax(logits), jax.nn.log_softmax(reference)
    p = jnp.exp(log_p)
    # Forbidden tokens have p = 0 and a hugely negative logarithm on both sides.
    return jnp.where(p > 0, p * (log_p - log_q), 0.0).sum(axis=-1)


def _reduce(values: jax.Array, mask: jax.Array, reduction: str) -> jax.Array:
    """[G, K, L] -> [G, K] over the masked positions."""
    total = jnp.where(mask, values, 0.0).sum(axis=-1)
    return total / jnp.maximum(mask.sum(axis=-1), 1) if reduction == "mean" else total


def _masked_sum(values: jax.Array, where: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jnp.where(where, values, 0.0).sum(), where.sum().astype(jnp.float32)


def _auxiliary(
    auxiliary_loss: Callable[[Any, Any, Mapping[str, Any]], Any],
    masked: jax.Array,
    batch: GroupBatch,
    trained: jax.Array,
) -> jax.Array:
    """[G, K]: the task's loss of each trained sample, 0 elsewhere."""
    groups, samples, length, vocabulary = masked.shape
    flat = groups * samples
    # Where nothing was scored the arrays may hold anything; NaN times 0 is NaN in a gradient.
    arrays = {
        name: jnp.where(trained.reshape(flat, *[1] * (array.ndim - 2)), array_flat, 0.0)
        for name, array in batch.auxiliary.items()
        for array_flat in [array.reshape(flat, *array.shape[2:])]
    }
    loss = auxiliary_loss(
        masked.reshape(flat, length, vocabulary), batch.tokens.reshape(flat, length), arrays
    )
    return jnp.where(trained, loss.reshape(groups, samples), 0.0)


def _check_shapes(batch: GroupBatch, rules: TokenRules) -> None:
    groups, samples, length = batch.tokens.shape
    expected = {
        "behaviour_logprobs": (batch.behaviour_logprobs.shape, (groups, samples, length)),
        "rewards": (batch.rewards.shape, (groups, samples)),
        "scored": (batch.scored.shape, (groups, samples)),
        "current": (batch.current.shape, (groups,)),
        "rules.allowed": (rules.allowed.shape[:1], (length,)),
        "rules.reinforced": (rules.reinforced.shape, (length,)),
    } | {
        f"auxiliary[{name!r}]": (array.shape[:2], (groups, samples))
        for name, array in batch.auxiliary.items()
    }
    for name, (found, right) in expected.items():
        if tuple(found) != right:
            raise ValueError(
                f"{name} has shape {tuple(found)}, but tokens [G, K, L] = {batch.tokens.shape}"
                f" ask for {right}"
            )
