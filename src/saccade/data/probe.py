"""What the first images of a source say of all: channels, size, and whether volumes know their millimetres."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator

import numpy as np

from saccade.base.contracts import Sample, Source
from saccade.data.images.downsample import shrunk_sides
from saccade.errors import DamagedFile, DataError

LOOKED_AT = 16  # a volume takes a second to read
SPREAD = 64  # images whose sides are looked at


def _readable(source: Source) -> Iterator[Sample]:
    """Those of the first few images that can be read. Raises DataError where there is none."""
    any_readable = False
    for index in range(min(64 if source.axes == 2 else LOOKED_AT, len(source))):
        try:
            sample = source.read(index)
        except DamagedFile:
            continue
        any_readable = True
        yield sample
    if not any_readable:
        raise DataError(f"{source.name}: none of the first images can be read", hint="saccade show lists the reasons")


def first_sample(source: Source) -> Sample:
    """The first image that can be read, of the first few. Raises DataError where there is none."""
    return next(_readable(source))


def usual_channels(source: Source) -> int:
    """Number of channels most images have, by the first that can be read."""
    return Counter(sample.pixels.shape[0] for sample in _readable(source)).most_common(1)[0][0]


def typical_px(source: Source, size_mm: float = 0.0) -> int:
    """Median shorter side of the first readable images; of volumes, of so many voxels as the finest spacing makes."""
    sides = []
    for index in range(min(LOOKED_AT, len(source))):
        try:
            sample = source.read(index)
            shape, spacing = sample.pixels.shape[1:], sample.spacing_mm or (1.0,) * source.axes
            span = size_mm or min(n * mm for n, mm in zip(shape, spacing))
            sides.append(max(1, round(span / min(spacing))))
        except DamagedFile:
            continue
    if not sides:
        raise DataError(f"{source.name}: none of the first images can be read", hint="saccade show lists the reasons")
    return int(statistics.median(sides))


def padded_sides(source: Source, cache_px: int) -> tuple[int, int]:
    """Largest rows and largest columns of images spread over the source, reduced as for a batch, which is padded."""
    largest = [1, 1]
    for index in np.unique(np.linspace(0, len(source) - 1, min(SPREAD, len(source))).astype(int)).tolist():
        try:
            sides = shrunk_sides(source.read(index).pixels.shape[1:], cache_px)
        except DamagedFile:
            continue
        largest = [max(pair) for pair in zip(largest, sides)]
    return largest[0], largest[1]


def check_spacing_known(source: Source) -> None:
    """Raise DataError when none of the first volumes says how large its voxels are."""
    for index in range(min(LOOKED_AT, len(source))):
        try:
            if source.read(index).spacing_mm is not None:
                return
        except DamagedFile:
            continue
    raise DataError(
        f"{source.name}: the spacing of its voxels is unknown, so --size-mm has no meaning",
        hint="leave out --size-mm, or give the volumes in a format that has a spacing (NIfTI, NRRD, DICOM)",
    )
