"""Captions from files and scenes: formats, bad input, determinism."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vision.data import caption_scenes as module
from vision.data.caption_scenes import (
    NUMERALS,
    TINTS,
    Thing,
    describe,
    draw_scene,
    generate_caption_scenes,
    load_caption_scenes,
    relation,
)
from vision.data.captions import open_captions, prepare_captions, read_coco_captions, read_karpathy
from vision.data.coco import AnnotationError
from vision.data.config import CaptionScenesOptions, CocoCaptionsOptions, KarpathyOptions
from vision.data.images import ImageError
from vision.data.scenes import POINTS, SPLITS, random_of, read_digits, read_photos


def coco_content(*captions: Any) -> dict[str, Any]:
    return {
        "images": [{"id": 7, "file_name": "7.png"}],
        "annotations": [
            {"id": 10 + i, "image_id": 7, "caption": caption} for i, caption in enumerate(captions)
        ],
    }


def write(folder: Path, content: Any, name: str = "captions.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(content))
    Image.new("RGB", (9, 6), (200, 100, 50)).save(folder / "7.png")
    return path


def karpathy_image(number: int, split: str, *sentences: Any) -> dict[str, Any]:
    return {"cocoid": number, "split": split, "filepath": "val2014", "filename": f"{number}.png",
            "sentences": [s if isinstance(s, dict) else {"raw": s} for s in sentences]}  # fmt: skip


def test_a_coco_file_gives_its_captions_and_images(tmp_path: Path) -> None:
    path = write(tmp_path, coco_content("A dog.", "Собака бежит", "一只狗", "w " * 1000))
    place = {"annotations": path, "images": tmp_path}
    source = open_captions(CocoCaptionsOptions.model_validate({"train": place}), "train")
    assert source.example_ids == ["7"]
    assert source.captions("7") == ("A dog.", "Собака бежит", "一只狗", "w " * 1000)
    assert source.image("7").shape == (6, 9, 3)
    with pytest.raises(KeyError, match="no example '8'"):
        source.captions("8")
    with pytest.raises(ValueError, match=r"'test'.*data\.test\.annotations"):
        open_captions(CocoCaptionsOptions.model_validate({"train": place}), "test")
    with pytest.raises(ValueError, match=r"'val'.*validation"):
        open_captions(CocoCaptionsOptions.model_validate({"train": place}), "val")


def test_karpathys_restval_trains_and_his_val_is_our_validation(tmp_path: Path) -> None:
    images = [
        karpathy_image(1, "train", "a"),
        karpathy_image(2, "restval", "b", {"tokens": ["c", "d"]}),
        karpathy_image(3, "val", "e"),
        karpathy_image(4, "test", "f"),
    ]
    path = write(tmp_path, {"images": images, "dataset": "coco"})
    (tmp_path / "val2014").mkdir()
    (tmp_path / "7.png").rename(tmp_path / "val2014" / "3.png")

    def options(**more: Any) -> KarpathyOptions:
        values = {"annotations": path, "images": tmp_path, "check_images": False}
        return KarpathyOptions.model_validate(values | more)

    assert open_captions(options(), "train").example_ids == ["1", "2"]
    assert open_captions(options(), "train").captions("2") == ("b", "c d")
    assert open_captions(options(restval=False), "train").example_ids == ["1"]
    assert open_captions(options(), "validation").image("3").shape == (6, 9, 3)
    assert open_captions(options(), "test").example_ids == ["4"]
    with pytest.raises(ImageError, match=r"1 of 1 image files are missing.*4\.png"):
        open_captions(options(check_images=True), "test")
    only = write(tmp_path, {"images": images[:1]}, "only.json")
    with pytest.raises(AnnotationError, match=r"only\.json: no image is of split val"):
        read_karpathy(only, tmp_path, "validation")


def test_missing_and_broken_images_name_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, coco_content("a dog"))
    place = {"annotations": path, "images": tmp_path}
    source = open_captions(CocoCaptionsOptions.model_validate({"train": place}), "train")
    (tmp_path / "7.png").write_bytes(b"\x89PNG broken")
    with pytest.raises(ImageError, match=r"7\.png"):
        source.image("7")
    (tmp_path / "7.png").unlink()
    with pytest.raises(ImageError, match=r"7\.png"):
        open_captions(CocoCaptionsOptions.model_validate({"train": place}), "train")


@pytest.mark.parametrize("caption", ["", "  \n", "...", "?!"])
def test_a_caption_without_words_is_an_error_or_left_out(tmp_path: Path, caption: str) -> None:
    path = write(tmp_path, coco_content("a dog", caption))
    with pytest.raises(AnnotationError, match=r"captions\.json: annotation 11: .*on_bad_captions"):
        read_coco_captions(path, tmp_path)
    assert read_coco_captions(path, tmp_path, "skip")["7"].captions == ("a dog",)
    path = write(tmp_path, {"images": [karpathy_image(1, "train", "a", caption)]})
    with pytest.raises(AnnotationError, match=r"images\[0\]: sentences\[1\]: .*no letter"):
        read_karpathy(path, tmp_path, "train")


def test_an_image_without_captions_is_an_error_or_left_out(tmp_path: Path) -> None:
    content = coco_content("a dog")
    content["images"].append({"id": 8, "file_name": "8.png"})
    path = write(tmp_path, content)
    with pytest.raises(AnnotationError, match=r"image 8 has no caption \(1 of 2"):
        read_coco_captions(path, tmp_path)
    assert list(read_coco_captions(path, tmp_path, "skip")) == ["7"]
    with pytest.raises(AnnotationError, match="no image has a caption"):
        read_coco_captions(write(tmp_path, coco_content()), tmp_path, "skip")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "an object is expected"),
        ({"images": []}, "no list 'annotations'"),
        ({"annotations": []}, "no list 'images'"),
        ({"images": [{"id": 7}], "annotations": []}, r"images\[0\] has no id or file_name"),
        ({"images": coco_content()["images"] * 2, "annotations": []}, "image id 7 occurs twice"),
        (coco_content(None), "annotation 10: caption None is no text"),
        (coco_content() | {"annotations": [3]}, r"annotations\[0\] is no object"),
        (coco_content() | {"annotations": [{"id": 1, "image_id": 9, "caption": "a"}]},
         "annotation 1: no image 9 in the file"),
    ],
)  # fmt: skip
def test_what_is_no_coco_file_names_file_and_entry(
    tmp_path: Path, content: Any, message: str
) -> None:
    with pytest.raises(AnnotationError, match=rf"captions\.json.*{message}"):
        read_coco_captions(write(tmp_path, content), tmp_path)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ({"split": "train"}, r"images\[0\] has no filename or split"),
        (karpathy_image(1, "train") | {"sentences": None}, "no list 'sentences'"),
        (karpathy_image(1, "train", {"words": 3}), "caption None is no text"),
        (karpathy_image(1, "train"), "image 1 has no caption"),
    ],
)
def test_what_is_no_karpathy_file_names_file_and_entry(
    tmp_path: Path, image: Any, message: str
) -> None:
    path = write(tmp_path, {"images": [image]})
    with pytest.raises(AnnotationError, match=rf"captions\.json.*{message}"):
        read_karpathy(path, tmp_path, "train")
    path.write_text("{")
    with pytest.raises(AnnotationError, match=r"captions\.json is not JSON"):
        read_karpathy(path, tmp_path, "train")


def test_scenes_are_the_same_on_every_machine() -> None:
    digest = hashlib.sha256()
    for split in SPLITS:
        made = generate_caption_scenes(0, split, 10)
        digest.update(made.images.tobytes() + json.dumps(made.captions).encode())
    # Seen on x86-64, numpy 2.4. When the generator changes on purpose, raise GENERATOR_VERSION.
    assert digest.hexdigest() == "fbf9a12f5f11c052f635ca2ae3a39e261ce9476b846f199612554fd8da66b79c"


def test_captions_say_what_is_drawn() -> None:
    photos, digits = read_photos("validation"), read_digits("validation")
    mentioned = set()
    for index in range(60):
        random = random_of(f"captions/0/validation/{index}")
        image, things = draw_scene(random, photos, digits)
        captions = describe(random, things)
        assert image.shape == (48, 48, 3)
        assert len(set(captions)) >= 3
        assert len(captions) == module.REFERENCES
        there = {NUMERALS[t.digit] for t in things} | {NUMERALS[len(things)]}
        for caption in captions:
            words = set(caption.split())
            assert words & set(TINTS) <= {t.tint for t in things}
            assert words & set(NUMERALS) <= there
            assert words & {"big", "small"} <= {t.size for t in things}
            mentioned |= words
        for thing in things:
            y0, x0, y1, x1 = thing.box
            assert 0 <= y0 < y1 <= POINTS
            assert 0 <= x0 < x1 <= POINTS
    assert set(TINTS) | set(NUMERALS) | {"big", "small", "left", "right", "above"} <= mentioned


def test_relations_are_seen_from_the_second() -> None:
    def at(y: int, x: int) -> Thing:
        return Thing(1, "red", "big", (y, x, y + 10, x + 10))

    assert relation(at(0, 0), at(5, 90)) == "to the left of"
    assert relation(at(5, 90), at(0, 0)) == "to the right of"
    assert relation(at(0, 5), at(90, 0)) == "above"
    assert relation(at(90, 0), at(0, 5)) == "below"


def test_a_scene_does_not_depend_on_how_many_are_made() -> None:
    few, many = (generate_caption_scenes(3, "test", count) for count in (3, 6))
    assert np.array_equal(few.images, many.images[:3])
    assert few.captions == many.captions[:3]
    other = generate_caption_scenes(4, "test", 3)
    assert not np.array_equal(few.images, other.images)


def test_cached_scenes_equal_generated_ones_and_are_not_made_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = generate_caption_scenes(0, "train", 6)
    load_caption_scenes(0, "train", 6, tmp_path)
    monkeypatch.setattr(module, "generate_caption_scenes", None)
    cached = load_caption_scenes(0, "train", 6, tmp_path)
    assert np.array_equal(cached.images, made.images)
    assert list(cached.captions) == list(made.captions)
    (place,) = tmp_path.iterdir()
    (place / "captions.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(ValueError, match=place.name):
        load_caption_scenes(0, "train", 6, tmp_path)
    np.save(place / "captions.npy", np.frombuffer(b'[["cut sh', np.uint8))
    with pytest.raises(ValueError, match=rf"{place.name} are broken .*delete that folder"):
        load_caption_scenes(0, "train", 6, tmp_path)
    with pytest.raises(ValueError, match=r"'val'.*validation"):
        load_caption_scenes(0, "val", 6, tmp_path)


def test_preparing_reports_every_split_to_its_end(tmp_path: Path) -> None:
    seen: dict[str, tuple[int, int]] = {}
    options = CaptionScenesOptions(train=5, validation=3, test=4, cache_dir=tmp_path)
    prepare_captions(options, lambda split, done, total: seen.update({split: (done, total)}))
    assert seen == {"train": (5, 5), "validation": (3, 3), "test": (4, 4)}
    assert open_captions(options, "test").example_ids[-1] == "scene-000003"
