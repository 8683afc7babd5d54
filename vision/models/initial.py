"""How position embeddings and ordered tokens start."""

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


def sincos_1d(length: int, width: int) -> np.ndarray:
    """[length, width] float32: sines and cosines of geometric wavelengths (Vaswani et al. 2017)."""
    return _waves(np.arange(length), width)


def sincos_2d(grid: tuple[int, int], width: int) -> np.ndarray:
    """[rows * columns, width] float32: half of the width for the row, half for the column."""
    rows, columns = np.meshgrid(np.arange(grid[0]), np.arange(grid[1]), indexing="ij")
    return np.concatenate(
        [_waves(rows.ravel(), width // 2), _waves(columns.ravel(), width - width // 2)], axis=-1
    )


def smooth_rows(key: Array, count: int, width: int) -> Array:
    """[count, width] float32 of unit variance, whose neighbouring rows are alike.

    Each column is a cosine over the rows with a random phase and a random wavelength, from twelve
    rows to twice the whole range: near rows are alike, far rows are not, at several scales.
    """
    frequency_key, phase_key = jax.random.split(key)
    low, high = np.log(0.5), np.log(max(1.0, count / 12))
    frequency = jnp.exp(jax.random.uniform(frequency_key, (width,), minval=low, maxval=high))
    phase = jax.random.uniform(phase_key, (width,), maxval=2 * np.pi)
    row = jnp.arange(count)[:, None] / count
    return jnp.sqrt(2.0) * jnp.cos(2 * np.pi * frequency * row + phase)


def _waves(positions: np.ndarray, width: int) -> np.ndarray:
    half = width // 2
    wavelengths = 10_000.0 ** (np.arange(half) / half)
    angles = positions[:, None] / wavelengths
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1).astype(np.float32)
