"""Detection: boxes to tokens and back, confidences, dense targets, evaluation, drawing."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from vision.data.coco import AnnotationError
from vision.data.images import ImageError
from vision.tasks.boxes import END, TOKENS_PER_BOX, Boxes, BoxLayout, Detections
from vision.tasks.detection import DetectionConfig, DetectionTask
from vision.tasks.registry import UnknownTaskError, build_task
from vision.tasks.task import Example


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scenes")


def make(cache: Path, **options: Any) -> DetectionTask:
    data = {"kind": "scenes", "train": 20, "validation": 8, "test": 4, "cache_dir": cache}
    task = build_task({"kind": "detection", "data": data} | options)
    assert isinstance(task, DetectionTask)
    return task


@pytest.fixture(scope="module")
def task(cache: Path) -> DetectionTask:
    return make(cache)


def example_of(boxes: Any, labels: Any, crowd: Any = None) -> Example:
    labels = np.array(labels, np.int32)
    crowd = np.zeros(len(labels), bool) if crowd is None else np.array(crowd)
    target = Boxes(np.array(boxes, np.int32).reshape(-1, 4), labels, crowd)
    return Example("x", np.zeros((48, 48, 3), np.float32), target)


def read(task: DetectionTask, examples: list[Example], tokens: np.ndarray) -> list[Detections]:
    """One sequence an example, read back as if every token had been certain."""
    certain = np.zeros((1, task.max_length), np.float32)
    return [task.decode(e, t[None], certain)[0] for e, t in zip(examples, tokens, strict=True)]


LEVELS, CLASSES, MAX_BOXES = 20, 3, 4
LAYOUT = BoxLayout(LEVELS, CLASSES, MAX_BOXES)
box_lists = st.lists(
    st.tuples(*[st.integers(0, LEVELS)] * 4, st.integers(0, CLASSES - 1), st.integers(1, 2)),
    max_size=MAX_BOXES,
)


@given(rows=box_lists)
def test_what_is_written_is_read_back(rows: list[tuple[int, ...]]) -> None:
    table = np.array(rows, np.int32).reshape(-1, 6)
    tokens = LAYOUT.encode(table[:, :4], table[:, 4], table[:, 5])
    assert tokens.shape == (LAYOUT.max_length,)
    assert tokens.dtype == np.int32
    boxes, labels, valid = LAYOUT.decode(tokens[None])
    assert valid[0].sum() == len(rows)
    assert np.array_equal(boxes[0][valid[0]], table[:, :4])
    assert np.array_equal(labels[0][valid[0]], table[:, 4])


@given(rows=box_lists, freely=st.booleans())
def test_what_is_written_is_allowed(rows: list[tuple[int, ...]], freely: bool) -> None:
    table = np.array(rows, np.int32).reshape(-1, 6)
    tokens = LAYOUT.encode(table[:, :4], table[:, 4], table[:, 5])
    length = min(TOKENS_PER_BOX * len(rows) + 1, LAYOUT.max_length)  # with the end token
    assert LAYOUT.allowed(freely)[np.arange(length), tokens[:length]].all()


@settings(max_examples=200)
@given(
    tokens=st.lists(
        st.integers(0, LAYOUT.vocabulary_size - 1),
        min_size=LAYOUT.max_length,
        max_size=LAYOUT.max_length,
    )
)
def test_any_tokens_are_read_by_clipping_and_nothing_after_the_end_counts(
    tokens: list[int],
) -> None:
    boxes, labels, valid = LAYOUT.decode(np.array([tokens]))
    end = tokens.index(END) if END in tokens else len(tokens)
    for slot in range(MAX_BOXES):
        own = tokens[6 * slot : 6 * slot + 6]
        assert valid[0, slot] == (6 * slot + 6 <= end)
        if valid[0, slot]:
            expected = [min(max(t - 3, 0), LEVELS) for t in own[:4]]
            assert boxes[0, slot].tolist() == expected
            assert labels[0, slot] == min(max(own[4] - 3 - LEVELS - 1, 0), CLASSES - 1)


def test_the_papers_tokens_are_where_its_code_has_them() -> None:
    layout = BoxLayout(levels=1000, classes=80, max_boxes=100)
    assert layout.first_coordinate == 3
    assert layout.first_class == 1004
    assert layout.vocabulary_size == 1084
    assert layout.max_length == 600


def test_slots_allow_what_belongs_there_and_free_all_but_confidence() -> None:
    slots, free = LAYOUT.allowed(False), LAYOUT.allowed(True)
    kinds = {"end": [0], "confidence": [1, 2], "coordinate": range(3, 24), "class": range(24, 27)}
    for position in range(LAYOUT.max_length):
        slot = position % 6
        here = {
            "end": slot == 0, "confidence": slot == 5, "coordinate": slot < 4, "class": slot == 4
        }  # fmt: skip
        for kind, tokens in kinds.items():
            assert (slots[position, list(tokens)] == here[kind]).all()
            freely = slot == 5 if kind == "confidence" else slot != 5
            assert (free[position, list(tokens)] == freely).all()


def test_confidence_is_reinforced_only_when_asked_for(cache: Path, task: DetectionTask) -> None:
    assert np.flatnonzero(~task.reinforced_tokens()).tolist() == list(range(5, 36, 6))
    assert make(cache, reinforce_confidence=True).reinforced_tokens().all()


def test_scenes_survive_the_way_through_tokens(task: DetectionTask) -> None:
    examples = [task.load("validation", i, None) for i in task.example_ids("validation")]
    tokens = np.stack([task.target_tokens(e, seed) for seed, e in enumerate(examples)])
    for example, found in zip(examples, read(task, examples, tokens), strict=True):
        assert example.image.shape == (48, 48, 3)
        assert example.image.dtype == np.float32
        said = {(*b, label) for b, label in zip(found.boxes.tolist(), found.labels, strict=True)}
        target = example.target
        true = {(*b, lab) for b, lab in zip(target.boxes.tolist(), target.labels, strict=True)}
        assert said == true
        exact = task.source("validation").load(example.example_id).boxes * 192
        assert (target.boxes == exact).all()  # 192 buckets, 192 points: nothing is rounded


def test_target_order_and_confidence_are_drawn_by_the_seed(task: DetectionTask) -> None:
    example = example_of(np.arange(20).reshape(5, 4), range(5))
    drawn = {task.target_tokens(example, seed).tobytes() for seed in range(20)}
    assert len(drawn) > 15
    assert np.array_equal(task.target_tokens(example, 2**64 - 1),
                          task.target_tokens(example, 2**64 - 1))  # fmt: skip
    confidences = [task.target_tokens(example, s)[5:30:6] for s in range(40)]
    assert np.unique(confidences).tolist() == [1, 2]
    assert 0.3 < np.mean(np.array(confidences) == 2) < 0.7


def test_sorted_boxes_come_from_the_top_down(cache: Path) -> None:
    task = make(cache, box_order="sorted")
    example = example_of([[9, 1, 20, 20], [4, 8, 9, 9], [4, 2, 9, 9]], [0, 1, 2])
    for seed in range(3):
        tokens = task.target_tokens(example, seed)
        found = read(task, [example], tokens[None])[0]
        assert found.labels.tolist() == [2, 1, 0]


def test_crowds_are_not_written_and_too_many_boxes_are_cut(task: DetectionTask) -> None:
    boxes = np.tile([[0, 0, 8, 8]], (9, 1))
    example = example_of(boxes, range(9), [True] * 3 + [False] * 6)
    tokens = task.target_tokens(example, 0)
    assert END not in tokens.tolist()  # six boxes fill the sequence, without an end token
    found = read(task, [example], tokens[None])[0]
    assert sorted(found.labels.tolist()) == [3, 4, 5, 6, 7, 8]
    tokens = task.target_tokens(example_of(boxes, range(9)), 0)
    assert len(read(task, [example], tokens[None])[0]) == 6
    tokens = task.target_tokens(example_of(boxes[:2], [0, 1], [True, True]), 0)
    assert not tokens.any()


def test_probabilities_are_of_the_class_token_and_of_confidence_2(task: DetectionTask) -> None:
    layout = task.layout
    tokens = layout.encode(np.zeros((2, 4), np.int32), np.array([3, 4]), np.array([2, 1]))[None]
    logprobs = np.zeros(tokens.shape, np.float32)
    logprobs[0, [4, 5, 10, 11]] = np.log([0.9, 0.8, 0.5, 0.7])
    (found,) = task.decode(example_of([], []), tokens, logprobs)
    assert np.allclose(found.class_probabilities, [0.9, 0.5])
    assert np.allclose(found.confidences, [0.8, 0.3])
    assert found.confidences.dtype == np.float32


@pytest.mark.parametrize(
    ("rank", "expected"), [("class", [0.9]), ("confidence", [0.3]), ("product", [0.27])]
)
def test_the_rank_is_what_the_config_says(cache: Path, rank: str, expected: list[float]) -> None:
    found = Detections(np.zeros((1, 4), np.int32), np.zeros(1, np.int32),
                       np.array([0.3], np.float32), np.array([0.9], np.float32))  # fmt: skip
    assert np.allclose(make(cache, rank=rank).scores(found), expected)


def test_the_confidence_loss_is_the_cross_entropy_with_the_match_iou(task: DetectionTask) -> None:
    jax = pytest.importorskip("jax")
    random = np.random.default_rng(0)
    count, boxes = 3, task.config.max_boxes
    tokens = np.zeros((count, task.max_length), np.int32)
    for row, said in enumerate((0, 2, boxes)):
        table = random.integers(0, 100, (said, 4))
        tokens[row] = task.layout.encode(table, np.zeros(said, int), random.integers(1, 3, said))
    logits = random.normal(size=(count, task.max_length, task.vocabulary_size))
    logits = np.where(task.allowed_tokens(), logits, -1e9).astype(np.float32)
    iou = random.uniform(size=(count, boxes)).astype(np.float32)
    expected = np.zeros(count)
    for row, said in enumerate((0, 2, boxes)):
        for box in range(said):
            one, two = logits[row, 6 * box + 5, 1:3].astype(float)
            total = np.logaddexp(one, two)
            i = float(iou[row, box])
            expected[row] -= (1 - i) * (one - total) + i * (two - total)
    loss = jax.jit(lambda x: task.auxiliary_loss(x, tokens, {"match_iou": iou}))(logits)
    assert np.allclose(loss, expected, rtol=1e-5)
    gradient = jax.grad(lambda x: task.auxiliary_loss(x, tokens, {"match_iou": iou}).sum())(logits)
    assert np.isfinite(gradient).all()
    touched = np.abs(np.asarray(gradient)).sum(-1) > 0
    assert touched[1].nonzero()[0].tolist() == [5, 11]
    assert not touched[0].any()


def test_patches_show_the_box_that_holds_them(task: DetectionTask) -> None:
    # 192 buckets and a grid of 6: a patch is 32 buckets. A large box and a small one in it.
    example = example_of([[0, 0, 96, 96], [64, 64, 96, 96], [130, 130, 140, 140]], [4, 7, 9])
    classes, boxes = task.dense_targets(example, (6, 6))
    expected = np.full((6, 6), 10)
    expected[:3, :3] = 4
    expected[2, 2] = 7
    expected[4, 4] = 9  # holds no patch's centre: it gets the patch of its own
    assert np.array_equal(classes.reshape(6, 6), expected)
    assert classes.dtype == np.int32
    assert np.allclose(boxes[2 * 6 + 2], [1 / 3, 1 / 3, 0.5, 0.5])
    assert np.allclose(boxes[0], [0, 0, 0.5, 0.5])
    assert not boxes[classes == 10].any()


def test_an_empty_image_is_all_background(task: DetectionTask) -> None:
    classes, boxes = task.dense_targets(example_of([], []), (6, 6))
    assert (classes == 10).all()
    assert not boxes.any()


def test_every_scene_shows_each_of_its_digits_densely(task: DetectionTask) -> None:
    for example_id in task.example_ids("train"):
        example = task.load("train", example_id, None)
        classes, _ = task.dense_targets(example, (6, 6))
        assert set(example.target.labels.tolist()) <= set(classes.tolist())


def test_a_perfect_prediction_has_map_1_and_an_empty_one_0(task: DetectionTask) -> None:
    examples = [task.load("validation", i, None) for i in task.example_ids("validation")]
    tokens = np.stack([task.target_tokens(e, 0) for e in examples])
    figures = task.evaluate(examples, read(task, examples, tokens))
    assert task.headline in figures
    assert figures["mAP"] == figures["AR100"] == figures["AP50"] == pytest.approx(1)
    assert figures["boxes_per_image"] == figures["true_boxes_per_image"] > 1
    figures = task.evaluate(examples, read(task, examples, 0 * tokens))
    assert figures["mAP"] == figures["boxes_per_image"] == 0
    with pytest.raises(ValueError, match="8 examples but 1"):
        task.evaluate(examples, read(task, examples[:1], tokens[:1]))


def test_the_order_of_scores_decides_over_map(task: DetectionTask) -> None:
    example = example_of([[0, 0, 96, 96]], [1])
    boxes = np.array([[0, 0, 96, 96], [100, 100, 190, 190]], np.int32)
    for right, expected in ((0.9, 1.0), (0.1, 0.5)):
        found = Detections(boxes, np.array([1, 1], np.int32), np.ones(2, np.float32),
                           np.array([right, 0.5], np.float32))  # fmt: skip
        assert task.evaluate([example], [found])["mAP"] == pytest.approx(expected, abs=1e-3)


def test_drawings_are_large_and_show_what_they_are_given(task: DetectionTask) -> None:
    example = task.load("test", task.example_ids("test")[0], None)
    true = task.draw(example, None)
    assert true.dtype == np.uint8
    assert true.shape == (288, 288, 3)
    tokens = task.target_tokens(example, 0)[None]
    nothing = task.draw(example, read(task, [example], 0 * tokens)[0])
    assert np.array_equal(nothing[3::6, 3::6], np.rint((example.image + 1) * 127.5))
    assert (true != nothing).any()
    odd = Detections(np.array([[192, 192, 0, 0], [5, 5, 5, 5]], np.int32),
                     np.array([0, 9], np.int32), np.ones(2, np.float32),
                     np.ones(2, np.float32))  # fmt: skip
    assert (task.draw(example, odd) != nothing).any()  # inverted and empty boxes are drawn too


def coco_files(folder: Path, classes: list[str] | None = None) -> dict[str, str]:
    folder.mkdir(exist_ok=True)
    names = classes or ["cat", "dog"]
    content = {
        "images": [{"id": 5, "file_name": "5.png", "height": 30, "width": 60},
                   {"id": 6, "file_name": "6.png", "height": 30, "width": 60}],
        "categories": [{"id": 10 * (i + 1), "name": name} for i, name in enumerate(names)],
        "annotations": [
            {"id": 1, "image_id": 5, "category_id": 20, "bbox": [6, 3, 30, 15], "iscrowd": 0},
            {"id": 2, "image_id": 5, "category_id": 10, "bbox": [0, 0, 60, 30], "iscrowd": 1},
        ],
    }  # fmt: skip
    (folder / "a.json").write_text(json.dumps(content))
    for name in ("5.png", "6.png"):
        Image.new("RGB", (60, 30), (200, 100, 50)).save(folder / name)
    return {"annotations": str(folder / "a.json"), "images": str(folder)}


def test_a_coco_dataset_becomes_a_task(tmp_path: Path) -> None:
    data = {"kind": "coco", "train": coco_files(tmp_path)}
    task = build_task({"kind": "detection", "data": data, "coordinate_buckets": 100,
                       "image_size": [32, 40], "max_boxes": 3})  # fmt: skip
    assert isinstance(task, DetectionTask)
    assert task.class_names == ["cat", "dog"]
    assert task.class_counts().tolist() == [0, 1]
    assert task.example_ids("train") == ["5", "6"]
    example = task.load("train", "5", None)
    assert example.image.shape == (32, 40, 3)
    assert example.target.boxes.tolist() == [[10, 10, 60, 60], [0, 0, 100, 100]]
    assert example.target.crowd.tolist() == [False, True]
    assert not task.target_tokens(task.load("train", "6", None), 0).any()
    with pytest.raises(ValueError, match=r"'test'.*data\.test\.annotations"):
        task.load("test", "5", None)
    with pytest.raises(KeyError, match="no example '7'"):
        task.load("train", "7", None)


def test_augmented_boxes_follow_and_the_seed_decides(tmp_path: Path) -> None:
    data = {"kind": "coco", "train": coco_files(tmp_path)}
    task = build_task({"data": data, "kind": "detection", "augment": {"scale": [0.5, 1.5]}})
    plain = task.load("train", "5", None)
    loaded = [task.load("train", "5", seed) for seed in (1, 1, 2, 3)]
    assert np.array_equal(loaded[0].image, loaded[1].image)
    assert np.array_equal(loaded[0].target.boxes, loaded[1].target.boxes)
    assert len({example.target.boxes.tobytes() for example in (plain, *loaded)}) == 4
    for example in loaded:
        assert len(example.target.boxes) == len(example.target.labels) == len(example.target.crowd)


def test_faults_of_the_data_come_out_when_the_task_is_built(tmp_path: Path) -> None:
    place = coco_files(tmp_path)
    config = {"kind": "detection", "data": {"kind": "coco", "train": place}}
    (tmp_path / "6.png").unlink()
    with pytest.raises(ImageError, match=r"6\.png"):
        build_task(config)
    annotations = Path(place["annotations"])
    annotations.write_text(annotations.read_text().replace("[6, 3, 30, 15]", "[6, 3, 300, 15]"))
    with pytest.raises(AnnotationError, match=r"annotation 1.*300"):
        build_task(config)


def test_splits_of_other_classes_are_refused(tmp_path: Path) -> None:
    data = {"kind": "coco", "train": coco_files(tmp_path / "a"),
            "test": coco_files(tmp_path / "b", ["cat", "cow"])}  # fmt: skip
    task = build_task({"kind": "detection", "data": data})
    with pytest.raises(ValueError, match=r"'test'.*cow.*dog"):
        task.example_ids("test")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"coordinate_buckets": 0}, "coordinate_buckets"),
        ({"max_boxes": 0}, "max_boxes"),
        ({"box_order": "left"}, "box_order"),
        ({"bins": 5}, "bins"),
        ({"image_size": [4, 48]}, "image_size"),
        ({"data": {"kind": "voc"}}, "data"),
        ({"data": {"kind": "scenes", "drop_annotations": 1.5}}, "drop_annotations"),
        ({"data": {"kind": "coco"}}, "train"),
        ({"augment": {}}, "mirrored"),
    ],
)
def test_a_config_that_cannot_be_names_the_key(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        DetectionConfig.model_validate(options)


def test_an_unknown_kind_of_task_names_the_nearest() -> None:
    with pytest.raises(UnknownTaskError, match=r"'detecton'.*did you mean 'detection'"):
        build_task({"kind": "detecton"})
    with pytest.raises(UnknownTaskError, match="'None'"):
        build_task({})


def test_a_reward_worker_gets_its_task_without_jax(cache: Path) -> None:
    """Runs in a process of its own: others may have imported jax into this one."""
    program = f"""
import sys
from vision.tasks.registry import build_task
data = dict(kind="scenes", train=20, validation=8, test=4, cache_dir={str(cache)!r})
task = build_task(dict(kind="detection", data=data))
example = task.load("train", task.example_ids("train")[0], 0)
tokens = task.target_tokens(example, 0)[None]
task.evaluate([example], task.decode(example, tokens, 0.0 * tokens))
assert "jax" not in sys.modules
"""
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", program], check=True, cwd=root)
