"""Which DICOM files belong together: by folder and series, and, in a series in time or with echoes, by volume.

Identifiers are used to sort the files and then forgotten: a volume is called after its folder.
"""

from __future__ import annotations

import hashlib
import posixpath
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import UID

from saccade.data.formats import by_name
from saccade.data.limits import damage_named
from saccade.data.volumes.dicom import read_header
from saccade.errors import DamagedFile

START = 2**16  # bytes in which most headers end
SORTED_BY = [
    "SeriesInstanceUID",
    "SeriesNumber",
    "PatientID",
    "Rows",
    "NumberOfFrames",
    "ImagePositionPatient",
    "AcquisitionNumber",
    "EchoNumbers",
    "TemporalPositionIdentifier",
    "DiffusionBValue",
    "TriggerTime",
    "SOPClassUID",
]
PARTED_BY = SORTED_BY[6:11]
PICTURES = {  # SOP classes of PS3.4 B.5 that hold one projection or photograph
    "1.2.840.10008.5.1.4.1.1.1",  # computed radiography
    "1.2.840.10008.5.1.4.1.1.1.1",  # digital X-ray, for presentation and for processing
    "1.2.840.10008.5.1.4.1.1.1.1.1",
    "1.2.840.10008.5.1.4.1.1.1.2",  # mammography
    "1.2.840.10008.5.1.4.1.1.1.2.1",
    "1.2.840.10008.5.1.4.1.1.1.3",  # intra-oral
    "1.2.840.10008.5.1.4.1.1.1.3.1",
    "1.2.840.10008.5.1.4.1.1.6.1",  # ultrasound
    "1.2.840.10008.5.1.4.1.1.7",  # secondary capture
    "1.2.840.10008.5.1.4.1.1.77.1.1",  # endoscopy, microscopy, photography, ophthalmology
    "1.2.840.10008.5.1.4.1.1.77.1.2",
    "1.2.840.10008.5.1.4.1.1.77.1.4",
    "1.2.840.10008.5.1.4.1.1.77.1.5.1",
    "1.2.840.10008.5.1.4.1.1.77.1.5.2",
    "1.2.840.10008.5.1.4.1.1.481.1",  # RT image
}
Fetch = Callable[..., bytes]  # sources/volume_files.Fetch


@dataclass(frozen=True)
class Series:
    """Files of one volume; ``id`` from the folder; ``group`` the same for all volumes of a patient."""

    id: str
    files: tuple[str, ...]
    group: str


@dataclass(frozen=True)
class _Head:
    file: str
    series: str
    number: int
    patient: str
    place: tuple[float, ...]
    parted_by: tuple[str, ...]
    is_picture: bool = False


def is_dicom(name: str, fetch: Fetch) -> bool:
    """By the suffix, or, for the bare names and numbers that scanners give, by the mark after 128 bytes."""
    card = by_name(name, "volume")
    if card is not None and card.name == "DICOM":
        return True
    base = posixpath.basename(name)
    _, dot, suffix = base.rpartition(".")
    if not base or (dot and not suffix.isdigit()):
        return False
    try:
        start = fetch(name, 132)
        return start[128:] == b"DICM" or (start[:2] == b"\x08\0" and _is_bare(fetch(name, START), name))
    except DamagedFile:
        return False


def _is_bare(start: bytes, name: str) -> bool:
    """Whether bytes without the mark begin with the elements of an image: files of before PS3.10."""
    try:
        return "SOPClassUID" in read_header(start, name, ["SOPClassUID", "Rows"], stop=True)
    except DamagedFile:
        return False


def find_series(files: Sequence[str], fetch: Fetch) -> tuple[list[Series], list[str], list[str]]:
    """All volumes among ``files``; single pictures (radiographs); and files without an image (directories, reports)."""
    heads, pictures, aside = [], [], []
    for file in files:
        try:
            with damage_named(file):
                head = _head(file, fetch)
        except DamagedFile:
            head = _Head(file, f"unreadable {file}", 0, f"unreadable {file}", (), ())  # said when it is read
        if head is None:
            aside.append(file)
        elif head.is_picture:
            pictures.append(file)
        else:
            heads.append(head)
    groups = _patients(heads, fetch)
    by_folder: dict[str, dict[str, list[_Head]]] = {}
    for head in heads:
        by_folder.setdefault(posixpath.dirname(head.file), {}).setdefault(head.series, []).append(head)
    volumes_found = []
    for folder, series in by_folder.items():
        ordered = sorted(series.values(), key=lambda members: (members[0].number, min(h.file for h in members)))
        volumes = [part for members in ordered for part in _volumes(members)]
        for number, members in enumerate(volumes, start=1):
            name = folder if folder and len(volumes) == 1 else posixpath.join(folder, f"series-{number}")
            names = tuple(sorted(head.file for head in members))
            volumes_found.append(Series(name, names, groups[members[0].patient]))
    return volumes_found, pictures, aside


def _head(file: str, fetch: Fetch) -> _Head | None:
    """What sorts a file; None for one without an image."""
    start = fetch(file, START)
    try:
        data = read_header(start, file, SORTED_BY, stop=True)
        complete = len(start) < START or "Rows" in data
    except DamagedFile:
        complete = len(start) < START
        if complete:
            raise
    if not complete:
        data = read_header(fetch(file), file, SORTED_BY, stop=True)
    if "Rows" not in data:
        if "Image Storage" in UID(str(data.get("SOPClassUID", ""))).name:  # else a directory or a report
            raise DamagedFile(f"{file}: a DICOM image without its size", hint="copy it again")
        return None
    position = data.get("ImagePositionPatient") or ()
    several = int(data.get("NumberOfFrames") or 1) > 1
    return _Head(
        file,
        str(data.get("SeriesInstanceUID", "")) + (file if several else ""),
        int(data.get("SeriesNumber") or 0),
        str(data.get("PatientID", "")),
        tuple(round(float(v), 3) for v in position),
        tuple(_text(data, tag) for tag in PARTED_BY),
        str(data.get("SOPClassUID", "")) in PICTURES and not position and not several,
    )


def _text(data: Dataset, tag: str) -> str:
    value = data.get(tag)
    return "" if value is None else str(value)


def _volumes(members: list[_Head]) -> list[list[_Head]]:
    """The series itself; or, where places repeat, its parts by the first of time, echo and so on that tells them."""
    places = Counter(head.place for head in members)
    repeats = max(places.values())
    if repeats == 1 or () in places:
        return [members]
    for at in range(len(PARTED_BY)):
        parts: dict[str, list[_Head]] = {}
        for head in members:
            parts.setdefault(head.parted_by[at], []).append(head)
        if len(parts) == repeats and all(len({h.place for h in part}) == len(part) for part in parts.values()):
            return [parts[key] for key in sorted(parts, key=_number)]
    return [members]  # said when it is read: two slices at the same place


def _number(text: str) -> tuple[float, str]:
    try:
        return float(text), text
    except ValueError:
        return np.inf, text


def _patients(heads: Sequence[_Head], fetch: Fetch) -> dict[str, str]:
    """An anonymous name for each patient, from the content of the first file."""
    first: dict[str, str] = {}
    for head in sorted(heads, key=lambda head: head.file):
        first.setdefault(head.patient, head.file)
    names = {}
    for patient, file in first.items():
        try:
            names[patient] = "patient-" + hashlib.sha256(fetch(file)).hexdigest()[:10]
        except DamagedFile:
            names[patient] = "patient-unreadable"
    return names
