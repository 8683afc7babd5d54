"""The colorization task on a tiny stage I with fresh weights, and the reward of what it decodes."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError
from skimage.color import rgb2lab

from protos.trajectory import Sampled, Scored, ScoredGroup, Ticket
from rewards.colorization import ColorfulnessReward
from rewards.combine import RewardLoadError, WeightedSum, load_reward
from rewards.judge import GroupFailure, judge_group
from vision.data.images import ImageError, from_model
from vision.metrics.colorfulness import colorfulness
from vision.models.config import ModelConfigError
from vision.models.uvim import decode_codes, init_stage_one
from vision.models.uvim_checkpoint import save_stage_one
from vision.models.uvim_config import patches_to_pixels
from vision.tasks.colorization import ColorizationConfig, ColorizationTask, to_gray

SIZES = {"preset": "tiny", "tokens": 9}
PHOTOS = {"kind": "photos", "train": 40, "validation": 8, "test": 8}


def task_of(**changes) -> ColorizationTask:
    settings = {"data": PHOTOS, "image_size": (24, 24), "stage_one": SIZES} | changes
    return ColorizationTask(ColorizationConfig.model_validate(settings))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("stage_one") / "final.npz"
    variables = init_stage_one(task_of().stage_one.config, seed=0)
    # Heads start at zero and would decode gray.
    random = np.random.default_rng(0)
    head = variables["params"]["head_color"]
    head["kernel"] = random.normal(0, 0.1, head["kernel"].shape).astype(np.float32)
    save_stage_one(path, variables)
    return path


@pytest.fixture(scope="module")
def task(checkpoint) -> ColorizationTask:
    return task_of(stage_one={**SIZES, "checkpoint": checkpoint})


@pytest.fixture(scope="module")
def example(task):
    return task.load("train", task.example_ids("train")[1], None)


def test_the_image_is_the_targets_luma_in_three_equal_channels(task, example):
    assert example.image.shape == example.target.shape == (24, 24, 3)
    assert example.image.dtype == example.target.dtype == np.float32
    assert (example.image == example.image[..., :1]).all()
    pixels = from_model(example.target)
    luma = pixels @ np.array([0.299, 0.587, 0.114])
    assert np.abs(from_model(example.image)[..., 0] - luma).max() <= 0.5 + 1e-6
    assert colorfulness(example.image) == (0.0, 0.0)
    assert colorfulness(example.target).vivid > 0


def test_gray_stays_what_it_is():
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    assert np.array_equal(to_gray(ramp), ramp)


def test_augmentation_is_a_function_of_the_seed_and_changes_training_only(checkpoint):
    options = {"scale": (1.0, 2.0), "flip": 0.5, "saturation": 0.8}
    task = task_of(augment=options)
    name = task.example_ids("train")[0]
    plain = task.load("train", name, None)
    first, again, other = (task.load("train", name, seed) for seed in (1, 1, 2))
    assert np.array_equal(first.target, again.target)
    assert np.array_equal(first.image, again.image)
    assert not np.array_equal(first.target, other.target)
    assert not np.array_equal(first.target, plain.target)
    assert np.array_equal(first.image, first.image[..., :1].repeat(3, 2))


def test_every_code_is_allowed_everywhere_and_padding_nowhere(task):
    assert (task.vocabulary_size, task.max_length, task.end_token) == (65, 9, -1)
    allowed = task.allowed_tokens()
    assert allowed.shape == (9, 65)
    assert not allowed[:, 0].any()
    assert allowed[:, 1:].all()
    assert task.reinforced_tokens().tolist() == [True] * 9


def test_target_tokens_are_codes_and_do_not_depend_on_the_seed(task, example):
    tokens = task.target_tokens(example, seed=0)
    assert tokens.shape == (9,)
    assert tokens.dtype == np.int32
    assert tokens.min() >= 1
    assert tokens.max() <= 64
    assert np.array_equal(tokens, task.target_tokens(example, seed=5))


def test_predictions_are_what_stage_one_decodes_cut_to_the_range(task, example):
    tokens = np.random.default_rng(0).integers(1, 65, (3, 9)).astype(np.int32)
    predictions = task.decode(example, tokens, np.zeros((3, 9), np.float32))
    outputs = decode_codes(
        task.stage_one.config, task.stage_one.variables, tokens - 1, example.image[None]
    )
    expected = patches_to_pixels(np.asarray(outputs["color"]), task.stage_one.config)
    assert np.abs(expected).max() > 1  # or cutting would not be tested
    for prediction, values in zip(predictions, expected, strict=True):
        assert prediction.shape == (24, 24, 3)
        assert prediction.dtype == np.float32
        assert np.allclose(prediction, np.clip(values, -1, 1), atol=1e-5)
    assert not np.array_equal(predictions[0], predictions[1])


def test_padding_cannot_be_decoded(task, example):
    with pytest.raises(ValueError, match=r"token|code"):
        task.decode(example, np.zeros((1, 9), np.int32), np.zeros((1, 9), np.float32))


def test_stage_one_is_taught_the_full_colours_and_stage_two_the_faded(checkpoint, example):
    stage_one = {**SIZES, "checkpoint": checkpoint}
    full, gray = (task_of(stage_one=stage_one, desaturate=share) for share in (0.0, 1.0))
    for each in (full, gray):
        assert np.array_equal(each.stage_one_inputs(example)["color"], example.target)
    seen = []
    gray.stage_one.encode = lambda planes, image: seen.append((planes["color"], image))
    gray.target_tokens(example, 0)
    assert np.array_equal(seen[0][0], example.image)
    assert np.array_equal(seen[0][1], example.image)
    assert not np.array_equal(full.target_tokens(example, 0), np.zeros(9))


def test_desaturating_keeps_the_luma_and_mutes_the_colours(example):
    muted = task_of(desaturate=0.7)
    seen = []
    muted.stage_one.encode = lambda planes, image: seen.append(planes["color"])
    muted.target_tokens(example, 0)
    luma = np.array([0.299, 0.587, 0.114])
    assert np.abs(seen[0] @ luma - example.target @ luma).max() < 0.01
    spread = np.ptp(seen[0], axis=-1) / np.maximum(np.ptp(example.target, axis=-1), 1e-3)
    assert spread.max() == pytest.approx(0.3, abs=1e-3)
    chroma = [
        np.hypot(*rgb2lab((rgb.astype(float) + 1) / 2).T[1:]) for rgb in (seen[0], example.target)
    ]
    assert chroma[0].mean() < 0.5 * chroma[1].mean()


def test_metrics_are_means_over_images_with_the_photos_own_beside_them(task):
    examples = [task.load("test", name, None) for name in task.example_ids("test")]
    gray = [example.image for example in examples]
    own = [example.target for example in examples]
    figures = [colorfulness(image) for image in own]
    perfect, none = task.evaluate(examples, own), task.evaluate(examples, gray)
    assert perfect["colorfulness"] == pytest.approx(np.mean([f.product for f in figures]))
    assert (
        perfect["vivid"]
        == perfect["true_vivid"]
        == pytest.approx(np.mean([f.vivid for f in figures]))
    )
    assert perfect["hue_entropy"] == perfect["true_hue_entropy"]
    assert perfect["rmse"] == 0
    assert (none["colorfulness"], none["vivid"], none["hue_entropy"]) == (0, 0, 0)
    assert none["true_colorfulness"] == perfect["colorfulness"]
    assert none["rmse"] > 0.01
    assert task.headline in perfect
    assert task.evaluate([], []) == {}
    with pytest.raises(ValueError, match="8 examples but 7 predictions"):
        task.evaluate(examples, gray[1:])


def test_drawings_are_large_enough_to_look_at(task, example):
    truth = task.draw(example, None)
    assert truth.shape == (288, 288, 3)
    assert truth.dtype == np.uint8
    assert np.array_equal(truth[::12, ::12], from_model(example.target))
    assert np.array_equal(task.draw(example, example.image)[::12, ::12], from_model(example.image))


def test_a_stage_one_of_other_sizes_is_refused(checkpoint):
    from vision.models.checkpoint import CheckpointError

    other = task_of(stage_one={**SIZES, "checkpoint": checkpoint, "codes": 32})
    with pytest.raises(CheckpointError, match=r"final\.npz"):
        other.stage_one.load()
    larger = task_of(stage_one={**SIZES, "checkpoint": checkpoint}, image_size=(32, 32))
    with pytest.raises(CheckpointError, match=r"final\.npz"):
        larger.stage_one.load()
    with pytest.raises(ModelConfigError, match="width 30 is not a positive multiple"):
        task_of(image_size=(24, 30))


def test_options_out_of_range_are_refused():
    for changes in ({"desaturate": 1.1}, {"hue": "hsv"}, {"data": {"kind": "coco"}}):
        with pytest.raises(ValidationError):
            task_of(**changes)


def test_the_reward_is_the_product_and_carries_its_factors(task, example):
    tokens = np.random.default_rng(1).integers(1, 65, (2, 9)).astype(np.int32)
    predictions = [*task.decode(example, tokens, np.zeros((2, 9), np.float32)), example.image]
    reward = load_reward("rewards.colorization:ColorfulnessReward", task, {"hue": "arctan"})
    outcomes = judge_group(reward, example, predictions)
    for outcome, prediction in zip(outcomes, predictions, strict=True):
        figures = colorfulness(prediction, "arctan")
        assert outcome.reward == figures.product
        assert outcome.auxiliary["vivid"] == np.float32(figures.vivid)
        assert outcome.auxiliary["hue_entropy"] == np.float32(figures.entropy)
    assert outcomes[2].reward == 0


def test_the_factors_travel_and_pass_through_a_weighted_sum(task, example):
    reward = WeightedSum([(ColorfulnessReward(task), 2.0)])
    outcomes = judge_group(reward, example, [example.target])
    ticket = Ticket(0, example.example_id, 1, 2, 0)
    sampled = Sampled(ticket, np.ones((1, 9), np.int32), np.zeros((1, 9), np.float32), 0, "jax")
    travelled = ScoredGroup.from_bytes(ScoredGroup(sampled, outcomes).to_bytes()).outcomes[0]
    assert isinstance(travelled, Scored)
    figures = colorfulness(example.target)
    assert travelled.reward == pytest.approx(2 * figures.product)
    assert float(travelled.auxiliary["vivid"]) == np.float32(figures.vivid)


def test_a_prediction_that_is_not_finite_fails_typed(task, example):
    broken = example.target.copy()
    broken[0, 0, 0] = np.nan
    failure = judge_group(ColorfulnessReward(task), example, [broken])
    assert isinstance(failure, GroupFailure)
    assert "not finite" in failure.reason


def test_an_unknown_hue_of_the_reward_is_named(task):
    with pytest.raises(RewardLoadError, match="hue is 'hsv'"):
        load_reward("rewards.colorization:ColorfulnessReward", task, {"hue": "hsv"})


def test_own_images_of_any_kind_are_read_and_a_broken_one_is_named(tmp_path):
    colours = np.random.default_rng(0).integers(0, 256, (30, 40, 3)).astype(np.uint8)
    alpha = np.full((30, 40, 1), 255, np.uint8)
    files = {
        "alpha.png": np.concatenate([colours, alpha], axis=2),
        "deep.png": colours[..., 0].astype(np.uint16) * 257,
        "gray.png": colours[..., 0],
        "pixel.png": colours[:1, :1],
        "plain.png": colours,
    }
    for name, pixels in files.items():
        Image.fromarray(pixels).save(tmp_path / name)
    options = {"scale": (1.0, 2.0), "flip": 0.5, "saturation": 0.5}
    task = task_of(data={"kind": "images", "train": tmp_path}, augment=options)
    assert task.example_ids("train") == list(files)
    loaded = {}
    for name in files:
        for seed in (None, 1, 2):
            example = task.load("train", name, seed)
            assert example.image.shape == example.target.shape == (24, 24, 3)
            loaded[name, seed] = example
    assert np.array_equal(loaded["alpha.png", None].target, loaded["plain.png", None].target)
    for name in ("deep.png", "gray.png"):
        gray = loaded[name, None]
        assert np.array_equal(gray.image, gray.target)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    broken = task_of(data={"kind": "images", "train": tmp_path})
    with pytest.raises(ImageError, match=r"broken\.png"):
        broken.load("train", "broken.png", None)
