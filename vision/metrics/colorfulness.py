"""How vivid an image is and how many hues it shows (Pinto et al. 2023, section 4.3).

RGB -> linear light -> CIE XYZ -> CIE Lab (D65, 2 degrees; the constants and branches of
scikit-image, so that both put a pixel into the same bin). Two figures, of all pixels of an image:

- vivid: the share with a² + b² > 10 (strict);
- entropy: of the hue over 7 uniform bins, in nats; the most is ln 7 = 1.946.

Hue is `atan2(b, a)`, in [-pi, pi]. The paper writes arctan(b / a), which is in [-pi/2, pi/2]:
opposite colours are one then. Its 7 bins span that range: over [-pi, pi] it could fill five of
them, and the paper's own entropy of 1.84 is more than ln 5.

A pixel with r = g = b has no hue. Lab's rounded constants give it a tiny one, which noise would
choose; so it goes to the middle bin, that of hue 0. Numpy's conventions hold for the rest: a bin
holds its lower edge, the last one its upper edge, pi, too.

Speed: float32 without a power, a root or an arctangent. Bins are told by cross products with their
edges, which is symmetric in b: 3 edges do. A pixel within `_MARGIN` of a decision, where float32
could err, is decided again in float64 as scikit-image would. So the counts do not depend on the
machine's rounding either.
"""

import math
from typing import Literal, NamedTuple, cast, get_args

import numba
import numpy as np
from numpy.typing import NDArray

Hue = Literal["atan2", "arctan"]

HUE_BINS = 7
VIVID_ABOVE = 10.0  # of a² + b²
_MIDDLE = HUE_BINS // 2

# CIE XYZ of linear sRGB, rows X, Y, Z, and the white point D65 of the 2 degrees' observer.
_XYZ = np.array(
    [
        [0.412453, 0.357580, 0.180423],
        [0.212671, 0.715160, 0.072169],
        [0.019334, 0.119193, 0.950227],
    ]
)
_WHITE = np.array([0.95047, 1.0, 1.08883])
_DARK_SRGB, _DARK_XYZ = 0.04045, 0.008856  # below, both curves are straight


class Colorfulness(NamedTuple):
    """The two figures of one image."""

    vivid: float
    entropy: float

    @property
    def product(self) -> float:
        """The paper's reward."""
        return self.vivid * self.entropy


def colorfulness(image: NDArray[np.float32], hue: Hue = "atan2") -> Colorfulness:
    """The figures of an image [height, width, 3] in [-1, 1], of at least one pixel.

    Raises:
      ValueError: another shape, an empty image, a value that is not finite, an unknown hue.
    """
    hues, vivid = count_colours(image, hue)
    shares = hues[hues > 0] / hues.sum()
    entropy = -np.sum(shares * np.log(shares))
    return Colorfulness(vivid / int(hues.sum()), max(0.0, float(entropy)))


def count_colours(image: NDArray[np.float32], hue: Hue = "atan2") -> tuple[NDArray[np.int64], int]:
    """Pixels of each hue bin [7] int64, and vivid pixels; see `colorfulness`.

    Values beyond [-1, 1] count as the nearest end: no screen shows more.
    """
    if image.ndim != 3 or image.shape[-1] != 3 or not image.size:
        raise ValueError(f"the image has shape {image.shape}; expected [height, width, 3], ≥ 1")
    check_hue(hue)
    pixels = np.ascontiguousarray(image, np.float32).reshape(-1)
    hues = np.zeros(HUE_BINS, np.int64)
    vivid, broken = _count(pixels, hue == "atan2", *_EDGES[hue], hues)
    if broken:
        raise ValueError(f"{broken} of the image's {pixels.size} values are not finite")
    return hues, vivid


def check_hue(hue: str) -> Hue:
    """The same, if it is one; `ValueError` otherwise."""
    for known in get_args(Hue):
        if hue == known:
            return cast(Hue, known)
    raise ValueError(f"hue is {hue!r}; it must be one of {', '.join(get_args(Hue))}")


def _edges(extent: float) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float64]]:
    """Of bins over [-extent, extent]: sine and cosine of the 3 edges above 0, and all 8 edges."""
    edges = np.linspace(-extent, extent, HUE_BINS + 1)
    above = edges[_MIDDLE + 1 : -1]
    return np.sin(above).astype(np.float32), np.cos(above).astype(np.float32), edges


