"""What tasks that are written in UViM's code words share: panoptic segmentation, colorization.

A task says which maps stage I compresses; a trained stage I then writes its ground truth as code
words and reads the code words that the sequence model (stage II) predicts. Token t is code t - 1;
token 0 pads and is allowed nowhere. Sequences have one length and no end token.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from vision.models.uvim_checkpoint import load_stage_one
from vision.models.uvim_config import Plane, UvimConfig, uvim_config
from vision.tasks.task import Example

# `Task.end_token` where no token ends a sequence.
NO_END = -1
# Patches that are decoded at once: more gains no speed on a CPU and costs memory.
PATCHES_AT_ONCE = 1024


class StageOneTask(Protocol):
    """What a task offers beside `Task` for its stage I to be trained and judged.

    Attributes:
      stage_one: its codec; before stage I is trained only its `config` is used.
    """

    stage_one: "StageOneCodec"

    def stage_one_inputs(self, example: Example) -> Mapping[str, np.ndarray]:
        """The ground truth as stage I's planes.

        Returns:
          by `Plane.name`, labels [H, W] int32 or values [H, W, channels] float32.
        """
        ...

    def stage_one_prediction(self, example: Example, outputs: Mapping[str, np.ndarray]) -> Any:
        """A prediction as `Task.evaluate` takes it, of what stage I decoded.

        Args:
          example: its image may be looked at, its target must not.
          outputs: by plane, [P, channels, patch_size^2] float32: see `StageOne.decode`.
        """
        ...


class StageOneSettings(BaseModel):
    """The autoencoder whose code words are a task's tokens."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    preset: str = "quickstart"
    """A name of `vision.models.uvim_config`: `tiny`, `quickstart` or `paper`."""
    checkpoint: Path | None = None
    """Its weights, `final.npz` of a run that trained it or a published stage-I `.npz`; null while
    it is being trained."""
    patch_size: int | None = Field(default=None, ge=1)
    """Pixels a side of a patch; null: the preset's."""
    codes: int | None = Field(default=None, ge=2)
    """Words in the dictionary; null: the preset's."""
    tokens: int | None = Field(default=None, ge=1)
    """Code words of an image; null: the preset's."""
    codeword_dim: int | None = Field(default=None, ge=1)
    """Size of a code word; null: the preset's."""
    decoding: Literal["float32", "bfloat16"] = "float32"
    """Type of the computation when code words are read: bfloat16 takes two thirds of the time on
    CPUs that have it, and moves a few pixels at the borders of segments."""

    def build(self, image_size: tuple[int, int], planes: Sequence[Plane]) -> UvimConfig:
        """The model at a task's sizes; raises `ModelConfigError` where they do not fit."""
        overrides = self.model_dump(exclude={"preset", "checkpoint", "decoding"}, exclude_none=True)
        return uvim_config(self.preset, image_size=image_size, planes=tuple(planes), **overrides)


class StageOneCodec:
    """A task's stage I: ground truth to tokens, and tokens to what stage I decodes of them."""

    def __init__(
        self, settings: StageOneSettings, image_size: tuple[int, int], planes: Sequence[Plane]
    ) -> None:
        self._settings = settings
        self.config = settings.build(image_size, planes)
        self.vocabulary_size = self.config.codes + 1
        self.max_length = self.config.tokens

    def allowed_tokens(self) -> np.ndarray:
        """[max_length, vocabulary_size] bool: every code, never padding."""
        allowed = np.ones((self.max_length, self.vocabulary_size), bool)
        allowed[:, 0] = False
        return allowed

    def load(self, decoder_only: bool = False) -> dict[str, Any]:
        """Reads the weights; see `load_stage_one`.

        Raises:
          ValueError: the settings name none.
          CheckpointError: the file cannot be read, or is of another stage I.
        """
        if self._settings.checkpoint is None:
            raise ValueError(
                "task.stage_one.checkpoint: missing; the task's tokens are the code words of a "
                "trained stage I (`rewardtune pretrain` with a stage_one section makes one: "
                "runs/NAME/final.npz)"
            )
        return load_stage_one(self._settings.checkpoint, self.config, decoder_only)

    def encode(self, planes: Mapping[str, np.ndarray], image: np.ndarray) -> np.ndarray:
        """The tokens of an example's planes, [max_length] int32; needs JAX.

        One example at a time: of a quick start's batch of 32 this takes 37 ms on one core, 23 ms
        all at once, beside 176 ms of a training step.
        """
        from vision.models.uvim import encode_planes

        batch = {name: plane[None] for name, plane in planes.items()}
        codes = encode_planes(self.config, self.variables, batch, image[None])
        return np.asarray(codes[0], np.int32) + 1

    def decode(self, tokens: np.ndarray, image: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
        """What stage I decodes of each sequence of one image; needs torch.

        Args:
          tokens: [N, max_length] int32.
          image: [H, W, 3] float32 in [-1, 1].
        Yields:
          for each sequence, by plane, [P, channels, patch_size^2] float32.
        Raises:
          ValueError: a token is padding or beyond the vocabulary.
        """
        rows = max(1, PATCHES_AT_ONCE // self.config.patches)
        for first in range(0, len(tokens), rows):
            outputs = self._decoder.decode(tokens[first : first + rows] - 1, image[None])
            for row in range(len(tokens[first : first + rows])):
                yield {name: output[row] for name, output in outputs.items()}

    @cached_property
    def variables(self) -> dict[str, Any]:
        """The weights, read once and kept: for encoding."""
        return self.load()

    @cached_property
    def _decoder(self) -> Any:
        try:
            from vision.models.uvim_torch import TorchStageOneDecoder
        except ImportError as error:
            raise ImportError(
                "stage I is decoded with torch, which is not installed here: "
                "pip install 'rewardtune[uvim]'"
            ) from error
        return TorchStageOneDecoder(
            self.config, self.load(decoder_only=True), self._settings.decoding
        )
