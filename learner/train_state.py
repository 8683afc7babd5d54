"""What training changes, and the compiled step that changes it.

Invariant: the gradients do not depend on how a batch is split over devices and micro-batches
(within rounding). A loss therefore returns *sums* with their weights; the mean is taken once, over
the whole batch, so that masked rows count the same wherever they fall.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from learner.mesh import by_row, make_mesh, of_state, put_state, replicated

LOSS = "loss/total"
GRADIENT_NORM = "optimizer/gradient_norm"


class TrainState(NamedTuple):
    """All that a checkpoint needs of the learner's arrays.

    Attributes:
      step: int32 scalar, the number of finished steps: also the policy's version.
      params: the model's parameters, float32.
      optimizer_state: optax's.
    """

    step: jax.Array
    params: Any
    optimizer_state: Any


class LossSums(NamedTuple):
    """A loss and its metrics before any division.

    Attributes:
      loss: scalar, summed over rows.
      weight: scalar, what to divide it by; must not depend on the parameters.
      means: metric name -> (sum, weight).
      maxima: metric name -> scalar.
      statistics: arrays that add up over rows, for `AfterUpdate`.
    """

    loss: jax.Array
    weight: jax.Array
    means: dict[str, tuple[jax.Array, jax.Array]]
    maxima: dict[str, jax.Array]
    statistics: Any = ()


class LossFunction(Protocol):
    """A loss of (parameters, batch, frozen); `frozen` is what it needs that is not trained."""

    def __call__(self, params: Any, batch: Any, frozen: Any) -> LossSums:
        """The batch's sums."""
        ...


class AfterUpdate(Protocol):
    """What of the parameters is not learned by gradients, such as a dictionary of averages."""

    def __call__(
        self, params: Any, statistics: Any, step: jax.Array
    ) -> tuple[Any, dict[str, jax.Array]]:
        """The parameters after the batch whose `LossSums.statistics` these are, and metrics.

        Args:
          step: finished steps before this one.
        """
        ...


TrainStep = Callable[..., tuple[TrainState, dict[str, jax.Array]]]


class NonFiniteError(ArithmeticError):
    """The loss or the gradient of a batch is NaN or infinite; names what the batch was made of."""

    def __init__(self, step: int, values: Mapping[str, float], ordinals: Sequence[Any]) -> None:
        self.step, self.values = step, dict(values)
        self.ordinals = tuple(ordinals)
        found = ", ".join(f"{name} = {value}" for name, value in values.items())
        super().__init__(
            f"step {step}: {found}; the parameters were left as they were before it."
            f" The batch held {list(self.ordinals)}. Look at these examples and their rewards;"
            " if they are sound, a lower learning rate or clip_norm may be right."
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """It has to reach the driver from the learner's process."""
        return type(self), (self.step, self.values, self.ordinals)


def create_train_state(params: Any, optimizer: Any, mesh: Mesh | None = None) -> TrainState:
    """The state before the first step, on a mesh's devices (default: one).

    Copies `params`: the step donates its input's buffers.
    """
    mesh = mesh or make_mesh()
    params = put_state(mesh, jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32), params))
    init = optimizer.init
    if mesh.size > 1:
        # The optimizer's state is made where it will lie: it may not fit on one device.
        init = jax.jit(init, out_shardings=of_state(mesh, jax.eval_shape(init, params)))
    return TrainState(jnp.zeros((), jnp.int32), params, init(params))


