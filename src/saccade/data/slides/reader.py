"""What a slide format has to provide: levels of pixels, read by region."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from saccade.data.limits import damage_named


@dataclass(frozen=True)
class Region:
    """Pixels [Y X C] of a level, and where exactly they begin: (y, x) in pixels of the level, maybe with a fraction."""

    pixels: np.ndarray
    origin: tuple[float, float]


class Reader(Protocol):
    """The levels of one slide file. What a slide format has to provide; see ``saccade.data.formats``.

    Attributes
    ----------
    vendor : str
        Short name of the format for listings.
    sizes_px : list of tuple of int
        Rows and columns of every level, largest first.
    downsamples : list of float
        Factor of every level to level 0.
    spacing_um : tuple of float or None
        (y, x) of level 0 in micrometres per pixel.
    dtype : numpy.dtype
        Number type of the pixels.
    channels : int
        Number of channels, without alpha.
    fluorescent : bool
        Whether the channels cannot be colours: two, or more than three, each a grey image.
    note : str
        What the user should know of how the file is read; "" for nothing.
    """

    vendor: str
    sizes_px: list[tuple[int, int]]
    downsamples: list[float]
    spacing_um: tuple[float, float] | None
    dtype: np.dtype
    channels: int
    fluorescent: bool
    note: str

    def read(self, level: int, left: int, top: int, size_px: tuple[int, int], fill: int) -> Region:
        """Read [Y X C] of one level from about (left, top) in pixels of that level, ``fill`` outside of it.

        Raises DamagedFile.
        """
        ...

    def read_around(
        self, level: int, left: int, top: int, size_px: tuple[int, int], fill: int
    ) -> tuple[Region, np.ndarray] | None:
        """As ``read``, with ``fill`` where the file is damaged, and a mask of these pixels, bool [Y X].

        None where the reader does not know the tiles of the file.
        """
        ...


class CheckedReader:
    """A reader whose exceptions, whatever they are, become DamagedFile with the name of the slide."""

    def __init__(self, reader: Reader, name: str):
        self.inner, self._name = reader, name
        self.vendor, self.note, self.fluorescent = reader.vendor, reader.note, reader.fluorescent
        self.sizes_px, self.downsamples = reader.sizes_px, reader.downsamples
        self.spacing_um, self.dtype, self.channels = reader.spacing_um, reader.dtype, reader.channels

    def read(self, level: int, left: int, top: int, size_px: tuple[int, int], fill: int) -> Region:
        """As ``Reader.read``."""
        with damage_named(self._name):
            return self.inner.read(level, left, top, size_px, fill)

    def read_around(
        self, level: int, left: int, top: int, size_px: tuple[int, int], fill: int
    ) -> tuple[Region, np.ndarray] | None:
        """As ``Reader.read_around``."""
        with damage_named(self._name):
            return self.inner.read_around(level, left, top, size_px, fill)
