"""Captioning's presets: the paper's figures, two learning rates, an encoder that is given."""

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from deploy.config import RunConfig
from deploy.config_file import PRESETS, ConfigError, read_config
from deploy.runs import _starting_params
from learner.optimizer import make_optimizer
from vision.models.checkpoint import CheckpointMismatch, load_encoder_npz, save_npz
from vision.models.config import ModelConfig
from vision.models.presets import model_config
from vision.models.sequence import abstract_params, init_params

BERT = 30_522
NAMES = [f"{folder}/captioning_{part}.yaml"
         for folder in ("quickstart", "paper") for part in ("pretrain", "cider")]  # fmt: skip


def preset(name: str) -> RunConfig:
    return read_config(PRESETS / name, [], RunConfig)


def model_of(config: RunConfig, vocabulary: int) -> ModelConfig:
    """The model as the task would size it; the paper's data need not be here."""
    overrides = config.model.model_dump(exclude={"preset"}, exclude_none=True)
    return model_config(
        config.model.preset,
        vocabulary_size=vocabulary,
        max_length=config.task.max_length,
        image_size=config.task.image_size,
        **{name: value for name, value in overrides.items() if value != {}},
    )


def tiny(image: int = 16, vocabulary: int = 20) -> ModelConfig:
    return model_config("tiny", vocabulary_size=vocabulary, max_length=6, image_size=(image, image))


def optimizer_of(config: RunConfig):
    return config.pretrain.optimizer if config.name.endswith("pretrain") else (
        config.learner.optimizer
    )  # fmt: skip


def test_the_papers_model_describes_in_berts_pieces():
    config = preset("paper/captioning_pretrain.yaml")
    shapes = abstract_params(model_of(config, BERT))
    assert shapes["pos_embedding_encoder"].shape == (1, 32 * 32, 768)
    assert shapes["pos_embedding_decoder"].shape == (1, 128, 768)
    assert shapes["decoder"]["LogitsDense"]["kernel"].shape == (768, BERT)
    assert sum(block.startswith("EncDecBlock") for block in shapes["decoder"]) == 6
    assert (config.task.tokenizer, config.task.data.kind) == ("wordpiece", "karpathy")
    large = read_config(
        PRESETS / "paper/captioning_pretrain.yaml", ["model.preset=vit_l16_dec6"], RunConfig
    )
    shapes = abstract_params(model_of(large, BERT))
    assert sum(block.startswith("encoderblock_") for block in shapes["encoder"]) == 24


def test_the_papers_maximum_likelihood_has_its_figures():
    config = preset("paper/captioning_pretrain.yaml")
    optimizer = config.pretrain.optimizer
    assert (config.pretrain.steps, config.pretrain.batch_size) == (5_000, 256)
    assert (optimizer.name, optimizer.schedule, optimizer.warmup_steps) == (
        "adafactor", "cosine", 1_000
    )  # fmt: skip
    assert (optimizer.learning_rate, optimizer.weight_decay) == (3e-4, 5e-6)
    assert config.initial_encoder is not None


def test_the_papers_tuning_has_its_figures():
    config = preset("paper/captioning_cider.yaml")
    learner, optimizer = config.learner, config.learner.optimizer
    assert (learner.steps, learner.groups_per_step, learner.samples_per_group) == (10_000, 256, 8)
    assert learner.reinforce.use_samples == "one"
    assert (optimizer.name, optimizer.schedule, optimizer.warmup_steps) == (
        "adafactor", "constant", 1_000
    )  # fmt: skip
    assert (optimizer.learning_rate, optimizer.weight_decay) == (1e-5, 0)
    assert [term.path for term in config.rewards.terms] == ["rewards.captioning:CiderReward"]
    assert (config.replay.mode, config.lag) == ("ordered", 0)
    before = preset("paper/captioning_pretrain.yaml")
    assert config.initial == before.runs / before.name / "final.npz"


