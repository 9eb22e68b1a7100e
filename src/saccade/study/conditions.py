"""Test images under acquisition shifts, and how far rotation moves the features of a network.

turned    each image rotated by a random angle, corners filled by reflection
turn 90   an exact rotation by 90 degrees
stain     haematoxylin and eosin scaled and shifted for each image (Tellez et al. 2019); colour images only
blur      Gaussian, sigma 1/64 of the side
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from saccade.augment import color
from saccade.augment.views import normalise, plain_view
from saccade.base.contracts import InputSpec
from saccade.base.random import uniforms
from saccade.data.cache.image_cache import ImageCache
from saccade.features.embed_images import View, full_view

CONDITIONS = ("plain", "turned", "turn 90", "stain", "blur")
ANGLES = tuple(range(0, 360, 15))
STAIN = 0.2
DRIFT_IMAGES = 64


def conditions_of(spec: InputSpec) -> tuple[str, ...]:
    """The conditions that apply to these images."""
    coloured = spec.channels == 3 and not spec.grey and spec.eight_bit
    return CONDITIONS if coloured else tuple(name for name in CONDITIONS if name != "stain")


def turn(x: Float[Tensor, "B C S S"], degrees: Float[Tensor, "B"]) -> Float[Tensor, "B C S S"]:
    """Rotate each image about its centre: bilinear, with reflection padding."""
    angle = degrees * (math.pi / 180)
    zero = torch.zeros_like(angle)
    rows = [torch.stack([angle.cos(), -angle.sin(), zero], 1), torch.stack([angle.sin(), angle.cos(), zero], 1)]
    grid = F.affine_grid(torch.stack(rows, dim=1), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def changed(x: Float[Tensor, "B C S S"], condition: str, items: np.ndarray) -> Float[Tensor, "B C S S"]:
    """Images in 0..1 under one condition; random draws depend only on ``items`` [B], the indices of the images."""
    if condition == "plain":
        return x
    if condition == "turn 90":
        return torch.rot90(x, 1, dims=(2, 3))
    drawn = torch.from_numpy(uniforms(0, 0, items, 6, condition)).float().to(x.device)
    if condition == "turned":
        return turn(x, 360 * drawn[:, 0])
    if condition == "stain":
        return color.stain_jitter(x, drawn, STAIN).clamp(0, 1)
    sigma = torch.full((len(x),), x.shape[-1] / 64)
    return color.blur_(x.clone(), color.draw_blur(sigma, x.shape[-1]))


def under(condition: str, cache: ImageCache, spec: InputSpec, device: torch.device) -> View:
    """The images of the cache under one condition."""
    mean, std = (0.0,) * spec.channels, (1.0,) * spec.channels
    unnormalised = full_view(cache, dataclasses.replace(spec, mean=mean, std=std, grey=False))

    def view(items: np.ndarray) -> Tensor:
        x = changed(unnormalised(items).to(device), condition, items)
        return normalise(color.to_grey(x) if spec.grey else x, spec)

    return view


@torch.no_grad()
def drift(
    features: Callable[[Tensor], Tensor], cache: ImageCache, spec: InputSpec, device: torch.device
) -> list[float]:
    """How far the feature vector moves when the image is rotated by each of ANGLES.

    Mean distance between the vectors of the rotated and the upright image, divided by the mean distance between
    different images: 0 is invariance, 1 is as far as another image. Only a disc is visible, to exclude the corners.
    """
    chosen = np.linspace(0, len(cache) - 1, min(DRIFT_IMAGES, len(cache))).astype(int)
    x = plain_view(cache.batch(np.unique(chosen)), spec).to(device)
    side = (torch.arange(spec.size_px, device=device) + 0.5) / spec.size_px * 2 - 1
    disc = ((side[:, None] ** 2 + side[None, :] ** 2) <= (1 - 2 / spec.size_px) ** 2).to(x.dtype)
    upright = features(x * disc).float()
    apart = torch.cdist(upright, upright).sum() / max(1, len(x) * (len(x) - 1))
    errors = []
    for angle in ANGLES:
        quarter, rest = divmod(angle, 90)
        turned = torch.rot90(x, quarter, dims=(2, 3))
        if rest:  # rotations by 90 degrees are exact, so that only the rest is interpolated
            turned = turn(turned, torch.full((len(x),), float(rest), device=device))
        moved = (features(turned * disc).float() - upright).norm(dim=1).mean()
        errors.append(float(moved / apart.clamp_min(1e-12)))
    return errors
