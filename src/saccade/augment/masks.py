"""Masks of masked image modelling: drawn for every image from (seed, step, item), on the CPU.

Patches are numbered row by row (slice by slice, in volumes). Every function is bounded: for a grid that is too
small, the nearest mask that fits is returned.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from saccade.base.contracts import Grid
from saccade.base.random import numpy_generator, uniforms


def random_parts(
    grid: Grid, mask_ratio: float, *, seed: int, step: int, items: Int[Tensor, "B"]
) -> tuple[Int[Tensor, "B K"], Int[Tensor, "B M"]]:
    """Split the patches of every image into visible and masked ones, by a random permutation (MAE, He et al. 2022).

    Parameters
    ----------
    mask_ratio
        Fraction of masked patches; at least one patch is masked and one visible.
    items
        Numbers of the images.

    Returns
    -------
    Indices of the visible and of the masked patches, each sorted.

    Examples
    --------
    >>> visible, masked = random_parts((2, 2), 0.75, seed=0, step=0, items=torch.arange(3))
    >>> visible.shape, masked.shape
    (torch.Size([3, 1]), torch.Size([3, 3]))
    """
    count = math.prod(grid)
    n_visible = min(count - 1, max(1, round(count * (1 - mask_ratio))))
    order = torch.from_numpy(uniforms(seed, step, items.numpy(), count, "mask")).argsort(dim=1)
    return order[:, :n_visible].sort(dim=1).values, order[:, n_visible:].sort(dim=1).values


def _block(grid: Grid, fraction: float, aspect: float) -> Grid:
    """Sides of a rectangle, or box, of about this fraction of the grid, never all of an axis of 2 and more.

    aspect   rows by columns; the slices of a box are between the two
    """
    area = fraction * math.prod(grid)
    sides: list[float] = [math.sqrt(area * aspect), math.sqrt(area / aspect)]
    if len(grid) == 3:
        side = area ** (1 / 3)
        sides = [side, side * math.sqrt(aspect), side / math.sqrt(aspect)]
    return tuple(min(max(1, length - 1), max(1, round(side))) for side, length in zip(sides, grid))


def _inside(grid: Grid, size: Grid, u: np.ndarray) -> np.ndarray:
    """[B *grid] bool: a block of this size for every image, placed by uniform numbers [A B]."""
    mask = np.ones((u.shape[1], *(1,) * len(grid)), bool)
    for axis, (length, side) in enumerate(zip(grid, size)):
        starts = np.floor(u[axis] * (length - side + 1)).astype(int)
        positions = np.arange(length)[None, :]
        in_block = (positions >= starts[:, None]) & (positions < starts[:, None] + side)
        mask = mask & in_block.reshape(len(in_block), *(length if a == axis else 1 for a in range(len(grid))))
    return mask


def context_and_targets(
    grid: Grid, *, seed: int, step: int, items: Int[Tensor, "B"], targets: int = 4
) -> tuple[Bool[Tensor, "B N"], Int[Tensor, "B T M"]]:
    """Context mask and target blocks of I-JEPA (Assran et al. 2023).

    Target blocks cover 15 to 20 % of the image with aspect ratios of 0.75 to 1.5, one size for all blocks of a step.
    The context is a block of 85 to 100 % minus the targets. Where that is empty, it is all patches outside the targets,
    then outside the first target.

    Returns
    -------
    The context as a mask, and the indices of the M patches of every target block.

    Examples
    --------
    >>> context, blocks = context_and_targets((8, 8), seed=0, step=0, items=torch.arange(2))
    >>> context.shape, blocks.shape[:2]
    (torch.Size([2, 64]), torch.Size([2, 4]))
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
    """``count`` random allowed patches of every image, sorted; each image must have that many."""
    drawn = torch.from_numpy(uniforms(seed, step, items.numpy(), allowed.shape[1], "context"))
    order = torch.where(allowed, drawn, 2.0).argsort(dim=1)
    return order[:, :count].sort(dim=1).values


def hidden_blocks(
    grid: Grid,
    *,
    seed: int,
    step: int,
    items: Int[Tensor, "B"],
    stream: str,
    prob: float,
    mask_ratio: tuple[float, float],
) -> Bool[Tensor, "B N"]:
    """Block-wise masks of iBOT (Zhou et al. 2022).

    Blocks of up to a third of the image are added until enough patches are masked, at most 20 of them.

    Parameters
    ----------
    stream
        Name of the random stream; views of one image have different ones.
    prob
        Probability that an image is masked at all.
    mask_ratio
        Smallest and largest fraction of masked patches.

    Examples
    --------
    >>> hidden_blocks((8, 8), seed=0, step=0, items=torch.arange(2), stream="a", prob=1.0, mask_ratio=(0.3, 0.5)).shape
    torch.Size([2, 64])
    """
    tries, each = 20, 2 + len(grid)
    u = uniforms(seed, step, items.numpy(), 2 + each * tries, f"hidden {stream}")
    n_masked = np.where(u[:, 0] < prob, mask_ratio[0] + (mask_ratio[1] - mask_ratio[0]) * u[:, 1], 0.0) * math.prod(
        grid
    )
    masks = np.zeros((len(items), *grid), bool)
    for index, needed in enumerate(n_masked):
        for t in range(tries):
            missing = needed - masks[index].sum()
            if missing < 1:
                break
            part, stretch, *where = u[index, 2 + each * t : 2 + each * (t + 1)]
            area = min(missing, (0.05 + 0.28 * part) * math.prod(grid)) / math.prod(grid)
            size = _block(grid, area, 0.3 * (1 / 0.3**2) ** stretch)
            added = _inside(grid, size, np.array(where)[:, None])[0] & ~masks[index]
            masks[index].flat[np.flatnonzero(added)[: int(missing)]] = True
    return torch.from_numpy(masks.reshape(len(items), -1))
