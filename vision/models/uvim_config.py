"""What UViM's first stage is made of; needs no JAX, so that reward workers can read it.

Stage I compresses a label map, with the image as context, to a few code words and decodes them
again (Kolesnikov et al. 2022, "UViM", section 3.1). Stage II, the sequence model, predicts the
code words from the image: token t of its vocabulary is code t - 1, token 0 pads.
"""

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from vision.models.config import ModelConfig, ModelConfigError, Trunk

# big_vision's names of the parameters that are not of a trunk.
EMBEDDING, HEAD = "embedding_", "head_"


@dataclass(frozen=True)
class Plane:
    """One of the maps that stage I reads and writes.

    Attributes:
      name: names its parameters, `embedding_NAME` and `head_NAME`.
      channels: classes of a label map, or values of a pixel.
      kind: 'labels' are class numbers [H, W] int32, given one-hot to the encoder and decoded to
        logits; 'values' are real [H, W, channels] float32, decoded to the values.
    """

    name: str
    channels: int
    kind: Literal["labels", "values"] = "labels"

    def __post_init__(self) -> None:
        if self.channels < 1:
            raise ModelConfigError(f"plane {self.name}: channels {self.channels}, 1 at least")
        if self.kind not in ("labels", "values"):
            raise ModelConfigError(f"plane {self.name}: kind {self.kind!r} is not labels or values")


@dataclass(frozen=True)
class UvimConfig:
    """A VQ autoencoder of label maps with image context.

    Attributes:
      image_size: (height, width) in pixels of maps and image, multiples of patch_size.
      patch_size: pixels a side of one patch.
      planes: the maps.
      encoder, decoder: trunks of equal width.
      codes: number of words in the dictionary.
      tokens: code words of an image.
      codeword_dim: size of a code word.
      bottleneck_resize: fit the patches to the tokens and back by linear resizing between square
        grids (all published models); else by a learned matrix.
      with_encoder_ctx, with_decoder_ctx: whether encoder and decoder see the image.
      dtype: of the computation; parameters, dictionary, quantisation and logits are float32.
      remat: compute each layer again in the backward pass instead of keeping its activations.
    """

    image_size: tuple[int, int]
    patch_size: int
    planes: tuple[Plane, ...]
    encoder: Trunk
    decoder: Trunk
    codes: int
    tokens: int
    codeword_dim: int
    bottleneck_resize: bool = True
    with_encoder_ctx: bool = True
    with_decoder_ctx: bool = True
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False

    def __post_init__(self) -> None:
        for name, least in (("patch_size", 1), ("codes", 2), ("tokens", 1), ("codeword_dim", 1)):
            if getattr(self, name) < least:
                raise ModelConfigError(f"{name} {getattr(self, name)}: {least} at least")
        for name, size in zip(("height", "width"), self.image_size, strict=True):
            if size < 1 or size % self.patch_size:
                raise ModelConfigError(
                    f"stage I: image {name} {size} is not a positive multiple of "
                    f"patch_size {self.patch_size}"
                )
        if self.encoder.width != self.decoder.width:
            raise ModelConfigError(
                f"stage I: the encoder's width {self.encoder.width} and the decoder's "
                f"{self.decoder.width} must be equal"
            )
        names = [plane.name for plane in self.planes]
        if not names or len(set(names)) != len(names):
            raise ModelConfigError(f"stage I needs planes of different names, not {names}")
        if self.bottleneck_resize and math.isqrt(self.tokens) ** 2 != self.tokens:
            raise ModelConfigError(
                f"tokens {self.tokens} is no square: patches are resized to a square grid of code "
                f"words; use {math.isqrt(self.tokens) ** 2}, or bottleneck_resize false"
            )
        if self.dtype not in ("float32", "bfloat16"):
            raise ModelConfigError(f"dtype {self.dtype!r} is not float32 or bfloat16")

    @property
    def width(self) -> int:
        """Size of a patch's vector."""
        return self.encoder.width

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of patches."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    @property
    def patches(self) -> int:
        """P, the number of patches."""
        return self.grid[0] * self.grid[1]

    @property
    def code_grid(self) -> tuple[int, int]:
        """(rows, columns) of code words where the bottleneck resizes."""
        side = math.isqrt(self.tokens)
        return side, side

    @property
    def patch_pixels(self) -> int:
        """Pixels of a patch."""
        return self.patch_size**2


_VIT_B = Trunk(depth=12, width=768, heads=12, mlp_dim=3072)
_PAPER = {
    "patch_size": 16,
    "encoder": Trunk(depth=6, width=768, heads=12, mlp_dim=3072),
    "decoder": _VIT_B,
    "codes": 4096,
    "tokens": 256,
    "codeword_dim": 768,
}
_SMALL = Trunk(depth=2, width=128, heads=4, mlp_dim=512)
PRESETS: Mapping[str, Mapping[str, Any]] = {
    # The size of the golden files: for tests.
    "tiny": {
        "patch_size": 8,
        "encoder": Trunk(depth=1, width=64, heads=4, mlp_dim=128),
        "decoder": Trunk(depth=2, width=64, heads=4, mlp_dim=128),
        "codes": 64,
        "tokens": 16,
        "codeword_dim": 32,
    },
    # Learns scenes of 48x48 pixels in minutes on a laptop.
    "quickstart": {
        "patch_size": 8,
        "encoder": _SMALL,
        "decoder": Trunk(depth=3, width=128, heads=4, mlp_dim=512),
        "codes": 128,
        "tokens": 36,
        "codeword_dim": 32,
    },
    # The published panoptic and colour models, at 512x512 pixels.
    "paper": _PAPER,
}
# The planes of the published models.
PANOPTIC_PLANES = (Plane("semantics", 134), Plane("instances", 100))
COLOR_PLANES = (Plane("color", 3, "values"),)


