"""What a model is made of: sizes, stem, compute type. Hashable, so that it can be static in jit."""

from dataclasses import dataclass
from typing import Literal


class ModelConfigError(ValueError):
    """A model's settings that cannot be built."""


@dataclass(frozen=True)
class Trunk:
    """A stack of transformer layers.

    Attributes:
      depth: number of layers.
      width: size of a token's vector.
      heads: attention heads; divides width.
      mlp_dim: hidden size of each layer's MLP.
    """

    depth: int
    width: int
    heads: int
    mlp_dim: int

    def __post_init__(self) -> None:
        for name in ("depth", "width", "heads", "mlp_dim"):
            if getattr(self, name) < 1:
                raise ModelConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.width % self.heads:
            raise ModelConfigError(
                f"width {self.width} is not a multiple of heads {self.heads}: "
                "each head takes an equal share of the width"
            )

    @property
    def head_dim(self) -> int:
        """Size of one head's queries, keys and values."""
        return self.width // self.heads


@dataclass(frozen=True)
class ModelConfig:
    """An image encoder and an autoregressive decoder of tokens.

    Attributes:
      image_size: (height, width) in pixels, multiples of patch_size.
      stem: 'patch' is ViT's linear patch embedding; 'conv' is a stack of stride-2 convolutions
        (5x5, then 3x3) of the same total stride, which learns from little data.
      patch_size: pixels a side of one encoder token.
      encoder: the image's trunk.
      decoder: the tokens' trunk; its width may differ from the encoder's.
      vocabulary_size: V, tokens are 0 .. V - 1; token 0 pads and is the decoder's first input.
      max_length: L, tokens of a sequence.
      ordered_tokens: (first, count) of tokens whose order means nearness (coordinates), which
        start with smooth embeddings; None when there are none.
      positions: how the learned position embeddings start.
      dtype: the type of the computation; parameters, logits and softmax are float32 always.
      remat: compute each layer again in the backward pass instead of keeping its activations.
    """

    image_size: tuple[int, int]
    stem: Literal["patch", "conv"]
    patch_size: int
    encoder: Trunk
    decoder: Trunk
    vocabulary_size: int
    max_length: int
    ordered_tokens: tuple[int, int] | None = None
    positions: Literal["normal", "sincos"] = "normal"
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False

    def __post_init__(self) -> None:
        _one_of("stem", self.stem, ("patch", "conv"))
        _one_of("positions", self.positions, ("normal", "sincos"))
        _one_of("dtype", self.dtype, ("float32", "bfloat16"))
        if self.patch_size < 1:
            raise ModelConfigError(f"patch_size must be at least 1, not {self.patch_size}")
        if self.stem == "conv" and (self.patch_size < 2 or self.patch_size & (self.patch_size - 1)):
            raise ModelConfigError(
                f"a conv stem halves the image at each layer: patch_size {self.patch_size} "
                "must be a power of two, 2 or more"
            )
        for name, size in zip(("height", "width"), self.image_size, strict=True):
            if size < 1 or size % self.patch_size:
                raise ModelConfigError(
                    f"image {name} {size} is not a positive multiple of "
                    f"patch_size {self.patch_size}"
                )
        if self.vocabulary_size < 2:
            raise ModelConfigError(f"vocabulary_size {self.vocabulary_size}: 2 at least")
        if self.max_length < 1:
            raise ModelConfigError(f"max_length {self.max_length}: 1 at least")
        if self.ordered_tokens is not None:
            first, count = self.ordered_tokens
            if first < 0 or count < 1 or first + count > self.vocabulary_size:
                raise ModelConfigError(
                    f"ordered_tokens (first {first}, count {count}) do not lie within a "
                    f"vocabulary of {self.vocabulary_size}"
                )
        if self.positions == "sincos":
            for name, width in (("encoder", self.encoder.width), ("decoder", self.decoder.width)):
                if width % 4:
                    raise ModelConfigError(
                        f"sincos positions need a width that is a multiple of 4, {name} has {width}"
                    )

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of encoder tokens."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    @property
    def patches(self) -> int:
        """P, the number of encoder tokens."""
        return self.grid[0] * self.grid[1]


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ModelConfigError(f"{name} {value!r} is not one of {', '.join(known)}")
