"""A DICOM series as one volume (DICOM PS3.3, C.7.6.2: the image plane).

Slices are sorted by their position along the normal, and the distance between slices comes from the positions:
SliceThickness says how thick a slice is, not how far the next one lies. Of the header only geometry, modality and
intensity are read; names, dates and identifiers never enter memory.
"""

from __future__ import annotations

import dataclasses
import io
import posixpath
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.pixels import apply_modality_lut, get_decoder
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from saccade.data.volumes.orientation import Volume, check_spacing, to_lps
from saccade.data.volumes.safe_decompress import MAX_CHANNELS, check_voxels
from saccade.errors import DamagedFile, MissingDependency, SaccadeError, first_line

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
PARTED_BY = (
    ("MRDiffusionSequence", "DiffusionBValue"),
    ("MREchoSequence", "EffectiveEchoTime"),
    ("FrameContentSequence", "TemporalPositionIndex"),
)
SAME_ANGLE = 1e-3  # in the cosines: rounding differs between slices of one scan
SAME_GAP = 0.05  # of the usual distance between slices
TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # DICOM counts millimetres in LPS
OWN_DECODERS = {  # of imagecodecs, where pydicom has no plugin: scanners' usual packing can always be read
    "1.2.840.10008.1.2.4.57": "ljpeg_decode",
    "1.2.840.10008.1.2.4.70": "ljpeg_decode",
    "1.2.840.10008.1.2.4.80": "jpegls_decode",
    "1.2.840.10008.1.2.4.81": "jpegls_decode",
    "1.2.840.10008.1.2.4.90": "jpeg2k_decode",
    "1.2.840.10008.1.2.4.91": "jpeg2k_decode",
}


@dataclass(frozen=True)
class Plane:
    """One slice. Directions and position in millimetres, LPS; ``spacing`` between rows, between columns.

    padding  lowest and highest rescaled value that the header calls padding
    part   b-value, echo or time of a frame; frames of different parts may have the same position
    """

    file: str
    position: np.ndarray
    rows_along: np.ndarray
    columns_along: np.ndarray
    spacing: tuple[float, float]
    slope: float
    intercept: float
    stored: np.ndarray
    part: str = ""
    padding: tuple[float, float] | None = None

    @property
    def normal(self) -> np.ndarray:
        return np.cross(self.rows_along, self.columns_along)


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
    _check_alike(planes, name)
    normal = planes[0].normal
    planes.sort(key=lambda plane: float(plane.position @ normal))
    parts = _parts(planes)
    check_gaps(parts[0], name)
    stacks = [_rescaled(part).transpose(2, 1, 0) for part in parts]
    values = stacks[0] if len(stacks) == 1 else np.stack(stacks, axis=-1)
    declared = {plane.padding for plane in planes}
    volume = to_lps(values, _affine(parts[0]), name, modality)
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
        check_voxels((rows, columns), np.dtype(np.uint16), name)
        stored = _stored(header, name)
        if stored.ndim == 3:
            return stored.transpose(2, 0, 1)
        slope, intercept = float(header.get("RescaleSlope") or 1), float(header.get("RescaleIntercept") or 0)
        plane = Plane(name, np.zeros(3), np.eye(3)[0], np.eye(3)[1], (1.0, 1.0), slope, intercept, stored)
        return _rescaled([plane])


def image_spacing_um(data: bytes, name: str) -> tuple[float, float] | None:
    """(y, x) of a single picture, in the patient or else at the detector; None where the file does not say."""
    header = read_header(data, name, ["PixelSpacing", "ImagerPixelSpacing", "Rows"], stop=True)
    spacing = header.get("PixelSpacing") or header.get("ImagerPixelSpacing")
    return (1000 * float(spacing[0]), 1000 * float(spacing[1])) if spacing else None


def read_dicom(data: bytes, name: str, beside: Callable[[str], bytes]) -> Volume:
    """One multi-frame file by itself. Raises as ``read_series``."""
    return read_series([posixpath.basename(name)], lambda _: data, posixpath.dirname(name) or name)


@contextmanager
def damage_named(file: str) -> Iterator[None]:
    """Elements are decoded when they are asked for, and broken ones raise nearly anything: DamagedFile instead."""
    try:
        yield
    except SaccadeError:
        raise
    except Exception as error:
        raise DamagedFile(f"{file}: its header cannot be read ({first_line(error)})", hint="copy it again") from error


