"""Trains UViM's stage I: an autoencoder of label maps whose code words become a task's tokens.

Cross-entropy of every pixel's label (or the squared error of its values) through a straight-through
quantiser; the dictionary is learned by averages over whole batches, and words out of use are
replaced by halves of the most frequent (Kolesnikov et al. 2022, "UViM", section 3.1).
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from learner.batches import TrainingExamples
from learner.config import StageOneConfig
from learner.mesh import make_mesh
from learner.optimizer import make_optimizer
from learner.stop import StopRequest
from learner.supervised import Evaluate, Training, digest_of, train
from learner.train_state import AfterUpdate, LossFunction, LossSums, make_train_step
from replay.tickets import seed_of
from vision.models.quantizer import WordStatistics, update_state, usage, word_statistics
from vision.models.uvim import (
    StageOne,
    decode_codes,
    encode_planes,
    init_stage_one,
    pixels_to_patches,
)
from vision.models.uvim_config import Plane, UvimConfig
from vision.tasks.task import Example, Task
from vision.tasks.uvim import StageOneTask


class CompressedTask(Task, StageOneTask, Protocol):
    """A task whose ground truth stage I compresses."""


class StageOneBatch(NamedTuple):
    """A step's ground truth.

    images [B, H, W, 3] float32; planes by name, labels [B, H, W] int32 or values [B, H, W, C]
    float32; kept [B, T] bool, the code words that the decoder sees.
    """

    images: Any
    planes: Any
    kept: Any


def train_stage_one(
    task: CompressedTask,
    config: StageOneConfig,
    run_directory: Path | str,
    seed: int,
    evaluate: Evaluate | None = None,
    variables: Any | None = None,
    stop: StopRequest | None = None,
) -> Any:
    """Trains, or goes on training, and returns the variables after the last step.

    Args:
      evaluate, stop: see `learner.supervised.train`; so are the errors.
      variables: what to start from; None: fresh ones of `seed`.
    Raises:
      ValueError: see `check_dictionary`.
    """
    check_dictionary(config, task.stage_one.config)
    model = replace(task.stage_one.config, dtype=config.dtype, remat=config.remat)
    if variables is None:
        variables = init_stage_one(model, seed)
    examples = TrainingExamples(task, seed, config.batch_size)
    optimizer = of_parameters(make_optimizer(config.optimizer, config.steps, variables["params"]))

    def load(step: int) -> StageOneBatch:
        return stage_one_batch(task, model, examples.load(step), config.code_dropout == "random")

    mesh = make_mesh(config.devices, config.shards)
    training = Training(
        description="stage I",
        digest=digest_of(model, config.deciding(), seed),
        examples=examples,
        load=load,
        optimizer=optimizer,
        mesh=mesh,
        train_step=make_train_step(
            make_stage_one_loss(model, config.commitment_weight),
            optimizer,
            mesh,
            config.microbatches,
            make_dictionary_update(config, seed),
        ),
        headline=task.headline,
    )
    return train(training, config, run_directory, variables, evaluate, stop)


def check_dictionary(config: StageOneConfig, model: UvimConfig) -> None:
    """Raises `ValueError` where words out of use would never be replaced.

    Such a word decays to 0 / 0 after some thousand steps, and then is the nearest to everything.
    """
    at_rest = config.batch_size * model.tokens / (1 - config.dictionary_momentum) / model.codes
    if at_rest < 2 * config.min_count:
        raise ValueError(
            f"stage_one.min_count {config.min_count:g}: a word's average count is only "
            f"{at_rest:.3g} (batch_size {config.batch_size}, {model.tokens} tokens, {model.codes} "
            f"codes, dictionary_momentum {config.dictionary_momentum:g}), so no word could be "
            f"split and unused ones would decay to nothing; use {at_rest / 2:.3g} at most"
        )


def stage_one_batch(
    task: StageOneTask, model: UvimConfig, loaded: Sequence[tuple[Example, int]], dropout: bool
) -> StageOneBatch:
    """Examples, each with a seed, as a batch.

    Of T code words a uniformly drawn number of 0 .. T is kept, at uniformly drawn places.

    Raises:
      ValueError: a plane of an example is of another shape, or a label beyond its classes.
    """
    planes: dict[str, list[np.ndarray]] = {plane.name: [] for plane in model.planes}
    kept = np.ones((len(loaded), model.tokens), bool)
    for row, (example, seed) in enumerate(loaded):
        given = task.stage_one_inputs(example)
        for plane in model.planes:
            planes[plane.name].append(_checked(given[plane.name], plane, model, example.example_id))
        if dropout:
            random = np.random.default_rng(seed_of(seed, "code dropout", 0))
            kept[row] = random.permutation(model.tokens) < random.integers(model.tokens + 1)
    images = np.stack([example.image for example, _ in loaded]).astype(np.float32)
    return StageOneBatch(images, {name: np.stack(maps) for name, maps in planes.items()}, kept)


def make_stage_one_loss(model: UvimConfig, commitment_weight: float) -> LossFunction:
    """Mean over pixels of the planes' losses, summed over planes, and the commitment."""

    def stage_one_loss(params: Any, batch: StageOneBatch, frozen: Any) -> LossSums:
        outputs, quantized = StageOne(model).apply(params, batch.planes, batch.images, batch.kept)
        rows = jnp.float32(len(batch.images))
        means: dict[str, tuple[jax.Array, jax.Array]] = {}
        total = jnp.float32(0)
        for plane in model.planes:
            loss = reconstruction_loss(outputs[plane.name], batch.planes[plane.name], plane, model)
            means[f"loss/{plane.name}"] = (loss.sum(), rows)
            total += loss.sum()
        distance = jnp.square(quantized.vectors - jax.lax.stop_gradient(quantized.words))
        commitment = distance.mean((1, 2)).sum()
        means["loss/commitment"] = (commitment, rows)
        vectors = jax.lax.stop_gradient(quantized.vectors)
        return LossSums(
            loss=total + commitment_weight * commitment,
            weight=rows,
            means=means,
            maxima={},
            statistics=word_statistics(vectors, quantized.codes, model.codes),
        )

    return stage_one_loss


