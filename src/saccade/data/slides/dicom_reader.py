"""Slides in DICOM (VL Whole Slide Microscopy, PS3.3 A.32.8): a series of files is one slide.

It is opened by the file of its largest level. Of a header only the kind of object, the series and the kind of picture
are looked at; label and overview pictures, which can carry names, are passed by.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from saccade.data.formats import by_name

WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
TAGS = ["SOPClassUID", "SeriesInstanceUID", "ImageType", "TotalPixelMatrixColumns", "TotalPixelMatrixRows"]


def _header(path: Path) -> Any:
    """The tags of a file; None where it is no DICOM."""
    import pydicom  # slow to import, and rarely wanted
    from pydicom.errors import InvalidDicomError

    try:
        return pydicom.dcmread(path, stop_before_pixels=True, specific_tags=TAGS)
    except (InvalidDicomError, OSError, EOFError):
        return None


def has_dicom_suffix(name: str) -> bool:
    card = by_name(name, "slide")
    return card is not None and card.name == "DICOM slide"


def is_dicom_slide(path: Path) -> bool:
    if not has_dicom_suffix(path.name):
        return False
    header = _header(path)
    return bool(header is not None and header.get("SOPClassUID") == WHOLE_SLIDE)


def series_in(root: Path, names: Sequence[str]) -> list[str]:
    """The file of the largest level of every slide among the DICOM files of a folder."""
    largest: dict[str, tuple[int, str]] = {}
    for name in names:
        header = _header(root / name) if has_dicom_suffix(name) else None
        if header is None or header.get("SOPClassUID") != WHOLE_SLIDE or "VOLUME" not in header.get("ImageType", []):
            continue
        pixels = int(header.get("TotalPixelMatrixColumns", 0)) * int(header.get("TotalPixelMatrixRows", 0))
        series = str(header.get("SeriesInstanceUID"))
        if pixels > largest.get(series, (0, ""))[0]:
            largest[series] = (pixels, name)
    return sorted(name for _, name in largest.values())
