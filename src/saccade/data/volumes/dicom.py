"""A DICOM series as one volume (DICOM PS3.3, C.7.6.2: the image plane).

Slices are sorted by their position along the normal, and the distance between slices comes from the positions:
SliceThickness says how thick a slice is, not how far the next one lies. Of the header only geometry, modality and
intensity are read; names, dates and identifiers never enter memory.
"""

from __future__ import annotations

import dataclasses
import io
import posixpath
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from saccade.data.limits import MAX_CHANNELS, SMALL_VOLUME, check_claim, check_image, check_voxels, damage_named
from saccade.data.slides.dicom_reader import DEFLATED, LONGEST_META
from saccade.data.volumes.dicom_pixels import padding_range, pixel_bytes, stored_pixels
from saccade.data.volumes.orientation import Volume, check_spacing, to_lps
from saccade.data.volumes.safe_decompress import check_deflate
from saccade.data.volumes.slices import Plane, affine_of, check_alike, check_gaps, rescaled
from saccade.errors import DamagedFile

TAGS = [
    "TransferSyntaxUID",
    "Modality",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "RescaleSlope",
    "RescaleIntercept",
    *("Rows", "Columns"),
    "NumberOfFrames",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PlanarConfiguration",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    "GridFrameOffsetVector",
    "SpacingBetweenSlices",
    "DetectorInformationSequence",
    "DoseGridScaling",
    "ModalityLUTSequence",
    "ImagerPixelSpacing",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "PixelData",
]
META_START = 144  # after the length of the meta header, its first element (PS3.10 7.1)
PARTED_BY = (
    ("MRDiffusionSequence", "DiffusionBValue"),
    ("MREchoSequence", "EffectiveEchoTime"),
    ("FrameContentSequence", "TemporalPositionIndex"),
)


def read_series(files: Sequence[str], fetch: Callable[[str], bytes], name: str) -> Volume:
    """Read one volume from the files of one series, in any order, or from one multi-frame file.

    Parameters
    ----------
    files : sequence of str
        Names of the files.
    fetch : callable
        Returns the bytes of a file by its name.
    name : str
        Name of the volume for messages.

    Returns
    -------
    Volume
        Rescaled values (Hounsfield units for CT) in LPS order.

    Raises
    ------
    DamagedFile
        Slices are missing, doubled, unevenly spaced or of different sizes; the message names files and positions.
    MissingDependency
        The pixels are compressed and no installed package decodes them.

    References
    ----------
    DICOM PS3.3, C.7.6.2: the image plane.
    """
    planes: list[Plane] = []
    modality: str | None = None
    for file in files:
        where = f"{name}/{posixpath.basename(file)}"
        data = read_header(fetch(file), where, TAGS, stop=False)
        with damage_named(where):
            modality = modality or str(data.get("Modality", "")) or None
            planes += _planes(data, where, slices=len(files))
    check_alike(planes, name)
    normal = planes[0].normal
    planes.sort(key=lambda plane: float(plane.position @ normal))
    parts = _parts(planes)
    check_gaps(parts[0], name)
    stacks = [rescaled(part).transpose(2, 1, 0) for part in parts]
    values = stacks[0] if len(stacks) == 1 else np.stack(stacks, axis=-1)
    declared = {plane.padding for plane in planes}
    volume = to_lps(values, affine_of(parts[0]), name, modality)
    return dataclasses.replace(volume, padding=declared.pop() if len(declared) == 1 else None)


def _parts(planes: Sequence[Plane]) -> list[list[Plane]]:
    """The volumes of frames that repeat their positions once for every b-value, echo or time; else all in one."""
    parts: dict[str, list[Plane]] = {}
    for plane in planes:
        parts.setdefault(plane.part, []).append(plane)
    positions = {tuple(np.round([plane.position for plane in part], 3).ravel()) for part in parts.values()}
    if 1 < len(parts) <= MAX_CHANNELS and len(positions) == 1:
        return [parts[key] for key in sorted(parts, key=_as_number)]
    return [list(planes)]


def _as_number(text: str) -> tuple[float, str]:
    try:
        return float(text), text
    except ValueError:
        return np.inf, text


