"""Where does a model look in a volume? The map of one query, and where its patches lie among the voxels.

A network sees a volume through a cube (augment/volumes.py); its patches are boxes in millimetres. Here they are taken
back to the volume's own voxels, so that a map has the same shape and affine as the volume it is laid over.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from saccade.attention.maps import AttentionMap, Query, attention_map
from saccade.augment.cubes import whole_cubes
from saccade.augment.views import plain_view
from saccade.augment.volume_views import spacing_of
from saccade.base.contracts import Batch, InputSpec
from saccade.errors import UsageError
from saccade.models.nn.network import Network

Point = tuple[float, float, float]


@dataclass(frozen=True)
class SeenCube:
    """The cube through which a network sees a volume; numbers in millimetres from the volume's corner.

    start_mm (z, y, x), side_mm   of the cube     extent_mm   of the volume
    """

    start_mm: Point
    side_mm: float
    extent_mm: Point

    def at_voxels(self, values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """One map [T' Y' X'] at the middle of every voxel of a volume of this shape, linear between patches.

        0 outside the cube: the network has not seen what lies there.
        """
        for axis in range(3):
            weights = self._weights(axis, values.shape[axis], shape[axis])
            values = np.moveaxis(np.tensordot(weights, values, axes=(1, axis)), 0, axis)
        return values.astype(np.float32)

    def _weights(self, axis: int, patches: int, voxels: int) -> np.ndarray:
        """[voxels patches]: how much of each patch a voxel has."""
        middle_mm = (np.arange(voxels) + 0.5) * self.extent_mm[axis] / voxels
        place = (middle_mm - self.start_mm[axis]) / self.side_mm * patches
        near = np.clip(place - 0.5, 0, patches - 1)
        weights = np.maximum(0, 1 - np.abs(near[:, None] - np.arange(patches)))
        return weights * ((place >= 0) & (place <= patches))[:, None]


@dataclass(frozen=True)
class VolumeMap:
    """A map of one query over the cube that the network saw. ``amap``: its values are [H T' Y' X']."""

    amap: AttentionMap
    cube: SeenCube

    def box(self, shape: tuple[int, ...]) -> tuple[float, ...] | None:
        """The asking patch in voxels of a volume of this shape: front, top, left, depth, height, width."""
        if self.amap.query_box is None:
            return None
        scale = [n / mm for n, mm in zip(shape, self.cube.extent_mm)]
        input_mm = self.cube.side_mm / self.amap.size_px[0]
        starts = [(self.cube.start_mm[a] + self.amap.query_box[a] * input_mm) * scale[a] for a in range(3)]
        return (*starts, *(self.amap.query_box[3 + a] * input_mm * scale[a] for a in range(3)))


def seen_cube(batch: Batch, spec: InputSpec) -> SeenCube:
    """Where the cube of the model's input ``spec`` lies in the one volume of ``batch``."""
    spacing, sizes = spacing_of(batch), batch.sizes_px.cpu()
    cube = whole_cubes(sizes, spacing, spec.size_mm)
    start, extent = cube.start[0].tolist(), (sizes * spacing)[0].tolist()
    return SeenCube((start[0], start[1], start[2]), float(cube.side[0]), (extent[0], extent[1], extent[2]))


def volume_map(
    backbone: Network,
    batch: Batch,
    spec: InputSpec,
    *,
    query: Point | Literal["cls"],
    layer: int = -1,
    rollout: bool = False,
) -> VolumeMap:
    """The map of one query over the one volume of ``batch``, as the model's input ``spec`` shows it.

    query   "cls", or a point (z, y, x) in millimetres from the volume's corner
    Raises what ``attention_map`` raises, and UsageError for a point that the network does not see.
    """
    cube = seen_cube(batch, spec)
    start, side = cube.start_mm, cube.side_mm
    asked: Query = "cls"
    if query != "cls":
        places = [int((at - begin) / side * spec.size_px) for at, begin in zip(query, start)]
        if not all(begin <= at <= begin + side for at, begin in zip(query, start)):
            raise UsageError(
                "the query lies outside the cube that the model sees",
                got="z, y, x = " + ", ".join(f"{at:.1f} mm" for at in query),
                expected=", ".join(f"{max(0.0, begin):.1f} to {begin + side:.1f} mm" for begin in start),
            )
        asked = tuple(min(place, spec.size_px - 1) for place in places)
    with torch.inference_mode():
        pixels = plain_view(batch, spec)
    amap = attention_map(backbone, pixels, query=asked, layer=layer, rollout=rollout)
    return VolumeMap(amap, cube)
