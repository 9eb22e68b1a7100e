"""Decompression of as many bytes as a header declares, after these were compared with the bytes that are stored."""

from __future__ import annotations

import bz2
import gzip
import io
import zlib

from saccade.data.limits import SMALL_VOLUME, check_claim
from saccade.errors import DamagedFile

PIECE, SMALL_DATASET = 2**14, 2**24  # bytes inflated at once (16 MiB at most), and those allowed at any ratio
MOST_PACKED = 1032  # deflate writes at least one byte for so many


def fits(have: int, needed: int, slice_bytes: int, name: str) -> None:
    """Raise DamagedFile when a file has fewer bytes than its header declares, or a whole slice more."""
    if have < needed:
        raise DamagedFile(
            f"{name}: the file is cut off, or its header is wrong",
            got=f"{have:,} bytes",
            expected=f"{needed:,} bytes, as its header says",
            hint="copy it again",
        )
    if have - needed >= slice_bytes:
        raise DamagedFile(
            f"{name}: the file holds more slices than its header says",
            got=f"at least {have:,} bytes",
            expected=f"{needed:,} bytes",
            hint="correct the sizes in the header",
        )


def gunzip(data: bytes, most: int, name: str) -> bytes:
    """At most ``most`` bytes of gzip data. Raises DamagedFile for a broken stream, and for an impossible claim."""
    _check_claim(data, most, name)
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            return file.read(most)
    except (EOFError, OSError, zlib.error) as error:
        raise _broken(name, error) from error


def inflate(data: bytes, most: int, name: str) -> bytes:
    """The same for zlib data, as MetaImage has them."""
    _check_claim(data, most, name)
    try:
        stream = zlib.decompressobj(zlib.MAX_WBITS | 32)
        inflated = stream.decompress(data, most)
    except zlib.error as error:
        raise _broken(name, error) from error
    return inflated


def bunzip(data: bytes, most: int, name: str) -> bytes:
    """The same for bzip2 data."""
    check_claim(most, len(data), name, small=SMALL_VOLUME)
    try:
        return bz2.BZ2Decompressor().decompress(data, most)
    except (OSError, EOFError, ValueError) as error:
        raise _broken(name, error) from error


def check_deflate(data: bytes, name: str) -> None:
    """Raise DamagedFile where raw deflate data become more than the limits allow; what is unpacked is not held."""
    stream, total = zlib.decompressobj(-zlib.MAX_WBITS), 0
    try:
        for start in range(0, len(data), PIECE):
            total += len(stream.decompress(data[start : start + PIECE]))
            check_claim(total, start + PIECE, name, small=SMALL_DATASET)
    except zlib.error as error:
        raise _broken(name, error) from error


def _check_claim(data: bytes, most: int, name: str) -> None:
    if most > MOST_PACKED * len(data) + 2**16:
        raise DamagedFile(
            f"{name}: its header claims more than the file can hold",
            got=f"{len(data):,} packed bytes",
            expected=f"{most:,} bytes unpacked",
            hint="copy it again",
        )
    check_claim(most, len(data), name, small=SMALL_VOLUME)


def _broken(name: str, error: Exception) -> DamagedFile:
    return DamagedFile(f"{name}: the compressed data are cut off or damaged ({error})", hint="copy it again")
