"""One volume from one file: the suffix says which reader. Nothing is resampled; see orientation.py for the axes."""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import numpy as np

from saccade.data.formats import by_name, suffixes
from saccade.data.limits import MAX_CHANNELS, check_voxels, damage_named
from saccade.data.volumes.orientation import Volume, unplaced
from saccade.data.volumes.safe_decompress import fits
from saccade.errors import DamagedFile

LONGEST_HEADER = 2**16  # bytes; NumPy writes 128
Beside = Callable[[str], bytes]  # name of a file beside this one -> its bytes


def npy_header(start: bytes) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """Shape, whether columns come first, number type and length of the header of a NumPy array."""
    file = io.BytesIO(start)
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, by_columns, dtype = read(file)
    return shape, by_columns, dtype, file.tell()


def read_npy(data: bytes, name: str, beside: Beside) -> Volume:
    """A plain array [T Y X], or [C T Y X] with few channels: no spacing, no orientation."""
    shape, by_columns, dtype, start = npy_header(data[:LONGEST_HEADER])
    if dtype.kind not in "uif":
        raise DamagedFile(f"{name}: unsupported voxel type", got=dtype)
    if len(shape) not in (3, 4) or min(shape) < 1 or shape[-3] < 2 or (len(shape) == 4 and shape[0] > MAX_CHANNELS):
        raise DamagedFile(f"{name}: not a volume", got=f"shape {shape}", expected="[T Y X] or [C T Y X]")
    check_voxels(shape, dtype, name)
    needed = math.prod(shape) * dtype.itemsize
    fits(len(data) - start, needed, needed // shape[-3], name)
    values = np.frombuffer(data, dtype, math.prod(shape), start)
    return unplaced(values.reshape(shape, order="F" if by_columns else "C"))


def read_volume(data: bytes, name: str, beside: Beside) -> Volume:
    """Decode one volume of a single file.

    Parameters
    ----------
    data : bytes
        The whole file.
    name : str
        File name; its suffix decides the format (``saccade.data.formats``).
    beside : callable
        Reads the data file that a header (.nhdr, .mhd) names, by its name.

    Returns
    -------
    Volume
        Pixels [C T Y X] in the number type of the file, in LPS order where the file has an orientation.

    Raises
    ------
    DamagedFile
        The bytes are not one whole volume. The message names the file.
    """
    if not data:
        raise DamagedFile(f"{name}: empty file", hint="copy it again from where it came")
    card = by_name(name, "volume")
    if card is None:
        raise DamagedFile(f"{name}: not a volume", expected="a file ending in " + ", ".join(suffixes("volume")))
    with damage_named(name, hint="open it in a viewer, or copy it again"):
        volume: Volume = card.load()(data, name, beside)
    return volume