def read_header(data: bytes, file: str, tags: Sequence[str], *, stop: bool) -> Dataset:
    """The tags asked for, and no others. Raises DamagedFile when the bytes are no DICOM."""
    marked = data[128:132] == b"DICM"
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
    stored = _stored(data, file).reshape(frames, rows, columns)
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
    sides = (float(spacing[0]), float(spacing[1]))
    check_spacing(sides, file)
    cosines = np.array([float(v) for v in angles]).reshape(2, 3)
    lengths = np.linalg.norm(cosines, axis=1, keepdims=True)
    if not (np.abs(lengths - 1) < 0.01).all() or abs(cosines[0] @ cosines[1]) > 0.01:
        raise DamagedFile(f"{file}: its directions are not at right angles", got=f"ImageOrientationPatient {angles}")
    cosines = cosines / lengths  # written with few digits
    slope = find("RescaleSlope", "PixelValueTransformationSequence") or levels[0].get("DoseGridScaling")
    intercept = find("RescaleIntercept", "PixelValueTransformationSequence")
    return Plane(
        file,
        np.array([float(v) for v in position]),
        cosines[0],
        cosines[1],
        sides,
        1.0 if slope is None else float(slope),
        0.0 if intercept is None else float(intercept),
        stored,
        _part_of(levels[-1]),
        _padding(levels[0], 1.0 if slope is None else float(slope), 0.0 if intercept is None else float(intercept)),
    )


