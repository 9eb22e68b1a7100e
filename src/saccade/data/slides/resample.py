"""One resampling, with a fractional box: what an antialiased reduction needs when factors of levels are not whole.

The filter is a triangle, two target pixels wide. Pillow does it for 8-bit grey and colour; other number types and
numbers of channels take the same weights as two matrix products.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

Box = tuple[float, float, float, float]


def margin_px(scale: float) -> int:
    """Source pixels that the filter reaches beyond the box, at ``scale`` source pixels a target pixel."""
    return math.ceil(max(scale, 1.0)) + 1


def resample(pixels: np.ndarray, box: Box, size_px: tuple[int, int]) -> np.ndarray:
    """Resample the rectangle ``box`` of an image with a triangle filter, two target pixels wide.

    Parameters
    ----------
    pixels : ndarray
        [Y X C] of any number type.
    box : tuple of float
        (left, top, right, bottom) in pixels, with fractions.
    size_px : tuple of int
        Rows and columns of the result.

    Returns
    -------
    ndarray
        [rows columns C] in the same number type.

    Examples
    --------
    >>> resample(np.arange(16, dtype=np.float32).reshape(4, 4, 1), (0, 0, 4, 4), (2, 2)).shape
    (2, 2, 1)
    """
    rows, columns = size_px
    if pixels.dtype == np.uint8 and pixels.shape[2] in (1, 3):
        image = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[..., 0])
        return np.asarray(image.resize((columns, rows), Image.Resampling.BILINEAR, box=box)).reshape(rows, columns, -1)
    down = weights(pixels.shape[0], box[1], box[3], rows)
    across = weights(pixels.shape[1], box[0], box[2], columns)
    resampled = np.einsum("ry,yxc,kx->rkc", down, pixels.astype(np.float32), across, optimize=True)
    if pixels.dtype.kind in "ui":
        limits = np.iinfo(pixels.dtype)
        resampled = np.rint(resampled).clip(limits.min, limits.max)
    return resampled.astype(pixels.dtype)


def weights(length: int, start: float, stop: float, count: int) -> np.ndarray:
    """[count length] float32: weight of every source pixel in every target pixel; rows sum to 1."""
    scale = (stop - start) / count
    width = max(scale, 1.0)
    centres = start + (np.arange(count) + 0.5) * scale
    distance = np.abs(np.arange(length) + 0.5 - centres[:, None]) / width
    triangle = np.clip(1 - distance, 0, None)
    return (triangle / triangle.sum(axis=1, keepdims=True)).astype(np.float32)


def touched(
    gaps: np.ndarray,
    first: tuple[float, float],
    origin: tuple[float, float],
    factors: tuple[float, float],
    step: float,
    size_px: tuple[int, int],
) -> np.ndarray:
    """Pixels [Y X] of a picture that a gap [Y X] in what was read of the level reaches: when it is resampled the filter
    is as wide as the pixels beside."""
    if not gaps.any():
        return np.zeros(size_px, bool)
    for axis in (0, 1):
        starts = first[axis] - origin[axis] + np.arange(size_px[axis] + 1) * factors[axis] / step
        count = gaps.shape[axis]
        edges = np.floor(starts).astype(np.int64).clip(0, count - 1)
        gaps = np.logical_or.reduceat(gaps.take(range(int(edges[-1]) + 1), axis=axis), edges[:-1], axis=axis)
        inside = (starts[1:] > 0) & (starts[:-1] < count)
        gaps = gaps & (inside[:, None] if axis == 0 else inside)
    if max(factors) / step == 1:
        return gaps
    tall = np.pad(gaps, ((1, 1), (0, 0)))
    wide = np.pad(tall[:-2] | tall[1:-1] | tall[2:], ((0, 0), (1, 1)))
    grown: np.ndarray = wide[:, :-2] | wide[:, 1:-1] | wide[:, 2:]
    return grown
