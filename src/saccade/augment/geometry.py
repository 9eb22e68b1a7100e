"""Crops of a whole batch in one affine sampling: random resized crop, flips, quarter turns, free rotation.

The crop follows Inception's random resized crop (Szegedy et al. 2015), as in torchvision, but is not rounded to
whole pixels. Where a crop is shrunk, a copy of the image averaged over 2 x 2, 4 x 4 or 8 x 8 pixels is sampled
(a mip map, Williams 1983), so that at most 1.41 pixels (of height and width taken together) fall between two
samples and nothing aliases, down to an eleventh of the size. All copies lie side by side in one picture, the
atlas, so that every crop of every image is one call.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

ATTEMPTS = 10  # as in torchvision
DRAWS = 2 * ATTEMPTS + 6  # uniform numbers used by one crop
LEVELS = 4
QUARTER = torch.tensor([1.0, 0.0, -1.0, 0.0])  # cosine of quarter turns, exact


@dataclass(frozen=True)
class Crops:
    """One crop of every image, in pixels of the image: [B] tensors.

    turn [B 2 2] takes positions in the view to positions in the crop: flips and rotations.
    """

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor
    turn: Tensor

    def boxes(self) -> Float[Tensor, "B 4"]:
        return torch.stack([self.top, self.left, self.height, self.width], dim=1)

    def part(self, where: slice) -> Crops:
        return Crops(self.top[where], self.left[where], self.height[where], self.width[where], self.turn[where])


@dataclass(frozen=True)
class Geometry:
    """What may be drawn. scale: fraction of the image's area; aspect: width by height."""

    scale: tuple[float, float]
    aspect: tuple[float, float]
    hflip: bool
    vflip: bool
    turn90: bool
    rotate_degrees: float


def draw_sizes(
    u: Float[Tensor, "B 20"], sizes_px: Int[Tensor, "B 2"], what: Geometry
) -> tuple[Float[Tensor, "B"], Float[Tensor, "B"]]:
    """Height and width: the first of ten draws that fits, else all of the image that the aspect allows."""
    rows, columns = sizes_px[:, :1].float(), sizes_px[:, 1:].float()
    area = (what.scale[0] + (what.scale[1] - what.scale[0]) * u[:, :ATTEMPTS]) * rows * columns
    low, high = math.log(what.aspect[0]), math.log(what.aspect[1])
    aspect = torch.exp(low + (high - low) * u[:, ATTEMPTS:])
    width, height = torch.sqrt(area * aspect), torch.sqrt(area / aspect)
    # A last entry that always fits: the whole image, narrowed where its own aspect is out of range.
    height = torch.cat([height, torch.minimum(rows, columns / what.aspect[0])], dim=1)
    width = torch.cat([width, torch.minimum(columns, rows * what.aspect[1])], dim=1)
    fits = (height <= rows) & (width <= columns)
    first = fits.float().argmax(dim=1, keepdim=True)
    return height.gather(1, first)[:, 0], width.gather(1, first)[:, 0]


def draw_turns(u: Float[Tensor, "B 4"], what: Geometry) -> Float[Tensor, "B 2 2"]:
    """Rotation (quarter turns and a free angle) after flips, as matrices on (x, y)."""
    quarters = torch.floor(u[:, 0] * 4).long() % 4 if what.turn90 else torch.zeros(len(u), dtype=torch.long)
    free = math.radians(what.rotate_degrees) * (2 * u[:, 1] - 1)
    cos, sin = QUARTER[quarters], QUARTER[(quarters + 3) % 4]
    cos, sin = cos * free.cos() - sin * free.sin(), sin * free.cos() + cos * free.sin()
    flip_x = torch.where((u[:, 2] < 0.5) & what.hflip, -1.0, 1.0)
    flip_y = torch.where((u[:, 3] < 0.5) & what.vflip, -1.0, 1.0)
    return torch.stack([cos * flip_x, -sin * flip_y, sin * flip_x, cos * flip_y], dim=1).view(-1, 2, 2)


def draw_crops(u: Float[Tensor, "B 26"], sizes_px: Int[Tensor, "B 2"], what: Geometry) -> Crops:
    """Crops from uniform numbers, all inside their images.

    Where no draw fits a long image the crop lies anywhere in it; torchvision's would always be the centre.
    With a free rotation the crop is turned about its own centre; corners that leave the image repeat its edge.
    """
    height, width = draw_sizes(u[:, : 2 * ATTEMPTS], sizes_px, what)
    where = u[:, 2 * ATTEMPTS :]
    return Crops(
        top=where[:, 0] * (sizes_px[:, 0] - height),
        left=where[:, 1] * (sizes_px[:, 1] - width),
        height=height,
        width=width,
        turn=draw_turns(where[:, 2:], what),
    )


def choose_levels(crops: Crops, sizes_px: Int[Tensor, "B 2"], size_px: int) -> Int[Tensor, "B"]:
    """Mip level of each crop; never one on which the image is smaller than a pixel."""
    shrink = torch.sqrt(crops.height * crops.width) / size_px
    largest = torch.log2(sizes_px.min(dim=1).values.float()).floor().clamp_max(LEVELS - 1)
    level = torch.log2(shrink.clamp_min(1.0)).round()
    return torch.minimum(level, largest).long()


