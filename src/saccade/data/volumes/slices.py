"""Slices of one volume: their positions, whether they lie evenly on each other, and where they are in the patient."""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from saccade.errors import DamagedFile

SAME_ANGLE = 1e-3  # in the cosines: rounding differs between slices of one scan


SAME_GAP = 0.05  # of the usual distance between slices


TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # DICOM counts millimetres in LPS


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


def rescaled(planes: Sequence[Plane]) -> np.ndarray:
    """[T Y X] after slope and intercept of every slice (PET has its own in each); whole numbers stay whole."""
    if all(plane.slope == 1 and plane.intercept == 0 for plane in planes):
        return np.stack([plane.stored for plane in planes])
    is_integer = all(plane.slope == 1 and plane.intercept.is_integer() for plane in planes)
    stack = np.empty((len(planes), *planes[0].stored.shape), np.int32 if is_integer else np.float32)
    for index, plane in enumerate(planes):
        stack[index] = plane.stored.astype(np.float64) * plane.slope + plane.intercept
    return stack


def check_alike(planes: Sequence[Plane], name: str) -> None:
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


def affine_of(planes: Sequence[Plane]) -> np.ndarray:
    """[4 4] from (column, row, slice) to millimetres in RAS; a tilted gantry shears it."""
    first, last = planes[0], planes[-1]
    affine = np.eye(4)
    affine[:3, 0] = first.rows_along * first.spacing[1]
    affine[:3, 1] = first.columns_along * first.spacing[0]
    affine[:3, 2] = (last.position - first.position) / (len(planes) - 1)
    affine[:3, 3] = first.position
    return TO_RAS @ affine
