"""UViM's first stage: label maps to code words and back, with the image as context.

The parameters carry the names and shapes of big_vision's, so the published checkpoints
(`panoptic_stageI`, `color_stageI`) load as they are (`vision.models.uvim_checkpoint`). Variables
are {"params": ..., "state": {"dictionary", "counts"}}; the state is learned by averages, see
`vision.models.quantizer`.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vision.models.encoder import Encoder
from vision.models.quantizer import code_words, nearest
from vision.models.resample import linear_weights
from vision.models.uvim_config import EMBEDDING, HEAD, Plane, UvimConfig

Array = jax.Array
Planes = Mapping[str, Array]


class Quantized(NamedTuple):
    """The bottleneck of a batch.

    vectors [B, T, codeword_dim] float32, before quantisation; codes [B, T] int32, the nearest
    words; words [B, T, codeword_dim] float32, those words.
    """

    vectors: Array
    codes: Array
    words: Array


class StageOne(nn.Module):
    """The autoencoder. Planes are by name: labels [B, H, W] int32, values [B, H, W, C] float32."""

    config: UvimConfig

    def setup(self) -> None:
        """Names the parts as the published checkpoints do."""
        config = self.config
        dtype = _dtype(config)
        self.embeddings = {
            plane.name: nn.DenseGeneral(
                config.width, axis=(-2, -1), dtype=dtype, name=EMBEDDING + plane.name
            )
            for plane in config.planes
        }
        self.heads = {
            plane.name: nn.DenseGeneral(
                (plane.channels, config.patch_pixels),
                dtype=dtype,
                kernel_init=nn.initializers.zeros,
                name=HEAD + plane.name,
            )
            for plane in config.planes
        }
        patch = (config.patch_size, config.patch_size)
        if config.with_encoder_ctx:
            self.ctx_enc_embedding = nn.Conv(config.width, patch, patch, "VALID", dtype=dtype)
        if config.with_decoder_ctx:
            self.ctx_dec_embedding = nn.Conv(config.width, patch, patch, "VALID", dtype=dtype)
        positions = nn.initializers.normal(stddev=config.width**-0.5)
        shape = (1, config.patches, config.width)
        self.pos_embedding_encoder = self.param("pos_embedding_encoder", positions, shape)
        self.pos_embedding_decoder = self.param("pos_embedding_decoder", positions, shape)
        self.encoder = Encoder(config.encoder, dtype, config.remat)
        self.decoder = Encoder(config.decoder, dtype, config.remat)
        if not config.bottleneck_resize:
            xavier = nn.initializers.xavier_uniform()
            self.bottleneck_downsample = self.param(
                "bottleneck_downsample", xavier, (config.patches, config.tokens)
            )
            self.bottleneck_upsample = self.param(
                "bottleneck_upsample", xavier, (config.tokens, config.patches)
            )
        self.encoder_head = nn.Dense(config.codeword_dim, dtype=dtype)
        self.decoder_stem = nn.Dense(config.width, dtype=dtype)
        self.dictionary = self.variable("state", "dictionary", self._first_dictionary)
        self.counts = self.variable("state", "counts", jnp.ones, (config.codes,))

    def __call__(
        self, planes: Planes, context: Array, kept: Array | None = None
    ) -> tuple[dict[str, Array], Quantized]:
        """Training: encodes, quantises with a straight-through gradient, and decodes.

        Args:
          context: images [B, H, W, 3] float32 in [-1, 1].
          kept: [B, T] bool, the code words that the decoder may see (code dropout); None: all.
        Returns:
          outputs as of `decode`, and the bottleneck.
        """
        vectors = self.bottleneck(planes, context)
        words = jax.lax.stop_gradient(self.words())
        codes = nearest(jax.lax.stop_gradient(vectors), words)
        quantized = Quantized(vectors, codes, words[codes])
        seen = vectors + jax.lax.stop_gradient(quantized.words - vectors)
        if kept is not None:
            seen = seen * kept[..., None]
        return self.decode_words(seen, context), quantized

    def encode(self, planes: Planes, context: Array) -> Array:
        """The codes of maps and their images [B, H, W, 3]: [B, T] int32."""
        return nearest(self.bottleneck(planes, context), self.words())

    def decode(self, codes: Array, context: Array) -> dict[str, Array]:
        """The maps of codes.

        Args:
          codes: [N, T] int32 in 0 .. codes - 1.
          context: images [M, H, W, 3]; each is that of N / M consecutive rows of codes, embedded
            once.
        Returns:
          by plane, [N, P, channels, patch_size^2] float32: logits or values of the pixels of each
          patch, row by row; `patches_to_pixels` makes maps of them.
        """
        return self.decode_words(self.words()[codes], context)

    def words(self) -> Array:
        """The dictionary's words, [codes, codeword_dim] float32."""
        return code_words({"dictionary": self.dictionary.value, "counts": self.counts.value})

    def bottleneck(self, planes: Planes, context: Array) -> Array:
        """The vectors that are quantised, [B, T, codeword_dim] float32, of mean 0, variance 1."""
        config = self.config
        x = sum(
            self.embeddings[plane.name](_embeddable(planes[plane.name], plane, config))
            for plane in config.planes
        )
        if config.with_encoder_ctx:
            x = x + self._embed_context(self.ctx_enc_embedding, context)
        x = self.encoder(x + self.pos_embedding_encoder.astype(x.dtype))
        if config.bottleneck_resize:
            x = _resize(x, config.grid, config.code_grid)
        else:
            x = jnp.einsum("bpc,pt->btc", x, self.bottleneck_downsample.astype(x.dtype))
        return jax.nn.standardize(self.encoder_head(x).astype(jnp.float32), axis=-1)

    def decode_words(self, words: Array, context: Array) -> dict[str, Array]:
        """As `decode`, of words [N, T, codeword_dim]."""
        config = self.config
        x = self.decoder_stem(words.astype(_dtype(config)))
        if config.bottleneck_resize:
            x = _resize(x, config.code_grid, config.grid)
        else:
            x = jnp.einsum("btc,tp->bpc", x, self.bottleneck_upsample.astype(x.dtype))
        if config.with_decoder_ctx:
            embedded = self._embed_context(self.ctx_dec_embedding, context)
            if x.shape[0] % embedded.shape[0]:
                raise ValueError(
                    f"{x.shape[0]} rows of codes do not divide over {embedded.shape[0]} images"
                )
            x = x + jnp.repeat(embedded, x.shape[0] // embedded.shape[0], axis=0)
        x = self.decoder(x + self.pos_embedding_decoder.astype(x.dtype))
        return {name: head(x).astype(jnp.float32) for name, head in self.heads.items()}

    def _embed_context(self, stem: Any, context: Array) -> Array:
        if tuple(context.shape[1:]) != (*self.config.image_size, 3):
            raise ValueError(
                f"context images of shape {tuple(context.shape)}, but stage I takes "
                f"[N, {self.config.image_size[0]}, {self.config.image_size[1]}, 3]"
            )
        x = stem(context.astype(_dtype(self.config)))
        return x.reshape(x.shape[0], self.config.patches, self.config.width)

    def _first_dictionary(self) -> Array:
        shape = (self.config.codes, self.config.codeword_dim)
        return jax.random.normal(self.make_rng("state"), shape) * self.config.codes**-0.5


def init_stage_one(config: UvimConfig, seed: int) -> dict[str, Any]:
    """Fresh float32 variables: a pure function of config and seed."""
    return jax.jit(_init, static_argnums=0)(config, jax.random.key(seed))


def abstract_stage_one(config: UvimConfig) -> dict[str, Any]:
    """The variables' shapes and types, without allocating them."""
    return jax.eval_shape(partial(_init, config), jax.random.key(0))


@partial(jax.jit, static_argnums=0)
def encode_planes(config: UvimConfig, variables: Any, planes: Planes, context: Array) -> Array:
    """Compiled `StageOne.encode`."""
    return StageOne(config).apply(variables, planes, context, method=StageOne.encode)


@partial(jax.jit, static_argnums=0)
def decode_codes(
    config: UvimConfig, variables: Any, codes: Array, context: Array
) -> dict[str, Array]:
    """Compiled `StageOne.decode`."""
    return StageOne(config).apply(variables, codes, context, method=StageOne.decode)


def _init(config: UvimConfig, key: Array) -> dict[str, Any]:
    params_key, state_key = jax.random.split(key)
    planes = {
        plane.name: jnp.zeros((1, *config.image_size), jnp.int32)
        if plane.kind == "labels"
        else jnp.zeros((1, *config.image_size, plane.channels))
        for plane in config.planes
    }
    context = jnp.zeros((1, *config.image_size, 3))
    variables = StageOne(config).init({"params": params_key, "state": state_key}, planes, context)
    return {"params": variables["params"], "state": dict(variables["state"])}


def _dtype(config: UvimConfig) -> Any:
    return jnp.bfloat16 if config.dtype == "bfloat16" else jnp.float32


def pixels_to_patches(maps: Array, config: UvimConfig) -> Array:
    """[B, H, W, C] of any type to [B, P, C, patch_size^2]."""
    (rows, columns), size = config.grid, config.patch_size
    patches = maps.reshape(-1, rows, size, columns, size, maps.shape[-1])
    patches = patches.transpose(0, 1, 3, 5, 2, 4)
    return patches.reshape(-1, config.patches, maps.shape[-1], config.patch_pixels)


def _embeddable(maps: Array, plane: Plane, config: UvimConfig) -> Array:
    """A plane as [B, P, channels, patch_size^2], labels one-hot."""
    if plane.kind == "values":
        return pixels_to_patches(maps, config).astype(_dtype(config))
    labels = pixels_to_patches(maps[..., None], config)[:, :, 0]
    return jax.nn.one_hot(labels, plane.channels, axis=-2, dtype=_dtype(config))


def _resize(x: Array, old: tuple[int, int], new: tuple[int, int]) -> Array:
    """[B, old cells, width] to [B, new cells, width], linearly; see `linear_weights`."""
    if old == new:
        return x
    rows, columns = (linear_weights(o, n) for o, n in zip(old, new, strict=True))
    return jnp.einsum("no,boc->bnc", jnp.asarray(np.kron(rows, columns), x.dtype), x)