def read_image(data: bytes, name: str) -> np.ndarray:
    """A single picture, such as a radiograph, without a position in the patient: [C Y X], rescaled, dark is low."""
    header = read_header(data, name, TAGS, stop=False)
    with damage_named(name):
        rows, columns = int(header.get("Rows") or 0), int(header.get("Columns") or 0)
        if rows < 1 or columns < 1 or "PixelData" not in header:
            raise DamagedFile(f"{name}: a DICOM file without pixels", hint="leave it out")
        check_image(rows, columns, pixel_bytes(header), len(header.PixelData), name)
        stored = stored_pixels(header, name)
        if stored.ndim == 3:
            return stored.transpose(2, 0, 1)
        slope, intercept = float(header.get("RescaleSlope") or 1), float(header.get("RescaleIntercept") or 0)
        plane = Plane(name, np.zeros(3), np.eye(3)[0], np.eye(3)[1], (1.0, 1.0), slope, intercept, stored)
        return rescaled([plane])


def image_spacing_um(data: bytes, name: str) -> tuple[float, float] | None:
    """(y, x) of a single picture, in the patient or else at the detector; None where the file does not say."""
    header = read_header(data, name, ["PixelSpacing", "ImagerPixelSpacing", "Rows"], stop=True)
    with damage_named(name):
        spacing = header.get("PixelSpacing") or header.get("ImagerPixelSpacing")
        if not spacing:
            return None
        rows, columns = _sides(spacing, name)
    return 1000 * rows, 1000 * columns


def read_dicom(data: bytes, name: str, beside: Callable[[str], bytes]) -> Volume:
    """One multi-frame file by itself. Raises as ``read_series``."""
    return read_series([posixpath.basename(name)], lambda _: data, posixpath.dirname(name) or name)


def read_header(data: bytes, file: str, tags: Sequence[str], *, stop: bool) -> Dataset:
    """The tags asked for, and no others. Raises DamagedFile when the bytes are not DICOM."""
    marked = data[128:132] == b"DICM"
    if marked and DEFLATED in data[132:LONGEST_META]:
        check_deflate(data[META_START + int.from_bytes(data[META_START - 4 : META_START], "little") :], file)
    try:
        header = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=stop, force=not marked, specific_tags=list(tags))
    except Exception as error:  # broken elements raise nearly anything
        raise DamagedFile(f"{file}: incomplete DICOM file ({error})", hint="copy it again") from error
    if not marked and "Rows" not in header:
        raise DamagedFile(f"{file}: not a DICOM file", hint="copy it again")
    if (
        "TransferSyntaxUID" not in header.file_meta
    ):  # PS3.10 asks for it; older programs leave out the whole meta header
        implicit, little = header.original_encoding
        header.file_meta.TransferSyntaxUID = (
            ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        )
    return header


def _planes(data: Dataset, file: str, *, slices: int) -> list[Plane]:
    """The slices of one file: one, or one a frame."""
    frames = int(data.get("NumberOfFrames") or 1)
    rows, columns = int(data.get("Rows") or 0), int(data.get("Columns") or 0)
    if rows < 1 or columns < 1 or "PixelData" not in data:
        raise DamagedFile(f"{file}: a DICOM file without pixels", hint="leave it out of the series")
    if data.get("SamplesPerPixel", 1) != 1:
        raise DamagedFile(f"{file}: a colour image, not a slice", hint="leave it out of the series")
    check_voxels((max(frames, slices), rows, columns), np.dtype(np.uint16), file)
    check_claim(frames * rows * columns * pixel_bytes(data), len(data.PixelData), file, small=SMALL_VOLUME)
    stored = stored_pixels(data, file).reshape(frames, rows, columns)
    shared = _first(data, "SharedFunctionalGroupsSequence")
    each = data.get("PerFrameFunctionalGroupsSequence") or _frames_by_offset(data, frames, file)
    if len(each) != frames:
        raise DamagedFile(f"{file}: the numbers of frames and of positions differ", got=f"{frames} and {len(each)}")
    return [_plane((data, shared, frame), file, pixels) for frame, pixels in zip(each, stored)]


