"""Changes of intensity for volumes: differences between scanners that do not depend on the patient.

Brightness and contrast as for images; gamma, bias field, blur, low resolution and noise as in nnU-Net (Isensee et al.
2021) and TorchIO (Perez-Garcia et al. 2021), on values of 0 to 1. Numbers of a sample lie on the CPU.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

FIELDS = 9  # terms of a bias field: x, y, z, their squares and products


@dataclass(frozen=True)
class Changes:
    """What happens to N cubes, in this order; [N] tensors.

    brightness, contrast, gamma   factors and exponent      field  [N 9] coefficients of the logarithm of a bias field
    sigma    of the Gaussian blur in pixels, 0: none        coarse  factor by which resolution is lost, 1: none
    noise    standard deviation, 0: none                    seeds   of the noise of each cube
    """

    brightness: Tensor
    contrast: Tensor
    gamma: Tensor
    field: Tensor
    sigma: Tensor
    coarse: Tensor
    noise: Tensor
    seeds: list[int]

    def part(self, where: slice) -> Changes:
        return Changes(
            self.brightness[where],
            self.contrast[where],
            self.gamma[where],
            self.field[where],
            self.sigma[where],
            self.coarse[where],
            self.noise[where],
            self.seeds[where],
        )


def change(x: Float[Tensor, "N C S S S"], changes: Changes) -> Float[Tensor, "N C S S S"]:
    """All changes; the result lies in 0..1."""
    x = bias(x, changes.field)
    gain, shift = changes.brightness * changes.contrast, (1 - changes.contrast) * changes.brightness
    if bool((gain != 1).any() or (shift != 0).any()):
        means = x.mean(dim=(1, 2, 3, 4), keepdim=True)
        x = x * _wide(gain, x) + _wide(shift, x) * means
    x = x.clamp(0, 1)
    if bool((changes.gamma != 1).any()):
        x = x ** _wide(changes.gamma, x)
    for index in (changes.sigma > 0).nonzero()[:, 0].tolist():
        x[index] = blur(x[index], float(changes.sigma[index]))
    for index in (changes.coarse > 1).nonzero()[:, 0].tolist():
        x[index] = lose_resolution(x[index], float(changes.coarse[index]))
    for index in (changes.noise > 0).nonzero()[:, 0].tolist():
        drawn = torch.randn(x.shape[1:], generator=torch.Generator().manual_seed(changes.seeds[index]))
        x[index] += float(changes.noise[index]) * drawn.to(x.device)
    return x.clamp_(0, 1)


def _wide(values: Float[Tensor, "N"], x: Tensor) -> Tensor:
    return values.to(x.device).view(-1, *(1,) * (x.ndim - 1))


@lru_cache(maxsize=16)
def _terms(side: int, device: torch.device) -> Float[Tensor, "9 P"]:
    with torch.inference_mode(False):  # kept for later calls, which may be those of a training
        line = (torch.arange(side, dtype=torch.float32, device=device) + 0.5) / side * 2 - 1
        places = torch.meshgrid(line, line, line, indexing="ij")
        products = [a * b for a, b in itertools.combinations_with_replacement(places, 2)]
        return torch.stack([*places, *products]).flatten(1)


def bias(x: Float[Tensor, "N C S S S"], field: Float[Tensor, "N 9"]) -> Float[Tensor, "N C S S S"]:
    """Times a smooth field, the exponential of a polynomial of second degree, as coils of an MR scanner make it."""
    if not bool(field.any()):
        return x
    terms = _terms(x.shape[-1], x.device)
    return x * torch.exp(field.to(x.device) @ terms).view(len(x), 1, *x.shape[2:])


def blur(x: Float[Tensor, "C S S S"], sigma_px: float) -> Float[Tensor, "C S S S"]:
    """Gaussian, axis by axis; the border is repeated."""
    radius = max(1, round(3 * sigma_px))
    ticks = torch.arange(-radius, radius + 1, dtype=torch.float32, device=x.device)
    weights = torch.exp(-0.5 * (ticks / sigma_px) ** 2)
    weights = (weights / weights.sum()).view(1, 1, -1)
    for axis in (1, 2, 3):
        rows = x.movedim(axis, -1)
        lines = F.pad(rows.reshape(1, -1, rows.shape[-1]), (radius, radius), mode="replicate").transpose(0, 1)
        x = F.conv1d(lines, weights).reshape(rows.shape).movedim(-1, axis)
    return x


def lose_resolution(x: Float[Tensor, "C S S S"], factor: float) -> Float[Tensor, "C S S S"]:
    """As a coarser scan would have it: means over larger voxels, and back by trilinear interpolation."""
    side = max(2, round(x.shape[-1] / factor))
    small = F.interpolate(x[None], size=(side,) * 3, mode="area")
    return F.interpolate(small, size=x.shape[1:], mode="trilinear")[0]
