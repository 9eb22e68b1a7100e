"""Multi-crop views of a whole batch at once (Caron et al. 2020, 2021), the same code on CPU and GPU.

Every sample's numbers come from (seed, step, item): views do not depend on workers, batches or processes.
The few numbers are drawn and decided on the CPU; pixels are only touched on the device, without waiting for it.
The defaults suit the microscope, where up is no direction: flips and quarter turns are on.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from saccade.augment import geometry, grids, intensity
from saccade.contracts import Batch, InputSpec, Role, View
from saccade.errors import UsageError
from saccade.seeds import uniforms

COLOUR = {"saturation": 0.2, "hue": 0.1, "grey_prob": 0.2, "stain": 0.0}  # DINO's values; stain is ours
CHANGE_DRAWS = 15
CACHE_ELEMENTS = 2**20  # float32 numbers of one role that are worked on at once: 4 MiB


@dataclass(frozen=True)
class ViewsConfig:
    """Which crops are made and how they are changed; defaults are DINO's where not decided from the data."""

    global_count: int = 2
    local_count: int | None = None
    global_px: int | None = None
    local_px: int | None = None
    global_scale: tuple[float, float] = (0.4, 1.0)
    """Share of the image's area."""
    local_scale: tuple[float, float] = (0.1, 0.4)
    aspect: tuple[float, float] = (0.75, 1.3333)
    hflip: bool = True
    vflip: bool = True
    turn90: bool = True
    rotate_degrees: float = 0.0
    """Free rotation by up to this angle either way; 0: only flips and quarter turns."""
    jitter_prob: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float | None = None
    hue: float | None = None
    """Share of a full turn."""
    grey_prob: float | None = None
    stain: float | None = None
    """Strength of the jitter of haematoxylin and eosin; 0: off."""
    blur_prob: tuple[float, float, float] = (1.0, 0.1, 0.5)
    """First global view, other global views, local views."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """In pixels where a global view has 224; scaled with its size, the same for local views."""
    solarise_prob: float = 0.0
    """In the global views after the first. DINO has 0.2; stained tissue loses its white background by it."""
    tile_dropout: float = 0.0
    """Share of the tiles of a grid that is left out of each view; grids of vectors only."""
    vector_dropout: float = 0.0
    """Share of the channels of a grid that is left out of each view; grids of vectors only."""


ONLY_IMAGES = (
    "global_scale",
    "local_scale",
    "aspect",
    "rotate_degrees",
    "jitter_prob",
    "blur_prob",
    "solarise_prob",
    *COLOUR,
)
ONLY_GRIDS = ("tile_dropout", "vector_dropout")


def resolve_views(
    config: ViewsConfig, *, size_px: int, channels: int, patch: int, local_count: int, whole_patches: bool = True
) -> ViewsConfig:
    """Fill every None. Local crops: DINO's 96 of 224 pixels, rounded up to a multiple of ``patch``.

    Colour settings are zero for images without colour; asking for them there is an error (UsageError), and so
    is a range or probability that makes no sense, or, with ``whole_patches``, a crop that is not a multiple of it.
    """
    global_px = config.global_px or size_px
    local_px = config.local_px or math.ceil(global_px * 96 / 224 / patch) * patch
    colour = {name: getattr(config, name) for name in COLOUR}
    for name, value in colour.items():
        if channels != 3 and value:
            raise UsageError(f"views.{name} has no effect on images with {channels} channels", hint="leave it out")
        if value is None:
            colour[name] = COLOUR[name] if channels == 3 else 0.0
    resolved = dataclasses.replace(
        config,
        global_px=global_px,
        local_px=local_px,
        local_count=local_count if config.local_count is None else config.local_count,
        **colour,
    )
    for name in ONLY_GRIDS:
        if getattr(config, name):
            raise UsageError(f"views.{name} has no effect on images", hint="leave it out")
    _check(resolved, patch if whole_patches else 1)
    return resolved


def resolve_grid_views(config: ViewsConfig, *, size_px: int, local_count: int) -> ViewsConfig:
    """Fill every None for grids of ``size_px`` tiles: crops of 14 and 6 of 16 tiles, as in HIPT.

    UsageError for settings that only images have, and for values that cannot be meant.
    """
    usual = ViewsConfig()
    for name in ONLY_IMAGES:
        value = getattr(config, name)
        if value and value != getattr(usual, name) and np.any(value):
            raise UsageError(f"views.{name} has no effect on grids of vectors", got=value, hint="leave it out")
    resolved = dataclasses.replace(
        config,
        global_px=config.global_px or max(1, round(size_px * 14 / 16)),
        local_px=config.local_px or max(1, round(size_px * 6 / 16)),
        local_count=local_count if config.local_count is None else config.local_count,
        jitter_prob=0.0,
        blur_prob=(0.0, 0.0, 0.0),
        saturation=0.0,
        hue=0.0,
        grey_prob=0.0,
        stain=0.0,
    )
    for name in ONLY_GRIDS:
        if not 0 <= getattr(config, name) < 1:
            raise UsageError(f"views.{name} is a share", got=getattr(config, name), expected="0 to below 1")
    _check(resolved, 1)
    return resolved


def _check(config: ViewsConfig, patch: int) -> None:
    """Raise UsageError, with the name of the setting, for values that cannot be meant."""
    assert config.local_count is not None
    ranges = {
        "global_scale": 0 < config.global_scale[0] <= config.global_scale[1] <= 1,
        "local_scale": 0 < config.local_scale[0] <= config.local_scale[1] <= 1,
        "aspect": 0 < config.aspect[0] <= config.aspect[1],
        "blur_sigma": 0 <= config.blur_sigma[0] <= config.blur_sigma[1],
    }
    for name, good in ranges.items():
        if not good:
            raise UsageError(f"views.{name} is not a range", got=getattr(config, name), expected="low, high")
    for name in ("jitter_prob", "grey_prob", "blur_prob", "solarise_prob"):
        value = getattr(config, name)
        if not all(0 <= p <= 1 for p in (value if isinstance(value, tuple) else (value,))):
            raise UsageError(f"views.{name} is not a probability", got=value, expected="0 to 1")
    for name in ("brightness", "contrast", "saturation", "hue", "stain", "rotate_degrees", "local_count"):
        if getattr(config, name) < 0:
            raise UsageError(f"views.{name} is negative", got=getattr(config, name), expected="0 or more")
    if config.global_count < 1:
        raise UsageError("views.global_count is too small", got=config.global_count, expected="1 or more")
    for name in ("global_px", "local_px"):
        if getattr(config, name) % patch:
            raise UsageError(
                f"views.{name} does not fit the backbone", got=getattr(config, name), expected=f"a multiple of {patch}"
            )


@dataclass(frozen=True)
class _Changes:
    """What happens to N crops after sampling, on the CPU.

    stain [N 6] uniform numbers   solarised [N] bool
    """

    jitter: intensity.Jitter
    stain: Tensor
    blur: intensity.Blur
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
    config: ViewsConfig,
    spec: InputSpec,
    *,
    seed: int,
    step: int,
    device: torch.device | None = None,
) -> list[View]:
    """All views of a batch, globals first: pixels [B C S S] normalised as ``spec`` says, made on ``device``.

    Boxes are in pixels of the image as it lies in the batch. config: resolved.
    On the CPU a few images at a time are taken through all steps: their crops stay in the cache of the processor,
    which is several times faster than each step over the whole batch.
    """
    device = device or batch.pixels.device
    if spec.grid:
        return _grid_views(batch, config, spec, seed, step, device)
    images = len(batch.pixels)
    roles = _draw_roles(batch, config, seed, step, device)
    rows, columns = batch.pixels.shape[-2:]
    atlas = geometry.Atlas((rows, columns), 1 + max(int(r.levels.max()) for r in roles))
    places = [
        geometry.find_places(atlas, _repeated(batch, r), r.crops, r.levels, r.out.shape[-1], device) for r in roles
    ]
    count = _at_once(roles) if device.type == "cpu" else images
    for start in range(0, images, count):
        part = slice(start, min(start + count, images))
        pixels = batch.unit(part, device)
        picture = geometry.build_atlas(intensity.to_grey(pixels) if spec.grey else pixels, atlas)
        for r, place in zip(roles, places):
            views = len(r.out)
            where = slice(part.start * views, part.stop * views)
            x = _change(geometry.sample(picture, place.part(where)), r.changes.part(where), config)
            normalise(x.unflatten(0, (-1, views)).transpose(0, 1), spec, out=r.out[:, part])
    made = []
    labels = None if batch.labels is None else batch.labels.to(device)
    for r in roles:
        boxes = r.crops.boxes().unflatten(0, (images, -1)).transpose(0, 1).to(device)
        made += [View(r.role, one, box, labels, batch.indices.cpu()) for one, box in zip(r.out, boxes, strict=True)]
    return made


def _wanted(config: ViewsConfig) -> list[tuple[Role, range, int]]:
    """Role, numbers and size of all views, globals first."""
    assert config.global_px and config.local_px and config.local_count is not None
    return [
        ("global", range(config.global_count), config.global_px),
        ("local", range(config.global_count, config.global_count + config.local_count), config.local_px),
    ]


def _grid_views(
    batch: Batch, config: ViewsConfig, spec: InputSpec, seed: int, step: int, device: torch.device
) -> list[View]:
    """Views of grids of vectors: crops of whole tiles (see ``grids``)."""
    what = grids.GridViews(config.hflip, config.vflip, config.turn90, config.tile_dropout, config.vector_dropout)
    labels = None if batch.labels is None else batch.labels.to(device)
    made = []
    for role, numbers, side in _wanted(config):
        for number in numbers:
            crops = grids.draw_grids(batch, side, what, seed=seed, step=step, stream=f"view{number}")
            pixels = normalise(crops.vectors.to(device), spec) * crops.kept.to(device)
            made.append(View(role, pixels, crops.box.to(device), labels, batch.indices.cpu()))
    return made


def _repeated(batch: Batch, role: _Role) -> Int[Tensor, "BV 2"]:
    return batch.sizes_px.repeat_interleave(len(role.out), dim=0)


def _at_once(roles: list[_Role]) -> int:
    """Images whose crops fit the cache; a multiple of the threads, because sampling is shared out by image."""
    threads = torch.get_num_threads()
    fitting = CACHE_ELEMENTS // max(r.out[:, :1].numel() for r in roles)
    return max(threads, fitting // threads * threads)


def _draw_roles(batch: Batch, config: ViewsConfig, seed: int, step: int, device: torch.device) -> list[_Role]:
    images, channels = batch.pixels.shape[:2]
    roles = []
    for role, numbers, size_px in _wanted(config):
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


def _geometry(config: ViewsConfig, role: Role) -> geometry.Geometry:
    return geometry.Geometry(
        scale=config.global_scale if role == "global" else config.local_scale,
        aspect=config.aspect,
        hflip=config.hflip,
        vflip=config.vflip,
        turn90=config.turn90,
        rotate_degrees=config.rotate_degrees,
    )


def _draw_changes(
    u: Float[Tensor, "BV U"], config: ViewsConfig, numbers: range, channels: int, size_px: int
) -> _Changes:
    assert config.saturation is not None and config.hue is not None and config.global_px is not None
    assert config.grey_prob is not None
    # 0: first global view, 1: other global views, 2: local views
    kinds = torch.tensor([0 if n == 0 else 1 if n < config.global_count else 2 for n in numbers])
    kind = kinds.repeat(len(u) // len(numbers))
    jittered = u[:, 0] < config.jitter_prob
    brightness = torch.where(jittered, intensity.factor(u[:, 1], config.brightness), 1.0)
    contrast = torch.where(jittered, intensity.factor(u[:, 2], config.contrast), 1.0)
    saturation = torch.where(jittered, intensity.factor(u[:, 3], config.saturation), 1.0)
    hue = torch.where(jittered, config.hue * (2 * u[:, 4] - 1), 0.0)
    saturation = torch.where(u[:, 5] < config.grey_prob, 0.0, saturation)
    low, high = config.blur_sigma
    sigma = (low + (high - low) * u[:, 7]) * config.global_px / 224
    return _Changes(
        intensity.draw_jitter(brightness, contrast, saturation, hue, channels),
        stain=u[:, 9:15],
        blur=intensity.draw_blur(torch.where(u[:, 6] < torch.tensor(config.blur_prob)[kind], sigma, 0.0), size_px),
        solarised=(u[:, 8] < config.solarise_prob) & (kind == 1),
    )


def _change(x: Float[Tensor, "N C S S"], changes: _Changes, config: ViewsConfig) -> Float[Tensor, "N C S S"]:
    """Stain, colour, grey, blur and solarisation; result in 0..1."""
    if config.stain:
        x = intensity.stain_jitter(x, changes.stain, config.stain)
    x = intensity.blur_(intensity.jitter(x, changes.jitter), changes.blur)
    if changes.solarised.any():
        chosen = changes.solarised.nonzero()[:, 0].to(x.device)
        x[chosen] = intensity.solarise(x[chosen])
    return x.clamp_(0, 1)


def normalise(
    x: Float[Tensor, "*V B C Y X"], spec: InputSpec, out: Float[Tensor, "*V B C Y X"] | None = None
) -> Float[Tensor, "*V B C Y X"]:
    mean, std = (torch.tensor(values, device=x.device).view(-1, 1, 1) for values in (spec.mean, spec.std))
    return torch.sub(x, mean, out=out).div_(std)


def plain_view(batch: Batch, spec: InputSpec) -> Float[Tensor, "B C S S"]:
    """The evaluation view: shorter side to ``spec.size_px`` (antialiased), centre crop, normalised.

    Of grids, everything there is.
    """
    pixels = batch.unit(slice(None), batch.pixels.device)
    if spec.grid:
        return normalise(pixels, spec)
    pixels = intensity.to_grey(pixels) if spec.grey else pixels
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
