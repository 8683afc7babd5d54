"""The configs that ship: they resolve, and carry the paper's figures."""

import math
from typing import Any

import jax
import pytest

from deploy.config import RunConfig
from deploy.config_file import PRESETS, read_config
from vision.models.config import ModelConfig
from vision.models.presets import model_config
from vision.models.sequence import abstract_params
from vision.tasks.boxes import BoxLayout

CONFIGS = sorted(str(path.relative_to(PRESETS)) for path in PRESETS.rglob("*.yaml"))
PAPER = {"objects365": 365, "coco": 80, "recall": 80, "map": 80}
QUICKSTART_CLASSES = 10


def preset(name: str) -> RunConfig:
    return read_config(PRESETS / name, [], RunConfig)


def paper(name: str) -> RunConfig:
    return preset(f"paper/detection_{name}.yaml")


def model_of(config: RunConfig, classes: int) -> ModelConfig:
    """The model as the task would size it; the paper's data need not be here."""
    task = config.task
    layout = BoxLayout(task.coordinate_buckets, classes, task.max_boxes)
    overrides: dict[str, Any] = config.model.model_dump(exclude={"preset"}, exclude_none=True)
    return model_config(
        config.model.preset,
        vocabulary_size=layout.vocabulary_size,
        max_length=layout.max_length,
        image_size=task.image_size,
        ordered_tokens=(layout.first_coordinate, layout.levels + 1),
        **{name: value for name, value in overrides.items() if value != {}},
    )


def parameters(tree: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def test_there_are_presets_for_the_quick_start_and_for_the_paper():
    assert {"quickstart/detection_map.yaml", "quickstart/detection_recall.yaml"} <= set(CONFIGS)
    assert {f"paper/detection_{name}.yaml" for name in PAPER} <= set(CONFIGS)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_resolves_and_is_named_after_its_file(name):
    config = preset(name)
    assert config.name == name.rpartition("/")[2].removesuffix(".yaml")
    # What a run writes into its directory must read back as the same run.
    assert RunConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(("name", "classes"), PAPER.items())
def test_paper_models_have_the_papers_shapes_without_being_allocated(name, classes):
    config = paper(name)
    model = model_of(config, classes)
    shapes = abstract_params(model)
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(shapes))
    side = 40 if name == "objects365" else 80
    assert shapes["pos_embedding_encoder"].shape == (1, side * side, 768)
    assert shapes["pos_embedding_decoder"].shape == (1, 600, 768)
    assert shapes["EmbedPatches"]["kernel"].shape == (16, 16, 3, 768)
    assert shapes["decoder"]["LogitsDense"]["kernel"].shape == (768, 3 + 1001 + classes)
    assert sum(block.startswith("encoderblock_") for block in shapes["encoder"]) == 12
    assert sum(block.startswith("EncDecBlock") for block in shapes["decoder"]) == 6
    assert 140e6 < parameters(shapes) < 160e6
    assert (model.dtype, model.remat) == ("bfloat16", True)


@pytest.mark.parametrize("name", PAPER)
def test_paper_tasks_write_100_boxes_in_1000_buckets_and_augment_by_flip_and_scale(name):
    task = paper(name).task
    assert (task.coordinate_buckets, task.max_boxes, task.max_boxes * 6) == (1000, 100, 600)
    assert task.image_size == ((640, 640) if name == "objects365" else (1280, 1280))
    assert task.data.kind == "coco"
    assert task.augment is not None
    assert task.augment.flip == 0.5
    assert task.augment.scale[0] < 1 < task.augment.scale[1]


@pytest.mark.parametrize(
    ("name", "steps", "warmup", "rate", "decay"),
    [("objects365", 400_000, 20_000, 1e-3, 5e-5), ("coco", 10_000, 1_000, 1e-4, 0.0)],
)
def test_paper_maximum_likelihood_has_the_papers_figures(name, steps, warmup, rate, decay):
    config = paper(name).pretrain
    assert config is not None
    optimizer = config.optimizer
    assert (config.steps, config.batch_size) == (steps, 256)
    assert (optimizer.name, optimizer.beta2_cap) == ("adafactor", 0.95)
    assert (optimizer.schedule, optimizer.warmup_steps) == ("cosine", warmup)
    assert (optimizer.learning_rate, optimizer.weight_decay) == (rate, decay)
    assert config.devices > 1


@pytest.mark.parametrize(
    ("name", "reward"),
    [
        ("recall", "rewards.detection:RecallReward"),
        ("map", "rewards.detection:MeanAveragePrecisionReward"),
    ],
)
def test_paper_tuning_has_the_papers_figures(name, reward):
    config = paper(name)
    learner, optimizer = config.learner, config.learner.optimizer
    assert (learner.steps, learner.groups_per_step, learner.samples_per_group) == (100_000, 256, 2)
    assert (optimizer.name, optimizer.beta2_cap) == ("adafactor", 0.95)
    assert (optimizer.schedule, optimizer.warmup_steps) == ("constant", 1_000)
    assert (optimizer.learning_rate, optimizer.weight_decay) == (1e-6, 0.0)
    assert learner.reinforce.use_samples == "one"
    assert learner.reinforce.auxiliary_weight == 0.3
    assert learner.reinforce.length_reduction == "sum"
    assert (config.replay.mode, config.lag) == ("ordered", 0)
    assert config.rewards is not None
    assert [term.path for term in config.rewards.terms] == [reward]
    assert learner.devices > 1
    assert config.queue_config().total_groups == 25_600_000


def test_each_paper_run_starts_from_the_one_before():
    chain = {"coco": "objects365", "map": "coco", "recall": "coco"}
    for name, before in chain.items():
        previous = paper(before)
        assert paper(name).initial == previous.runs / previous.name / "final.npz"
    assert paper("coco").initial_transfer
    assert not paper("map").initial_transfer


@pytest.mark.parametrize(
    "name", [name for name in CONFIGS if name.startswith("quickstart/detection")]
)
def test_quickstart_models_have_about_a_million_parameters(name):
    size = parameters(abstract_params(model_of(preset(name), QUICKSTART_CLASSES)))
    assert 1.0e6 <= size <= 1.2e6


def test_quickstart_tuning_starts_from_the_checkpoint_of_the_quickstart_model():
    pretrained = preset("quickstart/detection_pretrain.yaml")
    for name in ("quickstart/detection_map.yaml", "quickstart/detection_recall.yaml"):
        config = preset(name)
        assert model_of(config, 10) == model_of(pretrained, 10)
        assert config.task.data.drop_annotations == 0.0
