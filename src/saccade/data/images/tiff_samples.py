"""What the stored samples of a TIFF mean: bits per sample and photometric interpretation (TIFF 6.0, sections 3 to 6).

Every reader of TIFF in saccade (images, stacks, slides) goes through this file.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tifffile


def samples_dtype(page: Any) -> np.dtype:
    """The number type of ``to_samples`` for a page: uint8 for one bit, else that of the file."""
    return np.dtype(np.uint8 if page.dtype == bool else page.dtype)


def to_samples(pixels: np.ndarray, page: Any) -> np.ndarray:
    """Stored samples as numbers that grow with brightness; up to 8 bits they span 0 to 255.

    Parameters
    ----------
    pixels : ndarray
        Samples as tifffile unpacks them: 2- and 4-bit samples are 0 to 3 and 0 to 15.
    page : tifffile.TiffPage
        The page, for its bits per sample and photometric interpretation.

    Returns
    -------
    ndarray
        Of the same shape. Samples of 9 to 15 bits keep their numbers. MINISWHITE is inverted within the bits of a
        sample; of float samples, whose nominal range is 0 to 1, within that.
    """
    if page.photometric == tifffile.PHOTOMETRIC.PALETTE:
        return pixels
    bits = _bits(page)
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8)
        bits = 1
    if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
        if pixels.dtype.kind == "u":
            pixels = (2**bits - 1) - pixels
        elif pixels.dtype.kind == "i":
            pixels = ~pixels
        elif pixels.dtype.kind == "f":
            pixels = 1 - pixels
    if bits < 8 and pixels.dtype == np.uint8:
        pixels = np.rint(pixels.astype(np.float32) * (255 / (2**bits - 1))).astype(np.uint8)
    return pixels


def _bits(page: Any) -> int:
    """Bits of one sample; all samples of a page have the same number."""
    stored = page.bitspersample
    bits = int(stored[0] if isinstance(stored, tuple) else stored)
    return bits or 8 * page.dtype.itemsize