def uvim_config(
    preset: str, *, image_size: tuple[int, int], planes: tuple[Plane, ...], **overrides: Any
) -> UvimConfig:
    """A preset at a task's image size and planes, with some of its settings replaced.

    Raises:
      ModelConfigError: an unknown preset, or settings that do not fit together.
    """
    if preset not in PRESETS:
        near = difflib.get_close_matches(preset, list(PRESETS), n=1, cutoff=0.0)
        raise ModelConfigError(
            f"unknown stage-I preset {preset!r}; did you mean {near[0]!r}? "
            f"Known: {', '.join(PRESETS)}"
        )
    settings = {**PRESETS[preset], **overrides}
    return UvimConfig(image_size=(image_size[0], image_size[1]), planes=planes, **settings)


def check_stage_two(stage_one: UvimConfig, model: ModelConfig) -> None:
    """Checks that a sequence model speaks the code words of a stage I, about images of its size.

    Raises:
      ModelConfigError: they differ in codes, tokens or image size.
    """
    if model.vocabulary_size != stage_one.codes + 1:
        raise ModelConfigError(
            f"stage II has a vocabulary of {model.vocabulary_size} and stage I {stage_one.codes} "
            f"codes: the vocabulary must be {stage_one.codes + 1}, padding and one token a code; "
            "use the codes of the stage-I checkpoint's run"
        )
    if model.max_length != stage_one.tokens:
        raise ModelConfigError(
            f"stage II writes {model.max_length} tokens and stage I reads {stage_one.tokens}: they "
            "must be equal; use the tokens of the stage-I checkpoint's run"
        )
    if model.image_size != stage_one.image_size:
        raise ModelConfigError(
            f"stage II sees images of {model.image_size} and stage I of {stage_one.image_size} "
            "pixels: they must be equal; use the image_size of the stage-I checkpoint's run"
        )


def patches_to_pixels(outputs: np.ndarray, config: UvimConfig) -> np.ndarray:
    """[N, P, channels, patch_size^2], as stage I decodes, to maps [N, H, W, channels]."""
    (rows, columns), size = config.grid, config.patch_size
    patches = outputs.reshape(len(outputs), rows, columns, -1, size, size)
    maps = patches.transpose(0, 1, 4, 2, 5, 3)
    return maps.reshape(len(outputs), *config.image_size, patches.shape[3])


def stage_one_shapes(config: UvimConfig) -> dict[str, tuple[int, ...]]:
    """Every array of a stage I, by its name in a checkpoint without 'params/', and its shape."""
    width, pixels = config.width, config.patch_pixels
    shapes: dict[str, tuple[int, ...]] = {}
    for which, there in (("enc", config.with_encoder_ctx), ("dec", config.with_decoder_ctx)):
        if there:
            kernel = (config.patch_size, config.patch_size, 3, width)
            shapes |= _dense(f"ctx_{which}_embedding", kernel, (width,))
    for plane in config.planes:
        size = (plane.channels, pixels)
        shapes |= _dense(EMBEDDING + plane.name, (*size, width), (width,))
        shapes |= _dense(HEAD + plane.name, (width, *size), size)
    shapes |= _dense("encoder_head", (width, config.codeword_dim), (config.codeword_dim,))
    shapes |= _dense("decoder_stem", (config.codeword_dim, width), (width,))
    for name, trunk in (("encoder", config.encoder), ("decoder", config.decoder)):
        shapes[f"pos_embedding_{name}"] = (1, config.patches, width)
        shapes |= _trunk(name, trunk)
    if not config.bottleneck_resize:
        shapes["bottleneck_downsample"] = (config.patches, config.tokens)
        shapes["bottleneck_upsample"] = (config.tokens, config.patches)
    shapes["state/dictionary"] = (config.codes, config.codeword_dim)
    shapes["state/counts"] = (config.codes,)
    return shapes


def is_of_decoder(name: str) -> bool:
    """Whether decoding needs the array of this name in `stage_one_shapes`."""
    return not name.startswith(
        (
            "encoder/",
            "encoder_head/",
            "pos_embedding_encoder",
            "ctx_enc_embedding/",
            "bottleneck_downsample",
            EMBEDDING,
        )
    )


def _dense(name: str, kernel: tuple[int, ...], bias: tuple[int, ...]) -> dict[str, Any]:
    return {f"{name}/kernel": kernel, f"{name}/bias": bias}


def _trunk(name: str, trunk: Trunk) -> dict[str, tuple[int, ...]]:
    width, heads = trunk.width, (trunk.heads, trunk.head_dim)
    shapes: dict[str, tuple[int, ...]] = {}
    norms = [f"{name}/encoder_norm"]
    for i in range(trunk.depth):
        block = f"{name}/encoderblock_{i}"
        norms += [f"{block}/LayerNorm_0", f"{block}/LayerNorm_1"]
        attention = f"{block}/MultiHeadDotProductAttention_0"
        for projection in ("query", "key", "value"):
            shapes |= _dense(f"{attention}/{projection}", (width, *heads), heads)
        shapes |= _dense(f"{attention}/out", (*heads, width), (width,))
        shapes |= _dense(f"{block}/MlpBlock_0/Dense_0", (width, trunk.mlp_dim), (trunk.mlp_dim,))
        shapes |= _dense(f"{block}/MlpBlock_0/Dense_1", (trunk.mlp_dim, width), (width,))
    for norm in norms:
        shapes |= {f"{norm}/scale": (width,), f"{norm}/bias": (width,)}
    return shapes
