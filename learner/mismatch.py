"""How far the sampler's logprobs are from the learner's, for the same tokens and the same policy.

Sampler and learner compute one policy in two ways: with a cache and without, in another engine, on
another device, with weights that were rounded on their way. What is left between them acts as an
importance ratio that no lag explains, so every run measures it: where a group is trained by the
policy that sampled it the training step does so at no cost; where groups lag, a forward pass with
an older policy does now and then.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from learner.config import ReinforceConfig
from vision.models.logprobs import sequence_mask, token_logprobs

MEAN, MAXIMUM, CLIPPED = "mismatch/mean", "mismatch/max", "mismatch/clipped_share"


def clipped_ratios(ratio: jax.Array, config: ReinforceConfig) -> jax.Array:
    """[...] bool: the importance ratios that the objective would clip or truncate."""
    if config.clip is not None:
        return jnp.abs(ratio - 1) > config.clip
    limit = config.max_importance_weight
    return ratio > (float("inf") if limit is None else limit)


def mismatch(
    logprobs: jax.Array, behaviour_logprobs: jax.Array, where: jax.Array, config: ReinforceConfig
) -> tuple[dict[str, tuple[jax.Array, jax.Array]], dict[str, jax.Array]]:
    """The metrics as a `LossSums` takes them: means as (sum, weight), and maxima.

    Args:
      logprobs: [..., L] float32, the learner's; anything where not measured.
      behaviour_logprobs: [..., L] float32, the sampler's, of the same tokens and policy.
      where: [..., L] bool, the tokens to measure; where there are none, the means have no weight
        and the maximum is -inf.
    """
    # Made equal first where nothing is measured, so that no difference there can overflow.
    difference = jnp.where(where, logprobs, 0.0) - jnp.where(where, behaviour_logprobs, 0.0)
    clipped = where & clipped_ratios(jnp.exp(difference), config)
    count = where.sum().astype(jnp.float32)
    means = {
        MEAN: (jnp.abs(difference).sum(), count),
        CLIPPED: (clipped.sum().astype(jnp.float32), count),
    }
    return means, {MAXIMUM: jnp.where(where, jnp.abs(difference), -jnp.inf).max()}


class LaggedMismatch:
    """Measures groups that are trained by a later policy than the one that sampled them.

    Args:
      apply: (parameters, images, tokens) -> logits, the learner's model.
      allowed, end_token: of the task.
      rows: groups of a forward pass, which runs on one device.
    """

    def __init__(
        self,
        apply: Callable[[Any, Any, Any], jax.Array],
        allowed: np.ndarray,
        end_token: int,
        config: ReinforceConfig,
        rows: int,
    ) -> None:
        self._rows = rows

        def measure(
            params: Any, images: Any, tokens: Any, behaviour: Any, wanted: Any
        ) -> dict[str, jax.Array]:
            logprobs = token_logprobs(apply(params, images, tokens), tokens, allowed)
            where = sequence_mask(tokens, end_token) & wanted[:, None, None]
            means, maxima = mismatch(logprobs, behaviour, where, config)
            return {name: total / count for name, (total, count) in means.items()} | maxima

        self._measure = jax.jit(measure)

    def __call__(
        self, policies: Iterable[tuple[int, Any]], versions: Sequence[int | None], batch: Any
    ) -> dict[str, float]:
        """The metrics of the groups of one policy, that of most; empty where none is at hand.

        Args:
          policies: (version, parameters) that the learner still has.
          versions: of each row of the batch, what sampled it; None where nothing did.
          batch: a `GroupBatch`.
        """
        at_hand = dict(policies)
        counts = Counter(version for version in versions if version in at_hand)
        if not counts:
            return {}
        version = counts.most_common(1)[0][0]
        assert version is not None
        wanted = np.array([other == version for other in versions])
        # The rows of that policy first; others fill up, so that the shape is always the same.
        rows = np.argsort(~wanted, kind="stable")[: self._rows]
        arrays = (batch.images, batch.tokens, batch.behaviour_logprobs, wanted)
        found = self._measure(at_hand[version], *(array[rows] for array in arrays))
        return {name: float(value) for name, value in found.items()}