def _padding(data: Dataset, slope: float, intercept: float) -> tuple[float, float] | None:
    """Lowest and highest rescaled value of PixelPaddingValue and PixelPaddingRangeLimit (PS3.3 C.7.5.1.1.2).

    The sign of the tag is that of the pixels: some files write -2000 as 63536 or the other way round.
    """
    value, limit = data.get("PixelPaddingValue"), data.get("PixelPaddingRangeLimit")
    if not isinstance(value, int) or data.get("ModalityLUTSequence"):
        return None
    limit = limit if isinstance(limit, int) else value
    signed, turns = data.get("PixelRepresentation") == 1, 2 ** int(data.BitsAllocated)
    ends = np.array([value, limit]) % turns
    ends = np.where(signed & (ends >= turns // 2), ends - turns, ends)
    if data.get("PhotometricInterpretation") == "MONOCHROME1":
        ends = ~ends if signed else (2 ** int(data.BitsStored) - 1) - ends
    low, high = sorted(float(end) * slope + intercept for end in ends)
    return low, high


def _first(data: Dataset, group: str) -> Dataset:
    items = data.get(group)
    return items[0] if items else Dataset()


# --- pixels ---------------------------------------------------------------------------------------


def _stored(data: Dataset, file: str) -> np.ndarray:
    """The numbers as they are stored; dark is low also where the header says it is the other way round."""
    syntax = data.file_meta.get("TransferSyntaxUID") if "file_meta" in data.__dict__ else None
    decoder = _own_decoder(syntax, file) if syntax is not None and syntax.is_compressed else None
    try:
        stored = data.pixel_array if decoder is None else _unpacked(data, decoder)
    except SaccadeError:
        raise
    except Exception as error:
        raise DamagedFile(f"{file}: its pixels cannot be read ({first_line(error)})", hint="copy it again") from error
    if stored.dtype.kind not in "uif":
        raise DamagedFile(f"{file}: unsupported pixel type", got=stored.dtype)
    if data.get("PhotometricInterpretation") == "MONOCHROME1":
        stored = ~stored if stored.dtype.kind == "i" else (2 ** int(data.BitsStored) - 1) - stored
    if data.get("ModalityLUTSequence") and data.get("RescaleSlope") is None:
        stored = apply_modality_lut(stored, data)  # PS3.3 C.11.1: a table in place of slope and intercept
    return stored


def _own_decoder(syntax: Any, file: str) -> str | None:
    """The function of imagecodecs that unpacks; None where pydicom can. Raises MissingDependency where nothing can."""
    try:
        if get_decoder(syntax).is_available:
            return None
    except NotImplementedError:
        raise DamagedFile(f"{file}: unsupported compression for slices", got=syntax.name) from None
    if syntax in OWN_DECODERS:
        return OWN_DECODERS[syntax]
    raise MissingDependency(
        f"{file}: unpacking {syntax.name} needs a package that is not installed", hint='pip install "saccade[dicom]"'
    )


def _unpacked(data: Dataset, decoder: str) -> np.ndarray:
    """[frames Y X] by imagecodecs. Codecs give unsigned numbers of ``BitsStored``; the sign is put back."""
    import imagecodecs

    n_frames = int(data.get("NumberOfFrames") or 1)
    packed = generate_frames(data.PixelData, number_of_frames=n_frames)
    frames = np.stack([getattr(imagecodecs, decoder)(frame) for frame in packed])
    if frames.shape != (n_frames, data.Rows, data.Columns):
        raise ValueError(f"shape {frames.shape} instead of {(n_frames, data.Rows, data.Columns)}")
    if data.PixelRepresentation == 1 and frames.dtype.kind == "u":
        spare = 8 * frames.dtype.itemsize - int(data.BitsStored)
        frames = (frames << spare).view(f"i{frames.dtype.itemsize}") >> spare
    return frames


def _rescaled(planes: Sequence[Plane]) -> np.ndarray:
    """[T Y X] after slope and intercept of every slice (PET has its own in each); whole numbers stay whole."""
    if all(plane.slope == 1 and plane.intercept == 0 for plane in planes):
        return np.stack([plane.stored for plane in planes])
    is_integer = all(plane.slope == 1 and plane.intercept.is_integer() for plane in planes)
    stack = np.empty((len(planes), *planes[0].stored.shape), np.int32 if is_integer else np.float32)
    for index, plane in enumerate(planes):
        stack[index] = plane.stored.astype(np.float64) * plane.slope + plane.intercept
    return stack


# --- geometry -------------------------------------------------------------------------------------


def _check_alike(planes: Sequence[Plane], name: str) -> None:
    """Raise DamagedFile, naming the odd ones, when the slices of a series do not lie on each other."""
    if len(planes) < 2:
        raise DamagedFile(f"{name}: a single slice, not a volume", hint="save it as an image")
    for what, values in (
        ("size", [f"{plane.stored.shape[0]} x {plane.stored.shape[1]}" for plane in planes]),
        ("pixel spacing", [" x ".join(f"{side:.4g}" for side in plane.spacing) for plane in planes]),
        ("direction", [_direction(plane, planes[0]) for plane in planes]),
    ):
        counts = Counter(values)
        if len(counts) > 1:
            usual = counts.most_common(1)[0][0]
            odd = [plane.file for plane, value in zip(planes, values) if value != usual]
            raise DamagedFile(
                f"{name}: its slices differ in {what}",
                got="; ".join(f"{value}: {count}" for value, count in counts.most_common(4)),
                expected=f"{usual} for all; the odd ones: {_names(odd)}",
                hint="move the odd ones to a folder of their own",
            )


def _direction(plane: Plane, first: Plane) -> str:
    turned = np.abs(np.r_[plane.rows_along - first.rows_along, plane.columns_along - first.columns_along]).max()
    if turned <= SAME_ANGLE:
        return "like the first"
    return "(" + ", ".join(f"{v:.2f}" for v in np.r_[plane.rows_along, plane.columns_along]) + ")"


def check_gaps(planes: Sequence[Plane], name: str) -> None:
    """Raise DamagedFile for missing or double slices; ``planes`` in order. The message names the gap."""
    places = np.array([plane.position @ plane.normal for plane in planes])
    gaps = np.diff(places)
    usual = float(np.median(gaps))
    double = np.flatnonzero(gaps < 1e-3)
    if len(double):
        at = double[0]
        raise DamagedFile(
            f"{name}: two slices at the same position",
            got=f"{_names([planes[at].file, planes[at + 1].file])} at {places[at]:.2f} mm",
            expected="one slice per position",
            hint="a series in time, or with several echoes: keep one volume per folder",
        )
    uneven = np.flatnonzero(np.abs(gaps - usual) > SAME_GAP * usual)
    if len(uneven):
        wide = [int(at) for at in uneven if gaps[at] > usual]
        at = wide[0] if wide else int(uneven[0])
        missing = round(gaps[at] / usual) - 1
        what = f"{missing} missing slice{'s' if missing > 1 else ''}" if missing > 0 else "slices at uneven distances"
        raise DamagedFile(
            f"{name}: {what}",
            got=f"{gaps[at]:.2f} mm between {_names([planes[at].file, planes[at + 1].file])} "
            f"(at {places[at]:.2f} and {places[at + 1]:.2f} mm)"
            + (f", and {len(uneven) - 1} more such gaps" if len(uneven) > 1 else ""),
            expected=f"{usual:.2f} mm, as between the others",
            hint="export the whole series again; missing slices are not interpolated",
        )


def _names(files: Sequence[str]) -> str:
    names = [posixpath.basename(file) for file in files[:4]]
    return ", ".join(names) + (f" and {len(files) - 4} more" if len(files) > 4 else "")


def _affine(planes: Sequence[Plane]) -> np.ndarray:
    """[4 4] from (column, row, slice) to millimetres in RAS; a tilted gantry shears it."""
    first, last = planes[0], planes[-1]
    affine = np.eye(4)
    affine[:3, 0] = first.rows_along * first.spacing[1]
    affine[:3, 1] = first.columns_along * first.spacing[0]
    affine[:3, 2] = (last.position - first.position) / (len(planes) - 1)
    affine[:3, 3] = first.position
    return TO_RAS @ affine
