"""The panoptic task: segments to code words and back, evaluation, drawing, the reward."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from protos.reward import ScoreRequest
from protos.trajectory import Scored
from rewards.judge import start
from rewards.panoptic import PanopticQualityReward
from rewards.reward import Group
from vision.data.coco_panoptic import Category, write_panoptic
from vision.data.segments import SegmentMap
from vision.tasks.panoptic import PanopticConfig, PanopticTask
from vision.tasks.registry import build_task
from vision.tasks.segments import PanopticTarget
from vision.tasks.task import Example

CATEGORIES = [
    Category(10, "cat", True),
    Category(5, "dog", True),
    Category(7, "sky", False),
    Category(8, "sea", False),
]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    data = {"kind": "panoptic_scenes", "train": 6, "validation": 6, "test": 3,
            "cache_dir": tmp_path_factory.mktemp("scenes")}  # fmt: skip
    return build_task({"kind": "panoptic", "data": data})


def coco(folder, golden, sizes=((64, 48), (20, 30)), categories=CATEGORIES, **options):
    """A task on COCO files with the golden stage I, and examples of two images."""
    images = []
    for number, size in enumerate(sizes):
        ids = np.zeros(size, np.int32)
        ids[: size[0] // 2] = 1  # sky above
        ids[size[0] // 2 :, : size[1] // 2] = 2  # a cat below, and a crowd of dogs
        ids[size[0] // 2 + 3 :, size[1] // 2 :] = 3
        labels, crowd = np.array([0, 3, 1, 2], np.int32), np.array([False, False, False, True])
        images.append((number, f"{number}.png", SegmentMap(ids, labels, crowd)))
        Image.new("RGB", size[::-1], (200, 100, 50)).save(folder / f"{number}.png")
    write_panoptic(folder / "A.json", folder / "ids", categories, images)
    split = {"annotations": folder / "A.json", "annotation_dir": folder / "ids", "images": folder}
    stage_one = {"preset": "tiny", "checkpoint": golden / "uvim_tiny_stage1.npz"}
    config = {
        "kind": "panoptic",
        "data": {"kind": "coco_panoptic", "train": split, "validation": split},
        "image_size": [32, 32],
        "stage_one": stage_one,
        "instances": 8,
    }
    return build_task(config | options)


def examples_of(task, split="validation"):
    return [task.load(split, example_id, None) for example_id in task.example_ids(split)]


def test_a_target_is_at_the_models_size_and_at_its_own(tmp_path, golden):
    task = coco(tmp_path, golden)
    assert task.class_names == ["cat", "dog", "sky", "sea"]
    assert task.is_stuff.tolist() == [False, False, False, True, True]
    examples = examples_of(task)
    assert [e.target.own_size.size for e in examples] == [(64, 48), (20, 30)]
    for example in examples:
        assert example.image.shape == (32, 32, 3)
        assert example.target.segments.size == (32, 32)
        assert (example.target.segments.semantics()[:16] == 3).all()


def test_training_examples_are_augmented_by_their_seed_alone(tmp_path, golden):
    """The image's own colours tell where its pixels went: none of the segments stays behind."""
    task = coco(tmp_path, golden)
    plain = examples_of(task)[0]
    changed = coco(tmp_path, golden, augment={"scale": [0.4, 3.0], "flip": 0.5})
    seen = set()
    for seed in range(12):
        first, second = (changed.load("train", "0", seed) for _ in range(2))
        np.testing.assert_array_equal(first.image, second.image)
        segments = first.target.segments
        np.testing.assert_array_equal(segments.ids, second.target.segments.ids)
        assert first.target.own_size is segments
        assert segments.size == (32, 32)
        # The image is of one colour, and what surrounds it is gray, which the model sees as zero.
        around = np.abs(first.image).max(-1) < 0.01
        assert not segments.semantics()[around].any()
        np.testing.assert_array_equal(task.load("train", "0", seed).image, plain.image)
        planes = changed.stage_one_inputs(first)
        assert planes["instances"].max() == (segments.labels[~segments.crowd] > 0).sum()
        figures = changed.evaluate([first], [segments])
        assert figures["PQ"] == 1
        seen.add(segments.ids.tobytes())
    assert len(seen) > 8


def test_evaluation_is_not_augmented(tmp_path, golden):
    changed = coco(tmp_path, golden, augment={"scale": [0.4, 3.0], "flip": 1.0})
    plain = examples_of(coco(tmp_path, golden))
    for ours, expected in zip(examples_of(changed), plain, strict=True):
        np.testing.assert_array_equal(ours.image, expected.image)
        for name in ("segments", "own_size"):
            np.testing.assert_array_equal(
                getattr(ours.target, name).ids, getattr(expected.target, name).ids
            )


