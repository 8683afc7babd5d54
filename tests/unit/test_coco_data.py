"""The loader of COCO instances: what it reads, and that every fault is named."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vision.data.coco import AnnotationError, load_instances
from vision.data.images import ImageError


def content() -> dict[str, Any]:
    """Categories with gaps and out of order, a crowd, an image without boxes."""
    return {
        "images": [
            {"id": 7, "file_name": "a.png", "height": 40, "width": 80},
            {"id": 3, "file_name": "deep/b.png", "height": 20, "width": 20},
            {"id": 9, "file_name": "c.png", "height": 10, "width": 10},
        ],
        "categories": [{"id": 90, "name": "toothbrush"}, {"id": 1, "name": "person"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 90, "bbox": [8, 4, 16, 20], "iscrowd": 0},
            {"id": 2, "image_id": 7, "category_id": 1, "bbox": [0, 0, 80, 40], "iscrowd": 1},
            {"id": 3, "image_id": 3, "category_id": 1, "bbox": [5, 5, 10.5, 15]},
        ],
    }


def write(folder: Path, data: Any) -> Path:
    path = folder / "instances.json"
    path.write_text(json.dumps(data))
    return path


def load(folder: Path, data: Any, **options: Any) -> Any:
    return load_instances(write(folder, data), folder, **options)


def test_boxes_classes_crowds_and_empty_images_are_read(tmp_path: Path) -> None:
    instances = load(tmp_path, content())
    assert instances.class_names == ["person", "toothbrush"]
    assert instances.category_ids == [1, 90]
    assert list(instances.images) == ["7", "3", "9"]
    first = instances.images["7"]
    assert np.allclose(first.boxes, [[0.1, 0.1, 0.6, 0.3], [0, 0, 1, 1]])
    assert first.labels.tolist() == [1, 0]
    assert first.crowd.tolist() == [False, True]
    assert instances.images["3"].crowd.tolist() == [False]
    assert instances.images["9"].boxes.shape == (0, 4)


def test_images_are_read_from_their_folder_and_checked(tmp_path: Path) -> None:
    instances = load(tmp_path, content())
    (tmp_path / "deep").mkdir()
    for name, (width, height) in {"a.png": (80, 40), "deep/b.png": (20, 20)}.items():
        Image.new("RGB", (width, height), (9, 8, 7)).save(tmp_path / name)
    assert instances.read_image("7").shape == (40, 80, 3)
    assert instances.read_image("3")[0, 0].tolist() == [9, 8, 7]
    with pytest.raises(ImageError, match=r"c\.png"):
        instances.read_image("9")
    with pytest.raises(ImageError, match=r"1 of 3 .*c\.png"):
        instances.check_images()
    Image.new("RGB", (11, 10)).save(tmp_path / "c.png")
    instances.check_images()
    with pytest.raises(ImageError, match=r"c\.png is 11 x 10 .* 10 x 10"):
        instances.read_image("9")


@pytest.mark.parametrize(
    ("bbox", "fault"),
    [
        ([70, 4, 16, 20], "stands out of its image of 80 x 40"),
        ([-3, 4, 16, 20], "stands out"),
        ([8, 30, 16, 20], "stands out"),
        ([100, 4, 16, 20], "stands out"),
        ([8, 4, 0, 20], "no extent"),
        ([8, 4, 16, -2], "no extent"),
        ([8, 4, 16], "four finite numbers"),
        (None, "four finite numbers"),
        ([8, 4, float("nan"), 20], "four finite numbers"),
        (["8", 4, 16, 20], "four finite numbers"),
    ],
)
def test_a_bad_box_names_file_annotation_and_value(tmp_path: Path, bbox: Any, fault: str) -> None:
    data = content()
    data["annotations"][0] |= {"id": 4711, "bbox": bbox}
    with pytest.raises(AnnotationError, match=fault) as caught:
        load(tmp_path, data)
    for part in ("instances.json", "annotation 4711", repr(bbox)):
        assert part in str(caught.value)


def test_rounding_at_the_border_is_not_an_error(tmp_path: Path) -> None:
    data = content()
    data["annotations"][0]["bbox"] = [-0.01, 0, 80.04, 40.05]
    assert np.array_equal(load(tmp_path, data).images["7"].boxes[0], [0, 0, 1, 1])


def test_bad_boxes_are_clipped_when_asked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = content()
    data["annotations"][0]["bbox"] = [72, -10, 16, 20]
    data["annotations"][2]["bbox"] = [5, 5, 0, 15]
    instances = load(tmp_path, data, on_bad_boxes="clip")
    assert np.allclose(instances.images["7"].boxes[0], [0, 0.9, 0.25, 1])
    assert len(instances.images["3"].boxes) == 0
    assert "1 clipped, 1 left out" in caplog.text


def test_bad_boxes_are_skipped_when_asked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = content()
    data["annotations"][0]["bbox"] = [72, -10, 16, 20]
    data["annotations"][2]["category_id"] = 5
    instances = load(tmp_path, data, on_bad_boxes="skip")
    assert instances.images["7"].labels.tolist() == [0]
    assert len(instances.images["3"].boxes) == 0
    assert "2 left out" in caplog.text


@pytest.mark.parametrize("on_bad_boxes", ["error", "clip"])
def test_an_unknown_category_is_named(tmp_path: Path, on_bad_boxes: str) -> None:
    data = content()
    data["annotations"][1]["category_id"] = 5
    with pytest.raises(AnnotationError, match=r"annotation 2: unknown category 5; .*\[1, 90\]"):
        load(tmp_path, data, on_bad_boxes=on_bad_boxes)


def test_an_annotation_of_an_unknown_image_is_named(tmp_path: Path) -> None:
    data = content()
    data["annotations"][1]["image_id"] = 8
    with pytest.raises(AnnotationError, match="annotation 2: no image 8"):
        load(tmp_path, data)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda d: d.pop("categories"), "no list 'categories'"),
        (lambda d: d.update(images={}), "no list 'images'"),
        (lambda d: d.update(categories=[]), "category ids"),
        (lambda d: d["categories"].append({"id": 1}), "category ids must be unique"),
        (lambda d: d["categories"].append({"id": "x"}), "'x'"),
        (lambda d: d["images"].append(dict(d["images"][0])), "image id 7 occurs twice"),
        (lambda d: d["images"][0].update(height=0), "image 7 has height 0"),
        (lambda d: d["images"][1].pop("file_name"), r"images\[1\] has no file_name"),
        (lambda d: d["annotations"].append(3), r"annotations\[3\] is no object"),
    ],
)
def test_a_file_of_another_form_says_what_is_missing(
    tmp_path: Path, change: Any, fault: str
) -> None:
    data = content()
    change(data)
    with pytest.raises(AnnotationError, match=fault) as caught:
        load(tmp_path, data)
    assert "instances.json" in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "\x00"])
def test_what_is_not_json_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "broken.json").write_text(text)
    with pytest.raises(AnnotationError, match=r"broken\.json is not JSON"):
        load_instances(tmp_path / "broken.json", tmp_path)


def test_a_results_file_is_not_taken_for_annotations(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match="list"):
        load(tmp_path, [{"image_id": 1, "bbox": [1, 2, 3, 4]}])


def test_a_missing_annotation_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.json"):
        load_instances(tmp_path / "nothing.json", tmp_path)


def test_cocos_own_file_is_read(shared_data: Path) -> None:
    folder = shared_data / "coco_boxes_100"
    path = folder / "instances_val2014_100.json"
    instances = load_instances(path, folder)
    raw = json.loads(path.read_text())
    assert len(instances.images) == len(raw["images"])
    assert len(instances.class_names) == 80
    assert sum(len(e.labels) for e in instances.images.values()) == len(raw["annotations"])
    assert sum(int(e.crowd.sum()) for e in instances.images.values()) == 9
    for entry in instances.images.values():
        assert ((entry.boxes >= 0) & (entry.boxes <= 1)).all()
    first = raw["images"][0]
    with pytest.raises(ImageError, match=first["file_name"]):
        instances.read_image(str(first["id"]))
