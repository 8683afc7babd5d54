"""Stage I's training end to end, on maps of one square of three colours."""

from dataclasses import replace
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pydantic import ValidationError

from learner.checkpoints import CheckpointError
from learner.config import OptimizerConfig, StageOneConfig
from learner.mesh import make_mesh
from learner.metrics import read_metrics
from learner.optimizer import make_optimizer
from learner.stage_one import (
    StageOneBatch,
    check_dictionary,
    evaluate_stage_one,
    make_dictionary_update,
    make_stage_one_loss,
    of_parameters,
    reconstruction_loss,
    stage_one_batch,
    train_stage_one,
)
from learner.stop import StopRequest, TrainingInterrupted
from learner.train_state import create_train_state, make_train_step
from vision.models.uvim import init_stage_one
from vision.models.uvim_checkpoint import load_stage_one, save_stage_one
from vision.models.uvim_config import Plane, patches_to_pixels
from vision.tasks.task import Example
from vision.tasks.uvim import NO_END, StageOneCodec, StageOneSettings

SIDE = 16
PLANES = (Plane("semantics", 4), Plane("instances", 2))
SETTINGS = StageOneSettings(preset="tiny", codes=16, tokens=4, codeword_dim=8)


class Squares:
    """A square of one of three classes (class 0 is void) at one of four places, and instance 1.

    The image does not tell the class: what is decoded right came through the code words.
    """

    end_token = NO_END
    image_size = (SIDE, SIDE)
    ordered_tokens = None
    auxiliary_arrays: dict = {}  # noqa: RUF012
    headline = "accuracy"

    def __init__(self, settings=SETTINGS):
        self.stage_one = StageOneCodec(settings, self.image_size, PLANES)
        config = self.stage_one.config
        # One layer: what takes the time here is compiling.
        self.stage_one.config = replace(config, decoder=replace(config.decoder, depth=1))
        self.vocabulary_size = self.stage_one.vocabulary_size
        self.max_length = self.stage_one.max_length

    def example_ids(self, split):
        return [f"{split}-{i}" for i in range(24)]

    def load(self, split, example_id, augmentation_seed):
        number = int(example_id.split("-")[1])
        semantics = np.zeros((SIDE, SIDE), np.int32)
        row, column = divmod(number % 4, 2)
        semantics[row * 8 : row * 8 + 8, column * 8 : column * 8 + 8] = 1 + number % 3
        random = np.random.default_rng([number, (augmentation_seed or 0) % 2**32])
        image = random.normal(scale=0.1, size=(SIDE, SIDE, 3)).astype(np.float32)
        return Example(example_id, image, semantics)

    def allowed_tokens(self):
        return self.stage_one.allowed_tokens()

    def stage_one_inputs(self, example):
        return {"semantics": example.target, "instances": (example.target > 0).astype(np.int32)}

    def stage_one_prediction(self, example, outputs):
        logits = patches_to_pixels(outputs["semantics"][None], self.stage_one.config)[0]
        return logits.argmax(-1)

    def evaluate(self, examples, predictions):
        right = [(e.target == p).mean() for e, p in zip(examples, predictions, strict=True)]
        return {"accuracy": float(np.mean(right))}


MODEL = Squares().stage_one.config
CONFIG = StageOneConfig(
    steps=400,
    batch_size=12,
    optimizer=OptimizerConfig(name="adamw", learning_rate=3e-3, warmup_steps=5),
    dictionary_momentum=0.9,
    min_count=1.0,
    log_every=10,
)


def held_out(task):
    return [task.load("validation", example_id, None) for example_id in task.example_ids("v")]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    task, directory = Squares(), tmp_path_factory.mktemp("run")
    examples = [task.load("validation", name, None) for name in task.example_ids("validation")]
    scores = []

    def evaluate(variables, step):
        scores.append(evaluate_stage_one(task, variables, examples, batch_size=16))
        return scores[-1]

    variables = train_stage_one(task, CONFIG, directory, seed=3, evaluate=evaluate)
    return directory, jax.device_get(variables), scores[-1]


def test_the_autoencoder_learns_what_the_image_does_not_tell(trained):
    _, _, scores = trained
    # Void everywhere would be right on three quarters of the pixels.
    assert scores["accuracy"] > 0.97
    assert scores["loss"] < 0.2
    assert 0 < scores["words_used"] <= 1
    assert scores["perplexity"] > 2


