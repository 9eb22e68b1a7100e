"""Writing a slide of any size: a tiled TIFF with smaller levels, strip by strip, in memory of a few strips.

Level 0 goes to the file as it comes. Each smaller level is made on the way, two strips of the level above at a time,
and its encoded tiles wait in an unnamed file until it is their turn.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import imagecodecs
import numpy as np
import tifffile

from saccade.base.files import atomic_file

TILE_PX = 256
QUALITY = 80
SMALLEST_PX = 512  # no further level below
BIG_BYTES = 8 * 10**9  # of raw pixels, from which a file may pass the 4 GiB of classic TIFF


def write_pyramid(
    path: Path, size_px: tuple[int, int], strips: Iterable[np.ndarray], *, um: float | tuple[float, float] | None
) -> Path:
    """Write a slide as a tiled TIFF with smaller levels (JPEG, quality 80), in memory of a few strips.

    Parameters
    ----------
    path : Path
        The file to write.
    size_px : tuple of int
        Rows and columns of level 0.
    strips : iterable of ndarray
        [256 X 3] uint8 from top to bottom; the last one may be lower.
    um : float, tuple of float or None
        Micrometres per pixel, or (y, x), for the resolution tags; None writes none.

    Returns
    -------
    Path
        ``path``.

    Raises
    ------
    StorageError
        The file cannot be written; nothing is left behind.
    """
    tags: dict[str, Any] = {}
    if um is not None:
        y, x = um if isinstance(um, tuple) else (um, um)
        tags = {"resolution": (1e4 / x, 1e4 / y), "resolutionunit": "CENTIMETER"}
    tags |= {
        "photometric": "ycbcr",
        "subsampling": (2, 2),
        "tile": (TILE_PX, TILE_PX),
        "compression": "jpeg",
        "metadata": None,
    }
    with (
        atomic_file(path) as temporary,
        ThreadPoolExecutor() as pool,
        tifffile.TiffWriter(temporary, bigtiff=3 * size_px[0] * size_px[1] > BIG_BYTES) as file,
    ):
        smaller = _levels_below(size_px)
        below = smaller[0] if smaller else None
        shape = (*size_px, 3)
        file.write(_first(strips, below, pool), shape=shape, dtype=np.uint8, software="saccade", **tags)
        if below is not None:
            below.finish(pool)
        for level in smaller:
            file.write(level.encoded(), shape=(*level.size_px, 3), dtype=np.uint8, subfiletype=1, **tags)
    return path


class _Level:
    """One level below the first: takes strips of the level above, halves them, keeps its own encoded tiles."""

    def __init__(self, size_px: tuple[int, int], below: _Level | None):
        self.size_px, self.below = size_px, below
        self._waiting: np.ndarray | None = None
        self._file: IO[bytes] = tempfile.TemporaryFile(prefix="saccade-level-")  # noqa: SIM115
        self._lengths: list[int] = []

    def take(self, strip: np.ndarray, pool: ThreadPoolExecutor) -> None:
        """A strip of the level above; every second one completes a strip of this level."""
        half = halved(strip)
        if self._waiting is None and half.shape[0] == TILE_PX // 2:
            self._waiting = half
            return
        full = half if self._waiting is None else np.concatenate([self._waiting, half])
        self._waiting = None
        self._put(full, pool)

    def finish(self, pool: ThreadPoolExecutor) -> None:
        if self._waiting is not None:
            self._put(self._waiting, pool)
            self._waiting = None
        if self.below is not None:
            self.below.finish(pool)

    def _put(self, strip: np.ndarray, pool: ThreadPoolExecutor) -> None:
        strip = strip[:, : self.size_px[1]]
        if not strip.shape[0]:
            return
        for tile in encode(strip, pool):
            self._file.write(tile)
            self._lengths.append(len(tile))
        if self.below is not None:
            self.below.take(strip, pool)

    def encoded(self) -> Iterator[bytes]:
        self._file.seek(0)
        for length in self._lengths:
            yield self._file.read(length)
        self._file.close()


def _levels_below(size_px: tuple[int, int]) -> list[_Level]:
    """Levels of half the side each, whole pixels only, largest first; each knows the next smaller one."""
    sizes = []
    while max(size_px) > SMALLEST_PX and min(size_px) >= 2:
        size_px = (size_px[0] // 2, size_px[1] // 2)
        sizes.append(size_px)
    levels: list[_Level] = []
    for size in reversed(sizes):
        levels.insert(0, _Level(size, levels[0] if levels else None))
    return levels


def _first(strips: Iterable[np.ndarray], below: _Level | None, pool: ThreadPoolExecutor) -> Iterator[bytes]:
    for strip in strips:
        tiles = encode(strip, pool)
        if below is not None:
            below.take(strip, pool)  # before its tiles are handed over: nobody comes back after the last one
        yield from tiles


def encode(strip: np.ndarray, pool: ThreadPoolExecutor) -> Iterator[bytes]:
    """The tiles of a strip as JPEG, the last ones filled up with their edge."""
    rows, columns = strip.shape[:2]
    fill = ((0, -rows % TILE_PX), (0, -columns % TILE_PX), (0, 0))
    padded = np.pad(strip, fill, mode="edge") if fill[0][1] or fill[1][1] else strip
    tiles = (padded[:, x : x + TILE_PX] for x in range(0, padded.shape[1], TILE_PX))
    return iter(list(pool.map(_jpeg, tiles)))


def _jpeg(tile: np.ndarray) -> bytes:
    encoded = imagecodecs.jpeg8_encode(
        np.ascontiguousarray(tile), level=QUALITY, colorspace="RGB", outcolorspace="YCBCR", subsampling="420"
    )
    return bytes(encoded)


def halved(strip: np.ndarray) -> np.ndarray:
    """Means of 2 x 2 pixels; a last odd row or column is left out."""
    rows, columns = strip.shape[0] // 2 * 2, strip.shape[1] // 2 * 2
    x = strip[:rows, :columns].astype(np.uint16)
    return ((x[::2, ::2] + x[1::2, ::2] + x[::2, 1::2] + x[1::2, 1::2] + 2) >> 2).astype(np.uint8)
