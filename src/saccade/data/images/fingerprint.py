"""Fingerprints of decoded images: the exact pixels, and a perceptual hash that survives small changes."""

from __future__ import annotations

import hashlib
import itertools

import numpy as np
from scipy.fft import dct

SIDE = 64
"""Images are reduced to this many rows and columns before the transform."""
WAVES = 12
"""Rows and columns of cosine coefficients that are kept: 144 bits, of which the first is constant."""


def pixel_hash(pixels: np.ndarray) -> str:
    """SHA-256 of decoded pixels with their shape and number type: the same for a BMP and the PNG made from it.

    Examples
    --------
    >>> pixel_hash(np.zeros((3, 2, 2), np.uint8))[:8] == pixel_hash(np.zeros((1, 2, 2), np.uint8))[:8]
    False
    """
    digest = hashlib.sha256(f"{pixels.shape} {pixels.dtype.newbyteorder('=')}".encode())
    digest.update(np.ascontiguousarray(pixels, pixels.dtype.newbyteorder("=")).data)
    return digest.hexdigest()


def perceptual_hash(pixels: np.ndarray) -> str:
    """Signs of the low cosine coefficients of the brightness, as 36 hexadecimal digits (Zauner 2010, pHash).

    Parameters
    ----------
    pixels : ndarray of shape (C, Y, X)
        A fourth channel is taken for opacity and ignored.

    Returns
    -------
    str
        Empty for an image without contrast, and for one with fewer than 16 rows or columns, which says too little.
    """
    if pixels.ndim != 3 or min(pixels.shape[1:]) < 16:
        return ""
    colors = pixels[: 3 if len(pixels) == 4 else 1 if len(pixels) == 2 else None]
    reduced = _means(_means(colors.mean(axis=0, dtype=np.float32), 0), 1)
    if not np.isfinite(reduced).all() or np.ptp(reduced) == 0:
        return ""
    waves = dct(dct(reduced, axis=0, norm="ortho"), axis=1, norm="ortho")[:WAVES, :WAVES].copy()
    waves[0, 0] = 0
    return np.packbits(waves > 0).tobytes().hex()


def _means(values: np.ndarray, axis: int) -> np.ndarray:
    """``SIDE`` means along an axis; fractions of pixels count as such."""
    count = values.shape[axis]
    shape = [1] * values.ndim
    shape[axis] = -1
    sums = np.concatenate([np.zeros_like(values.take([0], axis)), values], axis).cumsum(axis, dtype=np.float64)
    at = np.linspace(0, count, SIDE + 1)
    below = np.minimum(at.astype(int), count - 1)
    fraction = (at - below).reshape(shape)
    cumulative = sums.take(below, axis) * (1 - fraction) + sums.take(below + 1, axis) * fraction
    means: np.ndarray = np.diff(cumulative, axis=axis)
    return means


def bits_of(perceptual: str) -> np.ndarray:
    """[WAVES WAVES] bool of a perceptual hash."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(perceptual), np.uint8)).astype(bool).reshape(WAVES, WAVES)


def turned_forms(bits: np.ndarray) -> np.ndarray:
    """[8 WAVES WAVES] the hashes of the image turned by quarters and mirrored.

    A mirrored image has the same coefficients with the odd ones negated, a transposed image has them transposed.
    """
    odd = np.arange(WAVES) % 2 == 1
    forms = []
    for transpose, rows, columns in itertools.product((False, True), repeat=3):
        form = bits.T if transpose else bits
        forms.append(form ^ (odd[:, None] & rows) ^ (odd[None] & columns))
    return np.stack(forms)
