"""Captioning as sequences of tokens (the paper's section 4.4), and how it is judged."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from vision.data.augment import AugmentOptions, augment
from vision.data.captions import CaptionSource, open_captions, prepare_captions
from vision.data.config import CaptionDataOptions, CaptionScenesOptions
from vision.data.images import resize_rgb, to_model
from vision.metrics.ptb import normalise
from vision.tasks.task import PAD, Example
from vision.tasks.tokenizer import Tokenizer, WordPieceTokenizer, WordTokenizer


class CaptioningConfig(BaseModel):
    """What is described, and how it is written."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    kind: Literal["captioning"] = "captioning"
    data: CaptionDataOptions = Field(default_factory=CaptionScenesOptions, discriminator="kind")
    """Where images and captions come from: `kind: caption_scenes`, `coco_captions` or
    `karpathy`."""
    image_size: tuple[int, int] = (48, 48)
    """Height and width that the model sees; the image is stretched to it."""
    augment: AugmentOptions | None = None
    """How training images are changed; none by default."""
    max_length: int = Field(default=24, ge=2, le=2048)
    """Tokens of a caption with its end; longer references are cut (the paper: 128)."""
    tokenizer: Literal["words", "wordpiece"] = "words"
    """`words`: one token a word of the training captions. `wordpiece`: BERT's, see `vocabulary`."""
    min_count: int = Field(default=1, ge=1)
    """Of tokenizer `words`: rarer words are unknown."""
    vocabulary: Path | None = None
    """Of tokenizer `wordpiece`: BERT's `vocab.txt`."""

    @model_validator(mode="after")
    def _fits_together(self) -> "CaptioningConfig":
        if min(self.image_size) < 8:
            raise ValueError(f"image_size {self.image_size}: each side must be at least 8 pixels")
        if self.augment and self.augment.flip and isinstance(self.data, CaptionScenesOptions):
            raise ValueError("augment.flip must be 0 for scenes: their captions say left and right")
        if (self.tokenizer == "wordpiece") != (self.vocabulary is not None):
            raise ValueError(
                f"tokenizer is {self.tokenizer!r} and vocabulary {self.vocabulary}: wordpiece "
                "needs BERT's vocab.txt as its vocabulary, words takes none"
            )
        return self


@dataclass(frozen=True)
class References:
    """An image's captions: as they were written, and normalised."""

    texts: tuple[str, ...]
    words: tuple[str, ...]


@dataclass(frozen=True)
class Caption:
    """A caption that was said.

    Attributes:
      text: as decoded.
      words: normalised, one space between words.
      ended: whether its end was said, within the greatest length.
    """

    text: str
    words: str
    ended: bool


