"""What a slide format has to provide: levels of pixels, read by region."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Region:
    """Pixels [Y X C] of a level, and where exactly they begin: (y, x) in pixels of the level, maybe with a fraction."""

    pixels: np.ndarray
    origin: tuple[float, float]


class Reader(Protocol):
    """One file as levels of pixels; made by openslide_reader and tiff_reader."""

    vendor: str
    sizes_px: list[tuple[int, int]]
    """Rows and columns of every level, largest first."""
    downsamples: list[float]
    spacing_um: tuple[float, float] | None
    """(y, x) of level 0."""
    number_type: np.dtype
    channels: int
    fluorescent: bool
    """Its channels cannot be colours: two, or more than three, each a grey picture."""
    note: str

    def read(self, level: int, left: int, top: int, size_px: tuple[int, int], fill: int) -> Region:
        """[Y X C] of one level from about (left, top) in pixels of that level; ``fill`` outside. Raises DamagedFile."""
        ...

    def read_around(
        self, level: int, left: int, top: int, size_px: tuple[int, int], fill: int
    ) -> tuple[Region, np.ndarray] | None:
        """Like ``read``, with ``fill`` where the file is damaged; and where that is, bool [Y X], tile by tile.

        None where the file does not say what its tiles are.
        """
        ...
