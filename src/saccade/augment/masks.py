"""Which patches a network may see: drawn for every image from (seed, step, item), on the CPU.

Patches are numbered row by row (slice by slice, in volumes). Every function is bounded: a grid that is too small for
what is asked gives the nearest that fits, and never an endless search.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from saccade.base.random import numpy_generator, uniforms

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


def _block(grid: Grid, share: float, aspect: float) -> Grid:
    """Sides of a rectangle, or box, of about this share of the grid, never all of it along an axis of 2 and more.

    aspect   rows by columns; the slices of a box are between the two
    """
    area = share * math.prod(grid)
    wanted: list[float] = [math.sqrt(area * aspect), math.sqrt(area / aspect)]
    if len(grid) == 3:
        side = area ** (1 / 3)
        wanted = [side, side * math.sqrt(aspect), side / math.sqrt(aspect)]
    return tuple(min(max(1, length - 1), max(1, round(side))) for side, length in zip(wanted, grid))


def _inside(grid: Grid, size: Grid, u: np.ndarray) -> np.ndarray:
    """[B *grid] bool: a block of this size for every image, placed by uniform numbers [A B]."""
    found = np.ones((u.shape[1], *(1,) * len(grid)), bool)
    for axis, (length, side) in enumerate(zip(grid, size)):
        starts = np.floor(u[axis] * (length - side + 1)).astype(int)
        places = np.arange(length)[None, :]
        own = (places >= starts[:, None]) & (places < starts[:, None] + side)
        found = found & own.reshape(len(own), *(length if a == axis else 1 for a in range(len(grid))))
    return found


def context_and_targets(
    grid: Grid, *, seed: int, step: int, items: Int[Tensor, "B"], targets: int = 4
) -> tuple[Bool[Tensor, "B N"], Int[Tensor, "B T M"]]:
    """Where the context may be, and the numbers of the patches of every target block: I-JEPA's masks.

    Assran et al. 2023: target blocks of 15 to 20 % of the image with aspect ratios of 0.75 to 1.5, one size for all
    blocks of a step; the context is a block of 85 to 100 % less the targets. Where nothing would be left of it, it is
    all patches outside the targets, then outside the first target.
    """
    draw = numpy_generator(seed, step, "block sizes")
    axes = len(grid)
    block = _block(grid, draw.uniform(0.15, 0.2), draw.uniform(0.75, 1.5))
    around = tuple(max(1, round(length * draw.uniform(0.85, 1.0) ** (1 / axes))) for length in grid)
    u = uniforms(seed, step, items.numpy(), axes * (targets + 1), "blocks").T.reshape(targets + 1, axes, -1)
    blocks = np.stack([_inside(grid, block, u[t]) for t in range(targets)], axis=1)
    hidden: np.ndarray = np.logical_or.reduce(blocks, axis=1)
    context: np.ndarray = _inside(grid, around, u[targets]) & ~hidden
    for instead in (~hidden, ~blocks[:, 0]):
        empty = np.logical_not(np.any(context, axis=tuple(range(1, 1 + axes))))
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
    """iBOT's masks (Zhou et al. 2022): with ``prob`` an image loses a share of its patches, as overlapping blocks.

    Blocks of up to a third of the image are laid over each other until enough is covered, at most 20 of them.
    """
    tries, each = 20, 2 + len(grid)
    u = uniforms(seed, step, items.numpy(), 2 + each * tries, f"hidden {stream}")
    wanted = np.where(u[:, 0] < prob, share[0] + (share[1] - share[0]) * u[:, 1], 0.0) * math.prod(grid)
    found = np.zeros((len(items), *grid), bool)
    for index, needed in enumerate(wanted):
        for t in range(tries):
            rest = needed - found[index].sum()
            if rest < 1:
                break
            part, stretch, *where = u[index, 2 + each * t : 2 + each * (t + 1)]
            area = min(rest, (0.05 + 0.28 * part) * math.prod(grid)) / math.prod(grid)
            size = _block(grid, area, 0.3 * (1 / 0.3**2) ** stretch)
            new = _inside(grid, size, np.array(where)[:, None])[0] & ~found[index]
            found[index].flat[np.flatnonzero(new)[: int(rest)]] = True
    return torch.from_numpy(found.reshape(len(items), -1))
