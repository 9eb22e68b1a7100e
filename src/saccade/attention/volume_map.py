"""The attention map of one query over a volume, and the position of its patches among the voxels.

A network gets a volume as a cube (augment/volumes.py); its patches are boxes in millimetres. Here they are mapped to
the volume's own voxels, so that a map has the shape and affine of the volume.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from saccade.attention.maps import AttentionMap, Query, attention_map
from saccade.augment.cubes import full_cubes
from saccade.augment.views import plain_view
from saccade.augment.volume_views import spacing_of
from saccade.base.contracts import Batch, InputSpec
from saccade.errors import UsageError
from saccade.models.nn.network import Network

Point = tuple[float, float, float]


@dataclass(frozen=True)
class SampledCube:
    """The cube of a volume that is the network's input; millimetres from the volume's corner.

    Parameters
    ----------
    start_mm : tuple of float
        (z, y, x) of the cube's corner.
    side_mm : float
        Edge length of the cube.
    extent_mm : tuple of float
        (z, y, x) size of the volume.
    """

    start_mm: Point
    side_mm: float
    extent_mm: Point

    def at_voxels(self, values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """A map [T' Y' X'] at the centre of every voxel of a volume of this shape, linear between patches.

        0 outside the cube.
        """
        for axis in range(3):
            weights = self._weights(axis, values.shape[axis], shape[axis])
            values = np.moveaxis(np.tensordot(weights, values, axes=(1, axis)), 0, axis)
        return values.astype(np.float32)

    def _weights(self, axis: int, patches: int, voxels: int) -> np.ndarray:
        """[voxels patches], the interpolation weight of each patch at each voxel."""
        middle_mm = (np.arange(voxels) + 0.5) * self.extent_mm[axis] / voxels
        coordinate = (middle_mm - self.start_mm[axis]) / self.side_mm * patches
        near = np.clip(coordinate - 0.5, 0, patches - 1)
        weights = np.maximum(0, 1 - np.abs(near[:, None] - np.arange(patches)))
        return weights * ((coordinate >= 0) & (coordinate <= patches))[:, None]


@dataclass(frozen=True)
class VolumeMap:
    """A map of one query over the input cube; the values of ``amap`` are [H T' Y' X']."""

    amap: AttentionMap
    cube: SampledCube

    def box(self, shape: tuple[int, ...]) -> tuple[float, ...] | None:
        """The query patch in voxels of a volume of this shape: front, top, left, depth, height, width."""
        if self.amap.query_box is None:
            return None
        scale = [n / mm for n, mm in zip(shape, self.cube.extent_mm)]
        input_mm = self.cube.side_mm / self.amap.size_px[0]
        starts = [(self.cube.start_mm[a] + self.amap.query_box[a] * input_mm) * scale[a] for a in range(3)]
        return (*starts, *(self.amap.query_box[3 + a] * input_mm * scale[a] for a in range(3)))


def sampled_cube(batch: Batch, spec: InputSpec) -> SampledCube:
    """The cube of the one volume of ``batch`` that the model's input ``spec`` takes."""
    spacing, sizes = spacing_of(batch), batch.sizes_px.cpu()
    cube = full_cubes(sizes, spacing, spec.size_mm)
    start, extent = cube.start[0].tolist(), (sizes * spacing)[0].tolist()
    return SampledCube((start[0], start[1], start[2]), float(cube.side[0]), (extent[0], extent[1], extent[2]))


def volume_map(
    backbone: Network,
    batch: Batch,
    spec: InputSpec,
    *,
    query: Point | Literal["cls"],
    layer: int = -1,
    rollout: bool = False,
) -> VolumeMap:
    """The attention map of one query over the one volume of ``batch``.

    Parameters
    ----------
    query : "cls" or tuple of float
        The class token, or a point (z, y, x) in millimetres from the volume's corner.
    layer, rollout
        As in ``attention_map``.

    Raises
    ------
    UsageError
        The point lies outside the input cube; and what ``attention_map`` raises.
    """
    cube = sampled_cube(batch, spec)
    start, side = cube.start_mm, cube.side_mm
    asked: Query = "cls"
    if query != "cls":
        pixels_at = [int((at - begin) / side * spec.size_px) for at, begin in zip(query, start)]
        if not all(begin <= at <= begin + side for at, begin in zip(query, start)):
            raise UsageError(
                "the query lies outside the input cube of the model",
                got="z, y, x = " + ", ".join(f"{at:.1f} mm" for at in query),
                expected=", ".join(f"{max(0.0, begin):.1f} to {begin + side:.1f} mm" for begin in start),
            )
        asked = tuple(min(pixel, spec.size_px - 1) for pixel in pixels_at)
    with torch.inference_mode():
        pixels = plain_view(batch, spec)
    amap = attention_map(backbone, pixels, query=asked, layer=layer, rollout=rollout)
    return VolumeMap(amap, cube)
