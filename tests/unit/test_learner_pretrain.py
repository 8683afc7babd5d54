"""Maximum likelihood end to end, on a task whose images tell their tokens."""

import jax
import numpy as np
import pytest

from learner.batches import LoadedAhead, TrainingExamples
from learner.checkpoints import CheckpointError, Checkpoints
from learner.config import EncoderWarmupConfig, OptimizerConfig, PretrainConfig
from learner.encoder_warmup import warm_up_encoder
from learner.metrics import read_metrics
from learner.pretrain import CHECKPOINTS_DIRECTORY, pretrain
from learner.stop import StopRequest, TrainingInterrupted
from learner.train_state import NonFiniteError
from vision.models.presets import model_config
from vision.models.sequence import init_params
from vision.tasks.task import Example

SIDE, CLASSES, END = 16, 3, 1


class Quadrants:
    """One bright quadrant in one of three colours; tokens say the quadrant, the colour, the end."""

    vocabulary_size = 2 + 4 + CLASSES
    max_length = 4
    end_token = END
    image_size = (SIDE, SIDE)
    ordered_tokens = None
    auxiliary_arrays: dict = {}  # noqa: RUF012
    headline = "accuracy"
    class_names = ("red", "green", "blue")

    def __init__(self, poisoned=()):
        self.poisoned = poisoned

    def example_ids(self, split):
        return [f"{split}-{i}" for i in range(24)]

    def load(self, split, example_id, augmentation_seed):
        number = int(example_id.split("-")[1])
        random = np.random.default_rng([number, (augmentation_seed or 0) % 2**32])
        quadrant, colour = number % 4, number % CLASSES
        image = random.normal(scale=0.05, size=(SIDE, SIDE, 3)).astype(np.float32)
        row, column = divmod(quadrant, 2)
        image[row * 8 : row * 8 + 8, column * 8 : column * 8 + 8, colour] += 1
        if example_id in self.poisoned:
            image[0] = np.nan
        return Example(example_id, image, (quadrant, colour))

    def allowed_tokens(self):
        allowed = np.ones((self.max_length, self.vocabulary_size), bool)
        allowed[:, 0] = False
        return allowed

    def reinforced_tokens(self):
        return np.ones(self.max_length, bool)

    def target_tokens(self, example, seed):
        quadrant, colour = example.target
        return np.array([2 + quadrant, 6 + colour, END, 0], np.int32)

    def dense_targets(self, example, grid):
        quadrant, colour = example.target
        classes = np.full(4, CLASSES, np.int32)
        boxes = np.zeros((4, 4), np.float32)
        classes[quadrant] = colour
        row, column = divmod(quadrant, 2)
        boxes[quadrant] = [row / 2, column / 2, row / 2 + 0.5, column / 2 + 0.5]
        return classes, boxes


TRUNK = {"width": 16, "heads": 2, "mlp_dim": 32, "depth": 1}
MODEL = model_config(
    "tiny",
    vocabulary_size=Quadrants.vocabulary_size,
    max_length=Quadrants.max_length,
    image_size=Quadrants.image_size,
    encoder=TRUNK,
    decoder=TRUNK,
)
OPTIMIZER = OptimizerConfig(name="adamw", learning_rate=1e-2, schedule="cosine", warmup_steps=5)
CONFIG = PretrainConfig(
    steps=60, batch_size=8, optimizer=OPTIMIZER, checkpoint_every=25, log_every=10
)


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
    """Runs with equal settings share their compiled programs: most of the time goes there."""
    cache = str(tmp_path_factory.mktemp("compiled"))
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", cache)
    yield
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    run = tmp_path_factory.mktemp("uninterrupted")
    seen = []

    def evaluate(params, step):
        seen.append(step)
        return {"accuracy": step / 100}

    config = CONFIG.model_copy(update={"evaluate_every": 20})
    return run, pretrain(Quadrants(), MODEL, config, run, 0, evaluate), seen


def test_pretraining_learns_and_says_so(uninterrupted):
    run, _, evaluated = uninterrupted
    records = list(read_metrics(run))
    losses = {r["step"]: r["loss/total"] for r in records if "loss/total" in r}
    assert list(losses) == [10, 20, 30, 40, 50, 60]
    # Who knows the frequencies but does not look at the image pays ln 4 + ln 3 a sequence.
    blind = (np.log(4) + np.log(3)) / 3
    assert losses[60] < 0.6 * blind < blind < losses[10]
    assert evaluated == [20, 40, 60]
    found = [r["validation/accuracy"] for r in records if "validation/accuracy" in r]
    assert found == [0.2, 0.4, 0.6]
    with Checkpoints(run / CHECKPOINTS_DIRECTORY, best_metric="accuracy") as checkpoints:
        assert checkpoints.best_step() == 60


