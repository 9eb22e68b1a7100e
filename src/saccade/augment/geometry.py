"""Crops of a whole batch in one affine sampling: random resized crop, flips, quarter turns, free rotation.

The crop follows Inception's random resized crop (Szegedy et al. 2015), as in torchvision. Where a crop is
shrunk, a copy of the image averaged over 2 x 2 or 4 x 4 pixels is sampled (a mip map, Williams 1983), so that
no more than about 1.4 pixels fall between two samples and nothing aliases.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

DRAWS = 8  # uniform numbers used by one crop


@dataclass(frozen=True)
class Crops:
    """One crop of every image, in pixels of the image: [B] tensors; ``angle`` in radians."""

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor
    angle: Tensor
    flip_x: Tensor
    flip_y: Tensor

    def boxes(self) -> Float[Tensor, "B 4"]:
        return torch.stack([self.top, self.left, self.height, self.width], dim=1)


@dataclass(frozen=True)
class Geometry:
    """What may be drawn. scale: share of the image's area; aspect: width by height."""

    scale: tuple[float, float]
    aspect: tuple[float, float]
    hflip: bool
    vflip: bool
    turn90: bool
    rotate_degrees: float


def draw_crops(u: Float[Tensor, "B 8"], sizes_px: Int[Tensor, "B 2"], what: Geometry) -> Crops:
    """Crops from uniform numbers. A crop that would not fit is narrowed to the image, keeping its aspect near."""
    rows, columns = sizes_px[:, 0].float(), sizes_px[:, 1].float()
    area = (what.scale[0] + (what.scale[1] - what.scale[0]) * u[:, 0]) * rows * columns
    low, high = math.log(what.aspect[0]), math.log(what.aspect[1])
    aspect = torch.exp(low + (high - low) * u[:, 1])
    width, height = torch.sqrt(area * aspect), torch.sqrt(area / aspect)
    height, width = torch.minimum(height, rows), torch.minimum(width, columns)
    turns = torch.floor(u[:, 4] * 4) if what.turn90 else torch.zeros_like(area)
    free = math.radians(what.rotate_degrees) * (2 * u[:, 5] - 1)
    return Crops(
        top=u[:, 2] * (rows - height),
        left=u[:, 3] * (columns - width),
        height=height,
        width=width,
        angle=turns * (math.pi / 2) + free,
        flip_x=(u[:, 6] < 0.5) & what.hflip,
        flip_y=(u[:, 7] < 0.5) & what.vflip,
    )


def pyramid(pixels: Float[Tensor, "B C Y X"], levels: int) -> list[Tensor]:
    """The batch and its copies averaged over 2 x 2, 4 x 4 and so on pixels."""
    found = [pixels]
    while len(found) < levels and min(found[-1].shape[-2:]) >= 2:
        found.append(F.avg_pool2d(found[-1], 2))
    return found


def sample(
    levels: list[Float[Tensor, "B C Y X"]], sizes_px: Int[Tensor, "B 2"], crops: Crops, size_px: int
) -> Float[Tensor, "B C S S"]:
    """Every crop, turned, flipped and resized to ``size_px``, by bilinear sampling. Padding is never read."""
    shrink = torch.sqrt(crops.height * crops.width) / size_px
    wanted = torch.log2(shrink.clamp_min(1e-6)).round().long().clamp(0, len(levels) - 1)
    out = levels[0].new_empty(len(shrink), levels[0].shape[1], size_px, size_px)
    for level in wanted.unique().tolist():
        chosen = torch.nonzero(wanted == level)[:, 0]
        grid = _grid(crops, chosen, sizes_px, 2**level, size_px, levels[level].shape[-2:])
        source = levels[level] if len(chosen) == len(shrink) else levels[level][chosen]
        found = F.grid_sample(source, grid, mode="bilinear", align_corners=False)
        if len(chosen) == len(shrink):
            return found
        out[chosen] = found
    return out


def _grid(
    crops: Crops, chosen: Tensor, sizes_px: Tensor, factor: int, size_px: int, shape: torch.Size
) -> Float[Tensor, "b S S 2"]:
    """Where each output pixel lies in the (averaged, padded) image, in grid_sample's -1 to 1."""
    ticks = (torch.arange(size_px, dtype=torch.float32) + 0.5) / size_px - 0.5
    v, u = ticks[None, :, None], ticks[None, None, :]
    sign_x = torch.where(crops.flip_x[chosen], -1.0, 1.0)[:, None, None]
    sign_y = torch.where(crops.flip_y[chosen], -1.0, 1.0)[:, None, None]
    u, v = u * sign_x, v * sign_y
    cos, sin = torch.cos(crops.angle[chosen])[:, None, None], torch.sin(crops.angle[chosen])[:, None, None]
    u, v = cos * u - sin * v, sin * u + cos * v
    height, width = crops.height[chosen, None, None], crops.width[chosen, None, None]
    y = crops.top[chosen, None, None] + height * (v + 0.5)
    x = crops.left[chosen, None, None] + width * (u + 0.5)
    limits = (sizes_px[chosen] // factor).clamp_min(1).float()
    y = torch.minimum((y / factor).clamp_min(0.5), limits[:, 0, None, None] - 0.5)
    x = torch.minimum((x / factor).clamp_min(0.5), limits[:, 1, None, None] - 0.5)
    return torch.stack([2 * x / shape[1] - 1, 2 * y / shape[0] - 1], dim=-1)
