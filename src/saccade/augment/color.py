"""Changes of brightness, contrast, colour and stain of a whole batch, as one matrix a sample; blur; solarisation.

Colour follows torchvision's ColorJitter in the order brightness, contrast, saturation, hue, but clamps once at
the end instead of after each step, and turns hue in the YIQ plane instead of HSV (lightness stays as it is).
Stain jitter perturbs the amounts of haematoxylin and eosin (Tellez et al. 2018) in the basis of Ruifrok and
Johnston 2001. Numbers of a sample ([B] tensors) may lie on the CPU; pixels stay on their device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from saccade.base.contracts import InputSpec
from saccade.data.images.downsample import LUMINANCE as BT601

BLUR_ELEMENTS = 2**18  # float32 numbers blurred together: a megabyte, which the cache of a core holds
DEVICE_BLUR_ELEMENTS = 2**26  # on a GPU, where each call has its price

LUMINANCE = torch.tensor(BT601)
TO_YIQ = torch.tensor([[*BT601], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
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
    """Gain (brightness times contrast), saturation and hue as one matrix. hue_turns: fraction of a full turn."""
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
    return torch.bmm(matrix, x.flatten(2)).add_(offset).view_as(x)


@dataclass(frozen=True)
class Jitter:
    """Brightness, contrast, saturation and hue of N samples, as one matrix each: x -> matrix x + shift * mean.

    matrix [N 3 3], or [N] where images have no colour (saturation and hue have no meaning there); shift [N]
    """

    matrix: Tensor
    shift: Tensor

    def part(self, where: slice) -> Jitter:
        return Jitter(self.matrix[where], self.shift[where])


def draw_jitter(
    brightness: Float[Tensor, "N"],
    contrast: Float[Tensor, "N"],
    saturation: Float[Tensor, "N"],
    hue_turns: Float[Tensor, "N"],
    channels: int,
) -> Jitter:
    """The four changes at once. saturation 0 makes an image grey. Contrast turns about the mean luminance of the
    sample; where C is not 3, about the mean of all channels."""
    gain = brightness * contrast
    matrix = colour_matrix(gain, saturation, hue_turns) if channels == 3 else gain
    return Jitter(matrix, (1 - contrast) * brightness)


def jitter(x: Float[Tensor, "N C Y X"], change: Jitter) -> Float[Tensor, "N C Y X"]:
    """Change colours, without a clamp. The numbers of the change may lie on the CPU."""
    matrix, shift = change.matrix.to(x.device), change.shift.to(x.device)
    if x.shape[1] == 3:
        # Saturation and hue leave greys alone, so the offset of contrast passes through them unchanged.
        return apply_matrix(x, matrix, (shift * mean_luminance(x))[:, None, None])
    return x * matrix[:, None, None, None] + (shift * x.mean(dim=(1, 2, 3)))[:, None, None, None]


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


@dataclass(frozen=True)
class Blur:
    """Gaussian kernels of N samples, on the CPU: weights [N 2R+1], of which the middle 2 radius + 1 are not zero.

    radius [N] long; 0: no blur.
    """

    weights: Tensor
    radius: Tensor

    def part(self, where: slice) -> Blur:
        return Blur(self.weights[where], self.radius[where])


def draw_blur(sigma_px: Float[Tensor, "N"], side_px: int) -> Blur:
    """Kernels that reach three sigma (what lies beyond is < 0.3 %), and no farther than reflection allows."""
    radius = torch.where(sigma_px > 0, torch.ceil(3 * sigma_px), 0.0).clamp_max(side_px - 1)
    reach = int(radius.max())
    ticks = torch.arange(-reach, reach + 1, dtype=torch.float32)
    weights = torch.exp(-0.5 * (ticks / sigma_px.clamp_min(1e-3)[:, None]) ** 2)
    weights = weights * (ticks.abs() <= radius[:, None])
    return Blur(weights / weights.sum(dim=1, keepdim=True), radius.long())


def blur_(x: Float[Tensor, "N C S S"], blur: Blur) -> Float[Tensor, "N C S S"]:
    """Separable Gaussian blur in place; borders are reflected.

    Samples of similar radius are blurred together, so that few have a longer kernel than they need.
    """
    middle = blur.weights.shape[1] // 2
    order = torch.argsort(blur.radius)
    order = order[int((blur.radius == 0).sum()) :]
    on_cpu = x.device.type == "cpu"
    count = max(1, (BLUR_ELEMENTS if on_cpu else DEVICE_BLUR_ELEMENTS) // x[0].numel())
    for start in range(0, len(order), count):
        part = order[start : start + count]
        chosen = part.to(x.device)
        radius = int(blur.radius[part[-1]])
        weights = blur.weights[part, middle - radius : middle + radius + 1].to(x.device)
        blurred = _blur(x.index_select(0, chosen), weights, radius)
        if on_cpu:  # index_copy_ takes three times as long here
            torch._foreach_copy_([x[i] for i in part.tolist()], blurred.unbind(0))
        else:
            x.index_copy_(0, chosen, blurred)
    return x


def _blur(x: Float[Tensor, "N C S S"], weights: Float[Tensor, "N K"], radius: int) -> Float[Tensor, "N C S S"]:
    taps = weights[:, :, None, None, None].unbind(1)
    for axis in (2, 3):
        side = (radius, radius, 0, 0) if axis == 3 else (0, 0, radius, radius)
        shifted = F.pad(x, side, mode="reflect").unfold(axis, x.shape[axis], 1)  # a view: [N C K X Y] or [N C Y K X]
        first, *others = (shifted.transpose(3, 4) if axis == 2 else shifted).unbind(axis)
        x = first * taps[0]
        for moved, tap in zip(others, taps[1:]):
            x.addcmul_(moved, tap)
    return x


def solarise(x: Float[Tensor, "B C Y X"]) -> Float[Tensor, "B C Y X"]:
    """Invert all values of 0.5 and more.

    Examples
    --------
    >>> solarise(torch.tensor([[[[0.25, 0.75]]]]))
    tensor([[[[0.2500, 0.2500]]]])
    """
    return torch.where(x >= 0.5, 1 - x, x)


def normalise(
    x: Float[Tensor, "*V B C Y X"], spec: InputSpec, out: Float[Tensor, "*V B C Y X"] | None = None
) -> Float[Tensor, "*V B C Y X"]:
    """Subtract the mean of each channel and divide by its standard deviation."""
    mean, std = (torch.tensor(v, device=x.device).view(-1, *(1,) * spec.axes) for v in (spec.mean, spec.std))
    return torch.sub(x, mean, out=out).div_(std)
