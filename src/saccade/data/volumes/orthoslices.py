"""Three planes of a volume as pictures for the eye: axial, coronal and sagittal, all at one scale in millimetres."""

from __future__ import annotations

import numpy as np
from PIL import Image
from scipy.ndimage import minimum_filter

from saccade.base.contracts import Sample
from saccade.data.volumes.intensity import Intensity, to_unit

PLANES = ("axial", "coronal", "sagittal")
INDEX_PLANES = ("z", "y", "x")  # of volumes whose orientation is unknown
CROSS = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], bool)
COLOURS = ((255, 176, 0), (100, 200, 255), (220, 90, 180), (120, 220, 90), (250, 110, 70))  # outlines of mask classes


def through(sample: Sample) -> tuple[int, int, int]:
    """The point (slice, row, column) that the planes go through: the middle of the mask, or of the volume."""
    inside = np.argwhere(sample.mask > 0) if sample.mask is not None else np.empty((0, 3))
    if len(inside):
        z, y, x = np.median(inside, axis=0).astype(int).tolist()
        return z, y, x
    z, y, x = (side // 2 for side in sample.pixels.shape[1:])
    return z, y, x


def pictures(sample: Sample, how: Intensity, side_px: int) -> list[Image.Image]:
    """Axial, coronal and sagittal plane, the longest extent of the volume ``side_px`` long.

    The patient's right is on the left, front is up in the axial plane, head is up in the others; of a volume that
    does not say how it lies, rows run downwards as they are stored. Classes of a mask are drawn as outlines.
    """
    point = through(sample)
    unit = to_unit(sample.pixels, how, sample.record.id, sample.padding)
    spacing = sample.spacing_mm or (1.0, 1.0, 1.0)
    scale = side_px / max(n * mm for n, mm in zip(unit.shape[1:], spacing))
    planes = []
    for axis in range(3):
        plane = np.take(unit, point[axis], axis=axis + 1)
        mask = None if sample.mask is None else np.take(sample.mask, point[axis], axis=axis)
        if axis > 0 and sample.affine is not None:  # z grows to the head
            plane, mask = plane[:, ::-1], None if mask is None else mask[::-1]
        sides = [spacing[other] * scale for other in range(3) if other != axis]
        size = (max(1, round(plane.shape[2] * sides[1])), max(1, round(plane.shape[1] * sides[0])))
        planes.append(_outlined(_picture(plane, size), mask))
    return planes


def _picture(plane: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """[C Y X] of to_unit as a colour picture; enlarged without smoothing along an axis, so that voxels are seen."""
    colour = plane[:3] if plane.shape[0] == 3 else np.repeat(plane[:1], 3, axis=0)
    eight = colour if colour.dtype == np.uint8 else (colour >> 8).astype(np.uint8)
    picture = Image.fromarray(np.ascontiguousarray(eight.transpose(1, 2, 0)))
    smaller = (min(size[0], picture.width), min(size[1], picture.height))
    return picture.resize(smaller, Image.Resampling.BOX).resize(size, Image.Resampling.NEAREST)


def _outlined(picture: Image.Image, mask: np.ndarray | None) -> Image.Image:
    """The edge of every class against lower ones and the background, one pixel wide, in a colour of its own."""
    if mask is None or not mask.any():
        return picture
    enlarged = Image.fromarray(mask.astype(np.int32)).resize(picture.size, Image.Resampling.NEAREST)
    classes, pixels = np.asarray(enlarged), np.asarray(picture).copy()
    edge = classes > minimum_filter(classes, footprint=CROSS, mode="nearest")
    for number in np.unique(classes[classes > 0]):
        pixels[edge & (classes == number)] = COLOURS[(int(number) - 1) % len(COLOURS)]
    return Image.fromarray(pixels)