_EDGES = {"atan2": _edges(math.pi), "arctan": _edges(math.pi / 2)}

_CHUNK = 1024  # pixels; what is kept of them stays in the first cache
# float32 errs by less than 1.1e-3 in a and b: where f is steepest, 7.787, light is dark and errs by
# the polynomial's 1.4e-7, twice, times 500. Next to a² + b² = 10 that is 1.4e-2.
_MARGIN = np.float32(2e-3)
_VIVID_MARGIN = np.float32(2e-2)
_VIVID = np.float32(VIVID_ABOVE)


def _curve(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return ((x + 1) / 2 / 1.055 + 0.055 / 1.055) ** 2.4


# Linear light of a value in [-1, 1] above the dark ones, as a polynomial: within 1.4e-7.
_GAMMA = tuple(
    np.float32(c)
    for c in np.polynomial.Chebyshev.interpolate(_curve, 10, domain=[2 * _DARK_SRGB - 1, 1])
    .convert(kind=np.polynomial.Polynomial)
    .coef
)
_G0, _G1, _G2, _G3, _G4, _G5, _G6, _G7, _G8, _G9, _G10 = _GAMMA
_ZERO, _ONE, _TWO, _THIRD = np.float32(0), np.float32(1), np.float32(2), np.float32(1 / 3)
_BRIGHT, _SLOPE = np.float32(2 * _DARK_SRGB - 1), np.float32(0.5 / 12.92)
_XR, _XG, _XB = (_XYZ[0] / _WHITE[0]).astype(np.float32)
_YR, _YG, _YB = (_XYZ[1] / _WHITE[1]).astype(np.float32)
_ZR, _ZG, _ZB = (_XYZ[2] / _WHITE[2]).astype(np.float32)
_STRAIGHT, _START, _DARK = np.float32(7.787), np.float32(16 / 116), np.float32(_DARK_XYZ)
_SEED = np.int32(709_921_077)  # of the cube root, through the exponent's bits
_A, _B = np.float32(500), np.float32(200)
_UNSURE = np.int32(7)  # in the place of a bin
_FAST = {"contract", "nsz"}


@numba.njit(nogil=True, cache=True, fastmath=_FAST, error_model="numpy")
def _to_linear(values, linear):  # type: ignore[no-untyped-def]
    """Linear light of values in [-1, 1]; returns how many were not finite."""
    broken = 0
    for i in range(values.size):
        value = values[i]
        broken += int(value - value != _ZERO)
        x = min(max(value, -_ONE), _ONE)
        y = _G9 + x * _G10
        y = _G7 + x * (_G8 + x * y)
        y = _G5 + x * (_G6 + x * y)
        y = _G3 + x * (_G4 + x * y)
        y = _G1 + x * (_G2 + x * y)
        y = _G0 + x * y
        linear[i] = y if x > _BRIGHT else (x + _ONE) * _SLOPE
    return broken


@numba.njit(nogil=True, cache=True, fastmath=_FAST, error_model="numpy")
def _cube_root(t, y):  # type: ignore[no-untyped-def]
    """A step of Halley's method from the estimate `y`."""
    cube = y * y * y
    return y * (cube + _TWO * t) / (_TWO * cube + t)


@numba.njit(nogil=True, cache=True, fastmath=_FAST, error_model="numpy")
def _to_roots(xyz, bits, root, root_bits):  # type: ignore[no-untyped-def]
    """Lab's f of each value of `xyz`; `bits` and `root_bits` are views of both floats as int32."""
    for i in range(xyz.size):
        root_bits[i] = np.int32(np.float32(bits[i]) * _THIRD) + _SEED
    for i in range(xyz.size):
        t = xyz[i]
        y = _cube_root(t, _cube_root(t, root[i]))
        root[i] = y if t > _DARK else _STRAIGHT * t + _START


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _linear64(value):  # type: ignore[no-untyped-def]
    s = (min(max(np.float64(value), -1.0), 1.0) + 1) / 2
    return ((s + 0.055) / 1.055) ** 2.4 if s > _DARK_SRGB else s / 12.92


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _f64(r, g, b, axis):  # type: ignore[no-untyped-def]
    t = (r * _XYZ[axis, 0] + g * _XYZ[axis, 1] + b * _XYZ[axis, 2]) / _WHITE[axis]
    return np.cbrt(t) if t > _DARK_XYZ else 7.787 * t + 16 / 116


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _decide(r, g, b, signed, edges):  # type: ignore[no-untyped-def]
    """Hue bin, and whether it is vivid, of one pixel in float64, as scikit-image has it."""
    r, g, b = _linear64(r), _linear64(g), _linear64(b)
    if r == g and g == b:  # also where all lie beyond the same end
        return _MIDDLE, False
    f = _f64(r, g, b, 1)
    a, b = 500 * (_f64(r, g, b, 0) - f), 200 * (f - _f64(r, g, b, 2))
    if signed:
        hue = math.atan2(b, a)
    elif a == 0:
        hue = math.copysign(math.pi / 2, b) if b != 0 else 0.0
    else:
        hue = math.atan(b / a)
    index = 0
    while index < HUE_BINS - 1 and hue >= edges[index + 1]:
        index += 1
    return index, a * a + b * b > VIVID_ABOVE


@numba.njit(nogil=True, cache=True, fastmath=_FAST, error_model="numpy")
def _to_codes(root, size, signed, sines, cosines, codes):  # type: ignore[no-untyped-def]
    """The hue bin of each pixel, `_UNSURE` where float32 cannot tell, and 8 more where vivid."""
    s1, s2, s3 = sines[0], sines[1], sines[2]
    c1, c2, c3 = cosines[0], cosines[1], cosines[2]
    for i in range(size):
        a = _A * (root[i] - root[_CHUNK + i])
        b = _B * (root[_CHUNK + i] - root[2 * _CHUNK + i])
        if not signed:
            b = b if a >= _ZERO else -b
            a = abs(a)
        height = abs(b)
        d1, d2, d3 = height * c1 - a * s1, height * c2 - a * s2, height * c3 - a * s3
        # Both ends of the range are an edge too: hue pi, or pi / 2 of either sign.
        end = max(height, a) if signed else a
        excess = a * a + b * b - _VIVID
        passed = np.int32(d1 > _ZERO) + np.int32(d2 > _ZERO) + np.int32(d3 > _ZERO)
        code = np.int32(_MIDDLE) + (passed if b >= _ZERO else -passed)
        nearest = min(min(abs(d1), abs(d2)), min(abs(d3), end))
        code = code if nearest >= _MARGIN else _UNSURE
        code = code if abs(excess) >= _VIVID_MARGIN else _UNSURE
        codes[i] = code + np.int32(8) if excess > _ZERO else code


@numba.njit(nogil=True, cache=True, fastmath=_FAST, error_model="numpy")
def _count(values, signed, sines, cosines, edges, hues):  # type: ignore[no-untyped-def]
    """Adds to `hues`; returns vivid pixels and values that are not finite.

    Written as short loops over a chunk, each of which the compiler turns into vector code.
    """
    n = values.size // 3
    linear = np.empty(3 * _CHUNK, np.float32)
    xyz = np.zeros(3 * _CHUNK, np.float32)  # X of the chunk, then Y, then Z
    root = np.empty(3 * _CHUNK, np.float32)
    bits, root_bits = xyz.view(np.int32), root.view(np.int32)
    codes = np.empty(_CHUNK, np.int32)
    counts = np.zeros((4, 16), np.int64)  # of codes; four, so that additions need not wait
    broken, vivid = 0, 0
    for start in range(0, n, _CHUNK):
        size = min(_CHUNK, n - start)
        broken += _to_linear(values[3 * start : 3 * (start + size)], linear)
        for i in range(size):
            r, g, b = linear[3 * i], linear[3 * i + 1], linear[3 * i + 2]
            xyz[i] = _XR * r + _XG * g + _XB * b
            xyz[_CHUNK + i] = _YR * r + _YG * g + _YB * b
            xyz[2 * _CHUNK + i] = _ZR * r + _ZG * g + _ZB * b
        _to_roots(xyz, bits, root, root_bits)
        _to_codes(root, size, signed, sines, cosines, codes)
        for i in range(size):
            counts[i & 3, codes[i]] += 1
        for i in range(size):
            if codes[i] & _UNSURE == _UNSURE:
                p = 3 * (start + i)
                index, is_vivid = _decide(values[p], values[p + 1], values[p + 2], signed, edges)
                hues[index] += 1
                vivid += is_vivid
    for code in range(16):
        if code & _UNSURE != _UNSURE:
            hues[code & 7] += counts[:, code].sum()
            vivid += counts[:, code].sum() if code >= 8 else 0
    return vivid, broken