@pytest.mark.parametrize("name", NAMES)
def test_the_encoder_learns_at_its_share_of_the_decoders_rate(name):
    """The first step of the preset's optimizer on a small model, each gradient the same."""
    config = optimizer_of(preset(name)).model_copy(update={"weight_decay": 0.0, "clip_norm": None})
    params = init_params(tiny(), 0)
    optimizer = make_optimizer(config, 10_000, params)
    gradients = jax.tree.map(np.ones_like, params)
    state = optimizer.init(params)
    updates, _ = jax.jit(optimizer.update)(gradients, state, params)
    steps = {path: np.abs(step).max() for path, step in flatten_dict(updates, sep="/").items()}
    decoder = [step for path, step in steps.items()
               if path.startswith(("decoder/", "pos_embedding_decoder"))]  # fmt: skip
    encoder = [step for path, step in steps.items()
               if not path.startswith(("decoder/", "pos_embedding_decoder"))]  # fmt: skip
    assert len(decoder) + len(encoder) == len(steps)
    assert min(len(decoder), len(encoder)) > 10
    np.testing.assert_allclose(decoder, decoder[0], rtol=1e-4)
    share = 0.3 if name == "quickstart/captioning_pretrain.yaml" else 0.1  # the paper's
    np.testing.assert_allclose(encoder, share * decoder[0], rtol=1e-4)


def test_the_quick_start_samples_8_captions_from_its_own_model():
    pretrained, tuned = (preset(f"quickstart/captioning_{n}.yaml") for n in ("pretrain", "cider"))
    assert tuned.learner.samples_per_group == 8
    assert tuned.task == pretrained.task
    assert model_of(tuned, 40) == model_of(pretrained, 40)
    assert (tuned.initial_encoder, pretrained.initial) == (None, None)
    assert tuned.initial is not None


def test_the_quick_starts_encoder_is_the_shipped_detectors():
    config = preset("quickstart/captioning_pretrain.yaml").with_absolute_paths()
    params = _starting_params(config, model_of(config, 40), None)
    with np.load(config.initial_encoder) as file:
        detector = {name.removeprefix("params/"): file[name] for name in file.files}
    ours = flatten_dict(params, sep="/")
    name = "encoder/encoderblock_1/MlpBlock_0/Dense_0/kernel"
    stored = next(value for key, value in detector.items() if key.startswith(name))
    assert ours[name].shape == stored.shape
    assert ours["decoder/LogitsDense/kernel"].shape[1] == 40


def test_an_encoder_is_taken_from_a_model_of_another_task_and_size(tmp_path):
    other, ours = tiny(32, vocabulary=99), tiny(16)
    params = init_params(other, 3)
    save_npz(tmp_path / "other.npz", params)
    encoder = load_encoder_npz(tmp_path / "other.npz", ours)
    assert set(encoder) == {"EmbedPatches", "encoder", "pos_embedding_encoder"}
    for path, value in flatten_dict(encoder["encoder"], sep="/").items():
        np.testing.assert_array_equal(value, flatten_dict(params["encoder"], sep="/")[path])
    assert encoder["pos_embedding_encoder"].shape == (1, 4, 64)
    with pytest.raises(CheckpointMismatch, match=r"other\.npz.*preset"):
        load_encoder_npz(
            tmp_path / "other.npz",
            model_config("quickstart", vocabulary_size=9, max_length=6, image_size=(16, 16)),
        )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("task.kind=captoning", r"task\.kind: unknown kind 'captoning': .*mean 'captioning'"),
        ("task.data.kind=karpaty", r"task\.data\.kind: unknown kind 'karpaty': .*'karpathy'"),
        ("task.tokeniser=words", r"task\.tokeniser: unknown key; did you mean 'tokenizer'"),
        ("task.data.sed=1", r"task\.data\.sed: unknown key; did you mean 'seed'"),
    ],
)
def test_what_a_captioning_config_does_not_know_names_the_nearest(override, message):
    with pytest.raises(ConfigError, match=message):
        read_config("quickstart/captioning_cider.yaml", [override], RunConfig)
