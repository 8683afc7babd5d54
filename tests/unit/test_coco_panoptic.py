"""COCO's panoptic files: read as written, and every fault named with its file and segment."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.unit.test_score_colorization import write_16_bit_rgb
from vision.data.coco import AnnotationError
from vision.data.coco_panoptic import Category, load_panoptic, load_predictions, write_panoptic
from vision.data.config import CocoPanopticOptions, PanopticSplit
from vision.data.images import ImageError, load_ids
from vision.data.panoptic import open_source
from vision.data.segments import SegmentMap, resize_nearest

CATEGORIES = [Category(3, "cat", True), Category(1, "dog", True), Category(9, "sky", False)]
# 5 x 4 pixels: a cat, a crowd of dogs, the sky, and some void.
IDS = np.array([[3, 3, 3, 3], [1, 1, 3, 3], [1, 1, 2, 2], [0, 0, 2, 2], [0, 0, 0, 2]], np.int32)
TRUTH = SegmentMap(IDS, np.array([0, 1, 2, 3], np.int32), np.array([False, False, True, False]))


@pytest.fixture
def files(tmp_path):
    """The JSON, its folder of PNGs, and a function that changes the JSON."""
    write_panoptic(tmp_path / "A.json", tmp_path / "png", CATEGORIES, [(7, "seven.jpg", TRUTH)])

    def change(edit):
        content = json.loads((tmp_path / "A.json").read_text())
        edit(content)
        (tmp_path / "A.json").write_text(json.dumps(content))

    return tmp_path / "A.json", tmp_path / "png", change


def test_a_map_survives_its_files(files):
    annotations, folder, _ = files
    read = load_panoptic(annotations, folder)
    assert read.categories == CATEGORIES
    assert list(read.images) == ["7"]
    segments = read.read_segments("7")
    for name in ("ids", "labels", "crowd"):
        np.testing.assert_array_equal(getattr(segments, name), getattr(TRUTH, name))
        assert getattr(segments, name).dtype == getattr(TRUTH, name).dtype
    assert segments.semantics().tolist()[0] == [3, 3, 3, 3]


@given(st.integers(0, 2**32 - 1), st.integers(1, 300))
@settings(max_examples=20, deadline=None)
def test_any_map_survives_its_files(tmp_path_factory, seed, rows):
    random = np.random.default_rng(seed)
    labels = random.integers(0, 4, rows).astype(np.int32)
    ids = random.integers(0, rows, (9, 11)).astype(np.int32)
    folder = tmp_path_factory.mktemp("map")
    given_map = SegmentMap(ids, labels, np.zeros(rows, bool))
    write_panoptic(folder / "A.json", folder, CATEGORIES, [(1, "x.png", given_map)])
    read = load_panoptic(folder / "A.json", folder).read_segments("1")
    np.testing.assert_array_equal(read.semantics(), given_map.semantics())
    # The same pixels belong together.
    pairs = set(zip(read.ids.ravel(), np.where(labels > 0, np.arange(rows), -1)[ids.ravel()],
                    strict=True))  # fmt: skip
    assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})


def test_two_images_whose_segments_would_share_a_file_are_refused(tmp_path):
    segments = SegmentMap(np.zeros((2, 2), np.int32), np.zeros(1, np.int32), np.zeros(1, bool))
    images = [(1, "day/a.jpg", segments), (2, "b.jpg", segments), (3, "night/a.png", segments)]
    with pytest.raises(
        AnnotationError, match=r"'day/a\.jpg' and 'night/a\.png' \(image 3\).*a\.png"
    ):
        write_panoptic(tmp_path / "truth.json", tmp_path / "png", [], images)
    assert not (tmp_path / "truth.json").exists()


def test_coco_itself_is_read(shared_data):
    folder = shared_data / "coco_panoptic_2"
    read = load_panoptic(folder / "panoptic_examples.json", folder / "panoptic_examples")
    assert len(read.categories) == 133
    assert sum(category.is_thing for category in read.categories) == 80
    content = json.loads((folder / "panoptic_examples.json").read_text())
    for annotation in content["annotations"]:
        image_id = str(annotation["image_id"])
        segments = read.read_segments(image_id)
        areas = np.bincount(segments.ids.ravel())[1:]
        assert areas.tolist() == [info["area"] for info in annotation["segments_info"]]
        image = read.read_image(image_id, folder / "input_images")
        assert image.shape == (*segments.size, 3)


def write_ids(folder, ids):
    channels = np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)
    Image.fromarray(channels).save(folder / "seven.png")


def first(content):
    return content["annotations"][0]


def segment(content, index=0):
    return first(content)["segments_info"][index]


def set_to(entry, **values):
    entry.update(values)


def test_an_id_of_the_png_that_is_not_in_the_json_is_named(files):
    annotations, folder, change = files
    change(lambda content: first(content)["segments_info"].pop(1))
    message = r"seven\.png: the id 3 of 5 pixels is not among .*A\.json: annotation of image 7"
    with pytest.raises(AnnotationError, match=message):
        load_panoptic(annotations, folder).read_segments("7")
    write_ids(folder, np.full((5, 4), 70_000))
    with pytest.raises(AnnotationError, match="the id 70000 of 20 pixels"):
        load_panoptic(annotations, folder).read_segments("7")


def test_a_segment_of_the_json_that_is_not_in_the_png_is_named(files):
    annotations, folder, change = files
    extra = {"id": 55, "category_id": 3, "iscrowd": 0, "area": 4}
    change(lambda content: first(content)["segments_info"].append(extra))
    with pytest.raises(AnnotationError, match=r"image 7: segment 55 is empty.*seven\.png"):
        load_panoptic(annotations, folder).read_segments("7")


def test_overlapping_segments_are_named(files):
    annotations, folder, change = files
    # One was drawn over the other: the JSON knows of more pixels than the PNG shows.
    change(lambda content: set_to(segment(content), area=6))
    with pytest.raises(AnnotationError, match=r"segment 2 has the area 6.*4 pixels.*overlap"):
        load_panoptic(annotations, folder).read_segments("7")
    truth = load_panoptic(annotations, folder)
    load_predictions(annotations, folder, truth).read_segments("7")  # areas are not looked at
    change(lambda content: set_to(segment(content, 1), id=2))
    with pytest.raises(AnnotationError, match=r"A\.json.*image 7: segment 2 is listed twice"):
        load_panoptic(annotations, folder)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c.pop("annotations"), "no list 'annotations'"),
        (lambda c: c.update(categories=[]), "category ids must be unique"),
        (lambda c: c["categories"].append(c["categories"][0]), "category ids must be unique"),
        (lambda c: c["categories"][1].pop("isthing"), r"categories\[1\]: isthing is None"),
        (lambda c: c["images"][0].pop("height"), r"images\[0\]: height is None"),
        (lambda c: c["images"][0].update(width=0), "above 0"),
        (lambda c: c["images"].append(c["images"][0]), "image id 7 occurs twice"),
        (lambda c: c["images"].append({**c["images"][0], "id": 8}), "no entry.*image 8"),
        (lambda c: first(c).update(image_id=6), "image 6: there is no such image"),
        (lambda c: c["annotations"].append(first(c)), "image 7: it occurs twice"),
        (lambda c: first(c).pop("segments_info"), "segments_info is None"),
        (lambda c: first(c).pop("file_name"), "file_name is None"),
        (lambda c: segment(c).update(id=0), r"segments_info\[0\]: id 0 .*void"),
        (lambda c: segment(c).update(id=2**24), "16777216 is not in"),
        (lambda c: segment(c).update(id="2"), "id is '2'; expected int"),
        (lambda c: segment(c).update(category_id=4), "segment 2 has the unknown category 4"),
        (lambda c: segment(c).update(area="much"), "segment 2 has the area 'much'"),
        (lambda c: segment(c).update(area=float("nan")), "segment 2 has the area nan"),
    ],
)
def test_a_json_that_is_not_of_the_format_is_named(files, edit, message):
    annotations, folder, change = files
    change(edit)
    with pytest.raises(AnnotationError, match=rf"(?s)A\.json.*{message}"):
        load_panoptic(annotations, folder)


def test_what_is_no_json_is_named(files):
    annotations, folder, _ = files
    annotations.write_text("[]")
    with pytest.raises(AnnotationError, match=r"A\.json has no list"):
        load_panoptic(annotations, folder)
    annotations.write_text("{")
    with pytest.raises(AnnotationError, match=r"A\.json is not JSON"):
        load_panoptic(annotations, folder)


@pytest.mark.parametrize(
    ("pixels", "kind"),
    [
        (np.zeros((5, 4), np.uint8), "8-bit L"),
        (np.zeros((5, 4), np.uint16), "16-bit"),
        (np.zeros((5, 4, 2), np.uint8), "8-bit LA"),
    ],
)
def test_a_png_of_one_channel_or_16_bits_is_refused(files, pixels, kind):
    annotations, folder, _ = files
    Image.fromarray(pixels).save(folder / "seven.png")
    with pytest.raises(ImageError, match=rf"seven\.png is a {kind}.*8-bit RGB PNG"):
        load_panoptic(annotations, folder).read_segments("7")


def test_16_bit_rgb_and_lossy_files_are_refused(files):
    annotations, folder, _ = files
    read = load_panoptic(annotations, folder)
    write_16_bit_rgb(folder / "seven.png", np.zeros((5, 4, 3), np.uint8))
    with pytest.raises(ImageError, match=r"seven\.png is a 16-bit RGB"):
        read.read_segments("7")
    Image.new("RGB", (4, 5)).save(folder / "seven.png", format="JPEG")
    with pytest.raises(ImageError, match=r"seven\.png is a JPEG"):
        read.read_segments("7")
    (folder / "seven.png").write_bytes(b"\x89PNG")
    with pytest.raises(ImageError, match=r"seven\.png"):
        read.read_segments("7")
    (folder / "seven.png").unlink()
    with pytest.raises(ImageError, match=r"seven\.png"):
        read.read_segments("7")
    with pytest.raises(ImageError, match=r"1 of 1 files are missing.*seven\.png"):
        read.check_files()


def test_an_alpha_channel_must_be_opaque(tmp_path):
    pixels = np.full((2, 3, 4), 255, np.uint8)
    pixels[..., :3] = (4, 1, 0)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert load_ids(tmp_path / "a.png").tolist() == [[260] * 3] * 2
    pixels[1, 1, 3] = 0
    Image.fromarray(pixels).save(tmp_path / "a.png")
    with pytest.raises(ImageError, match=r"a\.png has transparent pixels"):
        load_ids(tmp_path / "a.png")


def test_the_largest_id_is_read(tmp_path):
    Image.new("RGB", (1, 1), (255, 255, 255)).save(tmp_path / "a.png")
    assert load_ids(tmp_path / "a.png").tolist() == [[256**3 - 1]]


def test_a_png_or_an_image_of_another_size_is_named(files, tmp_path):
    annotations, folder, _ = files
    Image.new("RGB", (5, 5)).save(folder / "seven.png")
    with pytest.raises(ImageError, match=r"seven\.png is 5 x 5 pixels.*says 4 x 5"):
        load_panoptic(annotations, folder).read_segments("7")
    Image.new("RGB", (3, 5)).save(tmp_path / "seven.jpg")
    with pytest.raises(ImageError, match=r"seven\.jpg is 3 x 5 pixels.*says 4 x 5"):
        load_panoptic(annotations, folder).read_image("7", tmp_path)


@pytest.mark.parametrize("mode", ["L", "RGBA", "I;16", "RGB"])
def test_images_of_any_kind_become_examples(files, tmp_path, mode):
    annotations, folder, _ = files
    split = PanopticSplit(annotations=annotations, annotation_dir=folder, images=tmp_path)
    image = np.zeros((5, 4), np.uint16) if mode == "I;16" else None
    made = Image.new(mode, (4, 5)) if image is None else Image.fromarray(image)
    made.save(tmp_path / "seven.jpg", format="PNG")
    sample = open_source(CocoPanopticOptions(train=split), "train").load("7")
    assert sample.image.shape == (5, 4, 3)
    assert sample.image.dtype == np.uint8
    np.testing.assert_array_equal(sample.segments.ids, IDS)


def test_an_image_of_one_pixel_is_an_example(tmp_path):
    one = SegmentMap(np.array([[1]], np.int32), np.array([0, 3], np.int32), np.zeros(2, bool))
    write_panoptic(tmp_path / "A.json", tmp_path, CATEGORIES, [(1, "p/one.jpg", one)])
    (tmp_path / "p").mkdir()
    Image.new("RGB", (1, 1)).save(tmp_path / "p" / "one.jpg")
    split = PanopticSplit(annotations=tmp_path / "A.json", annotation_dir=tmp_path, images=tmp_path)
    sample = open_source(CocoPanopticOptions(train=split), "train").load("1")
    assert sample.image.shape == (1, 1, 3)
    assert (sample.segments.resized(8, 8).semantics() == 3).all()


def test_missing_files_come_out_at_the_start_and_unknown_ids_and_splits_are_named(files, tmp_path):
    annotations, folder, _ = files
    split = PanopticSplit(annotations=annotations, annotation_dir=folder, images=Path("nowhere"))
    with pytest.raises(ImageError, match=r"1 of 2 files are missing.*nowhere.seven\.jpg"):
        open_source(CocoPanopticOptions(train=split), "train")
    options = CocoPanopticOptions(train=split, check_images=False)
    with pytest.raises(OSError, match=r"nowhere.seven\.jpg is not there: is its file system"):
        open_source(options, "train").load("7")
    with pytest.raises(KeyError, match="no example '8'"):
        open_source(options, "train").load("8")
    with pytest.raises(ValueError, match=r"'test'.*data\.test\.annotation.*given: train"):
        open_source(options, "test")
    with pytest.raises(ValueError, match="unknown split 'val'"):
        open_source(options, "val")


@given(*[st.integers(1, 12)] * 4)
@settings(max_examples=50, deadline=None)
def test_resizing_takes_the_pixel_that_each_centre_falls_in(h, w, height, width):
    array = np.arange(h * w).reshape(h, w)
    resized = resize_nearest(array, height, width)
    for y in range(height):
        for x in range(width):
            assert resized[y, x] == array[int((y + 0.5) * h / height), int((x + 0.5) * w / width)]