def test_a_run_that_was_stopped_ends_bitwise_where_it_would_have(tmp_path, uninterrupted):
    stop = StopRequest()

    def evaluate(params, step):
        if step == 20 and not stop.requested:
            stop.request()
        return {"accuracy": 0.0}

    config = CONFIG.model_copy(update={"evaluate_every": 20})
    with pytest.raises(TrainingInterrupted, match="stopped after step 20 of 60"):
        pretrain(Quadrants(), MODEL, config, tmp_path, 0, evaluate, stop=stop)
    params = pretrain(Quadrants(), MODEL, config, tmp_path, 0, evaluate, stop=StopRequest())
    jax.tree.map(np.testing.assert_array_equal, params, uninterrupted[1])
    losses = [r["step"] for r in read_metrics(tmp_path) if "loss/total" in r]
    assert losses == [10, 20, 30, 40, 50, 60]


def test_a_run_of_other_settings_is_not_continued(uninterrupted):
    run, _, _ = uninterrupted
    slower = CONFIG.model_copy(
        update={"optimizer": OPTIMIZER.model_copy(update={"learning_rate": 1e-3})}
    )
    with pytest.raises(CheckpointError, match="holds a run of other settings"):
        pretrain(Quadrants(), MODEL, slower, run, 0)
    with pytest.raises(CheckpointError, match="or another seed"):
        pretrain(Quadrants(), MODEL, CONFIG, run, 1)


def test_nan_stops_pretraining_and_names_the_examples(tmp_path):
    task = Quadrants(poisoned=("train-5",))
    with pytest.raises(NonFiniteError) as caught:
        pretrain(task, MODEL, CONFIG, tmp_path, 0)
    assert "train-5" in caught.value.ordinals
    assert len(caught.value.ordinals) == CONFIG.batch_size


def test_the_encoder_warmup_teaches_the_encoder_and_leaves_the_decoder():
    before = init_params(MODEL, 0)
    config = EncoderWarmupConfig(steps=150, batch_size=8, learning_rate=1e-2)
    after, metrics = warm_up_encoder(Quadrants(), MODEL, config, before, 0, StopRequest())
    # The means of the last 100 steps.
    assert metrics["warmup/object_accuracy"] > 0.8
    jax.tree.map(np.testing.assert_array_equal, after["decoder"], before["decoder"])
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), after["encoder"], before["encoder"])
    assert any(jax.tree.leaves(moved))


def test_a_warmup_needs_a_task_with_dense_targets():
    class Plain(Quadrants):
        dense_targets = None

    with pytest.raises(ValueError, match="Plain has no dense_targets"):
        warm_up_encoder(Plain(), MODEL, EncoderWarmupConfig(), {}, 0, StopRequest())


def test_each_epoch_visits_every_example_once_in_another_order():
    examples = TrainingExamples(Quadrants(), seed=3, batch_size=6)
    epochs = [
        [i for step in range(4 * e, 4 * e + 4) for i in examples.batch_ids(step)] for e in (0, 1)
    ]
    for epoch in epochs:
        assert sorted(epoch) == sorted(Quadrants().example_ids("train"))
    assert epochs[0] != epochs[1]
    again = TrainingExamples(Quadrants(), seed=3, batch_size=6)
    assert again.batch_ids(5) == examples.batch_ids(5)
    assert TrainingExamples(Quadrants(), seed=4, batch_size=6).batch_ids(5) != examples.batch_ids(5)


def test_a_batch_of_more_than_the_split_is_refused():
    with pytest.raises(ValueError, match="batch_size 99 is more than the 24"):
        TrainingExamples(Quadrants(), 0, 99)


def test_what_fails_while_loading_ahead_is_raised_at_its_step():
    def load(step):
        if step == 5:
            raise OSError("image 5 is missing")
        return step

    with LoadedAhead(load, 2, 10) as loaded:
        items = iter(loaded)
        assert [next(items) for _ in range(3)] == [2, 3, 4]
        with pytest.raises(OSError, match="image 5"):
            next(items)


def test_the_loading_thread_ends_with_its_consumer():
    with LoadedAhead(lambda step: step, 0, 10**9) as items:
        assert next(iter(items)) == 0
    assert not items._thread.is_alive()
