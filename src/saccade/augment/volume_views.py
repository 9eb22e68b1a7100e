"""Multi-crop views of volumes: cubes of the same side in millimetres, and changes of intensity.

As views.py does for images: every cube's numbers come from (seed, step, item), drawn on the CPU; voxels are touched
on the device only. Volumes are worked on one by one, each without the batch's padding, all of its cubes at once.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from saccade.augment.color import factor, normalise
from saccade.augment.cubes import DRAWS, Cubes, Placing, draw_cubes, full_cubes, sample_cubes
from saccade.augment.scanner import FIELDS, Changes, change
from saccade.augment.settings import ResolvedViews, ViewGroup, view_groups
from saccade.base.contracts import Batch, InputSpec, Role, View
from saccade.base.random import uniforms

CHANGE_DRAWS = 10 + FIELDS


def spacing_of(batch: Batch) -> Float[Tensor, "B 3"]:
    """Size of the voxels; 1 mm where it is unknown."""
    return torch.ones(len(batch.pixels), 3) if batch.spacing_mm is None else batch.spacing_mm.cpu().float()


def full_view(batch: Batch, spec: InputSpec) -> Float[Tensor, "B C S S S"]:
    """The cube of every volume that ``spec`` selects, in 0..1."""
    spacing, sizes = spacing_of(batch), batch.sizes_px.cpu()
    cubes = full_cubes(sizes, spacing, spec.size_mm)
    inputs = [
        sample_cubes(_one(batch, index, batch.pixels.device), spacing[index], cubes.part(slice(index, index + 1)), side)
        for index, side in enumerate([spec.size_px] * len(sizes))
    ]
    return torch.cat(inputs)


def _one(batch: Batch, index: int, device: torch.device) -> Float[Tensor, "C T Y X"]:
    """One volume in 0..1, without padding."""
    z, y, x = batch.sizes_px[index].tolist()
    return batch.to_unit_range(slice(index, index + 1), device)[0, :, :z, :y, :x]


def make_views(
    batch: Batch, config: ResolvedViews, spec: InputSpec, *, seed: int, step: int, device: torch.device
) -> list[View]:
    """All views of a batch, globals first: pixels [B C S S S]. config: resolved."""
    return [
        view
        for group in view_groups(config)
        if group.numbers
        for view in _views_of(batch, config, spec, group, seed=seed, step=step, device=device)
    ]


def _views_of(
    batch: Batch,
    config: ResolvedViews,
    spec: InputSpec,
    group: ViewGroup,
    *,
    seed: int,
    step: int,
    device: torch.device,
) -> list[View]:
    role, numbers, side = group
    items, count = batch.indices.cpu(), len(batch.pixels)
    drawn = [uniforms(seed, step, items.numpy(), DRAWS + CHANGE_DRAWS, f"view{n}") for n in numbers]
    u = torch.stack([torch.from_numpy(view).float() for view in drawn], dim=1).flatten(0, 1)
    sizes, spacing = (x.repeat_interleave(len(numbers), dim=0) for x in (batch.sizes_px.cpu(), spacing_of(batch)))
    cubes = draw_cubes(u[:, :DRAWS], sizes, spacing, spec.size_mm, _placing(config, role))
    changes = _draw_changes(u[:, DRAWS:], config, numbers)
    out = torch.empty(len(numbers), count, batch.pixels.shape[1], side, side, side, device=device)
    for index in range(count):
        rows = slice(index * len(numbers), (index + 1) * len(numbers))
        x = sample_cubes(_one(batch, index, device), spacing[rows.start], cubes.part(rows), side)
        out[:, index] = normalise(change(x, changes.part(rows)), spec)
    boxes = _boxes(cubes, spacing).unflatten(0, (count, -1)).transpose(0, 1).to(device)
    labels = None if batch.labels is None else batch.labels.to(device)
    return [View(role, view, box, labels, items) for view, box in zip(out, boxes, strict=True)]


def _boxes(cubes: Cubes, spacing_mm: Float[Tensor, "N 3"]) -> Float[Tensor, "N 6"]:
    """Front, top, left, depth, height, width in voxels of the batch."""
    return torch.cat([cubes.start / spacing_mm, cubes.side[:, None] / spacing_mm], dim=1)


def _placing(config: ResolvedViews, role: Role) -> Placing:
    return Placing(
        scale=config.global_scale if role == "global" else config.local_scale,
        flips=(bool(config.zflip), config.vflip, config.hflip),
        turn90=config.turn90,
        rotate_degrees=config.rotate_degrees,
    )


def _draw_changes(u: Float[Tensor, "N U"], config: ResolvedViews, numbers: range) -> Changes:
    kinds = torch.tensor([0 if n == 0 else 1 if n < config.global_count else 2 for n in numbers])
    kind = kinds.repeat(len(u) // len(numbers))
    jittered = u[:, 0] < config.jitter_prob
    low, high = config.blur_sigma
    sigma = (low + (high - low) * u[:, 6]) * config.global_px / 224
    return Changes(
        brightness=torch.where(jittered, factor(u[:, 1], config.brightness), 1.0),
        contrast=torch.where(jittered, factor(u[:, 2], config.contrast), 1.0),
        gamma=torch.where(jittered, torch.exp(config.gamma * (2 * u[:, 3] - 1)), 1.0),
        noise=torch.where(jittered, config.noise * u[:, 4], 0.0),
        sigma=torch.where(u[:, 5] < torch.tensor(config.blur_prob)[kind], sigma, 0.0),
        coarse=torch.where(u[:, 7] < config.low_resolution_prob, 1 + u[:, 8], 1.0),
        field=torch.where(jittered[:, None], config.bias_field * (2 * u[:, 10:] - 1), 0.0),
        seeds=(u[:, 9].double() * 2**24).long().tolist(),
    )
