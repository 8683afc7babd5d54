"""Trains the encoder on a dense loss, standing in for a pretrained backbone.

Every patch says which class it shows and where that object's box is, by a linear head that is
thrown away. A sequence model learns little from small data before its encoder can tell objects.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from learner.batches import LoadedAhead, TrainingExamples
from learner.config import EncoderWarmupConfig, OptimizerConfig
from learner.mesh import make_mesh
from learner.optimizer import make_optimizer
from learner.progress import ProgressDisplay
from learner.stop import StopRequest, TrainingInterrupted
from learner.train_state import (
    LossFunction,
    LossSums,
    check_finite,
    create_train_state,
    make_train_step,
)
from replay.tickets import seed_of
from vision.models.config import ModelConfig
from vision.models.sequence import SequenceModel
from vision.tasks.task import Example, Task

# L1 of a box as fractions of the image is small beside the cross-entropy of its class.
BOX_WEIGHT = 5.0
# The warm-up of the learning rate, as a share of the steps.
RISE = 0.05


class DenseTask(Protocol):
    """What a task offers beside `Task` for its encoder to be warmed up."""

    class_names: Sequence[str]

    def dense_targets(
        self, example: Example, grid: tuple[int, int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Class [P] int32 (`len(class_names)`: background) and box [P, 4] float32 of patches."""
        ...


class DenseBatch(NamedTuple):
    """images [B, H, W, 3] float32, classes [B, P] int32, boxes [B, P, 4] float32."""

    images: Any
    classes: Any
    boxes: Any


def warm_up_encoder(
    task: Task,
    model_config: ModelConfig,
    config: EncoderWarmupConfig,
    params: Any,
    seed: int,
    stop: StopRequest,
) -> tuple[Any, dict[str, float]]:
    """The parameters after the warm-up, and the metrics of its last steps.

    Raises:
      ValueError: the task has no dense targets.
      TrainingInterrupted: `stop` was requested; nothing was kept.
    """
    targets: Callable[..., Any] | None = getattr(task, "dense_targets", None)
    names: Sequence[str] | None = getattr(task, "class_names", None)
    if targets is None or names is None:
        raise ValueError(
            f"encoder_warmup: {type(task).__name__} has no dense_targets and class_names;"
            " set encoder_warmup to null"
        )
    examples = TrainingExamples(task, seed_of(seed, "warmup", 0), config.batch_size)

    def load(step: int) -> DenseBatch:
        loaded = [example for example, _ in examples.load(step)]
        classes, boxes = zip(*(targets(e, model_config.grid) for e in loaded), strict=True)
        images = np.stack([example.image for example in loaded]).astype(np.float32)
        return DenseBatch(images, np.stack(classes), np.stack(boxes))

    trained = {"model": params, "head": _linear_head(model_config, len(names), seed)}
    optimizer = make_optimizer(
        OptimizerConfig(
            name="adamw",
            learning_rate=config.learning_rate,
            schedule="cosine",
            warmup_steps=int(config.steps * RISE),
        ),
        config.steps,
        trained,
    )
    state = create_train_state(trained, optimizer)
    train_step = make_train_step(make_dense_loss(model_config, len(names)), optimizer, make_mesh())
    metrics: dict[str, float] = {}
    recent: list[dict[str, float]] = []
    with (
        LoadedAhead(load, 0, config.steps) as batches,
        ProgressDisplay("encoder warm-up", config.steps) as progress,
    ):
        for step, batch in enumerate(batches):
            state, device_metrics = train_step(state, batch)
            metrics = {name: float(value) for name, value in device_metrics.items()}
            check_finite(metrics, step + 1, examples.batch_ids(step))
            recent = [*recent[-99:], metrics]
            progress.update(step + 1, {"loss": metrics["loss/total"]})
            if stop.requested:
                raise TrainingInterrupted(
                    f"stopped in the encoder warm-up, at step {step + 1} of {config.steps};"
                    " it starts anew next time"
                )
    mean = {name: float(np.nanmean([m[name] for m in recent])) for name in metrics}
    return state.params["model"], {f"warmup/{name.split('/')[1]}": v for name, v in mean.items()}


def make_dense_loss(model_config: ModelConfig, classes: int) -> LossFunction:
    """Mean over images of cross-entropy over patches plus L1 of the boxes where there are any."""
    model = SequenceModel(model_config)

    def dense_loss(params: Any, batch: DenseBatch, frozen: Any) -> LossSums:
        memory = model.apply(
            {"params": params["model"]}, batch.images, method=SequenceModel.encode
        ).astype(jnp.float32)
        outputs = memory @ params["head"]["kernel"] + params["head"]["bias"]
        logprobs = jax.nn.log_softmax(outputs[..., : classes + 1])
        picked = jnp.take_along_axis(logprobs, batch.classes[..., None], axis=-1)[..., 0]
        shown = batch.classes < classes
        distance = jnp.abs(outputs[..., classes + 1 :] - batch.boxes).sum(-1)
        distance = jnp.where(shown, distance, 0.0)
        count = shown.sum(-1)
        loss = -picked.mean(-1) + BOX_WEIGHT * distance.sum(-1) / jnp.maximum(count, 1)
        rows = jnp.float32(len(loss))
        right = shown & (logprobs.argmax(-1) == batch.classes)
        patches = count.sum().astype(jnp.float32)
        return LossSums(
            loss=loss.sum(),
            weight=rows,
            means={
                "dense/object_accuracy": (right.sum().astype(jnp.float32), patches),
                "dense/box_distance": (distance.sum(), patches),
            },
            maxima={},
        )

    return dense_loss


def _linear_head(config: ModelConfig, classes: int, seed: int) -> dict[str, jax.Array]:
    width, outputs = config.encoder.width, classes + 1 + 4
    key = jax.random.key(seed_of(seed, "warmup head", 0) >> 1)
    kernel = jax.random.normal(key, (width, outputs)) * width**-0.5
    # Boxes start in the middle of the image.
    bias = jnp.zeros(outputs).at[classes + 1 :].set(0.5)
    return {"kernel": kernel, "bias": bias}
