"""Swin (Liu et al. 2021, arXiv:2103.14030), named and laid out as in timm.

Attention inside windows, shifted by half a window in every second block; patches are merged two by two between the four
stages. Where windows tile every map, the results are timm's. Other maps are padded, and no token attends to padding; in
timm tokens do.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from saccade.base.contracts import Features
from saccade.errors import ModelError
from saccade.models.backbones.swin import SwinSettings
from saccade.models.nn.attention import attend
from saccade.models.nn.blocks import DropPath, Mlp, drop_rates, initialise_linear, through
from saccade.models.nn.network import Network
from saccade.models.nn.patch_embed import PatchProjection, check_pixels

NORM_EPS = 1e-5  # torch's own value; the paper's code and timm keep it in Swin alone
MLP_RATIO = 4


# --- windows ------------------------------------------------------------------------------------


class Windows(NamedTuple):
    """Windows on one map: tokens along each axis of a window, of the shift, and windows along each axis."""

    size: tuple[int, int]
    shift: tuple[int, int]
    tiles: tuple[int, int]

    @property
    def padded(self) -> tuple[int, int]:
        return self.size[0] * self.tiles[0], self.size[1] * self.tiles[1]


def lay_windows(grid: tuple[int, int], window: int, *, shifted: bool) -> Windows:
    """Along an axis that holds a single window, the window shrinks to the map and nothing is shifted, as in timm."""
    sizes = [min(window, length) for length in grid]
    shifts = [window // 2 if shifted and length > window else 0 for length in grid]
    counts = [math.ceil(length / size) for length, size in zip(grid, sizes)]
    return Windows((sizes[0], sizes[1]), (shifts[0], shifts[1]), (counts[0], counts[1]))


def _parts(length: int, padded: int, shift: int) -> Tensor:
    """For every position of a rolled axis: 0, 1 if it wrapped around from the other end, 2 if it is padding."""
    position = torch.arange(padded)
    wrapped = position >= padded - shift
    return torch.where((position + shift) % padded >= length, 2, wrapped.long())


@functools.lru_cache(maxsize=256)
def hidden_pairs(grid: tuple[int, int], windows: Windows, device: torch.device) -> Float[Tensor, "W 1 N N"] | None:
    """Minus infinity where a key of a window is hidden from a query, else 0; None where nothing is hidden.

    Tokens from opposite ends of the map do not see each other, and no token sees padding. Padding sees padding: a query
    without keys would be NaN.
    """
    if windows.padded == grid and not any(windows.shift):
        return None
    # Made in inference mode, the cached tensor could not take part in training later.
    with torch.inference_mode(False):
        rows, columns = (_parts(grid[a], windows.padded[a], windows.shift[a]) for a in (0, 1))
        padding = (rows == 2)[:, None] | (columns == 2)[None]
        part = torch.where(padding, -1, 2 * rows[:, None] + columns[None])
        (down, across), (height, width) = windows.tiles, windows.size
        part = part.view(down, height, across, width).transpose(1, 2).reshape(down * across, 1, height * width)
        apart = part[..., :, None] != part[..., None, :]
        return torch.zeros(apart.shape).masked_fill(apart, float("-inf")).to(device)


@functools.lru_cache(maxsize=256)
def offset_rows(size: tuple[int, int], window: int, device: torch.device) -> Tensor:
    """Row of the table of biases for every query and key of a window, [N * N].

    The table is made for ``window`` x ``window``; a smaller window has smaller offsets and uses the table's middle.
    """
    with torch.inference_mode(False):
        y, x = (axis.flatten() for axis in torch.meshgrid(*(torch.arange(n) for n in size), indexing="ij"))
        down, across = y[:, None] - y[None], x[:, None] - x[None]
        return ((down + window - 1) * (2 * window - 1) + across + window - 1).flatten().to(device)


class WindowAttention(nn.Module):
    """Multi-head self-attention inside windows, with a learned bias for every offset between two tokens.

    ``shifted``: windows are moved down and right by half their size; the map is rolled instead.
    """

    def __init__(self, dim: int, heads: int, window: int, *, shifted: bool):
        super().__init__()
        self.heads, self.window, self.shifted = heads, window, shifted
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def bias(self, size: tuple[int, int]) -> Float[Tensor, "H N N"]:
        """Added to the scores inside a window of this size."""
        table, count = self.relative_position_bias_table, math.prod(size)
        chosen = table[offset_rows(size, self.window, table.device)]
        return chosen.view(count, count, self.heads).permute(2, 0, 1)

    def forward(self, x: Float[Tensor, "B Y X D"]) -> Float[Tensor, "B Y X D"]:
        height, width = x.shape[1:3]
        windows = lay_windows((height, width), self.window, shifted=self.shifted)
        shift = windows.shift
        if windows.padded == (height, width):
            qkv = self.qkv(_rolled(x, (-shift[0], -shift[1])))  # a third of what is rolled below
        else:
            # Padding comes last: it needs no queries, keys and values of its own.
            missing = (windows.padded[0] - height, windows.padded[1] - width)
            qkv = _rolled(F.pad(self.qkv(x), (0, 0, 0, missing[1], 0, missing[0])), (-shift[0], -shift[1]))
        mixed = _rolled(self._mix(qkv, (height, width), windows), shift)
        return self.proj(mixed[:, :height, :width])

    def _mix(self, qkv: Float[Tensor, "B Y X E"], grid: tuple[int, int], windows: Windows) -> Float[Tensor, "B Y X D"]:
        """Attention inside every window; ``grid`` is the map without padding.

        Windows count as images where all have the same mask, as heads where each has its own.
        """
        bias, hidden = self.bias(windows.size), hidden_pairs(grid, windows, qkv.device)
        batch, (tall, wide) = len(qkv), windows.padded
        (down, across), (rows, columns) = windows.tiles, windows.size
        cut = (batch, down, rows, across, columns, 3, self.heads, qkv.shape[-1] // (3 * self.heads))
        shape = (-1, self.heads if hidden is None else down * across * self.heads, rows * columns, cut[-1])
        # [B Y X H Dk] -> [B down across H rows columns Dk]
        query, key, value = (part.permute(0, 1, 3, 5, 2, 4, 6).reshape(shape) for part in qkv.view(cut).unbind(5))
        mask = bias[None] if hidden is None else (bias + hidden).flatten(0, 1)[None]
        mixed = attend(query, key, value, mask=mask.to(query.dtype))
        mixed = mixed.reshape(batch, down, across, self.heads, rows, columns, cut[-1])
        return mixed.permute(0, 1, 4, 2, 5, 3, 6).reshape(batch, tall, wide, -1)


def _rolled(x: Float[Tensor, "B Y X D"], shift: tuple[int, int]) -> Float[Tensor, "B Y X D"]:
    return x.roll(shift, dims=(1, 2)) if any(shift) else x


# --- Swin ---------------------------------------------------------------------------------------


class SwinBlock(nn.Module):
    """Attention in windows and an MLP, each with a norm before and a residual path around."""

    def __init__(self, dim: int, heads: int, window: int, *, shifted: bool, drop_path: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn = WindowAttention(dim, heads, window, shifted=shifted)
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = Mlp(dim, MLP_RATIO * dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Float[Tensor, "B N D"], grid: tuple[int, int]) -> Float[Tensor, "B N D"]:
        x = x + self.drop_path(self.attn(self.norm1(x).unflatten(1, grid)).flatten(1, 2))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class PatchMerging(nn.Module):
    """Two by two tokens become one of twice the width: concatenation, norm, linear layer."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim, eps=NORM_EPS)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Float[Tensor, "B N D"], grid: tuple[int, int]) -> Float[Tensor, "B M E"]:
        height, width = grid
        x = x.view(len(x), height // 2, 2, width // 2, 2, x.shape[-1])
        # The left column of the four comes first: the order that the weights of the paper were trained with.
        x = x.permute(0, 1, 3, 4, 2, 5).flatten(3).flatten(1, 2)
        return self.reduction(self.norm(x))


class SwinStage(nn.Module):
    """Blocks on one map; all stages but the first merge patches before."""

    def __init__(self, dim: int, heads: int, window: int, *, merges: bool, drop_paths: list[float]):
        super().__init__()
        self.downsample = PatchMerging(dim // 2) if merges else None
        self.blocks = nn.ModuleList(
            SwinBlock(dim, heads, window, shifted=index % 2 == 1, drop_path=rate)
            for index, rate in enumerate(drop_paths)
        )

    def forward(
        self, x: Float[Tensor, "B N D"], grid: tuple[int, int], *, recompute: bool = False
    ) -> tuple[Float[Tensor, "B M E"], tuple[int, int]]:
        if self.downsample is not None:
            x, grid = self.downsample(x, grid), (grid[0] // 2, grid[1] // 2)
        for block in self.blocks:
            x = through(block, x, grid, recompute=recompute)
        return x, grid


class NormedPatches(nn.Module):
    """Pixels to tokens: each patch times one matrix, and a norm."""

    def __init__(self, channels: int, dim: int, patch: int):
        super().__init__()
        self.proj = PatchProjection(channels, dim, (patch, patch))
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)

    def forward(self, pixels: Float[Tensor, "B C Y X"]) -> Float[Tensor, "B N D"]:
        return self.norm(self.proj(pixels))


class Swin(Network):
    """Four stages of attention in windows; runs at every size that is a multiple of ``settings.unit_px``."""

    settings: SwinSettings

    def __init__(self, settings: SwinSettings):
        s = settings
        super().__init__(s, dim=8 * s.dim, stride_px=8 * s.patch)
        self.patch = s.patch
        self.patch_embed = NormedPatches(s.channels, s.dim, s.patch)
        rates, stages = drop_rates(s.drop_path, sum(s.depths)), []
        for stage, (depth, heads) in enumerate(zip(s.depths, s.heads)):
            first = sum(s.depths[:stage])
            drop_paths = rates[first : first + depth]
            stages.append(SwinStage(s.dim * 2**stage, heads, s.window, merges=stage > 0, drop_paths=drop_paths))
        self.layers = nn.ModuleList(stages)
        self.norm = nn.LayerNorm(self.dim, eps=NORM_EPS)
        initialise_linear(self.layers)

    def forward(self, pixels: Float[Tensor, "B C Y X"]) -> Features:
        """The last map after the norm as tokens, their mean as the image's vector; ModelError for other sizes."""
        height, width = self._fitting(pixels)
        x, grid = self.patch_embed(pixels), (height // self.patch, width // self.patch)
        for stage in self.layers:
            x, grid = stage(x, grid, recompute=self.checkpointing)
        x = self.norm(x)
        return Features(cls=x.mean(dim=1), tokens=x, grid=grid)

    def _fitting(self, pixels: Tensor) -> tuple[int, int]:
        """Height and width, if the network runs on these pixels."""
        check_pixels(pixels, self.channels)
        height, width = pixels.shape[2:]
        unit = self.settings.unit_px
        if height % unit or width % unit or not height or not width:
            nearest = " x ".join(str(max(1, round(side / unit)) * unit) for side in (height, width))
            raise ModelError(
                f"{self.name} does not run at this size",
                got=f"{height} x {width} px",
                expected=f"multiples of {unit} px: patches of {self.patch}, merged three times",
                hint=f"nearest: {nearest}; or a smaller patch",
            )
        return height, width
