"""Multi-crop views of a whole batch at once (Caron et al. 2020, 2021), the same code on CPU and GPU.

Every sample's numbers come from (seed, step, item): views do not depend on workers, batches or processes.
The few numbers are drawn and decided on the CPU; pixels are only touched on the device, without waiting for it.
The defaults suit the microscope, where orientation has no meaning: flips and quarter turns are on.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from saccade.augment import color, feature_grids, geometry, volume_views
from saccade.augment.color import normalise
from saccade.augment.settings import ResolvedViews, view_groups
from saccade.base.contracts import Batch, InputSpec, Role, View
from saccade.base.random import uniforms

CHANGE_DRAWS = 15
CACHE_ELEMENTS = 2**20  # float32 numbers of one role that are worked on at once: 4 MiB


@dataclass(frozen=True)
class _Changes:
    """What happens to N crops after sampling, on the CPU.

    stain [N 6] uniform numbers   solarised [N] bool
    """

    jitter: color.Jitter
    stain: Tensor
    blur: color.Blur
    solarised: Tensor

    def part(self, where: slice) -> _Changes:
        return _Changes(self.jitter.part(where), self.stain[where], self.blur.part(where), self.solarised[where])


@dataclass(frozen=True)
class _Role:
    """All crops of one role, drawn but not yet made: N = B V, all views of the first image first.

    out [V B C S S] is to be filled.
    """

    role: Role
    crops: geometry.Crops
    levels: Tensor
    changes: _Changes
    out: Tensor


def make_views(
    batch: Batch,
    config: ResolvedViews,
    spec: InputSpec,
    *,
    seed: int,
    step: int,
    device: torch.device | None = None,
) -> list[View]:
    """All views of a batch, globals first: pixels [B C S S] or [B C S S S], normalised as ``spec`` says, on ``device``.

    Boxes are in pixels of the image as it lies in the batch. config: resolved.
    On the CPU a few images at a time are taken through all steps: their crops stay in the cache of the processor,
    which is several times faster than each step over the whole batch.
    """
    device = device or batch.pixels.device
    if spec.grid:
        return _grid_views(batch, config, spec, seed, step, device)
    if spec.axes == 3:
        return volume_views.make_views(batch, config, spec, seed=seed, step=step, device=device)
    images = len(batch.pixels)
    roles = _draw_roles(batch, config, seed, step, device)
    rows, columns = batch.pixels.shape[-2:]
    atlas = geometry.Atlas((rows, columns), 1 + max(int(r.levels.max()) for r in roles))
    sampling_grids = [
        geometry.find_places(atlas, _repeated(batch, r), r.crops, r.levels, r.out.shape[-1], device) for r in roles
    ]
    count = _at_once(roles) if device.type == "cpu" else images
    for start in range(0, images, count):
        part = slice(start, min(start + count, images))
        pixels = batch.to_unit_range(part, device)
        picture = geometry.build_atlas(color.to_grey(pixels) if spec.grey else pixels, atlas)
        for r, sampling_grid in zip(roles, sampling_grids):
            views = len(r.out)
            where = slice(part.start * views, part.stop * views)
            x = _change(geometry.sample(picture, sampling_grid.part(where)), r.changes.part(where), config)
            normalise(x.unflatten(0, (-1, views)).transpose(0, 1), spec, out=r.out[:, part])
    views_made = []
    labels = None if batch.labels is None else batch.labels.to(device)
    for r in roles:
        boxes = r.crops.boxes().unflatten(0, (images, -1)).transpose(0, 1).to(device)
        views_made += [
            View(r.role, pixels_of_view, box, labels, batch.indices.cpu())
            for pixels_of_view, box in zip(r.out, boxes, strict=True)
        ]
    return views_made


def _grid_views(
    batch: Batch, config: ResolvedViews, spec: InputSpec, seed: int, step: int, device: torch.device
) -> list[View]:
    """Views of grids of vectors: crops of whole tiles (see feature_grids.py)."""
    what = feature_grids.GridViews(
        config.hflip,
        config.vflip,
        config.turn90,
        config.tile_dropout,
        config.vector_dropout,
        config.vector_jitter,
    )
    labels = None if batch.labels is None else batch.labels.to(device)
    made = []
    for role, numbers, side in view_groups(config):
        for number in numbers:
            crops = feature_grids.draw_grids(batch, side, what, seed=seed, step=step, stream=f"view{number}")
            pixels = crops.changed(normalise(crops.vectors.to(device), spec))
            made.append(View(role, pixels, crops.box.to(device), labels, batch.indices.cpu()))
    return made


def _repeated(batch: Batch, role: _Role) -> Int[Tensor, "BV 2"]:
    return batch.sizes_px.repeat_interleave(len(role.out), dim=0)


def _at_once(roles: list[_Role]) -> int:
    """Images whose crops fit the cache; a multiple of the threads, because sampling is shared out by image."""
    threads = torch.get_num_threads()
    fitting = CACHE_ELEMENTS // max(r.out[:, :1].numel() for r in roles)
    return max(threads, fitting // threads * threads)


def _draw_roles(batch: Batch, config: ResolvedViews, seed: int, step: int, device: torch.device) -> list[_Role]:
    images, channels = batch.pixels.shape[:2]
    roles = []
    for role, numbers, size_px in view_groups(config):
        if not numbers:
            continue
        u = _draw(batch, numbers, seed, step)
        sizes = batch.sizes_px.repeat_interleave(len(numbers), dim=0)
        crops = geometry.draw_crops(u[:, : geometry.DRAWS], sizes, _geometry(config, role))
        changes = _draw_changes(u[:, geometry.DRAWS :], config, numbers, channels, size_px)
        out = torch.empty(len(numbers), images, channels, size_px, size_px, device=device)
        roles.append(_Role(role, crops, geometry.choose_levels(crops, sizes, size_px), changes, out))
    return roles


def _draw(batch: Batch, numbers: range, seed: int, step: int) -> Float[Tensor, "BV U"]:
    """Uniform numbers of every sample and view, on the CPU."""
    items = batch.indices.cpu().numpy()
    count = geometry.DRAWS + CHANGE_DRAWS
    drawn = [torch.from_numpy(uniforms(seed, step, items, count, f"view{n}")).float() for n in numbers]
    return torch.stack(drawn, dim=1).flatten(0, 1)


def _geometry(config: ResolvedViews, role: Role) -> geometry.Geometry:
    return geometry.Geometry(
        scale=config.global_scale if role == "global" else config.local_scale,
        aspect=config.aspect,
        hflip=config.hflip,
        vflip=config.vflip,
        turn90=config.turn90,
        rotate_degrees=config.rotate_degrees,
    )


def _draw_changes(
    u: Float[Tensor, "BV U"], config: ResolvedViews, numbers: range, channels: int, size_px: int
) -> _Changes:
    # 0: first global view, 1: other global views, 2: local views
    kinds = torch.tensor([0 if n == 0 else 1 if n < config.global_count else 2 for n in numbers])
    kind = kinds.repeat(len(u) // len(numbers))
    jittered = u[:, 0] < config.jitter_prob
    brightness = torch.where(jittered, color.factor(u[:, 1], config.brightness), 1.0)
    contrast = torch.where(jittered, color.factor(u[:, 2], config.contrast), 1.0)
    saturation = torch.where(jittered, color.factor(u[:, 3], config.saturation), 1.0)
    hue = torch.where(jittered, config.hue * (2 * u[:, 4] - 1), 0.0)
    saturation = torch.where(u[:, 5] < config.grey_prob, 0.0, saturation)
    low, high = config.blur_sigma
    sigma = (low + (high - low) * u[:, 7]) * config.global_px / 224
    return _Changes(
        color.draw_jitter(brightness, contrast, saturation, hue, channels),
        stain=u[:, 9:15],
        blur=color.draw_blur(torch.where(u[:, 6] < torch.tensor(config.blur_prob)[kind], sigma, 0.0), size_px),
        solarised=(u[:, 8] < config.solarise_prob) & (kind == 1),
    )


def _change(x: Float[Tensor, "N C S S"], changes: _Changes, config: ResolvedViews) -> Float[Tensor, "N C S S"]:
    """Stain, colour, grey, blur and solarisation; result in 0..1."""
    if config.stain:
        x = color.stain_jitter(x, changes.stain, config.stain)
    x = color.blur_(color.jitter(x, changes.jitter), changes.blur)
    if changes.solarised.any():
        chosen = changes.solarised.nonzero()[:, 0].to(x.device)
        x[chosen] = color.solarise(x[chosen])
    return x.clamp_(0, 1)


def plain_view(batch: Batch, spec: InputSpec) -> Float[Tensor, "B C *S"]:
    """The evaluation view: shorter side to ``spec.size_px`` (antialiased), centre crop, normalised.

    Of a volume the cube around all of it, or the one of ``spec.size_mm`` about its middle; of grids, everything.
    """
    if spec.axes == 3:
        return normalise(volume_views.full_view(batch, spec), spec)
    pixels = batch.to_unit_range(slice(None), batch.pixels.device)
    if spec.grid:
        return normalise(pixels, spec)
    pixels = color.to_grey(pixels) if spec.grey else pixels
    out = pixels.new_empty(len(pixels), pixels.shape[1], spec.size_px, spec.size_px)
    for size in batch.sizes_px.unique(dim=0).tolist():
        chosen = (batch.sizes_px == torch.tensor(size)).all(dim=1)
        out[chosen] = _centre(pixels[chosen][:, :, : size[0], : size[1]], spec.size_px)
    return normalise(out, spec)


def _centre(x: Float[Tensor, "B C Y X"], size_px: int) -> Float[Tensor, "B C S S"]:
    rows, columns = x.shape[-2:]
    scale = size_px / min(rows, columns)
    shape = (max(size_px, round(rows * scale)), max(size_px, round(columns * scale)))
    if shape != (rows, columns):
        x = F.interpolate(x, size=shape, mode="bilinear", antialias=True)
    top, left = (shape[0] - size_px) // 2, (shape[1] - size_px) // 2
    return x[:, :, top : top + size_px, left : left + size_px]
