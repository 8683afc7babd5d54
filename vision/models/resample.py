"""Position embeddings for another grid of patches."""

import math

import numpy as np


class ResampleError(ValueError):
    """Position embeddings that are not of a square grid."""


def resample_positions(positions: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Position embeddings of a square grid, resampled bilinearly to another grid.

    Args:
      positions: [1, n * n, width] or, with a class token before, [1, 1 + n * n, width].
      grid: (rows, columns).
    Returns:
      [1, rows * columns, width] float32; the same numbers when the grid is the same.
    """
    count, width = positions.shape[1:]
    side = math.isqrt(count)
    if side * side != count:
        side = math.isqrt(count - 1)
        if side * side != count - 1:
            raise ResampleError(
                f"{count} position embeddings are neither a square grid nor one and a class token"
            )
        positions = positions[:, 1:]
    table = positions.astype(np.float32).reshape(side, side, width)
    for axis, size in enumerate(grid):
        table = _resize_axis(table, size, axis)
    return table.reshape(1, grid[0] * grid[1], width)


def _resize_axis(table: np.ndarray, size: int, axis: int) -> np.ndarray:
    """Linear interpolation along an axis, cell centres on cell centres, the ends held."""
    old = table.shape[axis]
    if size == old:
        return table
    centre = np.clip((np.arange(size) + 0.5) * old / size - 0.5, 0, old - 1)
    low = np.floor(centre).astype(int)
    high = np.minimum(low + 1, old - 1)
    shape = [1] * table.ndim
    shape[axis] = size
    share = (centre - low).astype(np.float32).reshape(shape)
    return np.take(table, low, axis) * (1 - share) + np.take(table, high, axis) * share


def linear_weights(old: int, new: int) -> np.ndarray:
    """[new, old] float32: each row makes one of `new` points of `old` ones, cell on cell.

    Enlarging interpolates linearly, the ends held; reducing averages with a triangle as wide as
    two new cells, so that nothing is skipped.
    """
    scale = max(1.0, old / new)
    centres = (np.arange(new) + 0.5) * old / new - 0.5
    distance = np.abs(centres[:, None] - np.arange(old)[None, :]) / scale
    weights = np.maximum(0.0, 1.0 - distance)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)
