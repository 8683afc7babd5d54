"""What samples sequences: a contract for engines, whatever they run on."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from vision.models.config import ModelConfig


class EngineInputError(ValueError):
    """What was handed to the engine cannot be sampled with."""


@dataclass(frozen=True)
class Samples:
    """K sequences for each of G images.

    Attributes:
      tokens: [G, K, L] int32; PAD (0) after the end token.
      logprobs: [G, K, L] float32, under the behaviour policy: the softmax over the allowed tokens
        at temperature 1, without any decode-time bias. 0 after the end token.
      lengths: [G, K] int32, the tokens up to and including the end token; L when there is none.
    """

    tokens: np.ndarray
    logprobs: np.ndarray
    lengths: np.ndarray


class Engine(Protocol):
    """Samples from a policy; the same contract whatever it runs on."""

    def sample(
        self, params: Any, images: np.ndarray, seeds: np.ndarray, samples_per_group: int
    ) -> Samples:
        """K sequences for each image.

        Args:
          params: the policy's parameters, a nested dict of float32 arrays; never changed in place.
          images: [G, H, W, 3] float32 in [-1, 1].
          seeds: [G] uint64. Sequence k of an image is drawn from (its seed, k) alone.
          samples_per_group: K.
        """
        ...

    def greedy(self, params: Any, images: np.ndarray) -> Samples:
        """The most likely token at each position: K = 1."""
        ...


def check_settings(
    config: ModelConfig, allowed_tokens: np.ndarray, end_token: int, temperature: float
) -> None:
    """Raises `EngineInputError` for settings that no engine can sample with."""
    shape = (config.max_length, config.vocabulary_size)
    if allowed_tokens.shape != shape:
        raise EngineInputError(
            f"allowed_tokens has shape {allowed_tokens.shape}, the model needs [L, V] = {shape}"
        )
    empty = np.flatnonzero(~allowed_tokens.any(axis=1))
    if empty.size:
        raise EngineInputError(f"allowed_tokens allows no token at position {empty[0]}")
    if not -1 <= end_token < config.vocabulary_size:
        raise EngineInputError(
            f"end_token {end_token} is outside the vocabulary of {config.vocabulary_size} "
            "(-1 says that there is none)"
        )
    if not temperature > 0:
        raise EngineInputError(
            f"temperature must be above 0, not {temperature}; use greedy() for the mode"
        )


def check_images(config: ModelConfig, images: np.ndarray) -> None:
    """Raises `EngineInputError` for images of another shape than the model's."""
    expected = (*config.image_size, 3)
    if images.ndim != 4 or images.shape[1:] != expected:
        raise EngineInputError(
            f"images have shape {images.shape}, the model needs [G, *{expected}]"
        )


def check_draws(images: np.ndarray, seeds: np.ndarray, samples_per_group: int) -> None:
    """Raises `EngineInputError` for seeds or a number of samples that nothing can be drawn with."""
    if samples_per_group < 1:
        raise EngineInputError(f"samples_per_group must be 1 or more, not {samples_per_group}")
    if seeds.dtype != np.uint64 or seeds.shape != images.shape[:1]:
        raise EngineInputError(
            f"seeds must be uint64, one for each of {images.shape[0]} images; "
            f"got {seeds.dtype} of shape {seeds.shape}"
        )
