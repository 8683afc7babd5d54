"""Colorization with UViM (Pinto et al. 2023, section 4.3): a gray image in, a colour image out.

What is taken from big_vision's colour models, whose checkpoints load as they are: the input is the
gray image (luma, 0.299 R + 0.587 G + 0.114 B, rounded to 8 bits) as three equal channels, and it is
the context of stage I, too; stage I reads and writes one plane, `color`, the RGB values of each
pixel in [-1, 1], patch by patch; its loss is the mean squared error of these; what it decodes is
cut to [-1, 1]. Nothing ties the prediction's lightness to the input's.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from vision.data.augment import AugmentOptions, augment
from vision.data.config import ImageOptions, PhotosOptions
from vision.data.images import from_model, resize_rgb, to_model
from vision.data.photos import ImageSource, open_images, prepare_images
from vision.models.uvim_config import COLOR_PLANES, patches_to_pixels
from vision.tasks.task import Example
from vision.tasks.uvim import NO_END, StageOneCodec, StageOneSettings

__all__ = ["ColorizationConfig", "ColorizationTask"]

_LUMA = np.array([299, 587, 114])  # thousandths; in integers, so that all machines agree
_COLOR = COLOR_PLANES[0].name
_DRAWN_SIDE = 288  # pixels, at least


class ColorizationConfig(BaseModel):
    """Which images are coloured, and how."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    kind: Literal["colorization"] = "colorization"
    data: ImageOptions = Field(default_factory=PhotosOptions, discriminator="kind")
    """Where colour images come from: `kind: photos`, or `kind: images` for folders of your own."""
    image_size: tuple[int, int] = (48, 48)
    """Height and width that the model sees; the image is stretched to it."""
    augment: AugmentOptions | None = None
    """How training images are changed, before they are made gray; none by default."""
    stage_one: StageOneSettings = StageOneSettings()
    """The autoencoder of colour images whose code words are the tokens."""
    desaturate: float = Field(default=0.0, ge=0, le=1)
    """Share of the colour that is taken from what maximum likelihood is taught (not from what
    stage I is): 0 leaves the colours, 1 none of them. It fades the model that tuning starts from,
    as large data does, of which the likeliest colours are muted."""
    hue: Literal["atan2", "arctan"] = "atan2"
    """Which hue the metrics take; see `rewards.colorization:ColorfulnessReward`."""


