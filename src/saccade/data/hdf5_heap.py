"""Texts of HDF5 attributes are kept in global heaps (HDF5 file format specification, III.E), which HDF5 reads object by
object: in a damaged one that claims an object of no length it never comes to an end.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

from saccade.errors import DamagedFile

START = b"GCOL\x01\0\0\0"  # signature, version and three reserved bytes
OBJECT = struct.Struct("<HHIQ")  # index, references, reserved, length


def check_global_heaps(path: Path) -> None:
    """Raise DamagedFile where a global heap of a file has free space of no length."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        heap = data.find(START)
        while heap >= 0:
            at = heap + 16
            end = min(len(data), heap + int.from_bytes(data[heap + 8 : heap + 16], "little"))
            while at + OBJECT.size <= end:
                index, _, _, length = OBJECT.unpack_from(data, at)
                if index == 0 and length < OBJECT.size:
                    raise DamagedFile(f"{path}: the texts of its attributes are damaged", hint="copy it again")
                at += length if index == 0 else OBJECT.size + -(-length // 8) * 8
            heap = data.find(START, heap + 1)
