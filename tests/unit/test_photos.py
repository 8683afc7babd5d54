"""Crops of the quick start's photos, and folders of images."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from protos.trajectory import Ticket
from vision.data import photos
from vision.data.config import FolderOptions, PhotosOptions
from vision.data.images import ImageError
from vision.data.photos import PhotoCrops, open_images, photo_pixels, prepare_images
from vision.data.scenes import SPLITS

FEW = PhotosOptions(train=60, validation=20, test=30)


def crops(split: str, options: PhotosOptions = FEW) -> Iterator[np.ndarray]:
    source = open_images(options, split)
    return (source.load(example_id) for example_id in source.example_ids)


def test_no_photo_is_in_two_splits():
    files = [file for split in SPLITS for file in photos._PHOTOS[split]]
    assert len(set(files)) == len(files)
    seen = [photo.tobytes() for split in SPLITS for photo in photo_pixels(split)]
    assert len(set(seen)) == len(seen) == 9


@pytest.mark.parametrize("split", SPLITS)
def test_photos_are_colour_photos(split):
    for photo in photo_pixels(split):
        assert photo.dtype == np.uint8
        assert min(photo.shape[:2]) >= 300
        spread = photo.max(2).astype(int) - photo.min(2)
        assert spread.mean() > 10


@pytest.mark.parametrize("split", SPLITS)
def test_a_crop_is_a_window_of_its_photo_mirrored_in_training_only(split):
    source = PhotoCrops(FEW, split)
    mirrors = []
    for index, example_id in enumerate(source.example_ids):
        photo, (top, left, side), mirrored = source.place(index)
        window = photo_pixels(split)[photo][top : top + side, left : left + side]
        assert window.shape == (side, side, 3)
        assert side >= 96
        expected = window[:, ::-1] if mirrored else window
        assert np.array_equal(source.load(example_id), expected)
        mirrors.append(mirrored)
    assert (any(mirrors) and not all(mirrors)) if split == "train" else not any(mirrors)


def test_crops_are_a_function_of_seed_split_and_index_alone():
    first = list(crops("train"))
    assert all(np.array_equal(a, b) for a, b in zip(first, crops("train"), strict=True))
    more = crops("train", PhotosOptions(train=90))
    assert all(np.array_equal(a, b) for a, b in zip(first, more, strict=False))
    other = list(crops("train", PhotosOptions(train=60, seed=1)))
    assert not any(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_crops_take_turns_at_the_photos_and_come_at_many_scales():
    source = PhotoCrops(PhotosOptions(train=300), "train")
    places = [source.place(index) for index in range(300)]
    counts = np.bincount([photo for photo, _, _ in places])
    assert counts.tolist() == [50] * 6
    sides = np.array([side for _, (_, _, side), _ in places])
    assert sides.min() < 110
    assert sides.max() > 400
    assert len(set(sides.tolist())) > 100


def test_a_photo_smaller_than_the_least_side_is_taken_whole():
    source = PhotoCrops(PhotosOptions(validation=5, least_side=5000), "validation")
    side = min(photo_pixels("validation")[0].shape[:2])
    assert {source.load(example_id).shape for example_id in source.example_ids} == {(side, side, 3)}


def test_photos_cannot_be_written_to():
    with pytest.raises(ValueError, match="read-only"):
        photo_pixels("train")[0][0, 0, 0] = 1


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(photos, "find_spec", lambda name: None)
    photo_pixels.cache_clear()
    for attempt in (lambda: next(crops("train")), lambda: prepare_images(FEW)):
        with pytest.raises(ValueError, match=r"scikit-image, which is not installed.*quickstart"):
            attempt()
    prepare_images(FolderOptions(train=Path("nowhere")))  # needs none of them


def test_an_unknown_example_or_split_is_named():
    with pytest.raises(KeyError, match=r"no example 'crop-1'.*60: crop-000000 \.\. crop-000059"):
        open_images(FEW, "train").load("crop-1")
    with pytest.raises(ValueError, match="unknown split 'dev': one of train, validation, test"):
        open_images(FEW, "dev")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    colours = np.random.default_rng(0).integers(0, 256, (10, 14, 3)).astype(np.uint8)
    (tmp_path / "sub").mkdir()
    Image.fromarray(colours).save(tmp_path / "b.PNG")
    Image.fromarray(colours[..., 0]).save(tmp_path / "sub" / "gray.jpg")
    Image.fromarray(colours[:1, :1]).save(tmp_path / "a.bmp")
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def test_a_folder_gives_its_image_files_by_their_path(folder):
    source = open_images(FolderOptions(train=folder), "train")
    assert source.example_ids == ["a.bmp", "b.PNG", "sub/gray.jpg"]
    shapes = [source.load(example_id).shape for example_id in source.example_ids]
    assert shapes == [(1, 1, 3), (10, 14, 3), (10, 14, 3)]
    with pytest.raises(KeyError, match=r"no example 'c\.png'.*a\.bmp"):
        source.load("c.png")


def test_a_name_that_is_not_utf8_gives_an_id_that_can_travel(folder):
    os.rename(folder / "a.bmp", os.fsencode(folder) + b"/caf\xe9.bmp")
    source = open_images(FolderOptions(train=folder), "train")
    assert source.example_ids == ["b.PNG", "caf\\udce9.bmp", "sub/gray.jpg"]
    assert source.load("caf\\udce9.bmp").shape == (1, 1, 3)
    ticket = Ticket(0, source.example_ids[1], 1, 2, None)
    assert Ticket.from_bytes(ticket.to_bytes()) == ticket
    (folder / "caf\\udce9.bmp").write_bytes(b"")
    with pytest.raises(ImageError, match=r"two files have the id .*caf.*rename one"):
        open_images(FolderOptions(train=folder), "train")


def test_links_are_followed_and_a_link_back_counts_nothing_twice(folder, tmp_path_factory):
    (folder / "sub" / "back").symlink_to(folder)
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (folder / "b.PNG").rename(elsewhere / "b.PNG")
    (folder / "linked").symlink_to(elsewhere)
    source = open_images(FolderOptions(train=folder), "train")
    assert source.example_ids == ["a.bmp", "linked/b.PNG", "sub/gray.jpg"]
    assert source.load("linked/b.PNG").shape == (10, 14, 3)


def test_a_broken_or_vanished_image_is_named(folder):
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    source = open_images(FolderOptions(train=folder), "train")
    with pytest.raises(ImageError, match=r"broken\.jpg"):
        source.load("broken.jpg")
    (folder / "a.bmp").unlink()
    with pytest.raises(ImageError, match=r"no image file .*a\.bmp"):
        source.load("a.bmp")


def test_folders_that_are_missing_or_without_images_are_named(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    options = FolderOptions(train=tmp_path / "none", validation=tmp_path / "empty")
    with pytest.raises(ImageError, match=r"no folder of images .*none"):
        open_images(options, "train")
    with pytest.raises(ImageError, match=r"empty holds no image file \(\.jpg"):
        open_images(options, "validation")
    with pytest.raises(ValueError, match=r"no images for split 'test': set data\.test.*validation"):
        open_images(options, "test")
