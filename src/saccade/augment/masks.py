"""Which patches a network may see: drawn for every image from (seed, step, item), on the CPU.

Patches are numbered row by row. Every function is bounded: a grid that is too small for what is asked gives the
nearest that fits, and never an endless search.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from saccade.seeds import numpy_generator, uniforms

Grid = tuple[int, ...]


def random_parts(
    grid: Grid, share: float, *, seed: int, step: int, items: Int[Tensor, "B"]
) -> tuple[Int[Tensor, "B K"], Int[Tensor, "B M"]]:
    """Patches that stay and patches that are hidden (``share`` of them, at least one of each), each in order.

    As in MAE (He et al. 2022): a random permutation for every image.
    """
    count = math.prod(grid)
    kept = min(count - 1, max(1, round(count * (1 - share))))
    order = torch.from_numpy(uniforms(seed, step, items.numpy(), count, "mask")).argsort(dim=1)
    return order[:, :kept].sort(dim=1).values, order[:, kept:].sort(dim=1).values


def _rectangle(grid: Grid, share: float, aspect: float) -> tuple[int, int]:
    """Rows and columns of a rectangle of about this share of the grid, never all of it along an axis of 2 and more."""
    area = share * math.prod(grid)
    wanted = (math.sqrt(area * aspect), math.sqrt(area / aspect))
    sides = [min(max(1, length - 1), max(1, round(side))) for side, length in zip(wanted, grid)]
    return sides[0], sides[1]


def _inside(grid: Grid, size: tuple[int, int], u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """[B Y X] bool: a rectangle of this size for every image, placed by uniform numbers."""
    tops = np.floor(u * (grid[0] - size[0] + 1)).astype(int)
    lefts = np.floor(v * (grid[1] - size[1] + 1)).astype(int)
    rows, columns = np.arange(grid[0])[None, :], np.arange(grid[1])[None, :]
    tall = (rows >= tops[:, None]) & (rows < tops[:, None] + size[0])
    wide = (columns >= lefts[:, None]) & (columns < lefts[:, None] + size[1])
    return tall[:, :, None] & wide[:, None, :]


def context_and_targets(
    grid: Grid, *, seed: int, step: int, items: Int[Tensor, "B"], targets: int = 4
) -> tuple[Bool[Tensor, "B N"], Int[Tensor, "B T M"]]:
    """Where the context may be, and the numbers of the patches of every target block: I-JEPA's masks.

    Assran et al. 2023: target blocks of 15 to 20 % of the image with aspect ratios of 0.75 to 1.5, one size for all
    blocks of a step; the context is a block of 85 to 100 % less the targets. Where nothing would be left of it, it is
    all patches outside the targets, then outside the first target.
    """
    draw = numpy_generator(seed, step, "block sizes")
    block = _rectangle(grid, draw.uniform(0.15, 0.2), draw.uniform(0.75, 1.5))
    around = [max(1, round(length * math.sqrt(draw.uniform(0.85, 1.0)))) for length in grid]
    u = uniforms(seed, step, items.numpy(), 2 * targets + 2, "blocks")
    blocks = np.stack([_inside(grid, block, u[:, 2 * t], u[:, 2 * t + 1]) for t in range(targets)], axis=1)
    hidden: np.ndarray = np.logical_or.reduce(blocks, axis=1)
    context: np.ndarray = _inside(grid, (around[0], around[1]), u[:, -2], u[:, -1]) & ~hidden
    for instead in (~hidden, ~blocks[:, 0]):
        empty = np.logical_not(np.any(context, axis=(1, 2)))
        context[empty] = instead[empty]
    numbers = np.asarray(np.nonzero(blocks.reshape(len(items), targets, -1))[2]).reshape(len(items), targets, -1)
    return torch.from_numpy(context.reshape(len(items), -1)), torch.from_numpy(numbers)


def first_of(allowed: Bool[Tensor, "B N"], count: int, *, seed: int, step: int, items: Tensor) -> Int[Tensor, "B K"]:
    """``count`` of the allowed patches of every image, drawn at random, in order; each image has so many."""
    drawn = torch.from_numpy(uniforms(seed, step, items.numpy(), allowed.shape[1], "context"))
    order = torch.where(allowed, drawn, 2.0).argsort(dim=1)
    return order[:, :count].sort(dim=1).values


def hidden_blocks(
    grid: Grid, *, seed: int, step: int, items: Int[Tensor, "B"], stream: str, prob: float, share: tuple[float, float]
) -> Bool[Tensor, "B N"]:
    """iBOT's masks (Zhou et al. 2022): with ``prob`` an image loses a share of its patches, as overlapping rectangles.

    Rectangles of up to a third of the image are laid over each other until enough is covered, at most 20 of them.
    """
    tries = 20
    u = uniforms(seed, step, items.numpy(), 2 + 4 * tries, f"hidden {stream}")
    wanted = np.where(u[:, 0] < prob, share[0] + (share[1] - share[0]) * u[:, 1], 0.0) * math.prod(grid)
    found = np.zeros((len(items), *grid), bool)
    for index, needed in enumerate(wanted):
        for t in range(tries):
            rest = needed - found[index].sum()
            if rest < 1:
                break
            part, stretch, top, left = u[index, 2 + 4 * t : 6 + 4 * t]
            area = min(rest, (0.05 + 0.28 * part) * math.prod(grid)) / math.prod(grid)
            size = _rectangle(grid, area, 0.3 * (1 / 0.3**2) ** stretch)
            new = _inside(grid, size, np.array([top]), np.array([left]))[0] & ~found[index]
            found[index].flat[np.flatnonzero(new)[: int(rest)]] = True
    return torch.from_numpy(found.reshape(len(items), -1))
