"""Maximum likelihood on ground truth (Pinto et al. 2023, Algorithm 1)."""

from pathlib import Path
from typing import Any

from learner.batches import TrainingExamples
from learner.config import PretrainConfig
from learner.encoder_warmup import warm_up_encoder
from learner.mesh import make_mesh
from learner.objectives import ApplyModel, TokenRules, make_likelihood_loss
from learner.optimizer import make_optimizer
from learner.stop import StopRequest
from learner.supervised import CHECKPOINTS_DIRECTORY, Evaluate, Training, digest_of, train
from learner.train_state import make_train_step
from vision.models.config import ModelConfig
from vision.models.sequence import SequenceModel, init_params
from vision.tasks.task import Task, token_names

__all__ = ["CHECKPOINTS_DIRECTORY", "Evaluate", "model_apply", "pretrain"]


def model_apply(config: ModelConfig) -> ApplyModel:
    """The model as a function of (parameters, images, tokens)."""
    model = SequenceModel(config)
    return lambda params, images, tokens: model.apply({"params": params}, images, tokens)


def pretrain(
    task: Task,
    model_config: ModelConfig,
    config: PretrainConfig,
    run_directory: Path | str,
    seed: int,
    evaluate: Evaluate | None = None,
    params: Any | None = None,
    stop: StopRequest | None = None,
) -> Any:
    """Trains, or goes on training, and returns the parameters after the last step.

    Args:
      evaluate, stop: see `learner.supervised.train`; so are the errors.
      params: what to start from; None: fresh ones of `seed`.
    """
    if params is None:
        params = init_params(model_config, seed)
    examples = TrainingExamples(task, seed, config.batch_size)
    optimizer = make_optimizer(config.optimizer, config.steps, params)
    loss = make_likelihood_loss(model_apply(model_config), TokenRules.of(task))

    def prepare(params: Any, stop: StopRequest) -> tuple[Any, dict[str, float]]:
        if config.encoder_warmup is None:
            return params, {}
        return warm_up_encoder(task, model_config, config.encoder_warmup, params, seed, stop)

    mesh = make_mesh(config.devices, config.shards)
    training = Training(
        description="maximum likelihood",
        digest=digest_of(model_config, config.deciding(), seed),
        examples=examples,
        load=examples.likelihood_batch,
        optimizer=optimizer,
        mesh=mesh,
        train_step=make_train_step(loss, optimizer, mesh, config.microbatches),
        headline=task.headline,
        prepare=prepare,
        token_names=token_names(task),
    )
    return train(training, config, run_directory, params, evaluate, stop)
