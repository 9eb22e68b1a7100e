"""Cubes out of volumes: one affine sampling in three dimensions, with the same side in millimetres along all axes.

A cube has its place, side and turn in millimetres; what lies in a voxel follows from the spacing, so that thick slices
are neither stretched nor squeezed. A cube may be larger than the volume: what lies outside is 0, the darkest value.
Where fewer samples than voxels lie along an axis, neighbouring voxels are averaged two by two beforehand, along that
axis alone (a mip map with a level for each axis), so that nothing aliases.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

DRAWS = 11  # uniform numbers used by one cube
MOST_LEVELS = 5
Levels = tuple[int, int, int]


@dataclass(frozen=True)
class Cubes:
    """One cube of every volume, axes in the order z, y, x.

    start  [N 3] corner in millimetres from the volume's corner     side  [N] in millimetres
    turn   [N 3 3] takes places in the view to places in the cube: flips and rotations about its middle
    """

    start: Tensor
    side: Tensor
    turn: Tensor

    def part(self, where: Tensor | slice) -> Cubes:
        return Cubes(self.start[where], self.side[where], self.turn[where])


@dataclass(frozen=True)
class Placing:
    """What may be drawn. scale: fraction of the full cube's volume; flips along z, y, x; quarter turns about z."""

    scale: tuple[float, float]
    flips: tuple[bool, bool, bool]
    turn90: bool
    rotate_degrees: float


def full_cubes(sizes: Int[Tensor, "B 3"], spacing_mm: Float[Tensor, "B 3"], size_mm: float) -> Cubes:
    """The cube that a volume is seen through: of ``size_mm`` about its middle, or around all of it (0)."""
    extent = sizes * spacing_mm
    side = torch.full((len(sizes),), float(size_mm)) if size_mm else extent.amax(dim=1)
    return Cubes((extent - side[:, None]) / 2, side, torch.eye(3).expand(len(sizes), 3, 3))


def draw_cubes(
    u: Float[Tensor, "B 11"],
    sizes: Int[Tensor, "B 3"],
    spacing_mm: Float[Tensor, "B 3"],
    size_mm: float,
    what: Placing,
) -> Cubes:
    """Cubes from uniform numbers: a fraction of the full cube, anywhere in the volume.

    Along an axis where the cube is longer than the volume, all of the volume lies in it.
    """
    extent = sizes * spacing_mm
    fraction = what.scale[0] + (what.scale[1] - what.scale[0]) * u[:, 0]
    side = full_cubes(sizes, spacing_mm, size_mm).side * fraction ** (1 / 3)
    return Cubes((extent - side[:, None]) * u[:, 1:4], side, draw_turns(u[:, 4:], what))


def draw_turns(u: Float[Tensor, "B 7"], what: Placing) -> Float[Tensor, "B 3 3"]:
    """Flips, then quarter turns about z, then a free rotation about an axis of any direction."""
    flips = torch.where((u[:, :3] < 0.5) & torch.tensor(what.flips), -1.0, 1.0)
    quarters = (u[:, 3] * 4).long() % 4 if what.turn90 else torch.zeros(len(u), dtype=torch.long)
    cos, sin = torch.tensor([1.0, 0.0, -1.0, 0.0])[quarters], torch.tensor([0.0, 1.0, 0.0, -1.0])[quarters]
    turned = torch.zeros(len(u), 3, 3)
    turned[:, 0, 0] = 1
    turned[:, 1, 1], turned[:, 1, 2], turned[:, 2, 1], turned[:, 2, 2] = cos, -sin, sin, cos
    turned = turned * flips[:, None, :]
    if not what.rotate_degrees:
        return turned
    return _rotations(u[:, 4:6], math.radians(what.rotate_degrees) * (2 * u[:, 6] - 1)) @ turned


def _rotations(u: Float[Tensor, "B 2"], angle: Float[Tensor, "B"]) -> Float[Tensor, "B 3 3"]:
    """Rotations about random axes, uniform over the sphere (Rodrigues' formula)."""
    height, around = 2 * u[:, 0] - 1, 2 * math.pi * u[:, 1]
    flat = torch.sqrt(1 - height**2)
    axis = torch.stack([height, flat * torch.cos(around), flat * torch.sin(around)], dim=1)
    cross = torch.zeros(len(u), 3, 3)
    for a, b, c in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        cross[:, b, a], cross[:, a, b] = axis[:, c], -axis[:, c]
    sin, cos = angle.sin()[:, None, None], angle.cos()[:, None, None]
    return torch.eye(3) + sin * cross + (1 - cos) * cross @ cross


def choose_levels(cubes: Cubes, size: Int[Tensor, "3"], spacing_mm: Float[Tensor, "3"], side_px: int) -> list[Levels]:
    """Number of times each axis of a volume is halved for each of its cubes; never below one voxel."""
    step = cubes.side[:, None] / spacing_mm / side_px
    most = torch.log2(size.float()).floor().clamp_max(MOST_LEVELS)
    levels = torch.minimum(torch.log2(step.clamp_min(1)).round(), most).long().tolist()
    return [(z, y, x) for z, y, x in levels]


def halved(volume: Float[Tensor, "C T Y X"], levels: Levels) -> Float[Tensor, "C t y x"]:
    """Average pairs along each axis ``levels`` times; a last voxel without partner is repeated."""
    for axis, count in enumerate(levels, start=1):
        for _ in range(count):
            if volume.shape[axis] % 2:
                volume = torch.cat([volume, volume.narrow(axis, volume.shape[axis] - 1, 1)], dim=axis)
            volume = volume.unflatten(axis, (-1, 2)).mean(dim=axis + 1)
    return volume


def sample_cubes(
    volume: Float[Tensor, "C T Y X"], spacing_mm: Float[Tensor, "3"], cubes: Cubes, side_px: int
) -> Float[Tensor, "N C S S S"]:
    """N cubes of one volume, trilinear. The cubes are on the CPU, the volume on its device."""
    levels = choose_levels(cubes, torch.tensor(volume.shape[1:]), spacing_mm, side_px)
    out = volume.new_empty(len(levels), volume.shape[0], side_px, side_px, side_px)
    for level in sorted(set(levels)):
        chosen = torch.tensor([i for i, cube_level in enumerate(levels) if cube_level == level])
        small = halved(volume, level)
        theta = _theta(cubes.part(chosen), small, spacing_mm * 2.0 ** torch.tensor(level))
        grid = F.affine_grid(theta.to(volume.device), [len(chosen), 1, side_px, side_px, side_px], align_corners=False)
        # One volume for all of its cubes, without a copy of it for each.
        several = small.expand(len(chosen), *small.shape)
        out[chosen.to(volume.device)] = F.grid_sample(several, grid, align_corners=False)
    return out


def _theta(cubes: Cubes, volume: Tensor, spacing_mm: Float[Tensor, "3"]) -> Float[Tensor, "N 3 4"]:
    """affine_grid's matrix: from -1..1 in the view to -1..1 in the volume, both in the order x, y, z."""
    extent = torch.tensor(volume.shape[1:]) * spacing_mm
    matrix = cubes.turn * (cubes.side[:, None] / extent)[:, :, None]
    middle = 2 * (cubes.start + cubes.side[:, None] / 2) / extent - 1
    return torch.cat([matrix.flip(1, 2), middle.flip(1)[:, :, None]], dim=2)
