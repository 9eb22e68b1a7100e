"""A file format of its own: grey images as text, one row of numbers 0 to 255 a line (``.textimage``)."""

from __future__ import annotations

import numpy as np

from saccade.data.formats import Format
from saccade.errors import DamagedFile


def read_textimage(data: bytes, name: str) -> np.ndarray:
    """The image as uint8 [1 Y X]. Raises DamagedFile, naming the file."""
    rows = [line.split() for line in data.decode("ascii").splitlines()]
    if len({len(row) for row in rows}) != 1:
        raise DamagedFile(f"{name}: rows of different length", expected="one number for each column")
    return np.array(rows, dtype=np.uint8)[None]


CARD = Format("text image", "image", (".textimage",), read_textimage, "grey, one row of numbers a line")
