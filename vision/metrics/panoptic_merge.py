"""From per-patch logits to a segment map, in one pass (Kolesnikov et al. 2022, UViM; section 4.1).

An instance is the argmax of a pixel's instance logits, the first of equals; none is special. Each
instance has one label: the argmax of its semantic logits, summed over its pixels.

The logits are taken as the decoder gives them, patch by patch and channel by channel. Pixels of one
channel are then neighbours in memory, so that the argmax runs over many pixels at a time, most
patches belong to one instance, and no map of all logits at pixel resolution is ever made.
"""

from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

# Up to this many instances in a patch, one masked sum for each is faster than sorting pixel by
# pixel; only a decoder that has learned nothing has more.
_MASKED_SUMS = 24


class Merged(NamedTuple):
    """A segment map.

    Attributes:
      ids: [H, W] int32, each pixel's instance, 0 .. I - 1.
      labels: [I] int32, each instance's label; 0, void, for those without pixels or too small.
    """

    ids: NDArray[np.int32]
    labels: NDArray[np.int32]


def merge_logits(
    semantics: NDArray[np.float32],
    instances: NDArray[np.float32],
    grid: tuple[int, int],
    min_fraction: float = 0.0,
) -> Merged:
    """Merges the logits of one image.

    Args:
      semantics: [gh * gw, S, p * p] float32: for each patch, from the top left row by row, and each
        label (0 is void), its pixels, row by row.
      instances: [gh * gw, I, p * p] float32.
      grid: (gh, gw), patches in height and width; the map has gh * p x gw * p pixels.
      min_fraction: instances with less than this share of the pixels become void.

    Raises:
      ValueError: shapes do not fit, `min_fraction` is not in [0, 1], or logits are not finite.
    """
    height, width = grid
    patches, classes, pixels = semantics.shape
    side = round(pixels**0.5)
    if patches != height * width or side * side != pixels or not classes:
        raise ValueError(
            f"semantics have the shape {semantics.shape}; expected {height * width} patches of a "
            f"{height} x {width} grid, at least one label, and a square number of pixels"
        )
    if instances.ndim != 3 or (instances.shape[0], instances.shape[2]) != (patches, pixels):
        raise ValueError(
            f"instances have the shape {instances.shape}; expected {patches} patches and {pixels} "
            f"pixels as in semantics {semantics.shape}"
        )
    if not instances.shape[1]:
        raise ValueError(f"instances have the shape {instances.shape}: at least one is expected")
    if not 0 <= min_fraction <= 1:
        raise ValueError(f"min_fraction is {min_fraction}; it must be in 0 .. 1")
    ids, sums, counts, broken = _merge(
        np.ascontiguousarray(semantics, np.float32),
        np.ascontiguousarray(instances, np.float32),
        height,
        width,
        side,
    )
    for name, wrong in (("semantic", not np.isfinite(sums).all()), ("instance", broken)):
        if wrong:
            raise ValueError(
                f"the {name} logits are not finite: the decoder's weights may be broken"
            )
    labels = sums.argmax(axis=1).astype(np.int32)
    labels[(counts == 0) | (counts < min_fraction * ids.size)] = 0
    return Merged(ids, labels)


@numba.njit(nogil=True, cache=True)
def _winners(logits, best, winner):  # type: ignore[no-untyped-def]
    """The argmax over the channels of [I, pixels]; a NaN in the first stays in `best`."""
    pixels = len(best)
    for k in range(pixels):
        best[k] = logits[0, k]
        winner[k] = 0
    for channel in range(1, logits.shape[0]):
        this = np.int32(channel)
        for k in range(pixels):
            better = logits[channel, k] > best[k]
            best[k] = logits[channel, k] if better else best[k]
            winner[k] = this if better else winner[k]


# Summed in any order: a patch at a time in float32, the patches in float64.
@numba.njit(nogil=True, cache=True, fastmath={"reassoc", "nsz"})
def _sum(values):  # type: ignore[no-untyped-def]
    total = np.float32(0)
    for k in range(len(values)):
        total += values[k]
    return total


@numba.njit(nogil=True, cache=True, fastmath={"reassoc", "nsz"})
def _sum_where(values, winner, instance):  # type: ignore[no-untyped-def]
    total = np.float32(0)
    for k in range(len(values)):
        total += values[k] if winner[k] == instance else np.float32(0)
    return total


@numba.njit(nogil=True, cache=True)
def _merge(semantics, instances, height, width, side):  # type: ignore[no-untyped-def]
    """Instance ids [H, W], summed semantic logits [I, S] float64, pixels [I] of instances, and
    whether a winning logit is not finite."""
    patches, classes, pixels = semantics.shape
    n = instances.shape[1]
    ids = np.empty((height * side, width * side), np.int32)
    sums = np.zeros((n, classes), np.float64)
    counts = np.zeros(n, np.int64)
    best = np.empty(pixels, np.float32)
    winner = np.empty(pixels, np.int32)
    last_seen = np.full(n, -1, np.int64)  # the last patch that showed each instance
    here = np.empty(n, np.int32)  # the instances of this patch
    broken = False
    for patch in range(patches):
        _winners(instances[patch], best, winner)
        shown = 0
        for k in range(pixels):
            broken |= not np.isfinite(best[k])
            counts[winner[k]] += 1
            if last_seen[winner[k]] != patch:
                last_seen[winner[k]] = patch
                here[shown] = winner[k]
                shown += 1
        if shown == 1:
            for c in range(classes):
                sums[here[0], c] += _sum(semantics[patch, c])
        elif shown <= _MASKED_SUMS:
            for c in range(classes):
                for j in range(shown):
                    sums[here[j], c] += _sum_where(semantics[patch, c], winner, here[j])
        else:
            for c in range(classes):
                for k in range(pixels):
                    sums[winner[k], c] += semantics[patch, c, k]
        top, left = patch // width * side, patch % width * side
        for y in range(side):
            for x in range(side):
                ids[top + y, left + x] = winner[y * side + x]
    return ids, sums, counts, broken
