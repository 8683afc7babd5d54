"""How far the sampler's logprobs are from the learner's, for the same tokens and the same policy.

Sampler and learner compute one policy in two ways: with a cache and without, in another engine, on
another device, with weights that were rounded on their way. What is left between them acts as an
importance ratio that no lag explains, so every run measures it: where a group is trained by the
policy that sampled it the training step does so at no cost; where groups lag, a forward pass with
an older policy does now and then, spread over devices as the training is.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from learner.config import ReinforceConfig, TuneConfig
from learner.hosts import Hosts
from learner.mesh import by_row, make_mesh, of_state, put_state, replicated
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

    In async mode a group may be many policies old. So one policy is kept beside the newest until
    groups that it sampled have been measured, or can come no more: memory does not grow with the
    lag.

    Where a copy of the parameters fits the devices of a host, host 0 measures alone, its own rows;
    where it spans hosts, all of them do together.
    """

    def __init__(
        self,
        apply: Callable[[Any, Any, Any], jax.Array],
        allowed: np.ndarray,
        end_token: int,
        config: TuneConfig,
        hosts: Hosts,
        max_staleness: int | None,
    ) -> None:
        """Prepares; `begin` says from which step on.

        Args:
          apply: (parameters, images, tokens) -> logits, the learner's model.
          allowed, end_token: of the task.
          config: of the learner.
          hosts: of the learner.
          max_staleness: see `learner.tune.Learner`.
        """
        alone = config.devices % config.shards == 0
        self._hosts = Hosts() if alone else hosts
        self._idle = alone and not hosts.first
        self._mesh = make_mesh(config.devices, config.shards, this_host=alone)
        # Of a host, as many as its devices train at once.
        self._rows = config.groups_per_step // (config.microbatches * config.hosts)
        self._every, self._max_staleness = config.mismatch_every, max_staleness
        self._last = 0
        self._kept: tuple[int, Any] | None = None

        def measure(
            params: Any, images: Any, tokens: Any, behaviour: Any, wanted: Any
        ) -> dict[str, jax.Array]:
            logprobs = token_logprobs(apply(params, images, tokens), tokens, allowed)
            where = sequence_mask(tokens, end_token) & wanted[:, None, None]
            means, maxima = mismatch(logprobs, behaviour, where, config.reinforce)
            return {name: total / count for name, (total, count) in means.items()} | maxima

        self._function = measure
        self._measure: Callable[..., dict[str, jax.Array]] | None = None

    def begin(self, step: int) -> None:
        """The training goes on after so many steps."""
        self._last = step

    def keep(self, version: int, params: Any) -> None:
        """Host 0 is told each policy that is published; its arrays are in memory."""
        if not self._max_staleness:  # none lags, or those that may be asked for are kept anyway
            return
        if self._kept is None or version - self._kept[0] > self._max_staleness:
            self._kept = (version, params)

    def due(self, step: int, measured: Mapping[str, float]) -> bool:
        """Whether to measure after so many steps; hosts that measure say the same.

        Args:
          step: as it says.
          measured: what the training step has measured: nothing, where all groups lag.
        """
        if self._every == 0 or step // self._every == self._last // self._every:
            return False
        return not math.isfinite(measured[MEAN])

    def __call__(
        self,
        step: int,
        policies: Iterable[tuple[int, Any]],
        versions: Sequence[int | None],
        batch: Any,
        like: Any,
    ) -> dict[str, float]:
        """The metrics of the groups of one policy, that of most; empty where none is at hand.

        Every host calls this, and those that measure get the same.

        Args:
          step: how many are done.
          policies: (version, parameters) that the learner still has; host 0's count.
          versions: of each row of this host's batch, what sampled it; None where nothing did.
          batch: a `GroupBatch` of this host's rows.
          like: arrays of the shapes of the parameters.
        """
        if self._idle:
            return {}
        at_hand = dict([*policies, *([] if self._kept is None else [self._kept])])
        counts = Counter(version for version in versions if version in at_hand)
        most = counts.most_common(1)[0][0] if counts else None
        version: int | None = self._hosts.gather(most)[0]
        if version is None:
            return {}
        empty = None if self._hosts.first else jax.tree.map(_zeros, like)
        params = put_state(self._mesh, self._hosts.from_first(at_hand.get(version, empty)))
        wanted = np.array([other == version for other in versions])
        # The rows of that policy first; others fill up, so that the shape is always the same.
        rows = np.argsort(~wanted, kind="stable")[: self._rows]
        arrays = (batch.images, batch.tokens, batch.behaviour_logprobs, wanted)
        chosen = self._hosts.rows(self._mesh, tuple(array[rows] for array in arrays))
        if self._measure is None:
            states, row = of_state(self._mesh, params), by_row(self._mesh)
            self._measure = jax.jit(
                self._function,
                in_shardings=(states, row, row, row, row),
                out_shardings=replicated(self._mesh),
            )
        with self._hosts.together():
            found = {name: float(value) for name, value in self._measure(params, *chosen).items()}
        self._last = step
        if self._kept is not None and self._kept[0] == version:
            self._kept = None
        return found


def _zeros(leaf: Any) -> np.ndarray:
    return np.zeros(leaf.shape, leaf.dtype)
