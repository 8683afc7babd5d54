"""Where a task's images and boxes come from."""

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
