"""Position embeddings: learned, factorised, sine-cosine, rotary, convolutional, or none.

Learned tables as in Dosovitskiy et al. 2021 (arXiv:2010.11929), resized to other grids, whole or as the sum of one
table an axis (as in ViViT, Arnab et al. 2021, arXiv:2103.15691: 3 S vectors instead of S^3); fixed sines and
cosines as in Vaswani et al. 2017, one part of the width for each axis; rotary embedding of Su et al. 2021
(arXiv:2104.09864) in the axial form of Heo et al. 2024 (arXiv:2403.13298); ``conv``: a depthwise convolution of the
tokens themselves (conditional positional encoding, Chu et al. 2021, arXiv:2102.10882; on tiles of slides in TransMIL,
Shao et al. 2021, arXiv:2106.00908), so that every token starts with information on its neighbours. The
number of axes is the length of the grid tuple: 1 for text, 2 for images, 3 for volumes. Only patch tokens have a
position.
"""

from __future__ import annotations

import math
from typing import get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from saccade.base.contracts import Grid
from saccade.errors import ModelError, unknown
from saccade.models.settings import Positions as Kind

Rotation = tuple[Tensor, Tensor]
"""Cosines and sines, [N Dk/2] each."""

SINCOS_BASE = 10_000.0
CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
ROTARY_BASE = 100.0  # Heo et al. 2024: image grids are short, text needs 10,000


def coordinates(grid: Grid, device: torch.device | None = None) -> Float[Tensor, "N A"]:
    """Position of every token along every axis, in tokens, in row-major order."""
    axes = [torch.arange(length, dtype=torch.float32, device=device) for length in grid]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, len(grid))


def _angles(grid: Grid, per_axis: int, base: float, device: torch.device | None) -> Float[Tensor, "N A F"]:
    exponents = torch.arange(per_axis, dtype=torch.float32, device=device) / max(1, per_axis)
    return coordinates(grid, device)[:, :, None] * base**-exponents


def sincos_table(grid: Grid, dim: int, device: torch.device | None = None) -> Float[Tensor, "1 N D"]:
    """Sines, then cosines, axis by axis; channels left over by the division among axes are zero."""
    angles = _angles(grid, dim // (2 * len(grid)), SINCOS_BASE, device)
    table = torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(1)
    return F.pad(table, (0, dim - table.shape[1]))[None]


def resize_table(table: Float[Tensor, "1 N D"], old: Grid, new: Grid) -> Float[Tensor, "1 M D"]:
    """Resize a table of positions to another grid: bicubic with antialiasing, one axis after the other.

    Bicubic interpolation is separable, so two axes give what timm and DINO do in one call.
    """
    if old == new:
        return table
    x = table.float().reshape(*old, table.shape[-1])
    for axis, length in enumerate(new):
        # The axis comes last and all others are rows that keep their number: torch 2.15 gives wrong numbers
        # when the rows of a plane of width 1 are resized.
        x = x.movedim(axis, -1)
        rows = x.shape[:-1]
        plane = x.reshape(1, 1, -1, x.shape[-1])
        size = (plane.shape[2], length)
        plane = F.interpolate(plane, size=size, mode="bicubic", antialias=True, align_corners=False)
        x = plane.reshape(*rows, length).movedim(-1, axis)
    return x.reshape(1, -1, table.shape[-1]).to(table.dtype)


def axial_rotation(grid: Grid, head_dim: int, prefix: int, device: torch.device | None = None) -> Rotation:
    """Cosines and sines that rotate queries and keys; prefix tokens and left-over channels are not rotated."""
    half = head_dim // 2
    angles = _angles(grid, half // len(grid), ROTARY_BASE, device).flatten(1)
    angles = F.pad(angles, (0, half - angles.shape[1], prefix, 0))
    return angles.cos(), angles.sin()


def rotate(x: Float[Tensor, "B H N Dk"], rotation: Rotation) -> Float[Tensor, "B H N Dk"]:
    """Rotate every pair of channels (one of the first half, one of the second) by its angle."""
    cos, sin = rotation
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


class Positions(nn.Module):
    """Position embeddings of one network.

    Parameters
    ----------
    kind : {"learned", "factorised", "sincos", "rotary", "conv", "none"}
        The kind of embedding.
    grid : tuple of int
        The grid that learned tables are made for.
    dim, heads, prefix : int
        Token width, attention heads, and tokens before those of the patches.

    Raises
    ------
    UsageError
        The kind is unknown.
    ModelError
        The kind does not fit the width.
    """

    def __init__(self, kind: Kind, grid: Grid, dim: int, heads: int, prefix: int):
        super().__init__()
        if kind not in get_args(Kind):
            raise unknown("kind of positions", str(kind), get_args(Kind))
        if kind == "rotary" and (dim // heads) % 2:
            raise ModelError(
                "rotary positions need heads of even width",
                got=f"heads of width {dim // heads}",
                expected="an even width",
                hint="choose other heads, or sincos positions",
            )
        self.kind, self.grid, self.dim, self.heads, self.prefix = kind, grid, dim, heads, prefix
        if kind == "learned":
            self.table = nn.Parameter(torch.empty(1, math.prod(grid), dim))
            nn.init.trunc_normal_(self.table, std=0.02)
        if kind == "factorised":
            self.tables = nn.ParameterList(torch.empty(1, length, dim) for length in grid)
            for table in self.tables:
                nn.init.trunc_normal_(table, std=0.02)
        if kind == "conv":
            self.neighbours = CONVOLUTIONS[len(grid)](dim, dim, 3, padding=1, groups=dim)

    def added(
        self, grid: Grid, tokens: Float[Tensor, "B N D"], present: Bool[Tensor, "B N"] | None = None
    ) -> Float[Tensor, "#B N D"] | None:
        """What is added to the patch tokens of this grid, or None. Patches that are not ``present`` count as zeros."""
        if self.kind == "conv":
            present_tokens = tokens if present is None else tokens * present[..., None]
            neighbourhood: Tensor = self.neighbours(present_tokens.transpose(1, 2).unflatten(2, grid))
            return neighbourhood.flatten(2).transpose(1, 2)
        if self.kind == "learned":
            return resize_table(self.table, self.grid, grid)
        if self.kind == "factorised":
            return self._sum_of_axes(grid)
        if self.kind == "sincos":
            return sincos_table(grid, self.dim, tokens.device).to(tokens.dtype)
        return None

    def _sum_of_axes(self, grid: Grid) -> Float[Tensor, "1 N D"]:
        total: Tensor | float = 0.0
        for axis, table in enumerate(self.tables):
            line = resize_table(table, (self.grid[axis],), (grid[axis],))
            shape = [grid[axis] if a == axis else 1 for a in range(len(grid))]
            total = total + line.view(1, *shape, self.dim)
        assert isinstance(total, Tensor)
        return total.reshape(1, -1, self.dim)

    def rotation(self, grid: Grid, like: Tensor) -> Rotation | None:
        """The rotation of queries and keys of all tokens, prefix included, or None."""
        if self.kind != "rotary":
            return None
        return axial_rotation(grid, self.dim // self.heads, self.prefix, like.device)
