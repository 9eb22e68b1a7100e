"""Multi-crop views of a whole batch at once (Caron et al. 2020, 2021), the same code on CPU and GPU.

Every sample's numbers come from (seed, step, item): views do not depend on workers, batches or processes.
The defaults suit the microscope, where up is no direction: flips and quarter turns are on.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from saccade.augment import geometry, intensity
from saccade.contracts import Batch, InputSpec, Role, View
from saccade.errors import UsageError
from saccade.seeds import uniforms

COLOUR = {"saturation": 0.2, "hue": 0.1, "grey_prob": 0.2, "stain": 0.0}  # DINO's values; stain is ours
DRAWS = geometry.DRAWS + intensity.DRAWS + 4


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
    """In pixels of a 224-px view; scaled with the size of the view."""
    solarise_prob: float = 0.0
    """In the global views after the first. DINO has 0.2; stained tissue loses its white background by it."""


def resolve_views(config: ViewsConfig, *, size_px: int, channels: int, patch: int, local_count: int) -> ViewsConfig:
    """Fill every None. Local crops: DINO's 96 of 224 pixels, rounded up to a multiple of ``patch``.

    Colour settings are zero for images without colour; asking for them there is an error.
    """
    local_px = config.local_px or math.ceil(size_px * 96 / 224 / patch) * patch
    colour = {name: getattr(config, name) for name in COLOUR}
    for name, value in colour.items():
        if channels != 3 and value:
            raise UsageError(f"views.{name} has no effect on images with {channels} channels", hint="leave it out")
        if value is None:
            colour[name] = COLOUR[name] if channels == 3 else 0.0
    return dataclasses.replace(
        config,
        global_px=config.global_px or size_px,
        local_px=local_px,
        local_count=local_count if config.local_count is None else config.local_count,
        **colour,
    )


def make_views(
    batch: Batch,
    config: ViewsConfig,
    spec: InputSpec,
    *,
    seed: int,
    step: int,
    device: torch.device | None = None,
) -> list[View]:
    """All views of a batch, globals first: pixels [B C S S] normalised as ``spec`` says, on ``device``."""
    assert config.global_px and config.local_px and config.local_count is not None
    pixels = to_grey(batch.pixels) if spec.grey else batch.pixels
    levels = geometry.pyramid(pixels, levels=4)
    items = batch.indices.numpy()
    made = []
    for number in range(config.global_count + config.local_count):
        is_global = number < config.global_count
        role: Role = "global" if is_global else "local"
        size_px = config.global_px if is_global else config.local_px
        u = torch.from_numpy(uniforms(seed, step, items, DRAWS, f"view{number}")).float()
        what = geometry.Geometry(
            config.global_scale if is_global else config.local_scale,
            config.aspect,
            config.hflip,
            config.vflip,
            config.turn90,
            config.rotate_degrees,
        )
        crops = geometry.draw_crops(u[:, : geometry.DRAWS], batch.sizes_px, what)
        x = geometry.sample(levels, batch.sizes_px, crops, size_px)
        x = _change(x, u[:, geometry.DRAWS :], config, number)
        made.append(View(role, normalise(x, spec).to(device or x.device), crops.boxes()))
    return made


def _change(x: Float[Tensor, "B C S S"], u: Tensor, config: ViewsConfig, number: int) -> Float[Tensor, "B C S S"]:
    """Stain, colour, grey, blur and solarisation of one view; result in 0..1."""
    assert config.saturation is not None and config.hue is not None
    assert config.grey_prob is not None and config.stain is not None
    if config.stain:
        x = intensity.stain_jitter(x, u[:, 9:15], config.stain)
    jitter = u[:, 0] < config.jitter_prob
    one = torch.ones(len(x))
    brightness = torch.where(jitter, intensity.factor(u[:, 1], config.brightness), one)
    contrast = torch.where(jitter, intensity.factor(u[:, 2], config.contrast), one)
    if x.shape[1] == 3:
        saturation = torch.where(jitter, intensity.factor(u[:, 3], config.saturation), one)
        saturation = torch.where(u[:, 5] < config.grey_prob, 0.0, saturation)
        hue = torch.where(jitter, config.hue * (2 * u[:, 4] - 1), 0.0)
        grey = intensity.mean_luminance(x)
        x = intensity.apply_matrix(x, *intensity.colour_matrix(brightness, contrast, saturation, hue, grey))
    else:
        x = intensity.scale_contrast(x, brightness, contrast)
    kind = 0 if number == 0 else 1 if number < config.global_count else 2
    blurred = torch.nonzero(u[:, 6] < config.blur_prob[kind])[:, 0]
    if len(blurred):
        low, high = config.blur_sigma
        sigma = (low + (high - low) * u[blurred, 7]) * x.shape[-1] / 224
        x[blurred] = intensity.blur(x[blurred], sigma)
    if kind == 1 and config.solarise_prob:
        x = intensity.solarise(x, u[:, 8] < config.solarise_prob)
    return x.clamp_(0, 1)


def to_grey(x: Float[Tensor, "B C Y X"]) -> Float[Tensor, "B C Y X"]:
    """Luminance (ITU-R BT.601) repeated over the three channels; images without colour stay as they are."""
    if x.shape[1] != 3:
        return x
    return torch.einsum("bcyx,c->byx", x, intensity.LUMINANCE)[:, None].expand_as(x).contiguous()


def normalise(x: Float[Tensor, "B C Y X"], spec: InputSpec) -> Float[Tensor, "B C Y X"]:
    mean = torch.tensor(spec.mean, device=x.device).view(1, -1, 1, 1)
    std = torch.tensor(spec.std, device=x.device).view(1, -1, 1, 1)
    return (x - mean) / std


def plain_view(batch: Batch, spec: InputSpec) -> Float[Tensor, "B C S S"]:
    """The evaluation view: shorter side to ``spec.size_px`` (antialiased), centre crop, normalised."""
    pixels = to_grey(batch.pixels) if spec.grey else batch.pixels
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
