"""NIfTI-1 and NIfTI-2 (.nii, .nii.gz): nibabel reads the header, sizes are checked before the voxels are touched."""

from __future__ import annotations

import io
from collections.abc import Callable

import nibabel
import numpy as np

from saccade.data.limits import MAX_CHANNELS, check_voxels
from saccade.data.volumes.orientation import Volume, check_spacing, to_lps
from saccade.data.volumes.safe_decompress import fits, gunzip
from saccade.errors import DamagedFile

HEADERS = {348: nibabel.Nifti1Header, 540: nibabel.Nifti2Header}
LONGEST = 544  # bytes of the longer header and its extension flag
IN_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # NIFTI_UNITS of space; other codes are not defined and count as mm
COLOURS = (("R", "G", "B"), ("R", "G", "B", "A"))  # NIFTI_TYPE_RGB24 and RGBA32
LONGEST_QUATERNION = 1.01


def read_nifti(
    data: bytes, name: str, beside: Callable[[str], bytes] | None = None, *, most_voxels: int | None = None
) -> Volume:
    """Read a NIfTI-1 or NIfTI-2 file, packed with gzip or not.

    Parameters
    ----------
    data : bytes
        The whole file.
    name : str
        File name for messages.
    beside : callable, optional
        Not used; part of the signature of volume readers.
    most_voxels : int, optional
        Larger claims of a header are refused; None stands for the limit of ``saccade.data.limits``.

    Returns
    -------
    Volume
        A fourth (or fifth) axis of at most 16 becomes the channels. Slope and intercept are applied; without them the
        number type stays.

    Raises
    ------
    DamagedFile
        The file is not one whole volume; the message names it.

    References
    ----------
    NIfTI-1 data format, nifti.nimh.nih.gov/nifti-1.
    """
    packed = data[:2] == b"\x1f\x8b"
    start = gunzip(data, LONGEST, name) if packed else data[:LONGEST]
    header = _header(start, name)
    shape, dtype = _shape(header, name), header.get_data_dtype()
    if dtype.kind not in "uif" and dtype.names not in COLOURS:
        raise DamagedFile(f"{name}: unsupported voxel type", got=dtype)
    offset = _offset(header, name)
    length = offset + int(np.prod(shape, dtype=object)) * dtype.itemsize
    check_voxels(shape, dtype, name, most_voxels)
    slice_bytes = shape[0] * shape[1] * dtype.itemsize
    if packed:
        data = gunzip(data, length + slice_bytes, name)
    fits(len(data), length, slice_bytes, name)
    values = np.frombuffer(data, dtype, int(np.prod(shape)), offset).reshape(shape, order="F")
    if dtype.names:
        values = np.stack([values[channel] for channel in "RGB"], axis=-1)
    unit = IN_MM.get(int(header["xyzt_units"]) & 0x07, 1.0)
    scale = np.diag([unit, unit, unit, 1.0])
    return to_lps(_scaled(values, *_slope(header, name)), scale @ _affine(header, name), name)


def _offset(header: nibabel.Nifti1Header, name: str) -> int:
    """First byte of the voxels. Raises DamagedFile where that is inside the header."""
    offset = float(header["vox_offset"])
    least = int(header["sizeof_hdr"]) + 4  # four bytes say whether extensions follow
    if not least <= offset < 2**62 or offset != int(offset):
        raise DamagedFile(
            f"{name}: its voxels would begin inside its header",
            got=f"vox_offset {offset:g}",
            expected=f"{least} or more",
            hint="correct the header, or copy the file again",
        )
    return int(offset)


def _slope(header: nibabel.Nifti1Header, name: str) -> tuple[float | None, float]:
    """Slope and intercept; None where values are not scaled: a slope of 0, or NaN as nibabel writes it."""
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or np.isnan(slope):
        return None, 0.0
    if not np.isfinite([slope, intercept]).all():
        raise DamagedFile(
            f"{name}: invalid scaling", got=f"scl_slope {slope:g}, scl_inter {intercept:g}", expected="finite numbers"
        )
    return slope, intercept


def _affine(header: nibabel.Nifti1Header, name: str) -> np.ndarray:
    """[4 4] to the header's own unit of length: sform, else qform, else the voxel sizes alone.

    Programs that write the quaternion in few digits make it slightly longer than 1; as in niftilib it is normalised.
    """
    if header["sform_code"] == 0 and header["qform_code"] > 0:
        quaternion = np.array([header[f"quatern_{letter}"] for letter in "bcd"], np.float64)
        length = float(np.linalg.norm(quaternion))
        if not length <= LONGEST_QUATERNION:
            raise DamagedFile(f"{name}: invalid orientation", got=f"a quaternion of length {length:g}", expected="1")
        if length > 1:
            for letter, value in zip("bcd", quaternion / length):
                header[f"quatern_{letter}"] = value
    affine: np.ndarray = header.get_best_affine()
    return affine


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


def _scaled(values: np.ndarray, slope: float | None, intercept: float) -> np.ndarray:
    if slope is None or (slope == 1 and not intercept):
        return values
    exact = np.float32 if values.dtype.itemsize <= 2 else np.float64
    scaled = np.multiply(values, slope, dtype=exact)
    return np.add(scaled, intercept, out=scaled).astype(np.float32, copy=False)
