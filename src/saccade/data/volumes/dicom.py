"""A DICOM series as one volume (DICOM PS3.3, C.7.6.2: the image plane).

Slices are sorted by their position along the normal, and the distance between slices comes from the positions:
SliceThickness says how thick a slice is, not how far the next one lies. Of the header only geometry, modality and
intensity are read; names, dates and identifiers never enter memory.
"""

from __future__ import annotations

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
from pydicom.pixels import get_decoder

from saccade.data.volumes.orientation import Volume, check_spacing, to_lps
from saccade.data.volumes.safe_decompress import check_voxels
from saccade.errors import DamagedFile, MissingDependency, SaccadeError, first_line

KEPT = [
    "TransferSyntaxUID",
    "Modality",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "RescaleSlope",
    "RescaleIntercept",
    "Rows",
    "Columns",
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
    "PixelData",
]
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
    """One slice. Directions and position in millimetres, LPS; ``spacing`` between rows, between columns."""

    file: str
    position: np.ndarray
    rows_along: np.ndarray
    columns_along: np.ndarray
    spacing: tuple[float, float]
    slope: float
    intercept: float
    stored: np.ndarray

    @property
    def normal(self) -> np.ndarray:
        return np.cross(self.rows_along, self.columns_along)


def read_series(files: Sequence[str], fetch: Callable[[str], bytes], name: str) -> Volume:
    """One volume from the files of one series, in any order, or from one multi-frame file.

    Raises DamagedFile, naming files and places, for missing, double or uneven slices and sizes that differ;
    MissingDependency for compressed pixels that nothing installed can unpack.
    """
    planes: list[Plane] = []
    modality: str | None = None
    for file in files:
        where = f"{name}/{posixpath.basename(file)}"
        data = read_header(fetch(file), where, KEPT, stop=False)
        with damage_named(where):
            modality = modality or str(data.get("Modality", "")) or None
            planes += _planes(data, where, slices=len(files))
    _check_alike(planes, name)
    normal = planes[0].normal
    planes.sort(key=lambda plane: float(plane.position @ normal))
    check_gaps(planes, name)
    stack = _rescaled(planes)
    return to_lps(stack.transpose(2, 1, 0), _affine(planes), name, modality)


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
        raise DamagedFile(f"{file}: not a whole DICOM file ({error})", hint="copy it again") from error
    if not marked and "Rows" not in header:
        raise DamagedFile(f"{file}: not a DICOM file", hint="copy it again")
    return header


def _planes(data: Dataset, file: str, *, slices: int) -> list[Plane]:
    """The slices of one file: one, or one a frame."""
    frames = int(data.get("NumberOfFrames") or 1)
    rows, columns = int(data.get("Rows") or 0), int(data.get("Columns") or 0)
    if rows < 1 or columns < 1 or "PixelData" not in data:
        raise DamagedFile(f"{file}: a DICOM file without pixels", hint="leave it out of the series")
    if data.get("SamplesPerPixel", 1) != 1:
        raise DamagedFile(f"{file}: a colour picture, not a slice", hint="leave it out of the series")
    check_voxels((max(frames, slices), rows, columns), np.dtype(np.uint16), file)
    stored = _stored(data, file).reshape(frames, rows, columns)
    shared = _first(data, "SharedFunctionalGroupsSequence")
    each = data.get("PerFrameFunctionalGroupsSequence") or [Dataset()] * frames
    if len(each) != frames:
        raise DamagedFile(f"{file}: its frames and their places differ in number", got=f"{frames} and {len(each)}")
    return [_plane((data, shared, frame), file, pixels) for frame, pixels in zip(each, stored)]


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
                f"{file}: its place in the patient is unknown", got=f"no {what}", hint="leave it out of the series"
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
    slope = find("RescaleSlope", "PixelValueTransformationSequence")
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
    )


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
        raise DamagedFile(f"{file}: its pixels are no real numbers", got=stored.dtype)
    if data.get("PhotometricInterpretation") == "MONOCHROME1":
        return ~stored  # 65535 - value for unsigned, -1 - value for signed numbers
    return stored


def _own_decoder(syntax: Any, file: str) -> str | None:
    """The function of imagecodecs that unpacks; None where pydicom can. Raises MissingDependency where nothing can."""
    try:
        if get_decoder(syntax).is_available:
            return None
    except NotImplementedError:
        raise DamagedFile(f"{file}: packed in a way that is not for slices", got=syntax.name) from None
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
            f"{name}: two slices lie at the same place",
            got=f"{_names([planes[at].file, planes[at + 1].file])} at {places[at]:.2f} mm",
            expected="one slice a place",
            hint="a series in time, or with several echoes: keep one volume a folder",
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
            hint="export the whole series again; nothing is filled in",
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
