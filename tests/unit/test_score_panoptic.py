"""Scoring panoptic files without a model."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from deploy.cli import app
from rewards.score_panoptic import score_panoptic
from vision.data.coco import AnnotationError
from vision.data.coco_panoptic import Category, write_panoptic
from vision.data.images import ImageError
from vision.data.segments import SegmentMap

CATEGORIES = [Category(1, "cat", True), Category(2, "dog", True), Category(9, "sky", False)]
LABELS = np.array([0, 1, 2, 3, 3], np.int32)


def segments(*rows):
    return SegmentMap(np.array(rows, np.int32), LABELS, np.zeros(5, bool))


TRUTH = {1: segments([1, 1, 1, 2], [3, 3, 3, 3]), 2: segments([0, 0, 3, 3], [0, 0, 3, 3])}
# In image 1 the cat has IoU 2/3, the dog 1/2; in image 2 the sky is in two parts.
FOUND = {1: segments([1, 1, 2, 2], [3, 3, 3, 3]), 2: segments([0, 0, 3, 4], [0, 0, 3, 4])}


@pytest.fixture
def files(tmp_path):
    """Writes both sides and returns the arguments."""

    def write(truth=TRUTH, found=FOUND, categories=CATEGORIES):
        arguments = []
        for name, maps in (("A", truth), ("P", found)):
            path, folder = tmp_path / f"{name}.json", tmp_path / name
            images = [(number, f"{number}.jpg", each) for number, each in maps.items()]
            write_panoptic(path, folder, categories, images)
            arguments += [path, folder]
        return arguments

    return write


def test_figures_are_by_class_and_rewards_by_image(files):
    scores = score_panoptic(*files())
    assert scores["all"] == pytest.approx(
        {"PQ": (2 / 3 + 0 + 1) / 3, "SQ": (2 / 3 + 0 + 1) / 3, "RQ": 2 / 3, "N": 3}
    )
    assert scores["things"] == pytest.approx({"PQ": 1 / 3, "SQ": 1 / 3, "RQ": 0.5, "N": 2})
    assert scores["stuff"] == {"PQ": 1.0, "SQ": 1.0, "RQ": 1.0, "N": 1}
    assert scores["classes"]["dog"] == {
        "PQ": 0.0, "SQ": 0.0, "RQ": 0.0, "matched": 0, "unmatched": 1, "missed": 1
    }  # fmt: skip
    assert scores["reward_by_image"] == pytest.approx({"1": 2 / 3 + 1 - 0.3, "2": 1.0})
    assert scores["reward"] == pytest.approx((2 / 3 + 0.7 + 1) / 2)
    assert scores["images"] == 2
    assert score_panoptic(*files(), unmatched_penalty=0)["reward_by_image"]["1"] > 1.6


def test_a_split_without_things_or_stuff_is_null(files):
    sky = {2: TRUTH[2]}
    scores = score_panoptic(*files(sky, sky))
    assert scores["things"] is None
    assert scores["all"] == scores["stuff"] == {"PQ": 1.0, "SQ": 1.0, "RQ": 1.0, "N": 1}
    void = {1: segments([0, 0], [0, 0])}
    scores = score_panoptic(*files(void, void))
    assert scores["all"] is scores["things"] is scores["stuff"] is None
    assert (scores["classes"], scores["reward"]) == ({}, 0.0)


def test_classes_of_one_name_stay_apart(files):
    twins = [Category(1, "cat", True), Category(2, "cat", True), CATEGORIES[2]]
    assert list(score_panoptic(*files(categories=twins))["classes"]) == [
        "cat (1)", "cat (2)", "sky"
    ]  # fmt: skip


def test_coco_itself_against_itself(shared_data):
    folder = shared_data / "coco_panoptic_2"
    pair = [folder / "panoptic_examples.json", folder / "panoptic_examples"]
    scores = score_panoptic(*pair, *pair)
    assert scores["all"] == {"PQ": 1.0, "SQ": 1.0, "RQ": 1.0, "N": 8}
    assert scores["things"]["N"] == scores["stuff"]["N"] == 4
    assert scores["reward_by_image"] == {"142238": 17.0, "439180": 30.0}


def test_the_command_prints_json_or_a_table(files):
    annotations, annotation_dir, predictions, prediction_dir = map(str, files())
    arguments = ["score", "panoptic", "--annotations", annotations, "--annotation-dir",
                 annotation_dir, "--predictions", predictions, "--prediction-dir",
                 prediction_dir]  # fmt: skip
    printed = CliRunner().invoke(app, [*arguments, "--json"])
    assert printed.exit_code == 0
    assert json.loads(printed.stdout) == score_panoptic(*files())
    table = CliRunner().invoke(app, arguments)
    assert table.exit_code == 0
    for word in ("things", "dog", "0.3333", "reward an image: 1.18"):
        assert word in table.stdout
    sky = {2: TRUTH[2]}
    files(sky, sky)
    assert CliRunner().invoke(app, arguments).exit_code == 0  # a split that is null
    failed = CliRunner().invoke(app, [*arguments[:-1], str(annotation_dir) + "x"])
    assert failed.exit_code == 1
    assert "files are missing" in failed.output


def test_faults_of_the_predictions_name_file_and_segment(files):
    with pytest.raises(AnnotationError, match=r"P\.json: 1 of 2 images have no entry.*image 2"):
        score_panoptic(*files(found={1: FOUND[1]}))
    with pytest.raises(AnnotationError, match=r"P\.json: annotation of image 3"):
        score_panoptic(*files(found=FOUND | {3: FOUND[1]}))
    with pytest.raises(ImageError, match=r"P/2\.png is 2 x 1 pixels"):
        score_panoptic(*files(found={1: FOUND[1], 2: segments([3, 3])}))
    arguments = files()
    content = json.loads(arguments[2].read_text())
    content["annotations"][0]["segments_info"].pop()
    arguments[2].write_text(json.dumps(content))
    with pytest.raises(AnnotationError, match=r"P/1\.png: the id 4 of 4 pixels"):
        score_panoptic(*arguments)
    with pytest.raises(ValueError, match="unmatched_penalty is -1"):
        score_panoptic(*arguments, unmatched_penalty=-1)
    with pytest.raises(ValueError, match="has no images"):
        score_panoptic(*files({}, {}))