def test_metrics_of_the_truth_are_1_at_the_images_own_sizes(tmp_path, golden):
    task = coco(tmp_path, golden)
    examples = examples_of(task)
    figures = task.evaluate(examples, [e.target.segments for e in examples])
    assert task.headline == "PQ"
    # The borders move by less than a pixel when a map is resized; nothing else is lost.
    assert 0.9 < figures["PQ"] <= figures["RQ"] == 1
    assert figures["PQ_stuff"] == 1
    assert figures["matched_per_image"] == 2  # the crowd is neither matched nor missed
    assert figures["unmatched_per_image"] == figures["missed_per_image"] == 0
    own = [e.target.own_size for e in examples]
    assert task.evaluate(examples, own)["PQ"] == 1
    with pytest.raises(ValueError, match="2 examples but 1"):
        task.evaluate(examples, own[:1])


def test_a_prediction_of_void_alone_misses_all(tmp_path, golden):
    task = coco(tmp_path, golden)
    examples = examples_of(task)
    void = SegmentMap(np.zeros((32, 32), np.int32), np.zeros(1, np.int32), np.zeros(1, bool))
    figures = task.evaluate(examples, [void, void])
    assert figures["PQ"] == 0
    assert figures["missed_per_image"] == 2
    nothing = Example("x", examples[0].image, PanopticTarget(void, void))
    with pytest.raises(ValueError, match="no segment in 1 examples"):
        task.evaluate([nothing], [void])


def test_a_side_without_stuff_is_left_out_and_no_error(tmp_path, golden):
    things = [Category(c.id, c.name, True) for c in CATEGORIES]
    task = coco(tmp_path, golden, categories=things)
    examples = examples_of(task)
    figures = task.evaluate(examples, [e.target.own_size for e in examples])
    assert figures["PQ_things"] == figures["PQ"] == 1
    assert not [name for name in figures if name.endswith("_stuff")]


def test_stage_one_sees_segments_from_the_top_down_without_crowds(tmp_path, golden):
    task = coco(tmp_path, golden)
    planes = task.stage_one_inputs(examples_of(task)[0])
    semantics, instances = planes["semantics"], planes["instances"]
    assert instances.dtype == semantics.dtype == np.int32
    assert (instances[:16] == 1).all()
    assert (semantics[:16] == 3).all()
    assert (instances[16:, :16] == 2).all()
    assert (semantics[16:, :16] == 1).all()
    assert not instances[16:, 16:].any()
    assert not semantics[16:, 16:].any()


def test_the_smallest_segments_are_void_where_numbers_run_out(tmp_path, golden):
    ids = np.repeat(np.arange(1, 11), np.arange(1, 11) * 16).astype(np.int32)
    ids = np.pad(ids, (0, 32 * 32 - len(ids)), constant_values=0).reshape(32, 32)
    labels = np.array([0, *[1] * 10], np.int32)
    segments = SegmentMap(ids, labels, np.zeros(11, bool))
    example = Example("x", np.zeros((32, 32, 3), np.float32), PanopticTarget(segments, segments))
    planes = coco(tmp_path, golden).stage_one_inputs(example)
    # Of ten, seven have a number besides void's: the largest.
    assert np.unique(planes["instances"]).tolist() == list(range(8))
    np.testing.assert_array_equal(planes["instances"] > 0, ids > 3)
    np.testing.assert_array_equal(planes["semantics"] > 0, ids > 3)


def test_code_words_are_read_as_the_published_code_reads_them(tmp_path, golden):
    with np.load(golden / "uvim_tiny_io.npz") as file:
        data = dict(file)
    for fraction, key in ((0.0, "panoptic"), (0.02, "panoptic_min_fraction_0p02")):
        task = coco(tmp_path, golden, min_fraction=fraction)
        assert (task.vocabulary_size, task.max_length, task.end_token) == (65, 16, -1)
        for image, codes, expected in zip(data["image"], data["decode_code"], data[key],
                                          strict=True):  # fmt: skip
            example = Example("x", image, None)
            tokens = np.stack([codes + 1, codes[::-1] + 1]).astype(np.int32)
            found, other = task.decode(example, tokens, np.zeros(tokens.shape, np.float32))
            np.testing.assert_array_equal(found.semantics(), expected[..., 0])
            np.testing.assert_array_equal(found.ids, expected[..., 1])
            assert (other.ids != found.ids).any()
        assert task.decode_seconds["merging"] > 0


def test_a_reward_worker_tells_merging_from_decoding(tmp_path, golden):
    task = coco(tmp_path, golden)
    tokens = np.ones((2, 16), np.int32)
    group = Group(task, ScoreRequest("train", "0", 5, tokens, np.zeros((2, 16), np.float32)))
    assert start(PanopticQualityReward(task), group).exception() is None
    assert list(group.seconds) == ["loading", "decoding", "merging", "scoring"]
    assert group.seconds["merging"] == task.decode_seconds["merging"]


