"""The COCO metrics are pycocotools' own."""

import json

import numpy as np
import pytest

from vision.metrics.coco import FIGURES, CocoFormatError, coco_evaluate, evaluate_boxes

# What COCOeval gives for the official fake results on these images.
OFFICIAL = (
    0.5045806987249628,
    0.6969727247299577,
    0.5729816669904824,
    0.5856257209410443,
    0.5193996948036719,
    0.5013978986347466,
    0.38681277964578054,
    0.5936795762842003,
    0.595352982877607,
    0.6398109626113442,
    0.5664205978994309,
    0.5642905982905982,
)
BOX = [10.0, 10.0, 20.0, 20.0]


def dataset(annotations=(), images=(1, 2), categories=(3, 7)):
    return {
        "images": [{"id": i, "height": 100, "width": 100} for i in images],
        "categories": [{"id": c, "name": str(c)} for c in categories],
        "annotations": [
            {"id": i, "area": a["bbox"][2] * a["bbox"][3], "iscrowd": 0} | a
            for i, a in enumerate(annotations)
        ],
    }


def found(box=BOX, image=1, category=3, score=0.9):
    return {"image_id": image, "category_id": category, "bbox": box, "score": score}


@pytest.fixture
def coco_files(shared_data):
    folder = shared_data / "coco_boxes_100"
    return (
        folder / "instances_val2014_100.json",
        folder / "instances_val2014_fakebbox100_results.json",
    )


def test_official_fake_results_give_the_official_figures(coco_files, capfd):
    figures = coco_evaluate(*coco_files)
    assert tuple(figures) == FIGURES
    assert list(figures.values()) == pytest.approx(OFFICIAL, abs=1e-12)
    assert capfd.readouterr() == ("", "")


def test_content_gives_what_files_give_and_stays_as_it_was(coco_files):
    annotations, predictions = (json.loads(path.read_text()) for path in coco_files)
    before = json.dumps([annotations, predictions])
    assert list(coco_evaluate(annotations, predictions).values()) == pytest.approx(OFFICIAL)
    assert json.dumps([annotations, predictions]) == before


def test_boxes_in_memory_give_what_files_give(coco_files):
    annotations, predictions = (json.loads(path.read_text()) for path in coco_files)
    images = [image["id"] for image in annotations["images"]]
    labels = {c["id"]: i for i, c in enumerate(annotations["categories"])}

    def per_image(entries, value):
        rows = {image: [] for image in images}
        for entry in entries:
            rows[entry["image_id"]].append(value(entry))
        return [np.array(rows[image]) for image in images]

    def corners(entry):
        x, y, width, height = entry["bbox"]
        return [y, x, y + height, x + width]

    def label(entry):
        return labels[entry["category_id"]]

    truth = annotations["annotations"]
    figures = evaluate_boxes(
        per_image(truth, corners),
        per_image(truth, label),
        per_image(predictions, corners),
        per_image(predictions, label),
        per_image(predictions, lambda entry: entry["score"]),
        len(labels),
        crowd=per_image(truth, lambda entry: bool(entry["iscrowd"])),
    )
    expected = dict(zip(FIGURES, OFFICIAL, strict=True))
    # Corners and back to widths loses a last bit: an IoU at a threshold may fall.
    assert figures == pytest.approx({name: expected[name] for name in figures}, abs=1e-3)
    assert list(figures) == ["AP", "AP50", "AP75", "AR1", "AR10", "AR100"]


def test_perfect_boxes_score_one_in_any_unit_and_nothing_scores_zero():
    boxes = np.array([[0.1, 0.1, 0.2, 0.3], [0.5, 0.5, 0.9, 0.9]])
    labels = np.array([2, 0])
    none = (np.zeros((0, 4)), np.zeros(0, int), np.zeros(0))
    for scale in (1, 1000):
        truth = [boxes * scale, none[0]], [labels, none[1]]
        perfect = evaluate_boxes(*truth, *truth, [np.ones(2), none[2]], n_classes=4)
        # One detection a class and image is enough here, so AR1 is 1 as well.
        assert perfect == pytest.approx(dict.fromkeys(perfect, 1.0))
        nothing = evaluate_boxes(*truth, *([array] * 2 for array in none), n_classes=4)
        assert set(nothing.values()) == {0.0}


def test_inverted_prediction_overlaps_with_nothing():
    box, label = np.array([[0, 0, 10, 10]]), np.array([0])
    for inverted in ([10, 0, 0, 10], [10, 10, 0, 0]):
        figures = evaluate_boxes(
            [box], [label], [np.array([inverted])], [label], [np.ones(1)], n_classes=1
        )
        assert figures["AP50"] == 0


def test_crowd_boxes_are_neither_missed_nor_false():
    box = np.array([[0, 0, 10, 10], [20, 20, 60, 60]])
    zeros = np.array([0, 0])
    figures = evaluate_boxes(
        [box], [zeros], [box], [zeros], [np.array([0.1, 0.9])], 1, [np.array([False, True])]
    )
    assert figures["AP"] == pytest.approx(1)


def test_annotation_of_id_zero_counts_as_matched():
    truth = dataset([{"image_id": 1, "category_id": 3, "bbox": BOX, "id": 0}])
    assert coco_evaluate(truth, [found()])["AP"] == pytest.approx(1)


GOOD = {"image_id": 1, "category_id": 3, "bbox": BOX}


@pytest.mark.parametrize(
    ("annotations", "predictions", "message"),
    [
        ([], [], "expected a JSON object, not list"),
        ({"images": []}, [], "no list 'annotations'"),
        (dataset([GOOD | {"image_id": 9}]), [], "annotation 0: image_id 9"),
        (dataset([GOOD | {"category_id": 5}]), [], r"category_id 5 .* \[3, 7\]"),
        (dataset([GOOD]), {}, "expected a JSON list, not dict"),
        (dataset([GOOD]), [found(), found(image=9)], "prediction 1: image_id 9"),
        (dataset([GOOD]), [found(image=[1])], r"image_id \[1\]"),
        (dataset([GOOD]), [found(category=4)], "prediction 0: category_id 4"),
        (dataset([GOOD]), [found(box=[1, 2, 3])], "expected 4 numbers"),
        (dataset([GOOD]), [found(box=[1, 2, 3, float("nan")])], "expected 4 numbers"),
        (dataset([GOOD]), [found(score="high")], "score is 'high'"),
        (dataset([GOOD]), [{"image_id": 1}], "has no 'category_id'"),
        (dataset([GOOD]), [3], "has no 'image_id'"),
    ],
)
def test_bad_content_is_named(annotations, predictions, message):
    with pytest.raises(CocoFormatError, match=message):
        coco_evaluate(annotations, predictions)


def test_file_that_is_missing_or_not_json_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no\.json"):
        coco_evaluate(tmp_path / "no.json", [])
    (tmp_path / "bad.json").write_text("{images")
    with pytest.raises(CocoFormatError, match=r"bad\.json is not JSON"):
        coco_evaluate(tmp_path / "bad.json", [])
    (tmp_path / "picture.json").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(CocoFormatError, match=r"picture\.json is not JSON"):
        coco_evaluate(dataset([GOOD]), tmp_path / "picture.json")