def _frames_by_offset(data: Dataset, frames: int, file: str) -> list[Dataset]:
    """Positions of the frames of a file without functional groups, along the normal of the first frame.

    GridFrameOffsetVector (RT dose, PS3.3 C.8.8.3.2) has the offset of each frame; SpacingBetweenSlices (NM, C.8.4.15)
    may be negative. Position and directions may be those of the first detector (NM, C.8.4.11).
    """
    if frames == 1:
        return [Dataset()]
    detector = _first(data, "DetectorInformationSequence")
    position = data.get("ImagePositionPatient") or detector.get("ImagePositionPatient")
    angles = data.get("ImageOrientationPatient") or detector.get("ImageOrientationPatient")
    offsets, step = data.get("GridFrameOffsetVector"), data.get("SpacingBetweenSlices")
    if position is None or angles is None or (offsets is None and step is None):
        raise DamagedFile(
            f"{file}: the positions of its {frames} frames are unknown",
            expected="functional groups, GridFrameOffsetVector or SpacingBetweenSlices, and the position of one frame",
        )
    steps = np.arange(frames) * float(step) if offsets is None else np.array([float(v) for v in offsets])
    normal = np.cross([float(v) for v in angles[:3]], [float(v) for v in angles[3:]])
    if offsets is not None and steps[0] != 0:  # not relative: z of every frame in the patient
        steps = (steps - float(position[2])) * (1 if normal[2] >= 0 else -1)
    placed = []
    for along in steps:
        frame = Dataset()
        frame.ImagePositionPatient = [float(v) for v in np.array([float(v) for v in position]) + along * normal]
        frame.ImageOrientationPatient = list(angles)
        placed.append(frame)
    return placed


def _part_of(frame: Dataset) -> str:
    """What tells frames at one position apart: b-value, echo time or temporal position."""
    for group, tag in PARTED_BY:
        value = _first(frame, group).get(tag)
        if value is not None:
            return str(value)
    return ""


def _plane(levels: tuple[Dataset, ...], file: str, stored: np.ndarray) -> Plane:
    """``where``: the header itself, then what all frames share, then what is the frame's own."""

    def find(tag: str, group: str) -> Any:
        for level in reversed(levels):
            inner = _first(level, group)
            for holder in (inner, level):
                if holder.get(tag) is not None:
                    return holder[tag].value
        return None

    position = find("ImagePositionPatient", "PlanePositionSequence")
    angles = find("ImageOrientationPatient", "PlaneOrientationSequence")
    spacing = find("PixelSpacing", "PixelMeasuresSequence")
    for what, value in (("ImagePositionPatient", position), ("ImageOrientationPatient", angles)):
        if value is None or len(value) != (3 if "Position" in what else 6):
            raise DamagedFile(
                f"{file}: its position in the patient is unknown", got=f"no {what}", hint="leave it out of the series"
            )
    if spacing is None:
        raise DamagedFile(f"{file}: its pixel spacing is unknown", got="no PixelSpacing")
    sides = _sides(spacing, file)
    cosines = np.array([float(v) for v in angles]).reshape(2, 3)
    lengths = np.linalg.norm(cosines, axis=1, keepdims=True)
    if not (np.abs(lengths - 1) < 0.01).all() or abs(cosines[0] @ cosines[1]) > 0.01:
        raise DamagedFile(f"{file}: its directions are not at right angles", got=f"ImageOrientationPatient {angles}")
    cosines = cosines / lengths  # written with few digits
    slope = find("RescaleSlope", "PixelValueTransformationSequence") or levels[0].get("DoseGridScaling")
    intercept = find("RescaleIntercept", "PixelValueTransformationSequence")
    slope, intercept = (
        default if value is None else float(value) for default, value in ((1.0, slope), (0.0, intercept))
    )
    return Plane(
        file,
        np.array([float(v) for v in position]),
        cosines[0],
        cosines[1],
        sides,
        slope,
        intercept,
        stored,
        _part_of(levels[-1]),
        padding_range(
            levels[0], 1.0 if slope is None else float(slope), 0.0 if intercept is None else float(intercept)
        ),
    )


def _sides(spacing: Any, file: str) -> tuple[float, float]:
    """PixelSpacing as numbers, also where it was stored under another value representation than DS."""
    values = spacing.split("\\") if isinstance(spacing, str) else spacing
    try:
        rows, columns = (float(value) for value in values)
    except (TypeError, ValueError):
        stored = spacing if isinstance(spacing, (str, float)) else "\\".join(map(str, spacing))
        raise DamagedFile(
            f"{file}: its pixel spacing cannot be read",
            got=f"PixelSpacing {stored}",
            expected="two numbers in millimetres with decimal points, separated by a backslash",
            hint="correct the header; spacing is never guessed",
        ) from None
    check_spacing((rows, columns), file)
    return rows, columns


def _first(data: Dataset, group: str) -> Dataset:
    items = data.get(group)
    return items[0] if items else Dataset()
