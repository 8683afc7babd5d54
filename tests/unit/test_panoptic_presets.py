"""The panoptic configs that ship carry the paper's figures and follow on each other."""

import math
import re

import jax
import numpy as np
import pytest
import yaml
from flax.traverse_util import flatten_dict

from deploy.config import REPOSITORY, RunConfig
from deploy.config_file import PRESETS, ConfigError, read_config
from deploy.runs import _starting_params
from vision.models.presets import model_config
from vision.models.sequence import abstract_params
from vision.models.uvim import abstract_stage_one
from vision.models.uvim_config import Plane, check_stage_two
from vision.tasks.panoptic import PanopticConfig
from vision.tasks.registry import build_task

QUICKSTART = ("stage_one", "pretrain", "pq")


def quickstart(name: str, *overrides: str) -> RunConfig:
    return read_config(PRESETS / f"quickstart/panoptic_{name}.yaml", overrides, RunConfig)


def paper(name: str = "panoptic") -> RunConfig:
    return read_config(PRESETS / f"paper/{name}.yaml", [], RunConfig)


def parameters(tree) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Overrides that make the data few."""
    cache = tmp_path_factory.mktemp("scenes")
    few = [f"task.data.{split}=4" for split in ("train", "validation", "test")]
    return [*few, f"task.data.cache_dir={cache}"]


def test_each_quickstart_run_trains_one_thing_on_what_is_shipped():
    stage_one, pretrain, tune = (quickstart(name) for name in QUICKSTART)
    assert stage_one.stage_one is not None
    assert stage_one.task.stage_one.checkpoint is None
    assert stage_one.pretrain is pretrain.stage_one is tune.stage_one is tune.pretrain is None
    # Trained once, into runs/; what ships is a copy of it.
    shipped = "checkpoints/quickstart_panoptic_stage_one.npz"
    for config in (pretrain, tune):
        assert str(config.task.stage_one.checkpoint) == shipped
        assert str(config.directory.parent) == str(stage_one.directory.parent)
    assert pretrain.task == tune.task
    assert (pretrain.initial, tune.initial_encoder) == (None, None)
    assert str(pretrain.initial_encoder) == "checkpoints/quickstart_detection.npz"
    assert str(tune.initial) == "checkpoints/quickstart_panoptic.npz"


def test_what_is_shipped_is_found_from_any_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = quickstart("pretrain").with_absolute_paths()
    assert config.initial_encoder == REPOSITORY / "checkpoints/quickstart_detection.npz"
    # One that lies in the working directory goes before it, or a new one could not be tried.
    (tmp_path / "checkpoints").mkdir()
    ours = tmp_path / "checkpoints/quickstart_panoptic_stage_one.npz"
    ours.touch()
    assert quickstart("pretrain").with_absolute_paths().task.stage_one.checkpoint == ours


def test_the_quickstarts_pretraining_and_tuning_have_their_figures():
    pretrain, tune = quickstart("pretrain").pretrain, quickstart("pq")
    assert (pretrain.steps, pretrain.batch_size) == (4_000, 32)
    assert (pretrain.optimizer.learning_rate, pretrain.optimizer.schedule) == (1e-3, "cosine")
    learner, optimizer = tune.learner, tune.learner.optimizer
    assert (learner.steps, learner.groups_per_step, learner.samples_per_group) == (400, 16, 8)
    assert (optimizer.name, optimizer.learning_rate, optimizer.schedule) == (
        "adamw", 1e-4, "constant"
    )  # fmt: skip
    assert learner.reinforce.use_samples == "all"
    assert tune.evaluation.every == 50
    assert tune.rewards.resources.threads == 1
    assert [term.path for term in tune.rewards.terms] == ["rewards.panoptic:PanopticQualityReward"]


def test_quickstart_stages_fit_each_other_and_are_small(scenes):
    for name in QUICKSTART:
        config = quickstart(name, *scenes)
        task = build_task(config.task)
        model = config.model.build(task)
        check_stage_two(task.stage_one.config, model)
        # Both are shipped in float16, of at most 5 MB each.
        assert parameters(abstract_params(model)) < 2.5e6
        assert parameters(abstract_stage_one(task.stage_one.config)) < 2.5e6


def test_the_quickstarts_encoder_is_the_shipped_detectors(scenes):
    config = quickstart("pretrain", *scenes).with_absolute_paths()
    task = build_task(config.task)
    model = config.model.build(task)
    ours = flatten_dict(_starting_params(config, model, task)["encoder"], sep="/")
    with np.load(config.initial_encoder) as file:
        stored = {name.removeprefix("params/"): file[name] for name in file.files}
    assert len(ours) > 10
    for name, value in ours.items():
        np.testing.assert_array_equal(value, stored[f"encoder/{name}"])


def test_digits_are_never_mirrored():
    with pytest.raises(ConfigError, match=r"augment\.flip must be 0 for scenes"):
        quickstart("pretrain", "task.augment.scale=[1.0, 1.5]")
    changed = quickstart("pretrain", "task.augment={scale: [0.8, 1.2], flip: 0}")
    assert changed.task.augment.flip == 0


def test_the_pages_example_of_own_data_is_a_config_with_a_stage_one():
    page = (REPOSITORY / "docs/panoptic.md").read_text()
    (example,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    config = PanopticConfig.model_validate(yaml.safe_load(example)["task"])
    assert config.data.kind == "coco_panoptic"
    planes = (Plane("semantics", 134), Plane("instances", config.instances))
    assert config.stage_one.build(config.image_size, planes).grid == (32, 32)


def test_the_papers_models_have_the_papers_shapes_without_being_allocated():
    """As the task would size them: 133 classes and void; COCO need not be here."""
    config = paper()
    task = config.task
    planes = (Plane("semantics", 134), Plane("instances", task.instances))
    stage_one = task.stage_one.build(task.image_size, planes)
    overrides = config.model.model_dump(exclude={"preset"}, exclude_none=True)
    model = model_config(
        config.model.preset,
        vocabulary_size=stage_one.codes + 1,
        max_length=stage_one.tokens,
        image_size=task.image_size,
        **{name: value for name, value in overrides.items() if value != {}},
    )
    check_stage_two(stage_one, model)
    shapes = abstract_params(model)
    assert shapes["EmbedPatches"]["kernel"].shape == (16, 16, 3, 1024)
    assert shapes["pos_embedding_encoder"].shape == (1, 32 * 32, 1024)
    assert shapes["pos_embedding_decoder"].shape == (1, 256, 1024)
    assert shapes["decoder"]["LogitsDense"]["kernel"].shape == (1024, 4097)
    assert sum(block.startswith("encoderblock_") for block in shapes["encoder"]) == 24
    assert sum(block.startswith("EncDecBlock") for block in shapes["decoder"]) == 24
    heads = abstract_stage_one(stage_one)
    assert heads["params"]["head_semantics"]["kernel"].shape == (768, 134, 256)
    assert heads["params"]["head_instances"]["kernel"].shape == (768, 100, 256)
    assert heads["state"]["dictionary"].shape == (4096, 768)


def test_the_papers_tuning_has_the_papers_figures():
    config = paper()
    learner, optimizer = config.learner, config.learner.optimizer
    assert (config.task.image_size, config.task.instances) == ((512, 512), 100)
    assert (learner.steps, learner.groups_per_step, learner.samples_per_group) == (30_000, 128, 2)
    assert (optimizer.name, optimizer.beta2_cap) == ("adafactor", 0.95)
    assert (optimizer.learning_rate, optimizer.weight_decay) == (1e-6, 0.0)
    assert (optimizer.schedule, optimizer.warmup_steps) == ("constant", 4_000)
    assert learner.reinforce.use_samples == "one"
    assert (config.replay.mode, config.lag) == ("ordered", 0)
    (term,) = config.rewards.terms
    assert term.path == "rewards.panoptic:PanopticQualityReward"
    assert term.options == {"unmatched_penalty": 0.3}
    assert learner.groups_per_step % (learner.devices * learner.microbatches) == 0
    # Tuning reads and writes the code words of the stage I that the other preset trains.
    assert config.task.stage_one.preset == paper("panoptic_stage_one").task.stage_one.preset
    assert config.stage_one is None
