"""Slides in DICOM (VL Whole Slide Microscopy, PS3.3 A.32.8): a series of files is one slide.

It is opened by the file of its largest level. Of a header only the kind of object, the series and the kind of picture
are looked at; label and overview pictures, which can carry names, are passed by.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from saccade.data.formats import by_name

DEFLATED, LONGEST_META = b"1.2.840.10008.1.2.1.99", 2048
WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
TAGS = ["SOPClassUID", "SeriesInstanceUID", "ImageType", "TotalPixelMatrixColumns", "TotalPixelMatrixRows"]


def _header(path: Path) -> dict[str, Any] | None:
    """The tags of a file; None where it is not DICOM."""
    import pydicom  # slow to import, and rarely wanted

    try:
        with path.open("rb") as file:
            if DEFLATED in file.read(LONGEST_META):  # a slide never is, and pydicom would inflate all of it
                return None
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=TAGS)
        return {tag: header.get(tag) for tag in TAGS}  # elements are decoded when they are asked for
    except Exception:  # nearly anything is raised on broken bytes; such a file is named when it is opened
        return None


def has_dicom_suffix(name: str) -> bool:
    card = by_name(name, "slide")
    return card is not None and card.name == "DICOM slide"


def may_be_dicom(name: str) -> bool:
    """Whether a name ends like DICOM, or has no suffix, as archives of hospitals write it."""
    return has_dicom_suffix(name) or not PurePosixPath(name).suffix


def is_dicom_slide(path: Path) -> bool:
    if not may_be_dicom(path.name) or not path.is_file():
        return False
    header = _header(path)
    return bool(header is not None and header.get("SOPClassUID") == WHOLE_SLIDE)


def series_in(root: Path, names: Sequence[str]) -> list[str]:
    """The file of the largest level of every slide among the DICOM files of a folder."""
    largest: dict[str, tuple[int, str]] = {}
    for name in names:
        header = _header(root / name) if may_be_dicom(name) else None
        if header is None and has_dicom_suffix(name):
            largest[name] = (0, name)  # damaged: named and counted when it is opened
        if header is None or header.get("SOPClassUID") != WHOLE_SLIDE:
            continue
        if {"LABEL", "OVERVIEW", "THUMBNAIL", "LOCALIZER"} & set(header["ImageType"] or []):
            continue  # where ImageType is missing or short, the largest picture of the series is the slide
        pixels = (header["TotalPixelMatrixColumns"] or 0) * (header["TotalPixelMatrixRows"] or 0)
        series = str(header.get("SeriesInstanceUID"))
        if pixels > largest.get(series, (0, ""))[0]:
            largest[series] = (pixels, name)
    return sorted(name for _, name in largest.values())