class CaptioningTask:
    """Implements `Task` and `NamedTokens` of `vision.tasks.task`; see there for the contracts."""

    headline = "CIDEr"
    ordered_tokens: tuple[int, int] | None = None

    def __init__(self, config: CaptioningConfig) -> None:
        self.config = config
        self.image_size = config.image_size
        self.max_length = config.max_length
        self.auxiliary_arrays: Mapping[str, tuple[int, ...]] = {}
        self._sources: dict[str, CaptionSource] = {}
        self.tokenizer = self._tokenizer()
        self.vocabulary_size = self.tokenizer.vocabulary_size
        self.end_token = self.tokenizer.end
        self.token_names = self.tokenizer.names

    def _tokenizer(self) -> Tokenizer:
        if self.config.vocabulary is not None:
            return WordPieceTokenizer(self.config.vocabulary)
        train = self.source("train")
        captions = (text for name in train.example_ids for text in train.captions(name))
        return WordTokenizer(captions, self.config.min_count)

    @classmethod
    def prepare(cls, config: CaptioningConfig, progress: Callable[[str, int, int], None]) -> None:
        """See `Task`: scenes are generated."""
        prepare_captions(config.data, progress)

    def source(self, split: str) -> CaptionSource:
        """The data of a split, opened when first asked for."""
        if split not in self._sources:
            self._sources[split] = open_captions(self.config.data, split)
        return self._sources[split]

    def training_references(self) -> Sequence[tuple[str, ...]]:
        """The normalised captions of every training image."""
        return self._training_references

    @cached_property
    def _training_references(self) -> Sequence[tuple[str, ...]]:
        train = self.source("train")
        return [tuple(map(normalise, train.captions(name))) for name in train.example_ids]

    def example_ids(self, split: str) -> Sequence[str]:
        """See `Task`."""
        return self.source(split).example_ids

    def load(self, split: str, example_id: str, augmentation_seed: int | None) -> Example:
        """See `Task`; the target is `References`."""
        texts = self.source(split).captions(example_id)
        pixels = self.source(split).image(example_id)
        if augmentation_seed is None or self.config.augment is None:
            image = resize_rgb(pixels, *self.image_size)
        else:
            image, _, _ = augment(
                pixels, np.zeros((0, 4)), self.image_size, self.config.augment, augmentation_seed
            )
        return Example(example_id, to_model(image), References(texts, tuple(map(normalise, texts))))

    def allowed_tokens(self) -> np.ndarray:
        """See `Task`: everything but padding and what no sentence is written with."""
        allowed = np.ones((self.max_length, self.vocabulary_size), bool)
        allowed[:, [PAD, *self.tokenizer.never]] = False
        return allowed

    def reinforced_tokens(self) -> np.ndarray:
        """See `Task`."""
        return np.ones(self.max_length, bool)

    def target_tokens(self, example: Example, seed: int) -> np.ndarray:
        """See `Task`: one of the references, drawn by the seed.

        A reference that is too long is cut, and has no end.
        """
        texts = example.target.texts
        text = texts[int(np.random.default_rng(seed).integers(len(texts)))]
        said = [*self.tokenizer.encode(text), self.end_token][: self.max_length]
        tokens = np.full(self.max_length, PAD, np.int32)
        tokens[: len(said)] = said
        return tokens

    def decode(self, example: Example, tokens: np.ndarray, logprobs: np.ndarray) -> list[Caption]:
        """See `Task`: what stands before the first end."""
        captions = []
        for row in tokens.tolist():
            ended = self.end_token in row
            said = row[: row.index(self.end_token)] if ended else row
            text = self.tokenizer.decode([token for token in said if token != PAD])
            captions.append(Caption(text, normalise(text), ended))
        return captions

    def auxiliary_loss(self, logits: Any, tokens: Any, auxiliary: Mapping[str, Any]) -> Any:
        """See `Task`: there is none."""
        raise NotImplementedError("captioning has no auxiliary loss")

    def evaluate(
        self, examples: Sequence[Example], predictions: Sequence[Caption]
    ) -> dict[str, float]:
        """CIDEr-D over a split, its document frequencies those of the split's references.

        `CIDEr` is what the reference code returns; papers report it times 100. `words_per_caption`
        is the mean length, `ended` the share of captions that said their end.
        """
        from vision.metrics.cider import cider

        if len(examples) != len(predictions):
            raise ValueError(f"{len(examples)} examples but {len(predictions)} predictions")
        if not examples:
            raise ValueError("no captions to evaluate")
        scores = cider(
            [example.target.words for example in examples],
            [prediction.words for prediction in predictions],
        )
        lengths = [len(prediction.words.split()) for prediction in predictions]
        return {
            "CIDEr": float(scores.mean()),
            "words_per_caption": float(np.mean(lengths)),
            "ended": float(np.mean([prediction.ended for prediction in predictions])),
        }

    def draw(self, example: Example, prediction: Caption | None) -> np.ndarray:
        """See `Task`; the image with its caption under it, or all its references."""
        from vision.tasks.drawing import draw_caption

        if prediction is None:
            return draw_caption(example.image, example.target.texts)
        return draw_caption(example.image, [prediction.text + ("" if prediction.ended else " …")])
