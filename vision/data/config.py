"""Where a task's images, boxes and captions come from."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=1, le=1_000_000)]


class _Options(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class ScenesOptions(_Options):
    """The quick start's scenes of digits on photos (`vision/data/scenes.py`)."""

    kind: Literal["scenes"] = "scenes"
    seed: int = Field(default=0, ge=0)
    """The scenes of another seed are others; digits and photos of the splits stay apart."""
    train: Count = 12_000
    """Number of scenes to train on."""
    validation: Count = 500
    """Number of scenes to make choices on."""
    test: Count = 1_000
    """Number of scenes to report on."""
    drop_annotations: float = Field(default=0.0, ge=0, lt=1)
    """Share of the training boxes that the annotator missed; the images stay as they are."""
    cache_dir: Path | None = None
    """Where generated scenes are kept; default ~/.cache/rewardtune."""


class CocoSplit(_Options):
    """A file of instances with its images."""

    annotations: Path
    """`instances_*.json`."""
    images: Path
    """The folder that the file names in it are relative to."""


class CocoOptions(_Options):
    """Data in COCO's format: COCO itself, Objects365, or your own."""

    kind: Literal["coco"] = "coco"
    train: CocoSplit
    """To train on."""
    validation: CocoSplit | None = None
    """To make choices on."""
    test: CocoSplit | None = None
    """To report on."""
    on_bad_boxes: Literal["error", "clip", "skip"] = "error"
    """What to do with boxes that stand out of their image or have no extent."""
    check_images: bool = True
    """Look at the start whether every image file is there."""


DataOptions = ScenesOptions | CocoOptions


class CaptionScenesOptions(_Options):
    """The quick start's scenes of tinted digits on photos, with captions
    (`vision/data/caption_scenes.py`)."""

    kind: Literal["caption_scenes"] = "caption_scenes"
    seed: int = Field(default=0, ge=0)
    """The scenes of another seed are others; digits and photos of the splits stay apart."""
    train: Count = 12_000
    """Number of scenes to train on."""
    validation: Count = 500
    """Number of scenes to make choices on."""
    test: Count = 1_000
    """Number of scenes to report on."""
    cache_dir: Path | None = None
    """Where generated scenes are kept; default ~/.cache/rewardtune."""


class CaptionsSplit(_Options):
    """A file of captions with its images."""

    annotations: Path
    """`captions_*.json`."""
    images: Path
    """The folder that the file names in it are relative to."""


BadCaptions = Literal["error", "skip"]


class CocoCaptionsOptions(_Options):
    """Captions in COCO's format."""

    kind: Literal["coco_captions"] = "coco_captions"
    train: CaptionsSplit
    """To train on."""
    validation: CaptionsSplit | None = None
    """To make choices on."""
    test: CaptionsSplit | None = None
    """To report on."""
    on_bad_captions: BadCaptions = "error"
    """What to do with captions that hold no letter and no digit, and with images left without."""
    check_images: bool = True
    """Look at the start whether every image file is there."""


class KarpathyOptions(_Options):
    """The split file that captioning papers use (`dataset_coco.json`, Karpathy and Fei-Fei)."""

    kind: Literal["karpathy"] = "karpathy"
    annotations: Path
    """`dataset_coco.json`, or another dataset's in the same format."""
    images: Path
    """The folder that each image's `filepath/filename` is relative to."""
    restval: bool = True
    """Train on the split `restval` too, as papers do."""
    on_bad_captions: BadCaptions = "error"
    """What to do with captions that hold no letter and no digit, and with images left without."""
    check_images: bool = True
    """Look at the start whether every image file is there."""


CaptionDataOptions = CaptionScenesOptions | CocoCaptionsOptions | KarpathyOptions


class PhotosOptions(_Options):
    """The quick start's crops of real colour photos (`vision/data/photos.py`)."""

    kind: Literal["photos"] = "photos"
    seed: int = Field(default=0, ge=0)
    """The crops of another seed are others; the photos of the splits stay apart."""
    train: Count = 8_000
    """Number of crops to train on, of six photos."""
    validation: Count = 200
    """Number of crops to make choices on, of one photo."""
    test: Count = 400
    """Number of crops to report on, of two photos."""
    least_side: int = Field(default=96, ge=1)
    """Pixels of the photo along the side of the smallest crop; the largest fills the photo."""


class FolderOptions(_Options):
    """Your own colour images: the image files below a folder."""

    kind: Literal["images"] = "images"
    train: Path
    """Folder of the images to train on."""
    validation: Path | None = None
    """Folder of the images to make choices on."""
    test: Path | None = None
    """Folder of the images to report on."""


ImageOptions = PhotosOptions | FolderOptions


class PanopticScenesOptions(_Options):
    """The quick start's scenes of digits on textures (`vision/data/panoptic_scenes.py`)."""

    kind: Literal["panoptic_scenes"] = "panoptic_scenes"
    seed: int = Field(default=0, ge=0)
    """The scenes of another seed are others; digits and textures of the splits stay apart."""
    train: Count = 12_000
    """Number of scenes to train on."""
    validation: Count = 500
    """Number of scenes to make choices on."""
    test: Count = 1_000
    """Number of scenes to report on."""
    drop_annotations: float = Field(default=0.0, ge=0, lt=1)
    """Share of the training segments that the annotator left out: their pixels are void."""
    cache_dir: Path | None = None
    """Where generated scenes are kept; default ~/.cache/rewardtune."""


class PanopticSplit(_Options):
    """A file of segments with its PNGs and images."""

    annotations: Path
    """`panoptic_*.json`."""
    annotation_dir: Path
    """The folder of its PNGs."""
    images: Path
    """The folder of its images."""


class CocoPanopticOptions(_Options):
    """Segments in COCO's panoptic format: COCO itself, or your own."""

    kind: Literal["coco_panoptic"] = "coco_panoptic"
    train: PanopticSplit
    """To train on."""
    validation: PanopticSplit | None = None
    """To make choices on."""
    test: PanopticSplit | None = None
    """To report on."""
    check_images: bool = True
    """Look at the start whether every PNG and every image file is there."""


PanopticDataOptions = PanopticScenesOptions | CocoPanopticOptions
