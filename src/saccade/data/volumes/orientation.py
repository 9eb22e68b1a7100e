"""How a volume lies in the patient: from any file's axes to LPS order, by flips and exchanges of axes only.

The convention of affines is NIfTI's (voxel x, y, z to millimetres in RAS); the order of the arrays is the one a
radiologist's screen has: [T Y X] with x to the patient's left, y to the back, z to the head.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from nibabel import orientations

from saccade.errors import DamagedFile

LPS = orientations.axcodes2ornt("LPS")
FLAT = 1e-6  # of the product of the sides: three axes that span less volume lie in one plane


@dataclass(frozen=True)
class Volume:
    """One decoded volume: pixels [C T Y X]; the rest as in contracts.Sample."""

    pixels: np.ndarray
    spacing_mm: tuple[float, float, float] | None = None
    affine: np.ndarray | None = None
    modality: str | None = None
    stored_as: str | None = None
    padding: tuple[float, float] | None = None


def to_lps(values: np.ndarray, affine: np.ndarray, name: str, modality: str | None = None) -> Volume:
    """Turn a volume from the axes of its file to LPS order, by flips and exchanges of axes only.

    Parameters
    ----------
    values : ndarray
        [X Y Z], or [X Y Z C], in the order in which ``affine`` counts voxels.
    affine : ndarray
        [4 4] from voxel indices to millimetres in RAS, as NIfTI defines it.
    name : str
        File name for messages.
    modality : str, optional
        As DICOM spells it, e.g. CT.

    Returns
    -------
    Volume
        An oblique volume keeps its angle: each array axis is called after the nearest patient axis.

    Raises
    ------
    DamagedFile
        The affine does not span three dimensions.
    """
    check_affine(affine, name)
    stored = orientations.io_orientation(affine)
    turn = orientations.ornt_transform(stored, LPS)
    turned = orientations.apply_orientation(values, turn)
    affine = affine @ orientations.inv_ornt_aff(turn, values.shape[:3])
    sides = np.linalg.norm(affine[:3, :3], axis=0)
    pixels = turned[None] if turned.ndim == 3 else np.moveaxis(turned, 3, 0)
    return Volume(
        np.ascontiguousarray(pixels.transpose(0, 3, 2, 1), dtype=values.dtype.newbyteorder("=")),
        (float(sides[2]), float(sides[1]), float(sides[0])),
        affine,
        modality,
        "".join(orientations.ornt2axcodes(stored)),
    )


def tilt_degrees(affine: np.ndarray) -> float:
    """The largest angle between an axis of the volume and the patient axis it is called after."""
    cosines = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return float(np.degrees(np.arccos(np.abs(cosines).max(axis=0).clip(0, 1)).max()))


def unplaced(values: np.ndarray, spacing_mm: tuple[float, float, float] | None = None) -> Volume:
    """A volume [T Y X] or [C T Y X] whose file does not say how it lies; the order of its axes is kept."""
    pixels = values[None] if values.ndim == 3 else values
    return Volume(np.ascontiguousarray(pixels, dtype=values.dtype.newbyteorder("=")), spacing_mm)


def check_affine(affine: np.ndarray, name: str) -> None:
    """Raise DamagedFile, naming the file, when a voxel has no size, or the axes do not span space."""
    sides = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or (sides <= 0).any():
        raise DamagedFile(
            f"{name}: invalid voxel size",
            got="spacing " + " x ".join(f"{side:g}" for side in sides[::-1]) + " mm (z, y, x)",
            expected="numbers above 0",
            hint="correct the header; spacing is never guessed",
        )
    if abs(np.linalg.det(affine[:3, :3])) < FLAT * sides.prod():
        raise DamagedFile(f"{name}: its axis directions lie in one plane", hint="correct the header")


def check_spacing(spacing: tuple[float, ...], name: str) -> None:
    """Raise DamagedFile for a spacing that is zero, negative or no number."""
    if not all(np.isfinite(side) and side > 0 for side in spacing):
        raise DamagedFile(
            f"{name}: invalid voxel size",
            got="spacing " + " x ".join(f"{side:g}" for side in spacing),
            expected="numbers above 0",
            hint="correct the header; spacing is never guessed",
        )