def test_a_run_says_how_its_words_are_used(trained):
    directory, _, _ = trained
    lines = list(read_metrics(directory))
    assert lines[-1]["step"] == 400
    assert "validation/accuracy" in lines[-1]
    for name in ("loss/semantics", "loss/instances", "loss/commitment", "dictionary/used"):
        assert all(name in line for line in lines if "loss/total" in line)
    losses = [line["loss/total"] for line in lines if "loss/total" in line]
    assert losses[-1] < 0.7 * losses[0]
    assert any(line.get("dictionary/split", 0) > 0 for line in lines)


def test_a_trained_stage_one_writes_and_reads_the_tokens_of_its_task(trained, tmp_path):
    pytest.importorskip("torch")
    _, variables, _ = trained
    path = tmp_path / "final.npz"
    save_stage_one(path, variables, "float16")
    task = Squares(SETTINGS.model_copy(update={"checkpoint": path}))
    for example in held_out(task)[:6]:
        tokens = task.stage_one.encode(task.stage_one_inputs(example), example.image)
        (outputs,) = task.stage_one.decode(tokens[None], example.image)
        wrong = (task.stage_one_prediction(example, outputs) != example.target).mean()
        assert wrong < 0.1


def test_an_interrupted_run_ends_where_it_would_have_ended(trained, tmp_path):
    _, whole, _ = trained
    stop = StopRequest()

    def interrupt(variables, step):
        stop.request()
        return {"accuracy": 0.0}

    broken = CONFIG.model_copy(update={"evaluate_every": 250})
    with pytest.raises(TrainingInterrupted, match="after step 250 of 400"):
        train_stage_one(Squares(), broken, tmp_path, 3, interrupt, stop=stop)
    resumed = train_stage_one(Squares(), CONFIG, tmp_path, seed=3)
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(CheckpointError, match="other settings"):
        train_stage_one(Squares(), CONFIG, tmp_path, seed=6)


def a_batch(rows=8):
    task = Squares()
    loaded = [(task.load("train", f"train-{i}", i), i) for i in range(rows)]
    return stage_one_batch(task, MODEL, loaded, dropout=True)


@lru_cache
def start_and_step(microbatches):
    variables = init_stage_one(MODEL, 0)
    optimizer = of_parameters(make_optimizer(CONFIG.optimizer, 10, variables["params"]))
    step = make_train_step(
        make_stage_one_loss(MODEL, 0.25),
        optimizer,
        make_mesh(),
        microbatches,
        make_dictionary_update(CONFIG.model_copy(update={"min_count": 0.1}), 0),
    )
    return lambda: create_train_state(variables, optimizer), step


def step_of(microbatches):
    start, step = start_and_step(microbatches)
    return step(start(), a_batch())


def test_parts_of_a_batch_teach_the_dictionary_what_the_batch_does():
    (whole, metrics), (parts, same) = step_of(1), step_of(4)
    for name in ("dictionary", "counts"):
        np.testing.assert_allclose(
            whole.params["state"][name], parts.params["state"][name], atol=1e-4
        )
    assert float(metrics["dictionary/perplexity"]) == pytest.approx(
        float(same["dictionary/perplexity"])
    )
    fresh = init_stage_one(MODEL, 0)["state"]
    total = float(whole.params["state"]["counts"].sum())
    assert total == pytest.approx(float(fresh["counts"].sum()) * 0.9 + 8 * MODEL.tokens, rel=0.02)


def test_a_batch_that_is_not_finite_changes_nothing():
    start, step = start_and_step(1)
    batch = a_batch()
    batch.images[0, 0] = np.nan
    state, _ = step(start(), batch)
    assert int(state.step) == 0
    variables = init_stage_one(MODEL, 0)
    for before, after in zip(
        jax.tree.leaves(variables), jax.tree.leaves(state.params), strict=True
    ):
        np.testing.assert_array_equal(before, after)


def test_code_dropout_keeps_every_number_of_words_alike():
    task = Squares()
    example = task.load("train", "train-0", None)
    batch = stage_one_batch(task, MODEL, [(example, seed) for seed in range(2000)], dropout=True)
    kept = batch.kept.sum(1)
    share = np.bincount(kept, minlength=MODEL.tokens + 1) / len(kept)
    np.testing.assert_allclose(share, 1 / (MODEL.tokens + 1), atol=0.04)
    np.testing.assert_allclose(batch.kept.mean(0), 0.5, atol=0.05)
    assert stage_one_batch(task, MODEL, [(example, 0)], dropout=False).kept.all()


