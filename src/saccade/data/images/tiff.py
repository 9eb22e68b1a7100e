"""Which of the images in a TIFF is the image, and what its samples mean (TIFF 6.0, sections 3 to 6; OME-TIFF).

Every reader of TIFF in saccade (images, stacks, slides) goes through this file.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tifffile

from saccade.errors import DamagedFile

ASIDE = ("label", "macro", "thumbnail", "overview")
"""Words in the name of a series, as Aperio, Ventana and OME files have them, that is never the image."""


def main_series(file: tifffile.TiffFile, name: str) -> Any:
    """The image of a file: of its series that are not reduced copies, labels or overviews, the largest.

    Raises DamagedFile where there is none, and where planes of an OME-TIFF are in other files that are not there.
    """
    series: list[Any] = [item for item in file.series if not any(word in (item.name or "").lower() for word in ASIDE)]
    full_size = [item for item in series if not item.keyframe.is_reduced] or series
    if not full_size:
        raise DamagedFile(f"{name}: no image in this TIFF", hint="copy it again")
    main = max(full_size, key=lambda item: item.keyframe.imagewidth * item.keyframe.imagelength)
    check_complete(main, name)
    return main


def check_complete(series: Any, name: str) -> None:
    """Raise DamagedFile where planes of a series are in other files that cannot be reached."""
    missing = sum(page is None for page in series.pages)
    if missing:
        raise DamagedFile(
            f"{name}: {missing:,} of its {len(series.pages):,} planes are in other files",
            hint="an OME-TIFF of several files: save it as one file, or keep a slide and its files in one folder",
        )


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
