"""The SHA-256 of a Parquet file inside the file itself: an entry of its metadata, counted as zeros in the digest.

Parquet readers ignore the entry, the file stays one file, and any changed byte is noticed.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import BinaryIO

KEY = "saccade_sha256"
EMPTY = "0" * 64
BLOCK = 2**20  # bytes
PATTERN = re.compile(KEY.encode() + rb"\x18\x40([0-9a-f]{64})")  # Thrift: a text of 64 bytes


def _offset(file: BinaryIO) -> int | None:
    """Where the digest begins; None in files without one."""
    size = file.seek(0, 2)
    file.seek(max(0, size - 8))
    footer = int.from_bytes(file.read(4), "little")  # its length, before the last four bytes "PAR1"
    start = max(0, size - 8 - footer)
    file.seek(start)
    matches = list(PATTERN.finditer(file.read()))
    return start + matches[-1].start(1) if matches else None


def _digest(file: BinaryIO, offset: int) -> str:
    """The SHA-256 of a file with zeros at the 64 bytes from ``offset`` on."""
    sha256 = hashlib.sha256()
    file.seek(0)
    remaining = offset
    while remaining and (block := file.read(min(BLOCK, remaining))):
        sha256.update(block)
        remaining -= len(block)
    sha256.update(EMPTY.encode())
    file.seek(offset + len(EMPTY))
    while block := file.read(BLOCK):
        sha256.update(block)
    return sha256.hexdigest()


def write(path: Path) -> None:
    """Put the digest in the place of EMPTY, which the writer left as the value of KEY. Raises OSError."""
    with path.open("r+b") as file:
        offset = _offset(file)
        if offset is None:
            raise OSError(f"{path} has no entry {KEY}")
        digest = _digest(file, offset)
        file.seek(offset)
        file.write(digest.encode())


def check(path: Path) -> bool | None:
    """Whether a file is as it was written; None where it has no digest. Raises OSError."""
    with path.open("rb") as file:
        offset = _offset(file)
        if offset is None:
            return None
        digest = _digest(file, offset)
        file.seek(offset)
        return file.read(len(EMPTY)) == digest.encode()