def test_the_loss_of_labels_is_their_cross_entropy():
    random = np.random.default_rng(0)
    logits = random.normal(size=(2, SIDE, SIDE, 4)).astype(np.float32)
    labels = random.integers(4, size=(2, SIDE, SIDE)).astype(np.int32)
    logprobs = np.asarray(jax.nn.log_softmax(logits))
    expected = -np.take_along_axis(logprobs, labels[..., None], -1).mean((1, 2, 3))
    loss = reconstruction_loss(to_patches(logits), labels, PLANES[0], MODEL)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_the_loss_of_values_is_their_squared_error():
    random = np.random.default_rng(0)
    said, truth = random.normal(size=(2, 2, SIDE, SIDE, 3)).astype(np.float32)
    plane = Plane("color", 3, "values")
    loss = reconstruction_loss(to_patches(said), truth, plane, replace(MODEL, planes=(plane,)))
    np.testing.assert_allclose(loss, ((said - truth) ** 2).mean((1, 2, 3)), rtol=1e-5)


def to_patches(maps):
    from vision.models.uvim import pixels_to_patches

    patches = pixels_to_patches(jnp.asarray(maps), MODEL)
    np.testing.assert_array_equal(patches_to_pixels(np.asarray(patches), MODEL), maps)
    return patches


def test_labels_that_do_not_fit_are_refused():
    task = Squares()
    example = task.load("train", "train-2", None)
    narrow = replace(MODEL, planes=(Plane("semantics", 3), PLANES[1]))
    with pytest.raises(
        ValueError, match=r"train-2: semantics holds labels from 0 to 3.*4 channels"
    ):
        stage_one_batch(task, narrow, [(example, 0)], dropout=False)
    large = replace(MODEL, image_size=(24, 24), tokens=9)
    with pytest.raises(ValueError, match=r"train-2: semantics has the shape \(16, 16\)"):
        stage_one_batch(task, large, [(example, 0)], dropout=False)


def test_settings_that_cannot_work_are_refused():
    for values in ({"dictionary_momentum": 1}, {"min_count": 0}, {"code_dropout": "some"}):
        with pytest.raises(ValidationError):
            StageOneConfig(**values)
    with pytest.raises(ValidationError, match="multiple of microbatches"):
        StageOneConfig(batch_size=6, microbatches=4)


def test_a_dictionary_that_could_not_replace_its_unused_words_is_refused(tmp_path):
    """Their counts would reach 0 and their words 0 / 0 after some 4,000 steps."""
    check_dictionary(CONFIG, MODEL)
    # 12 examples of 4 tokens, averaged over 10 steps: 480 for 16 words.
    check_dictionary(CONFIG.model_copy(update={"min_count": 14.9}), MODEL)
    config = CONFIG.model_copy(update={"min_count": 15.1})
    with pytest.raises(ValueError, match=r"min_count 15\.1: .* only 30 .*use 15 at most"):
        train_stage_one(Squares(), config, tmp_path, seed=0)


def test_a_batch_is_a_function_of_its_seeds():
    one, other = a_batch(), a_batch()
    assert isinstance(one, StageOneBatch)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_checkpoint_is_that_of_the_config(trained, tmp_path):
    _, variables, _ = trained
    save_stage_one(tmp_path / "final.npz", variables)
    loaded = load_stage_one(tmp_path / "final.npz", MODEL)
    np.testing.assert_array_equal(loaded["state"]["counts"], variables["state"]["counts"])


def test_half_precision_and_recomputation_teach_the_same():
    losses = []
    for model in (MODEL, replace(MODEL, remat=True), replace(MODEL, dtype="bfloat16")):
        variables = init_stage_one(model, 0)
        heads = variables["params"]["head_semantics"]
        heads["kernel"] = jax.random.normal(jax.random.key(1), heads["kernel"].shape) * 0.1
        gradient = jax.grad(lambda v, m=model: make_stage_one_loss(m, 0.0)(v, a_batch(), None).loss)
        kernel = gradient(variables)["params"]["decoder_stem"]["kernel"]
        losses.append(np.asarray(kernel))
    np.testing.assert_allclose(losses[1], losses[0], atol=1e-5)
    near = np.corrcoef(losses[2].ravel(), losses[0].ravel())[0, 1]
    assert 0.99 < near < 1