@dataclass(frozen=True)
class Atlas:
    """Layout of a batch and its mip levels in one picture [B C Y' X']: levels side by side in a strip below.

    shape    rows and columns of the batch itself, padding included      levels   1: no copies
    """

    shape: tuple[int, int]
    levels: int

    @property
    def picture_shape(self) -> tuple[int, int]:
        rows, columns = self.shape
        return (rows, columns) if self.levels == 1 else (rows + rows // 2, columns)

    @property
    def corners(self) -> list[tuple[int, int]]:
        """(y, x) of each copy."""
        rows, left = self.shape[0], 0
        result = [(0, 0)]
        for level in range(1, self.levels):
            result.append((rows, left))
            left += self.shape[1] >> level
        return result


def build_atlas(pixels: Float[Tensor, "B C Y X"], atlas: Atlas) -> Float[Tensor, "B C y x"]:
    """The picture: the batch with ``levels - 1`` copies, each averaged over 2 x 2 pixels of the one before."""
    if atlas.levels == 1:
        return pixels
    out = pixels.new_empty(*pixels.shape[:2], *atlas.picture_shape)
    out[:, :, : atlas.shape[0], :] = pixels
    copy = pixels
    for top, left in atlas.corners[1:]:
        copy = _halve(copy)
        out[:, :, top : top + copy.shape[2], left : left + copy.shape[3]] = copy
    return out


def _halve(x: Float[Tensor, "B C Y X"]) -> Float[Tensor, "B C y x"]:
    """Means of 2 x 2 pixels; an odd last row or column is left out. Eight times faster than avg_pool2d."""
    x = x[:, :, : x.shape[2] // 2 * 2, : x.shape[3] // 2 * 2]
    x = x[:, :, ::2] + x[:, :, 1::2]
    return (x[..., ::2] + x[..., 1::2]).mul_(0.25)


@dataclass(frozen=True)
class Places:
    """Where the pixels of N crops of side S lie in the atlas, in grid_sample's -1 to 1; axis 0 is x, 1 is y.

    across, down   [N 2 S]: the place of an output pixel is the sum of its column's and its row's part
    low, high      [N 2]: what places are clamped to, so that padding and other copies are never read
    straight       no turns but quarter turns: the parts are clamped already
    """

    across: Tensor
    down: Tensor
    low: Tensor
    high: Tensor
    straight: bool

    def part(self, where: slice) -> Places:
        return Places(self.across[where], self.down[where], self.low[where], self.high[where], self.straight)


def find_places(
    atlas: Atlas,
    sizes_px: Int[Tensor, "N 2"],
    crops: Crops,
    levels: Int[Tensor, "N"],
    size_px: int,
    device: torch.device,
) -> Places:
    """Places of N crops on the CPU, handed to ``device``; levels: choose_levels' answer."""
    factor = 2.0 ** levels[:, None]
    extent = torch.tensor(atlas.picture_shape[::-1], dtype=torch.float32)
    corner = torch.tensor(atlas.corners, dtype=torch.float32).flip(1)[levels]
    side = torch.stack([crops.width, crops.height], dim=1) / factor
    start = torch.stack([crops.left, crops.top], dim=1) / factor
    size = sizes_px.flip(1)
    limit = torch.floor(size / factor)
    # Strictly inside, wherever something else lies beyond the edge (padding, another copy, a gap that was never
    # written): even a bilinear weight of zero would turn a NaN there into a value. A multiple of float32's rounding.
    margin = 2e-6 * extent.clamp_min(500)
    inner_low = torch.where(corner > 0, margin, 0.0)
    shared = (size < torch.tensor(atlas.shape[::-1])) | (atlas.levels > 1)
    inner_high = torch.where(shared, margin, 0.0)
    low = 2 * (corner + 0.5 + inner_low) / extent - 1
    high = 2 * (corner + limit - 0.5 - inner_high) / extent - 1
    centre = 2 * (corner + start + side / 2) / extent - 1
    slope = 2 * (side / extent)[:, :, None] * crops.turn
    ticks = (torch.arange(size_px, dtype=torch.float32) + 0.5) / size_px - 0.5
    across, down = slope[:, :, :1] * ticks + centre[:, :, None], slope[:, :, 1:] * ticks
    straight = bool(((crops.turn == 0).sum(dim=(1, 2)) == 2).all())
    if straight:
        # Along each axis only columns or only rows matter, so a line is clamped here and not a plane later.
        by_row = slope[:, :, :1] == 0
        line = (across + down).clamp(low[:, :, None], high[:, :, None])
        across, down = torch.where(by_row, 0.0, line), torch.where(by_row, line, 0.0)
    across, down, low, high = (x.to(device, non_blocking=True) for x in (across, down, low, high))
    return Places(across, down, low, high, straight)


def sample(picture: Float[Tensor, "B C Y X"], places: Places) -> Float[Tensor, "BV C S S"]:
    """V crops of every image, turned, flipped and resized, by bilinear sampling of the atlas' picture.

    places    all V of the first image first; the result has the same order
    """
    size_px, images = places.across.shape[-1], len(picture)
    grid = torch.empty(len(places.across), size_px, size_px, 2, device=picture.device)
    for axis in (0, 1):
        torch.add(places.across[:, axis, None, :], places.down[:, axis, :, None], out=grid[..., axis])
    if not places.straight:
        grid.clamp_(places.low[:, None, None], places.high[:, None, None])
    views = len(grid) // images
    crops = F.grid_sample(
        picture,
        grid.view(images, views * size_px, size_px, 2),
        mode="bilinear",
        padding_mode="border",
        align_corners=False,
    )
    crops = crops.view(images, -1, views, size_px, size_px).transpose(1, 2)
    return crops.reshape(images * views, -1, size_px, size_px)
