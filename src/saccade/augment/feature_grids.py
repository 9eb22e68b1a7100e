"""Views of grids of vectors: whole tiles are cut out, turned and left out; vectors are never mixed.

Crops of a fixed number of tiles as in the second level of HIPT (Chen et al. 2022, arXiv:2206.02647, 14 and 6 of 16),
because a resized crop would average vectors of neighbours. Turns and flips move tiles; the tiles themselves were
learned without a direction. All draws come from (seed, step, item), as in ``views``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saccade.base.contracts import Batch
from saccade.base.random import uniforms

TRIES = 4  # places drawn for one crop
ENOUGH = 0.25  # fraction of tiles that should be present
DRAWS = 2 * TRIES + 3


@dataclass(frozen=True)
class GridViews:
    """What may happen to a crop.

    tile_dropout, vector_dropout   shares of tiles and of channels that are left out
    vector_jitter   standard deviation of what is added to every channel, the same for all tiles of a crop, in standard
                    deviations of that channel: what the stain of a slide adds to all its vectors then tells nothing
    """

    hflip: bool
    vflip: bool
    turn90: bool
    tile_dropout: float
    vector_dropout: float
    vector_jitter: float


@dataclass(frozen=True)
class GridCrops:
    """Crops of B grids, not yet normalised, and where they lie, in tiles.

    shift, kept [B C 1 1]: what is added to each channel after that, and which are kept (0 or 1)
    """

    vectors: Tensor
    box: Tensor
    shift: Tensor
    keep_mask: Tensor

    def changed(self, normalised: Float[Tensor, "B C S S"]) -> Float[Tensor, "B C S S"]:
        return (normalised + self.shift.to(normalised.device)) * self.keep_mask.to(normalised.device)


def draw_grids(batch: Batch, side: int, what: GridViews, *, seed: int, step: int, stream: str) -> GridCrops:
    """One crop of ``side`` x ``side`` tiles of every grid [B C S S].

    Of four random positions the first with at least a quarter of its tiles present is taken, else the one with most.
    Outside the grid tiles are absent: a grid smaller than the crop lies anywhere in it.
    """
    tiles, channels = side * side, batch.pixels.shape[1]
    items = batch.indices.cpu().numpy()
    u = torch.from_numpy(uniforms(seed, step, items, DRAWS + tiles + 2 * channels, stream)).float()
    corners = _corners(batch, side, u[:, : 2 * TRIES])
    crop = _take(batch.pixels, batch.sizes_px, *_places(corners, side, what, u[:, 2 * TRIES : DRAWS]))
    crop[:, -1:] *= u[:, DRAWS : DRAWS + tiles].view(-1, 1, side, side) >= what.tile_dropout
    keep_mask = (u[:, DRAWS + tiles : -channels] >= what.vector_dropout).float()
    shift = math.sqrt(3) * what.vector_jitter * (2 * u[:, -channels:] - 1)
    keep_mask[:, -1], shift[:, -1] = 1.0, 0.0  # the channel of tile presence
    box = torch.cat([corners.float(), torch.full((len(crop), 2), float(side))], dim=1)
    return GridCrops(crop, box, shift[:, :, None, None], keep_mask[:, :, None, None])


def _corners(batch: Batch, side: int, u: Float[Tensor, "B U"]) -> Int[Tensor, "B 2"]:
    """Top and left tile of each crop."""
    room = batch.sizes_px - side  # negative where the grid is smaller
    low, span = room.clamp_max(0), room.abs() + 1
    drawn = torch.floor(u.view(-1, TRIES, 2) * span[:, None]).long()
    candidates = low[:, None] + torch.minimum(drawn, span[:, None] - 1)
    ticks = torch.arange(side)
    filled = []
    for corner in candidates.unbind(dim=1):
        y, x = corner[:, :1] + ticks, corner[:, 1:] + ticks
        present = _take(batch.pixels[:, -1:], batch.sizes_px, *_planes(y, x))
        filled.append(present.float().mean(dim=(1, 2, 3)))
    fraction = torch.stack(filled, dim=1)
    good = fraction >= ENOUGH
    best = torch.where(good.any(dim=1), good.float().argmax(dim=1), fraction.argmax(dim=1))
    return candidates[torch.arange(len(candidates)), best]


def _planes(y: Int[Tensor, "B S"], x: Int[Tensor, "B S"]) -> tuple[Int[Tensor, "B S S"], Int[Tensor, "B S S"]]:
    shape = (-1, y.shape[1], x.shape[1])
    return y[:, :, None].expand(shape), x[:, None, :].expand(shape)


def _places(
    corners: Int[Tensor, "B 2"], side: int, what: GridViews, u: Float[Tensor, "B 3"]
) -> tuple[Int[Tensor, "B S S"], Int[Tensor, "B S S"]]:
    """Row and column of the grid for every tile of the crop. Two flips and a transpose give all eight orientations."""
    ticks = torch.arange(side).expand(len(corners), -1)
    up = torch.where((u[:, :1] < 0.5) & what.vflip, side - 1 - ticks, ticks)
    across = torch.where((u[:, 1:2] < 0.5) & what.hflip, side - 1 - ticks, ticks)
    y, x = _planes(corners[:, :1] + up, corners[:, 1:] + across)
    turned = ((u[:, 2] < 0.5) & what.turn90)[:, None, None]
    return torch.where(turned, y.transpose(1, 2), y), torch.where(turned, x.transpose(1, 2), x)


def _take(
    pixels: Float[Tensor, "B C Y X"], sizes: Int[Tensor, "B 2"], y: Int[Tensor, "B S S"], x: Int[Tensor, "B S S"]
) -> Float[Tensor, "B C S S"]:
    """Vectors of the tiles at (y, x); zeros, presence included, outside the grid."""
    rows, columns = sizes[:, 0, None, None], sizes[:, 1, None, None]
    inside = (y >= 0) & (y < rows) & (x >= 0) & (x < columns)
    flat = torch.where(inside, y * pixels.shape[3] + x, 0).flatten(1)
    vectors = pixels.flatten(2).gather(2, flat[:, None].expand(-1, pixels.shape[1], -1))
    return vectors.unflatten(2, tuple(y.shape[1:])) * inside[:, None]
