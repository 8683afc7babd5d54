"""The panoptic quick start's scenes: deterministic, complete, and apart between splits."""

import hashlib
from itertools import combinations

import numpy as np
import pytest

from vision.data import panoptic_scenes as module
from vision.data.config import PanopticScenesOptions
from vision.data.panoptic import open_source, prepare
from vision.data.panoptic_scenes import (
    CATEGORIES,
    PanopticScenes,
    drop_annotations,
    generate_panoptic_scenes,
    load_panoptic_scenes,
)
from vision.data.scenes import SPLITS


@pytest.fixture(scope="module")
def scenes() -> PanopticScenes:
    return generate_panoptic_scenes(0, "train", 40)


def test_scenes_are_the_same_on_every_machine():
    digest = hashlib.sha256()
    for split in SPLITS:
        made = generate_panoptic_scenes(0, split, 8)
        for array in (made.images, made.ids, made.labels, made.offsets):
            digest.update(array.tobytes())
    # Seen on x86-64, numpy 2.4. When the generator changes on purpose, raise GENERATOR_VERSION.
    assert digest.hexdigest() == "1b4be81fd356666e123c38684567467f33a4c2e6468a10b9399bc0a7086517d7"


def test_a_scene_depends_on_its_seed_split_and_number_alone(scenes):
    few = generate_panoptic_scenes(0, "train", 5)
    np.testing.assert_array_equal(few.images, scenes.images[:5])
    np.testing.assert_array_equal(few.ids, scenes.ids[:5])
    other = generate_panoptic_scenes(1, "train", 5)
    assert all((few.images[i] != other.images[i]).any() for i in range(5))


def test_every_pixel_has_a_segment_and_every_segment_a_pixel(scenes):
    seen = set()
    for index in range(len(scenes)):
        segments = scenes.segments(index)
        assert segments.labels[0] == 0
        assert (segments.labels[1:] > 0).all()
        assert np.unique(segments.ids).tolist() == list(range(1, len(segments.labels)))
        assert not segments.crowd.any()
        stuff = segments.labels[1:][segments.labels[1:] > 10]
        assert len(set(stuff)) == len(stuff)  # one row a class
        assert 1 <= len(stuff) <= 3
        assert 1 <= (segments.labels[1:] <= 10).sum() <= 5
        seen |= set(segments.labels.tolist())
    assert seen == set(range(len(CATEGORIES) + 1))


def test_a_thing_is_a_dark_card_with_bright_ink(scenes):
    """Masks and pixels are drawn by different code: most of a mask is dark, and some is bright."""
    for index in range(len(scenes)):
        segments, brightest = scenes.segments(index), scenes.images[index].max(-1)
        for row in np.flatnonzero((segments.labels > 0) & (segments.labels <= 10)):
            inside = brightest[segments.ids == row]
            assert np.percentile(inside, 25) < 130 < np.percentile(inside, 98)


def test_a_pixel_belongs_to_the_mask_with_most_of_its_points():
    left = np.zeros((module.POINTS, module.POINTS), bool)
    left[:, : 4 * 10 + 3] = True  # three quarters of column 10
    ids, rows = module._pixels([np.zeros_like(left), left, ~left])
    assert rows == [1, 2]  # the empty one is left out
    assert (ids[:, :11] == 1).all()
    assert (ids[:, 11:] == 2).all()


def test_regions_cover_all_and_none_is_a_sliver():
    for seed in range(30):
        random = np.random.RandomState(seed)
        region = module._regions(random, 2 + seed % 2)
        shares = np.bincount(region.ravel(), minlength=2 + seed % 2) / region.size
        assert len(shares) == 2 + seed % 2
        assert shares.min() >= 0.12


def test_splits_share_no_area_of_a_texture():
    for a, b in combinations(module._AREAS.values(), 2):
        apart_in_y = a[2] <= b[0] or b[2] <= a[0]
        apart_in_x = a[3] <= b[1] or b[3] <= a[1]
        assert apart_in_y or apart_in_x
    for split in SPLITS:
        for texture in module.read_textures(split):
            assert min(texture.shape[:2]) >= 2 * module.SIDE  # the largest crop fits


def test_cached_scenes_equal_generated_ones_and_are_not_made_twice(tmp_path, scenes, monkeypatch):
    load_panoptic_scenes(0, "train", 40, tmp_path)
    monkeypatch.setattr(module, "generate_panoptic_scenes", None)
    again = load_panoptic_scenes(0, "train", 40, tmp_path)
    for name in ("images", "ids", "labels", "offsets"):
        np.testing.assert_array_equal(getattr(again, name), getattr(scenes, name))
    (place,) = tmp_path.iterdir()
    (place / "ids.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(ValueError, match=place.name):
        load_panoptic_scenes(0, "train", 40, tmp_path)
    with pytest.raises(ValueError, match=r"'val'.*validation"):
        load_panoptic_scenes(0, "val", 40, tmp_path)


def test_preparing_reports_every_split_to_its_end(tmp_path):
    seen = {}
    options = PanopticScenesOptions(train=5, validation=3, test=4, cache_dir=tmp_path)
    prepare(options, lambda split, done, total: seen.update({split: (done, total)}))
    assert seen == {"train": (5, 5), "validation": (3, 3), "test": (4, 4)}
    source = open_source(options, "validation")
    assert source.example_ids == ["scene-000000", "scene-000001", "scene-000002"]
    assert source.load("scene-000002").image.shape == (48, 48, 3)
    with pytest.raises(KeyError, match="scene-000002"):
        source.load("scene-7")


def test_what_annotators_left_out_is_void_and_the_rest_stays(scenes):
    part = drop_annotations(scenes, 0.3, seed=3)
    assert part.images is scenes.images
    dropped = 0
    for index in range(len(scenes)):
        whole, left = scenes.segments(index), part.segments(index)
        assert left.labels[0] == 0
        assert np.unique(left.ids[left.ids > 0]).tolist() == list(range(1, len(left.labels)))
        before, after = whole.semantics(), left.semantics()
        np.testing.assert_array_equal(after[after > 0], before[after > 0])
        for row in range(1, len(whole.labels)):
            seen = after[whole.ids == row]
            assert (seen == 0).all() or (seen == whole.labels[row]).all()  # all of it or nothing
            dropped += (seen == 0).all()
    assert 0.2 < dropped / (len(scenes.labels) - len(scenes)) < 0.4
    less = drop_annotations(scenes, 0.1, seed=3)
    for index in range(len(scenes)):
        assert ((part.segments(index).ids > 0) <= (less.segments(index).ids > 0)).all()
    with pytest.raises(ValueError, match=r"share 1\.0"):
        drop_annotations(scenes, 1.0, seed=3)
