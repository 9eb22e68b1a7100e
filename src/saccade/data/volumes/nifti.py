"""NIfTI-1 and NIfTI-2 (.nii, .nii.gz): nibabel reads the header, sizes are checked before the voxels are touched."""

from __future__ import annotations

import io
from collections.abc import Callable

import nibabel
import numpy as np

from saccade.data.volumes.orientation import Volume, check_spacing, to_lps
from saccade.data.volumes.safe_decompress import MAX_CHANNELS, MAX_VOXELS, check_voxels, fits, gunzip
from saccade.errors import DamagedFile

HEADERS = {348: nibabel.Nifti1Header, 540: nibabel.Nifti2Header}
LONGEST = 544  # bytes of the longer header and its extension flag
IN_MM = {"meter": 1000.0, "mm": 1.0, "micron": 0.001, "unknown": 1.0}


def read_nifti(
    data: bytes, name: str, beside: Callable[[str], bytes] | None = None, *, most_voxels: int = MAX_VOXELS
) -> Volume:
    """One volume of at most so many voxels; a fourth (or fifth) axis of at most 16 becomes the channels.

    Slope and intercept are applied; without them the number type stays. Raises DamagedFile, naming the file.
    """
    packed = data[:2] == b"\x1f\x8b"
    start = gunzip(data, LONGEST, name) if packed else data[:LONGEST]
    header = _header(start, name)
    shape, number_type = _shape(header, name), header.get_data_dtype()
    if number_type.kind not in "uif":
        raise DamagedFile(f"{name}: its voxels are no real numbers", got=number_type)
    offset = int(header["vox_offset"])
    length = offset + int(np.prod(shape, dtype=object)) * number_type.itemsize
    check_voxels(shape, number_type, name, most_voxels)
    slice_bytes = shape[0] * shape[1] * number_type.itemsize
    if packed:
        data = gunzip(data, length + slice_bytes, name)
    fits(len(data), length, slice_bytes, name)
    values = np.frombuffer(data, number_type, int(np.prod(shape)), offset).reshape(shape, order="F")
    unit = IN_MM.get(header.get_xyzt_units()[0], 1.0)
    scale = np.diag([unit, unit, unit, 1.0])
    return to_lps(_scaled(values, *header.get_slope_inter()), scale @ header.get_best_affine(), name)


def _header(start: bytes, name: str) -> nibabel.Nifti1Header:
    sizes = {int.from_bytes(start[:4], order) for order in ("little", "big")}
    kind = next((HEADERS[size] for size in sizes if size in HEADERS), None)
    if kind is None or len(start) < min(HEADERS):
        raise DamagedFile(f"{name}: not a NIfTI file", got=f"{len(start):,} bytes", hint="copy it again")
    try:
        return kind.from_fileobj(io.BytesIO(start), check=False)
    except Exception as error:  # a header of noise can raise nearly anything
        raise DamagedFile(f"{name}: its header cannot be read ({error})") from error


def _shape(header: nibabel.Nifti1Header, name: str) -> tuple[int, ...]:
    """(X, Y, Z) or (X, Y, Z, C); and the spacing is one that can be."""
    try:
        shape = tuple(int(n) for n in header.get_data_shape())
    except Exception as error:
        raise DamagedFile(f"{name}: its header cannot be read ({error})") from error
    shape = (*shape[:3], int(np.prod(shape[3:]))) if len(shape) > 3 else shape
    shape = shape[:3] if len(shape) == 4 and shape[3] == 1 else shape
    if len(shape) < 3 or min(shape) < 1 or shape[2] < 2:
        raise DamagedFile(f"{name}: not a volume", got=f"shape {shape}", expected="three axes, several slices")
    if len(shape) == 4 and shape[3] > MAX_CHANNELS:
        raise DamagedFile(
            f"{name}: a series of {shape[3]:,} volumes in time",
            expected=f"one volume, or up to {MAX_CHANNELS} channels",
            hint="save one time point, or the mean over time",
        )
    if header["sform_code"] == 0:  # else the sizes come from the sform, and these are not used
        check_spacing(tuple(float(side) for side in header["pixdim"][1:4]), name)
    return shape


def _scaled(values: np.ndarray, slope: float | None, intercept: float | None) -> np.ndarray:
    if slope is None or (slope == 1 and not intercept):
        return values
    exact = np.float32 if values.dtype.itemsize <= 2 else np.float64
    scaled = np.multiply(values, slope, dtype=exact)
    return np.add(scaled, intercept or 0, out=scaled).astype(np.float32, copy=False)
