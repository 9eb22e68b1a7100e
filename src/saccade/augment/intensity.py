"""Changes of brightness, contrast, colour and stain of a whole batch, as one matrix a sample; blur; solarisation.

Colour follows torchvision's ColorJitter in the order brightness, contrast, saturation, hue, but clamps once at
the end instead of after each step, and turns hue in the YIQ plane instead of HSV (lightness stays as it is).
Stain jitter perturbs the amounts of haematoxylin and eosin (Tellez et al. 2018) in the basis of Ruifrok and
Johnston 2001. Numbers of a sample ([B] tensors) may lie on the CPU; pixels stay on their device.
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


def factor(u: Float[Tensor, "B"], strength: float) -> Float[Tensor, "B"]:
    """A factor in [max(0, 1 - strength), 1 + strength], as torchvision draws it."""
    low = max(0.0, 1 - strength)
    return low + (1 + strength - low) * u


def colour_matrix(
    gain: Float[Tensor, "B"], saturation: Float[Tensor, "B"], hue_turns: Float[Tensor, "B"]
) -> Float[Tensor, "B 3 3"]:
    """Gain (brightness times contrast), saturation and hue as one matrix. hue_turns: share of a full turn."""
    s = saturation[:, None, None]
    saturate = s * torch.eye(3) + (1 - s) * LUMINANCE.expand(3, 3)
    angle = 2 * math.pi * hue_turns
    turn = torch.zeros(len(angle), 3, 3)
    turn[:, 0, 0] = 1
    turn[:, 1, 1] = turn[:, 2, 2] = torch.cos(angle)
    turn[:, 1, 2], turn[:, 2, 1] = torch.sin(angle), -torch.sin(angle)
    # Unturned pixels go through untouched: YIQ's published digits do not invert exactly.
    hue = torch.where((hue_turns == 0)[:, None, None], torch.eye(3), FROM_YIQ @ turn @ TO_YIQ)
    return hue @ saturate * gain[:, None, None]


def apply_matrix(
    x: Float[Tensor, "B C Y X"], matrix: Float[Tensor, "B C C"], offset: Float[Tensor, "B #C 1"]
) -> Float[Tensor, "B C Y X"]:
    return torch.baddbmm(offset.expand(-1, x.shape[1], 1), matrix, x.flatten(2)).view_as(x)


def jitter(
    x: Float[Tensor, "B C Y X"],
    brightness: Float[Tensor, "B"],
    contrast: Float[Tensor, "B"],
    saturation: Float[Tensor, "B"],
    hue_turns: Float[Tensor, "B"],
) -> Float[Tensor, "B C Y X"]:
    """The four changes at once, without a clamp. saturation 0 makes an image grey.

    Contrast turns about the mean luminance of the sample. Where C is not 3 it turns about the mean of all
    channels, and saturation and hue have no meaning and no effect.
    """
    gain = brightness * contrast
    shift = ((1 - contrast) * brightness).to(x.device)
    if x.shape[1] == 3:
        matrix = colour_matrix(gain, saturation, hue_turns).to(x.device)
        # Saturation and hue leave greys alone, so the offset of contrast passes through them unchanged.
        return apply_matrix(x, matrix, (shift * mean_luminance(x))[:, None, None])
    return x * gain.to(x.device)[:, None, None, None] + (shift * x.mean(dim=(1, 2, 3)))[:, None, None, None]


def mean_luminance(x: Float[Tensor, "B 3 Y X"]) -> Float[Tensor, "B"]:
    return x.mean(dim=(2, 3)) @ LUMINANCE.to(x.device)


def to_grey(x: Float[Tensor, "B C Y X"]) -> Float[Tensor, "B C Y X"]:
    """Luminance (ITU-R BT.601) repeated over the three channels; images without colour stay as they are."""
    if x.shape[1] != 3:
        return x
    red, green, blue = LUMINANCE.tolist()
    return (red * x[:, :1] + green * x[:, 1:2] + blue * x[:, 2:]).expand_as(x).contiguous()


def stain_jitter(x: Float[Tensor, "B 3 Y X"], u: Float[Tensor, "B 6"], strength: float) -> Float[Tensor, "B 3 Y X"]:
    """Multiply the amount of each stain by up to 1 ± ``strength`` and shift it by up to a fifth of that.

    Black is taken as 1/255, the least light that 8 bits can say.
    """
    density = -torch.log(x.clamp_min(1 / 255))
    gains = 1 + strength * (2 * u[:, :3] - 1)
    shifts = 0.2 * strength * (2 * u[:, 3:] - 1)
    # density = amounts @ STAINS for a row vector; here colours are columns, so everything is transposed.
    matrix = STAINS.T @ (gains[:, :, None] * FROM_STAINS.T)
    offset = (shifts @ STAINS)[:, :, None]
    return torch.exp(-apply_matrix(density, matrix.to(x.device), offset.to(x.device)).clamp_min(0))


def blur(x: Float[Tensor, "B C Y X"], sigma_px: Float[Tensor, "B"]) -> Float[Tensor, "B C Y X"]:
    """Separable Gaussian blur, its own sigma for each sample (on the CPU); borders are reflected.

    The kernel reaches three of the largest sigma of the batch; what lies beyond three of one's own is < 0.3 %.
    """
    radius = min(max(1, math.ceil(3 * float(sigma_px.max()))), min(x.shape[-2:]) - 1)
    ticks = torch.arange(-radius, radius + 1, dtype=torch.float32)
    weights = torch.exp(-0.5 * (ticks / sigma_px.clamp_min(1e-3)[:, None]) ** 2)
    # Cut at three sigma of the sample's own, so that it does not depend on the others of the batch.
    weights = weights * (ticks.abs() <= torch.ceil(3 * sigma_px).clamp_min(1)[:, None])
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
    return torch.where(chosen.to(x.device)[:, None, None, None] & (x >= 0.5), 1 - x, x)