def make_train_step(
    loss_function: LossFunction,
    optimizer: Any,
    mesh: Mesh,
    microbatches: int = 1,
    after: AfterUpdate | None = None,
) -> TrainStep:
    """The compiled `step(state, batch, frozen=None) -> (state, metrics)`.

    The batch is split over the mesh along the first axis of its arrays, the state as `of_state`.
    The state is donated: do not use the old one again. A batch without weight, or with a NaN or
    infinite loss or gradient, changes no parameter; `check_finite` on the fetched metrics tells
    the latter. Metrics are float32 scalars, and NaN where a mean has no weight.
    """

    def sums_and_gradient(params: Any, batch: Any, frozen: Any) -> tuple[LossSums, Any]:
        def loss(params: Any) -> tuple[jax.Array, LossSums]:
            sums = loss_function(params, batch, frozen)
            return sums.loss, sums

        gradient, sums = jax.grad(loss, has_aux=True)(params)
        return sums, gradient

    def accumulated(params: Any, batch: Any, frozen: Any) -> tuple[LossSums, Any]:
        if microbatches == 1:
            return sums_and_gradient(params, batch, frozen)
        # Micro-batch m takes rows m, m + M, ...: every device then cuts up only its own rows.
        parts = jax.tree.map(
            lambda x: jnp.swapaxes(x.reshape(-1, microbatches, *x.shape[1:]), 0, 1), batch
        )
        first = jax.tree.map(lambda x: x[0], parts)
        zero = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
            jax.eval_shape(sums_and_gradient, params, first, frozen),
        )
        lowest = jax.tree.map(lambda x: jnp.full_like(x, -jnp.inf), zero[0].maxima)
        start = (zero[0]._replace(maxima=lowest), zero[1])

        def add(total: Any, part: Any) -> tuple[Any, None]:
            (sums, gradient), (more, more_gradient) = total, sums_and_gradient(params, part, frozen)
            added = jax.tree.map(jnp.add, sums._replace(maxima={}), more._replace(maxima={}))
            maxima = jax.tree.map(jnp.maximum, sums.maxima, more.maxima)
            return (
                added._replace(maxima=maxima),
                jax.tree.map(jnp.add, gradient, more_gradient),
            ), None

        return jax.lax.scan(add, start, parts)[0]

    def step(state: TrainState, batch: Any, frozen: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        _check_rows(batch, mesh.size, microbatches)
        sums, gradient = accumulated(state.params, batch, frozen)
        scale = 1 / jnp.maximum(sums.weight, 1e-8)
        gradient = jax.tree.map(lambda g: g * scale, gradient)
        loss, norm = sums.loss * scale, optax.global_norm(gradient)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)

        def update() -> tuple[Any, Any]:
            updates, optimizer_state = optimizer.update(
                gradient, state.optimizer_state, state.params
            )
            return optax.apply_updates(state.params, updates), optimizer_state

        params, optimizer_state = jax.lax.cond(
            finite & (sums.weight > 0), update, lambda: (state.params, state.optimizer_state)
        )
        metrics = {name: total / weight for name, (total, weight) in sums.means.items()}
        if after is not None:
            averaged, more = after(params, sums.statistics, state.step)
            params = jax.tree.map(partial(jnp.where, finite & (sums.weight > 0)), averaged, params)
            metrics |= more
        metrics |= sums.maxima | {LOSS: loss, GRADIENT_NORM: norm}
        return TrainState(state.step + finite, params, optimizer_state), metrics

    compiled: TrainStep | None = None

    def train_step(
        state: TrainState, batch: Any, frozen: Any = None
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        nonlocal compiled
        if compiled is None:
            everywhere, states = replicated(mesh), of_state(mesh, state)
            compiled = jax.jit(
                step,
                in_shardings=(states, by_row(mesh), of_state(mesh, frozen)),
                out_shardings=(states, everywhere),
                donate_argnums=0,
            )
        return compiled(put_state(mesh, state), batch, frozen)

    return train_step


def check_finite(metrics: Mapping[str, float], step: int, ordinals: Sequence[Any]) -> None:
    """Raises `NonFiniteError` when the loss or the gradient norm is NaN or infinite."""
    values = {name: float(metrics[name]) for name in (LOSS, GRADIENT_NORM)}
    if not np.isfinite(list(values.values())).all():
        raise NonFiniteError(step, values, ordinals)


def _check_rows(batch: Any, devices: int, microbatches: int) -> None:
    rows = {leaf.shape[0] for leaf in jax.tree.leaves(batch)}
    if len(rows) != 1:
        raise ValueError(f"the arrays of a batch differ in their number of rows: {sorted(rows)}")
    (count,) = rows
    if count % (devices * microbatches):
        raise ValueError(
            f"a batch of {count} rows does not divide over {devices} devices and {microbatches}"
            " microbatches; use a multiple of their product"
        )
