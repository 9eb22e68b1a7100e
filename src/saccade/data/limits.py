"""What one file may claim: the one budget of all readers, compared with headers before pixels are read.

A few kilobytes can claim terabytes: sizes in a header cost nothing, and deflate packs zeros 1,032 times, bzip2 a
million times. Every reader compares what a header claims with the bytes that are stored. Each limit is raised by an
environment variable, which processes that read tiles inherit.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from saccade.errors import DamagedFile, SaccadeError, UsageError, first_line

MIB = 2**20


@dataclass(frozen=True)
class Limit:
    """A number that no file may pass. ``variable``: the environment variable that replaces ``default``."""

    variable: str
    default: int
    unit: str

    @property
    def value(self) -> int:
        """The limit in force. Raises UsageError where the variable is not a whole number above 0."""
        text = os.environ.get(self.variable, "")
        if not text:
            return self.default
        if not text.isdecimal() or int(text) < 1:
            raise UsageError(
                f"the environment variable {self.variable} is not a whole number above 0",
                got=repr(text),
                expected=f"{self.unit}, by default {self.default:,}",
            )
        return int(text)

    def hint(self, needed: int) -> str:
        return f"if the file is as it should be, set {self.variable}={needed}"


PIXELS = Limit("SACCADE_MAX_PIXELS", 178_000_000, "pixels of an image")
VOXELS = Limit("SACCADE_MAX_VOXELS", 2**30, "voxels of a volume, of all channels")
MEMORY = Limit("SACCADE_MAX_MIB", 4096, "MiB of one file after decompression")
RATIO = Limit("SACCADE_MAX_RATIO", 500, "bytes after decompression for each stored byte")
SMALL_IMAGE, SMALL_VOLUME, SMALL_SLIDE = 64 * MIB, 512 * MIB, 1024 * MIB
"""Bytes up to which any ratio is allowed: a mask with few structures is packed 1,000 times (512 x 512 x 512 int16 has
256 MiB), and a slide is read tile by tile."""
SLIDE_RATIO = 4  # times RATIO: most of a slide may be empty glass, which is not stored
TABLE_FRACTION = 8  # of MEMORY: rows of a table take several times the bytes of its text
MAX_CHANNELS = 16
MAX_PLANES = 100_000  # of one file, by its text
MAX_SCANS = 200  # of a JPEG: a progressive one has about ten, and each is a pass over all pixels


def check_memory(claimed: int, name: str) -> None:
    """Raise DamagedFile for more bytes than one file may take in memory."""
    if claimed > MEMORY.value * MIB:
        raise DamagedFile(
            f"{name}: its header claims {claimed:,} bytes",
            expected=f"at most {MEMORY.value * MIB:,} bytes ({MEMORY.value:,} MiB)",
            hint=MEMORY.hint(-(-claimed // MIB)),
        )


def check_ratio(claimed: int, stored: int, name: str, *, small: int = SMALL_IMAGE, times: int = 1) -> None:
    """Raise DamagedFile for a claim that is both large and many times what is stored.

    Parameters
    ----------
    claimed, stored : int
        Bytes after and before decompression.
    name : str
        Name of the file for the message.
    small : int
        Claims up to this are allowed at any ratio.
    times : int
        Multiple of ``RATIO`` that is allowed.
    """
    if claimed > small and claimed > times * RATIO.value * stored:
        ratio = math.ceil(claimed / max(1, stored))
        raise DamagedFile(
            f"{name}: its header claims {claimed:,} bytes, {ratio:,} times what is stored",
            got=f"{stored:,} bytes",
            expected=f"at most {times * RATIO.value:,} times, or {small:,} bytes",
            hint=RATIO.hint(math.ceil(ratio / times)),
        )


def check_claim(claimed: int, stored: int, name: str, *, small: int = SMALL_IMAGE) -> None:
    """``check_memory`` and ``check_ratio``, for what is decoded as a whole."""
    check_ratio(claimed, stored, name, small=small)
    check_memory(claimed, name)


def check_image(rows: int, columns: int, sample_bytes: int, stored: int, name: str) -> None:
    """Raise DamagedFile for an image that is too large to be decoded; ``sample_bytes``: of a pixel, all channels."""
    if rows < 1 or columns < 1 or rows * columns > PIXELS.value:
        raise DamagedFile(
            f"{name}: its header claims {rows:,} x {columns:,} pixels",
            expected=f"1 to {PIXELS.value:,} pixels",
            hint=f"cut a slide into tiles first; {PIXELS.hint(rows * columns)}" if min(rows, columns) > 0 else None,
        )
    check_claim(rows * columns * sample_bytes, stored, name)


def check_voxels(shape: Sequence[int], dtype: np.dtype, name: str, most: int | None = None) -> None:
    """Raise DamagedFile for a shape that volumes do not have; ``most`` voxels instead of the limit."""
    voxels, allowed = math.prod(int(side) for side in shape), VOXELS.value if most is None else most
    if min(shape) < 1 or voxels > allowed:
        raise DamagedFile(
            f"{name}: its header claims {' x '.join(f'{int(side):,}' for side in shape)} voxels",
            got=f"{voxels * dtype.itemsize:,} bytes",
            expected=f"at most {allowed:,} voxels",
            hint="cut it into blocks" + ("" if most is not None or voxels < 1 else f"; {VOXELS.hint(voxels)}"),
        )


def check_table(claimed: int, name: str) -> None:
    """Raise DamagedFile for a table that is too large to be held as rows."""
    most = MEMORY.value * MIB // TABLE_FRACTION
    if claimed > most:
        raise DamagedFile(
            f"{name}: a table of {claimed:,} bytes",
            expected=f"at most {most:,} bytes",
            hint=f"leave out columns; {MEMORY.hint(-(-claimed * TABLE_FRACTION // MIB))}",
        )


@contextmanager
def damage_named(name: str, what: str = "cannot be read", hint: str = "copy it again") -> Iterator[None]:
    """The gate of every reader: what decoders raise on broken bytes, which is nearly anything, becomes DamagedFile.

    Errors of saccade pass as they are. ``name`` is the file, ``what`` the sentence before the reason.
    """
    try:
        yield
    except SaccadeError:
        raise
    except MemoryError as error:
        raise DamagedFile(f"{name}: its header claims more memory than is available") from error
    except Exception as error:
        raise DamagedFile(f"{name}: {what} ({first_line(error)})", hint=hint) from error
