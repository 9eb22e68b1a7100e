"""Changes of brightness, contrast, colour and stain of a whole batch, as one matrix a sample; blur; solarisation.

Colour follows torchvision's ColorJitter in the order brightness, contrast, saturation, hue, but clamps once at
the end instead of after each step, and turns hue in the YIQ plane instead of HSV. Stain jitter perturbs the
amounts of haematoxylin and eosin (Tellez et al. 2018) in the basis of Ruifrok and Johnston 2001.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

LUMINANCE = torch.tensor([0.299, 0.587, 0.114])
TO_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
FROM_YIQ = torch.linalg.inv(TO_YIQ)
# Rows: optical density of haematoxylin, eosin, and a residual (DAB) in red, green, blue.
STAINS = F.normalize(torch.tensor([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]]), dim=1)
FROM_STAINS = torch.linalg.inv(STAINS)
DRAWS = 12


def factor(u: Float[Tensor, "B"], strength: float) -> Float[Tensor, "B"]:
    """A factor in [max(0, 1 - strength), 1 + strength], as torchvision draws it."""
    low = max(0.0, 1 - strength)
    return low + (1 + strength - low) * u


def colour_matrix(
    brightness: Float[Tensor, "B"],
    contrast: Float[Tensor, "B"],
    saturation: Float[Tensor, "B"],
    hue_turns: Float[Tensor, "B"],
    mean_grey: Float[Tensor, "B"],
) -> tuple[Float[Tensor, "B 3 3"], Float[Tensor, "B 3 1"]]:
    """The four steps as one matrix and offset. hue_turns: share of a full turn; mean_grey: mean luminance before."""
    eye = torch.eye(3)
    to_grey = LUMINANCE.expand(3, 3)
    s = saturation[:, None, None]
    saturate = s * eye + (1 - s) * to_grey
    angle = 2 * math.pi * hue_turns
    turn = torch.zeros(len(angle), 3, 3)
    turn[:, 0, 0] = 1
    turn[:, 1, 1] = turn[:, 2, 2] = torch.cos(angle)
    turn[:, 1, 2], turn[:, 2, 1] = -torch.sin(angle), torch.sin(angle)
    matrix = (FROM_YIQ @ turn @ TO_YIQ) @ saturate * (contrast * brightness)[:, None, None]
    # Saturation and hue leave greys alone, so the offset of contrast passes through unchanged.
    offset = ((1 - contrast) * brightness * mean_grey)[:, None, None].expand(-1, 3, 1)
    return matrix, offset


def apply_matrix(
    x: Float[Tensor, "B C Y X"], matrix: Float[Tensor, "B C C"], offset: Float[Tensor, "B C 1"]
) -> Float[Tensor, "B C Y X"]:
    return torch.baddbmm(offset, matrix, x.flatten(2)).view_as(x)


def scale_contrast(
    x: Float[Tensor, "B C Y X"], brightness: Float[Tensor, "B"], contrast: Float[Tensor, "B"]
) -> Float[Tensor, "B C Y X"]:
    """Brightness and contrast for any number of channels; the mean is over all of them."""
    mean = x.mean(dim=(1, 2, 3))
    gain = (brightness * contrast)[:, None, None, None]
    return x * gain + ((1 - contrast) * brightness * mean)[:, None, None, None]


def mean_luminance(x: Float[Tensor, "B 3 Y X"]) -> Float[Tensor, "B"]:
    return x.mean(dim=(2, 3)) @ LUMINANCE.to(x.device)


def stain_jitter(x: Float[Tensor, "B 3 Y X"], u: Float[Tensor, "B 6"], strength: float) -> Float[Tensor, "B 3 Y X"]:
    """Multiply and shift the amount of each stain by up to ``strength`` (shift: a fifth of it)."""
    density = -torch.log(x.clamp_min(1 / 255))
    gains = 1 + strength * (2 * u[:, :3] - 1)
    shifts = 0.2 * strength * (2 * u[:, 3:] - 1)
    # density = amounts @ STAINS for a row vector; here colours are columns, so everything is transposed.
    matrix = STAINS.T @ (gains[:, :, None] * FROM_STAINS.T)
    offset = (shifts @ STAINS)[:, :, None]
    return torch.exp(-apply_matrix(density, matrix, offset).clamp_min(0))


def blur(x: Float[Tensor, "B C Y X"], sigma_px: Float[Tensor, "B"]) -> Float[Tensor, "B C Y X"]:
    """Separable Gaussian blur, its own sigma for each sample; borders are reflected. Kernel: three sigma."""
    radius = min(max(1, math.ceil(3 * float(sigma_px.max()))), min(x.shape[-2:]) - 1)
    ticks = torch.arange(-radius, radius + 1, dtype=torch.float32)
    weights = torch.exp(-0.5 * (ticks / sigma_px.clamp_min(1e-3)[:, None]) ** 2)
    weights = (weights / weights.sum(dim=1, keepdim=True)).to(x.device)
    for axis in (2, 3):
        side = (radius, radius, 0, 0) if axis == 3 else (0, 0, radius, radius)
        padded = F.pad(x, side, mode="reflect")
        length = x.shape[axis]
        total = torch.zeros_like(x)
        for k in range(2 * radius + 1):
            total.addcmul_(padded.narrow(axis, k, length), weights[:, k, None, None, None])
        x = total
    return x


def solarise(x: Float[Tensor, "B C Y X"], chosen: Bool[Tensor, "B"]) -> Float[Tensor, "B C Y X"]:
    """Invert everything from 0.5 up, for the chosen samples."""
    return torch.where(chosen[:, None, None, None] & (x >= 0.5), 1 - x, x)