def reconstruction_loss(
    outputs: jax.Array, truth: jax.Array, plane: Plane, model: UvimConfig
) -> jax.Array:
    """The mean over an image's pixels, [B] float32.

    Cross-entropy in nats for labels; for values the squared error, mean over channels too.

    Args:
      outputs: [B, P, channels, patch_size^2] float32.
      truth: labels [B, H, W] int32, or values [B, H, W, channels] float32.
    """
    if plane.kind == "values":
        return jnp.square(outputs - pixels_to_patches(truth, model)).mean((1, 2, 3))
    labels = pixels_to_patches(truth[..., None], model)  # [B, P, 1, patch_size^2]
    picked = jnp.take_along_axis(outputs, labels, axis=2)[:, :, 0]
    return (jax.nn.logsumexp(outputs, axis=2) - picked).mean((1, 2))


def make_dictionary_update(config: StageOneConfig, seed: int) -> AfterUpdate:
    """The dictionary's averages after each batch, and how its words are used in the batch."""

    def after(
        params: Any, statistics: WordStatistics, step: jax.Array
    ) -> tuple[Any, dict[str, jax.Array]]:
        key = jax.random.fold_in(jax.random.key(seed_of(seed, "split", 0) >> 1), step)
        state, splits = update_state(
            params["state"], statistics, key, config.dictionary_momentum, config.min_count
        )
        metrics = {f"dictionary/{name}": value for name, value in usage(statistics.counts).items()}
        metrics["dictionary/split"] = splits.astype(jnp.float32)
        return {"params": params["params"], "state": state}, metrics

    return after


def of_parameters(optimizer: Any) -> Any:
    """`optimizer` on {"params", "state"}: it moves the parameters and leaves the state alone."""

    def update(gradient: Any, state: Any, variables: Any) -> tuple[Any, Any]:
        updates, state = optimizer.update(gradient["params"], state, variables["params"])
        return {"params": updates, "state": jax.tree.map(jnp.zeros_like, gradient["state"])}, state

    return optax.GradientTransformation(
        lambda variables: optimizer.init(variables["params"]), update
    )


def evaluate_stage_one(
    task: CompressedTask, variables: Any, examples: Sequence[Example], batch_size: int
) -> dict[str, float]:
    """The task's metrics of decoding the ground truth's own codes: what stage II could reach.

    Beside them `loss`, all code words seen, `words_used` (the share of the dictionary) and
    `perplexity` of the code words over the examples.
    """
    model = task.stage_one.config
    batch_size = min(batch_size, len(examples))
    predictions: list[Any] = []
    counts, loss = np.zeros(model.codes), 0.0
    for first in range(0, len(examples), batch_size):
        # One shape: the last batch is filled up with repeats, so that nothing recompiles.
        batch = [examples[min(first + i, len(examples) - 1)] for i in range(batch_size)]
        wanted = min(batch_size, len(examples) - first)
        images, planes, _ = stage_one_batch(task, model, [(e, 0) for e in batch], dropout=False)
        codes = encode_planes(model, variables, planes, images)
        outputs = decode_codes(model, variables, codes, images)
        for plane in model.planes:
            rows = _losses(outputs[plane.name], planes[plane.name], plane, model)
            loss += float(np.sum(rows[:wanted]))
        arrays = {name: np.asarray(output) for name, output in outputs.items()}
        for row in range(wanted):
            own = {name: array[row] for name, array in arrays.items()}
            predictions.append(task.stage_one_prediction(batch[row], own))
        counts += np.bincount(np.asarray(codes[:wanted]).ravel(), minlength=model.codes)
    used = usage(jnp.asarray(counts, jnp.float32))
    return {
        **task.evaluate(examples, predictions),
        "loss": loss / len(examples),
        "words_used": float(used["used"]),
        "perplexity": float(used["perplexity"]),
    }


_losses = jax.jit(reconstruction_loss, static_argnums=(2, 3))


def _checked(array: np.ndarray, plane: Plane, model: UvimConfig, example_id: str) -> np.ndarray:
    shape = model.image_size if plane.kind == "labels" else (*model.image_size, plane.channels)
    if array.shape != shape:
        raise ValueError(
            f"example {example_id}: {plane.name} has the shape {array.shape}, stage I reads {shape}"
        )
    if plane.kind == "values":
        return array.astype(np.float32)
    lowest, highest = int(array.min()), int(array.max())
    if lowest < 0 or highest >= plane.channels:
        raise ValueError(
            f"example {example_id}: {plane.name} holds labels from {lowest} to {highest}, stage I "
            f"has {plane.channels} (0 .. {plane.channels - 1}); it needs a plane of "
            f"{highest + 1} channels"
        )
    return array.astype(np.int32)