class ColorizationTask:
    """Implements `vision.tasks.task.Task` and `vision.tasks.uvim.StageOneTask`; see there.

    A target and a prediction are RGB images [H, W, 3] float32 in [-1, 1].
    """

    headline = "colorfulness"
    end_token = NO_END
    ordered_tokens: tuple[int, int] | None = None
    auxiliary_arrays: Mapping[str, tuple[int, ...]] = {}

    def __init__(self, config: ColorizationConfig) -> None:
        self.config = config
        self.image_size = config.image_size
        self.stage_one = StageOneCodec(config.stage_one, config.image_size, COLOR_PLANES)
        self.vocabulary_size = self.stage_one.vocabulary_size
        self.max_length = self.stage_one.max_length
        self._sources: dict[str, ImageSource] = {}

    @classmethod
    def prepare(cls, config: ColorizationConfig, progress: Callable[[str, int, int], None]) -> None:
        """See `Task`: nothing is made, but the photos must be there."""
        prepare_images(config.data)

    def source(self, split: str) -> ImageSource:
        """The images of a split, opened when first asked for."""
        if split not in self._sources:
            self._sources[split] = open_images(self.config.data, split)
        return self._sources[split]

    def example_ids(self, split: str) -> Sequence[str]:
        """See `Task`."""
        return self.source(split).example_ids

    def load(self, split: str, example_id: str, augmentation_seed: int | None) -> Example:
        """See `Task`; the image is gray, the target its colours."""
        pixels = self.source(split).load(example_id)
        options = self.config.augment
        if augmentation_seed is None or options is None:
            pixels = resize_rgb(pixels, *self.image_size)
        else:
            boxes = np.zeros((0, 4))
            pixels, _, _ = augment(pixels, boxes, self.image_size, options, augmentation_seed)
        return Example(example_id, to_model(to_gray(pixels)), to_model(pixels))

    def allowed_tokens(self) -> np.ndarray:
        """See `Task`: every code anywhere, padding nowhere."""
        return self.stage_one.allowed_tokens()

    def reinforced_tokens(self) -> np.ndarray:
        """See `Task`: all."""
        return np.ones(self.max_length, bool)

    def target_tokens(self, example: Example, seed: int) -> np.ndarray:
        """See `Task`: the code words of the colours, faded by `desaturate`."""
        target: np.ndarray = example.target
        kept = np.float32(1 - self.config.desaturate)
        faded = example.image + kept * (target - example.image)
        return self.stage_one.encode({_COLOR: faded}, example.image)

    def decode(
        self, example: Example, tokens: np.ndarray, logprobs: np.ndarray
    ) -> list[np.ndarray]:
        """See `Task`."""
        outputs = self.stage_one.decode(tokens, example.image)
        return [self.stage_one_prediction(example, each) for each in outputs]

    def stage_one_inputs(self, example: Example) -> Mapping[str, np.ndarray]:
        """See `StageOneTask`: the full colours, so that there are words for them."""
        return {_COLOR: example.target}

    def stage_one_prediction(
        self, example: Example, outputs: Mapping[str, np.ndarray]
    ) -> np.ndarray:
        """See `StageOneTask`."""
        image = patches_to_pixels(outputs[_COLOR][None], self.stage_one.config)[0]
        return np.clip(image, -1, 1).astype(np.float32)

    def auxiliary_loss(self, logits: Any, tokens: Any, auxiliary: Mapping[str, Any]) -> Any:
        """See `Task`: there is none, and `auxiliary_arrays` says so."""
        raise NotImplementedError("colorization has no auxiliary loss")

    def evaluate(
        self, examples: Sequence[Example], predictions: Sequence[np.ndarray]
    ) -> dict[str, float]:
        """Means over the images, of predictions and (`true_...`) of the photos themselves.

        `colorfulness` is the paper's reward, `vivid` and `hue_entropy` are its factors; `rmse` is
        the distance to the photo as a fraction of the range, which no model needs to make small:
        there is more than one right colour.
        """
        from vision.metrics.colorfulness import colorfulness

        if len(examples) != len(predictions):
            raise ValueError(f"{len(examples)} examples but {len(predictions)} predictions")
        if not examples:
            return {}
        figures = [colorfulness(image, self.config.hue) for image in predictions]
        true = [colorfulness(example.target, self.config.hue) for example in examples]
        errors = [
            np.sqrt(np.mean(np.square(image - example.target))) / 2
            for image, example in zip(predictions, examples, strict=True)
        ]
        return {
            "colorfulness": float(np.mean([each.product for each in figures])),
            "vivid": float(np.mean([each.vivid for each in figures])),
            "hue_entropy": float(np.mean([each.entropy for each in figures])),
            "true_colorfulness": float(np.mean([each.product for each in true])),
            "true_vivid": float(np.mean([each.vivid for each in true])),
            "true_hue_entropy": float(np.mean([each.entropy for each in true])),
            "rmse": float(np.mean(errors)),
        }

    def draw(self, example: Example, prediction: np.ndarray | None) -> np.ndarray:
        """See `Task`; enlarged so that the longer side has at least 288 pixels."""
        image = from_model(example.target if prediction is None else prediction)
        times = -(-_DRAWN_SIDE // max(image.shape[:2]))
        return image.repeat(times, axis=0).repeat(times, axis=1)


def to_gray(image: np.ndarray) -> np.ndarray:
    """[H, W, 3] uint8 colours to their luma, as three equal channels."""
    gray = ((image.astype(np.int64) @ _LUMA + 500) // 1000).astype(np.uint8)
    return gray[:, :, None].repeat(3, axis=2)
