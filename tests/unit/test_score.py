"""Scoring COCO files without a model."""

import json

import numpy as np
import pytest

from rewards.score import score_detection
from vision.metrics.coco import CocoFormatError, coco_evaluate

IMAGES = [{"id": i, "height": 100, "width": 200} for i in (4, 5)]
CATEGORIES = [{"id": c, "name": str(c)} for c in (3, 7)]


def annotation(number, box, category=3, image=4, crowd=0):
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": box,
        "area": box[2] * box[3],
        "iscrowd": crowd,
    }


def found(box, category=3, image=4):
    return {"image_id": image, "category_id": category, "bbox": box, "score": 0.5}


@pytest.fixture
def files(tmp_path):
    """Writes both files and returns their paths."""

    def write(annotations, predictions, images=IMAGES):
        truth = {"images": images, "categories": CATEGORIES, "annotations": annotations}
        paths = tmp_path / "A.json", tmp_path / "P.json"
        for path, content in zip(paths, (truth, predictions), strict=True):
            path.write_text(json.dumps(content))
        return paths

    return write


BOXES = [
    annotation(1, [0, 0, 20, 20]),
    annotation(2, [50, 50, 150, 50], category=7),
    annotation(3, [0, 0, 10, 10], image=5),
    annotation(4, [0, 0, 200, 100], image=5, crowd=1),
]


def test_rewards_are_means_over_all_images(files):
    predictions = [
        found([0, 0, 20, 20]),
        found([0, 0, 20, 20]),  # a duplicate
        found([50, 50, 150, 50], category=7),
        found([50, 50, 150, 50], category=3),  # a class that is not there
    ]
    figures = score_detection(*files(BOXES, predictions))
    assert figures["reward_recall"] == pytest.approx((2 - 0.3 + 0) / 2)
    weights = 1 / (np.array([2, 1]) + 0.05 * 3)
    weights /= weights.mean()
    assert figures["reward_map"] == pytest.approx((0.7 * weights[0] + weights[1]) / 2)
    assert (figures["images"], figures["boxes"], figures["predictions"]) == (2, 3, 4)


def test_figures_are_those_of_the_metric(shared_data):
    folder = shared_data / "coco_boxes_100"
    paths = (
        folder / "instances_val2014_100.json",
        folder / "instances_val2014_fakebbox100_results.json",
    )
    figures = score_detection(*paths)
    metric = coco_evaluate(*paths)
    assert {name: figures[name] for name in metric} == metric
    assert figures["images"] == 100
    # The ground truth itself finds all; another number of levels moves no box by much.
    truth = json.loads(paths[0].read_text())["annotations"]
    assert 0 < figures["reward_recall"] < sum(not a["iscrowd"] for a in truth) / 100
    coarse = score_detection(*paths, levels=200)
    assert coarse["reward_recall"] == pytest.approx(figures["reward_recall"], rel=0.05)


def test_no_predictions_score_zero(files):
    figures = score_detection(*files(BOXES, []))
    assert figures["reward_map"] == figures["reward_recall"] == figures["AP"] == 0


def test_box_at_the_border_is_inside(files):
    border = [annotation(1, [100.3, 0, 100, 100.2])]
    assert score_detection(*files(border, []))["boxes"] == 1


@pytest.mark.parametrize(
    ("annotations", "predictions", "message"),
    [
        ([annotation(1, [190, 0, 20, 20])], [], r"A\.json: annotation 1: .*outside.*200 × 100"),
        (BOXES, [found([0, -3, 20, 20])], r"P\.json: prediction 0: .*outside its image"),
        (BOXES, [found([9, 9, -2, 2])], r"P\.json: prediction 0: .*negative size"),
        (BOXES, [found([0, 0, 1, 1], category=4)], r"P\.json: prediction 0: category_id 4"),
        (BOXES, [found([0, 0, 1, 1], image=6)], r"P\.json: prediction 0: image_id 6"),
        ([annotation(1, [0, 0, 9, 9], category=4)], [], r"A\.json: annotation 1: category_id 4"),
        ([BOXES[3]], [], "no box that is not a crowd"),
    ],
)
def test_bad_entries_name_file_and_entry(files, annotations, predictions, message):
    with pytest.raises(CocoFormatError, match=message):
        score_detection(*files(annotations, predictions))


def test_image_without_its_size_is_named(files):
    with pytest.raises(CocoFormatError, match="image 4: height is None"):
        score_detection(*files(BOXES[:2], [], images=[{"id": 4, "width": 10}]))


def test_files_and_levels_that_cannot_be_used_are_named(files, tmp_path):
    annotations, predictions = files(BOXES, [])
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        score_detection(annotations, tmp_path / "none.json")
    with pytest.raises(ValueError, match="levels is 0"):
        score_detection(annotations, predictions, levels=0)
    predictions.write_text("boxes")
    with pytest.raises(CocoFormatError, match=r"P\.json is not JSON"):
        score_detection(annotations, predictions)
