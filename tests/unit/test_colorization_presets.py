"""The colorization configs that ship carry the paper's figures and follow on each other."""

import math
from pathlib import Path

import jax

from deploy.config import RunConfig
from deploy.config_file import PRESETS, read_config
from vision.models.sequence import abstract_params
from vision.models.uvim import abstract_stage_one
from vision.models.uvim_config import COLOR_PLANES, check_stage_two
from vision.tasks.registry import build_task

QUICKSTART = ("stage_one", "pretrain", "colorfulness")


def quickstart(name: str) -> RunConfig:
    return read_config(PRESETS / f"quickstart/colorization_{name}.yaml", [], RunConfig)


def paper() -> RunConfig:
    return read_config(PRESETS / "paper/colorization.yaml", [], RunConfig)


def parameters(tree) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def test_each_quickstart_run_starts_from_the_one_before():
    stage_one, pretrain, tune = (quickstart(name) for name in QUICKSTART)
    assert stage_one.stage_one is not None
    assert stage_one.pretrain is None
    assert pretrain.stage_one is None
    assert pretrain.pretrain is not None
    first = Path("checkpoints/quickstart_colorization_stage_one.npz")
    assert pretrain.task.stage_one.checkpoint == tune.task.stage_one.checkpoint == first
    assert tune.initial == Path("checkpoints/quickstart_colorization.npz")
    assert [term.path for term in tune.rewards.terms] == ["rewards.colorization:ColorfulnessReward"]


def test_quickstart_stages_fit_each_other_and_are_small():
    for name in QUICKSTART:
        config = quickstart(name)
        task = build_task(config.task)
        model = config.model.build(task)
        check_stage_two(task.stage_one.config, model)
        assert parameters(abstract_params(model)) < 1.2e6
        # Float32, both shipped: at most 5 MB each.
        assert parameters(abstract_stage_one(task.stage_one.config)) < 1.3e6


def test_only_the_pretraining_target_is_faded():
    stage_one, pretrain, _ = (quickstart(name).task for name in QUICKSTART)
    assert stage_one.desaturate == 0
    assert pretrain.desaturate == 0.85
    assert pretrain.augment.saturation == 0
    assert pretrain.augment.hue == 0


def test_the_papers_models_have_the_papers_shapes_without_being_allocated():
    config = paper()
    task = build_task(config.task)
    model = config.model.build(task)
    check_stage_two(task.stage_one.config, model)
    shapes = abstract_params(model)
    assert shapes["EmbedPatches"]["kernel"].shape == (16, 16, 3, 1024)
    assert shapes["pos_embedding_encoder"].shape == (1, 32 * 32, 1024)
    assert shapes["pos_embedding_decoder"].shape == (1, 256, 1024)
    assert shapes["decoder"]["LogitsDense"]["kernel"].shape == (1024, 4097)
    assert sum(block.startswith("encoderblock_") for block in shapes["encoder"]) == 24
    assert sum(block.startswith("EncDecBlock") for block in shapes["decoder"]) == 24
    assert task.stage_one.config.planes == COLOR_PLANES
    stage_one = abstract_stage_one(task.stage_one.config)
    assert stage_one["params"]["head_color"]["kernel"].shape == (768, 3, 256)
    assert stage_one["state"]["dictionary"].shape == (4096, 768)


def test_the_papers_tuning_has_the_papers_figures():
    config = paper()
    learner, optimizer = config.learner, config.learner.optimizer
    data = config.task.data
    assert len({data.train, data.validation, data.test}) == 3  # held out from each other
    assert config.task.image_size == (512, 512)
    assert config.task.desaturate == 0
    assert (learner.steps, learner.groups_per_step, learner.samples_per_group) == (1_000, 512, 2)
    assert (optimizer.name, optimizer.beta2_cap) == ("adafactor", 0.95)
    assert (optimizer.learning_rate, optimizer.weight_decay) == (3e-7, 0.0)
    assert (optimizer.schedule, optimizer.warmup_steps) == ("constant", 0)
    assert learner.reinforce.use_samples == "one"
    assert (config.replay.mode, config.lag) == ("ordered", 0)
    assert [term.path for term in config.rewards.terms] == [
        "rewards.colorization:ColorfulnessReward"
    ]
    assert learner.groups_per_step % (learner.devices * learner.microbatches) == 0