def test_targets_are_codes_that_are_allowed(tmp_path, golden):
    task = coco(tmp_path, golden)
    allowed = task.allowed_tokens()
    assert allowed.shape == (16, 65)
    assert not allowed[:, 0].any()
    assert task.reinforced_tokens().all()
    example = examples_of(task, "train")[0]
    tokens = task.target_tokens(example, 0)
    assert tokens.dtype == np.int32
    assert allowed[np.arange(16), tokens].all()
    np.testing.assert_array_equal(tokens, task.target_tokens(example, 1))


def test_a_stage_one_that_does_not_fit_is_refused(tmp_path, golden):
    task = coco(tmp_path, golden, instances=9)
    with pytest.raises(ValueError, match="instances"):
        _ = task.stage_one.variables
    with pytest.raises(ValueError, match=r"stage_one\.checkpoint"):
        _ = build_task(
            {"kind": "panoptic", "data": task.config.data.model_dump()}
        ).stage_one.variables


def test_splits_of_other_categories_are_refused(tmp_path, golden):
    for name, categories in (
        ("a", CATEGORIES),
        ("b", [*CATEGORIES[:3], Category(8, "ice", False)]),
    ):
        (tmp_path / name).mkdir()
        task = coco(tmp_path / name, golden, categories=categories)
    data = task.config.data.model_dump()
    data["train"]["annotations"] = tmp_path / "a" / "A.json"
    mixed = build_task({"kind": "panoptic", "data": data, "image_size": [32, 32]})
    with pytest.raises(ValueError, match=r"'validation'.*ice.*sea"):
        mixed.example_ids("validation")


def test_drawings_are_large_and_show_what_they_are_given(scenes):
    example = examples_of(scenes)[0]
    true = scenes.draw(example, None)
    assert true.shape == (288, 288, 3)
    assert true.dtype == np.uint8
    void = SegmentMap(np.zeros((48, 48), np.int32), np.zeros(1, np.int32), np.zeros(1, bool))
    plain = scenes.draw(example, void)
    np.testing.assert_array_equal(plain[3::6, 3::6], np.rint((example.image + 1) * 127.5))
    assert (true != plain).any()


def test_the_reward_of_a_scene_against_itself_is_its_number_of_segments(scenes):
    examples = examples_of(scenes)
    reward = PanopticQualityReward(scenes)
    outcomes = reward.score(examples, [e.target.segments for e in examples])
    for example, outcome in zip(examples, outcomes, strict=True):
        assert isinstance(outcome, Scored)
        assert outcome.reward == len(example.target.segments.labels) - 1


def test_an_unmatched_prediction_costs_the_penalty(scenes):
    example = examples_of(scenes)[0]
    true = example.target.segments
    ids = true.ids.copy()
    ids[:4, :4] = len(true.labels)  # a wrong segment in a corner
    label = next(c for c in range(1, 11) if c not in true.labels)
    found = SegmentMap(ids, np.append(true.labels, label).astype(np.int32),
                       np.zeros(len(true.labels) + 1, bool))  # fmt: skip
    rewards = [PanopticQualityReward(scenes, w).score([example], [found])[0] for w in (0.0, 0.3)]
    assert rewards[0].reward - rewards[1].reward == pytest.approx(0.3)
    for penalty in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="unmatched_penalty"):
            PanopticQualityReward(scenes, penalty)
    small = SegmentMap(ids[:5], found.labels, found.crowd)
    with pytest.raises(ValueError, match=r"\(5, 48\)"):
        PanopticQualityReward(scenes).score([example], [small])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"instances": 1}, "instances"),
        ({"min_fraction": 2}, "min_fraction"),
        ({"data": {"kind": "coco"}}, "data"),
        ({"data": {"kind": "coco_panoptic"}}, "train"),
        ({"bins": 5}, "bins"),
        ({"augment": {"scale": [1, 2]}}, r"augment\.flip must be 0 for scenes"),
    ],
)
def test_a_config_that_cannot_be_names_the_key(options, named):
    with pytest.raises(ValidationError, match=named):
        PanopticConfig.model_validate(options)


def test_a_reward_worker_decodes_and_judges_without_jax(tmp_path, golden):
    """Runs in a process of its own: others may have imported jax into this one."""
    task = coco(tmp_path, golden)
    assert isinstance(task, PanopticTask)
    program = f"""
import sys
import numpy as np
from rewards.panoptic import PanopticQualityReward
from vision.tasks.registry import build_task
from vision.tasks.panoptic import PanopticConfig
task = build_task(PanopticConfig.model_validate_json({task.config.model_dump_json()!r}))
example = task.load("train", "0", 5)
tokens = np.ones((2, 16), np.int32)
found = task.decode(example, tokens, np.zeros((2, 16), np.float32))
assert len(PanopticQualityReward(task).score([example] * 2, found)) == 2
assert "jax" not in sys.modules
"""
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", program], check=True, cwd=root)
