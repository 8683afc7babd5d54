"""From an `OptimizerConfig` to an optax transformation.

Adafactor is big_vision's variant (Zhai et al. 2022, "Scaling Vision Transformers", section 3.4):
factored second moments whose decay is capped, momentum kept in bfloat16, no relative step sizes.
"""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from learner.config import OptimizerConfig

# Matrices with a smaller side keep a whole second moment: factoring it would save nothing.
MIN_SIDE_TO_FACTOR = 32
DECAY_EXPONENT = 0.8
SECOND_MOMENT_FLOOR = 1e-30

Schedule = Callable[[Any], jax.Array]


class MultiplierError(ValueError):
    """A multiplier's pattern matches no parameter."""


def make_schedule(config: OptimizerConfig, total_steps: int) -> Schedule:
    """The factor on the learning rate, in [0, 1], as a function of the step (from 0)."""
    warmup = config.warmup_steps
    after_warmup = max(total_steps - warmup, 1)

    def factor(step: Any) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        rise = jnp.minimum(1.0, (step + 1) / warmup) if warmup else jnp.float32(1)
        if config.schedule == "constant":
            return rise
        progress = jnp.clip((step - warmup) / after_warmup, 0, 1)
        return rise * 0.5 * (1 + jnp.cos(jnp.pi * progress))

    return factor


def parameter_paths(params: Any) -> dict[str, Any]:
    """The leaves of a parameter tree by their path, as in 'encoder/encoder_norm/scale'."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    return {_path_name(path): leaf for path, leaf in leaves}


def make_optimizer(config: OptimizerConfig, total_steps: int, params: Any) -> Any:
    """The optax transformation; `params` (or their shapes) only check the multipliers.

    Raises:
      MultiplierError: a pattern of `config.multipliers` matches no parameter.
    """
    paths = list(parameter_paths(params))
    for pattern, _ in config.multipliers:
        if not any(re.fullmatch(pattern, path) for path in paths):
            heads = ", ".join(sorted({path.split("/")[0] for path in paths}))
            raise MultiplierError(
                f"optimizer.multipliers: {pattern!r} matches no parameter; a pattern must match a"
                f" whole path such as {paths[0]!r}, and paths begin with: {heads}"
            )

    if config.name == "adafactor":
        direction = scale_by_adafactor(beta1=config.beta1, beta2_cap=config.beta2_cap)
    else:
        direction = optax.scale_by_adam(b1=config.beta1, b2=config.beta2)
    schedule = make_schedule(config, total_steps)
    return optax.chain(
        optax.identity()
        if config.clip_norm is None
        else optax.clip_by_global_norm(config.clip_norm),
        direction,
        optax.scale(config.learning_rate),
        optax.add_decayed_weights(config.weight_decay, mask=_kernels),
        _multiply_by_path(config.multipliers),
        optax.scale_by_schedule(lambda step: -schedule(step)),
    )


def scale_by_adafactor(beta1: float = 0.9, beta2_cap: float = 0.999) -> Any:
    """Gradients over the root of their factored second moment, then momentum in bfloat16.

    The second moment decays by `min(beta2_cap, 1 - t^-0.8)` at step t = 1, 2, ...
    """

    def decay(step: Any, exponent: float) -> jax.Array:
        t = jnp.asarray(step, jnp.float32) + 1
        return jnp.minimum(beta2_cap, 1 - t**-exponent)

    second_moment = optax.scale_by_factored_rms(
        factored=True,
        decay_rate=DECAY_EXPONENT,
        step_offset=0,
        min_dim_size_to_factor=MIN_SIDE_TO_FACTOR,
        epsilon=SECOND_MOMENT_FLOOR,
        decay_rate_fn=decay,
    )
    if not beta1:
        return second_moment
    momentum = optax.ema(beta1, debias=False, accumulator_dtype=jnp.bfloat16)
    return optax.chain(second_moment, momentum)


def _path_name(path: Any) -> str:
    return "/".join(str(getattr(key, "key", getattr(key, "name", key))) for key in path)


def _kernels(params: Any) -> Any:
    """True for the leaves that decay."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: _path_name(path).rsplit("/", 1)[-1] == "kernel", params
    )


def _multiply_by_path(multipliers: list[tuple[str, float]]) -> Any:
    if not multipliers:
        return optax.identity()

    def factor(path: Any) -> float:
        name = _path_name(path)
        return next((factor for pattern, factor in multipliers if re.fullmatch(pattern, name)), 1.0)

    return optax.stateless(
        lambda updates, _: jax.tree_util.tree_map_with_path(
            lambda path, update: factor(path) * update, updates
        )
    )
