"""What samples sequences: a contract for engines, whatever they run on."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np


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
          params: the policy's parameters, a nested dict of float32 arrays.
          images: [G, H, W, 3] float32 in [-1, 1].
          seeds: [G] uint64. Sequence k of an image is drawn from (its seed, k) alone.
          samples_per_group: K.
        """
        ...

    def greedy(self, params: Any, images: np.ndarray) -> Samples:
        """The most likely token at each position: K = 1."""
        ...
