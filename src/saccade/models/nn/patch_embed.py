"""From pixels to tokens: a linear projection of patches, a convolutional stem, or residual stages.

Dosovitskiy et al. 2021 (arXiv:2010.11929), whose hybrid has the stages of a ResNet before the transformer, and Xiao
et al. 2021, "Early convolutions help transformers see better" (arXiv:2106.14881). Residual blocks are He et al. 2016
(arXiv:1512.03385). With ``positions``, the only place that knows how many axes an image has.
"""

from __future__ import annotations

import math
from typing import get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from saccade.base.contracts import Grid
from saccade.errors import ModelError, unknown
from saccade.models.settings import PatchStem as Stem


def _too_small(x: Tensor, side: int) -> bool:
    """Whether torch's kernels are wrong for this map in bf16 on the CPU.

    Torch 2.14 leaves a part of the weight's gradient unwritten there, so that it has arbitrary values:
    3 x 3 kernels with stride 2 on maps of side 1, in 3D also with stride 1 on maps of side 2 (docs/log.md).
    """
    return x.device.type == "cpu" and torch.is_autocast_enabled("cpu") and min(x.shape[2:]) <= side


class Conv2d(nn.Conv2d):
    """torch's convolution, in float32 where its bf16 kernel fails."""

    def forward(self, input: Float[Tensor, "B C Y X"]) -> Float[Tensor, "B D y x"]:
        if not _too_small(input, 1):
            return super().forward(input)
        with torch.autocast("cpu", enabled=False):
            return super().forward(input.float())


class Conv3d(nn.Conv3d):
    """The same in three dimensions."""

    def forward(self, input: Float[Tensor, "B C T Y X"]) -> Float[Tensor, "B D t y x"]:
        if not _too_small(input, 2):
            return super().forward(input)
        with torch.autocast("cpu", enabled=False):
            return super().forward(input.float())


CONVOLUTIONS: dict[int, type[nn.Module]] = {1: nn.Conv1d, 2: Conv2d, 3: Conv3d}
BATCH_NORMS: dict[int, type[nn.Module]] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}


def check_pixels(pixels: Tensor, channels: int, axes: int = 2) -> None:
    """ModelError unless these are images with so many channels and axes."""
    if pixels.ndim != 2 + axes or pixels.shape[1] != channels:
        raise ModelError(
            "the pixels do not fit the network",
            got=f"shape {tuple(pixels.shape)}",
            expected=f"[B {channels} {' '.join('ZYX'[-axes:])}]",
            hint="convert the images to the channels that the model's input asks for",
        )


class PatchProjection(nn.Module):
    """Each patch, flattened, times one matrix. The matrix has the layout of a convolution, as in timm.

    Equal to a convolution whose stride is its kernel, but one matrix product for any number of axes.
    """

    def __init__(self, channels: int, dim: int, patch: tuple[int, ...]):
        super().__init__()
        self.patch = patch
        self.weight = nn.Parameter(torch.empty(dim, channels, *patch))
        self.bias = nn.Parameter(torch.empty(dim))
        # What torch gives a convolution; DINO and timm keep it.
        bound = 1 / math.sqrt(channels * math.prod(patch))
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, pixels: Float[Tensor, "B C *size"]) -> Float[Tensor, "B N D"]:
        batch, channels, *size = pixels.shape
        axes = len(size)
        cut = [n for length, p in zip(size, self.patch) for n in (length // p, p)]
        # [B C Y/p p X/p p] -> [B Y/p X/p C p p]
        order = [0, *(2 + 2 * a for a in range(axes)), 1, *(3 + 2 * a for a in range(axes))]
        patches = pixels.reshape(batch, channels, *cut).permute(order).flatten(1 + axes).flatten(1, axes)
        return F.linear(patches, self.weight.flatten(1), self.bias)


def _halvings(patch: int, minimum: int) -> int:
    """How often the map is halved until one position is one patch; ModelError unless this is a whole number."""
    steps = patch.bit_length() - 1
    if 2**steps != patch or steps < minimum:
        raise ModelError(
            "a convolutional stem needs a patch that is a power of two",
            got=f"patch {patch}",
            expected=f"a power of two, {2**minimum} or more",
            hint=f"patch {2 ** max(minimum, round(math.log2(max(1, patch))))}, or a plain ViT, which takes any patch",
        )
    return steps


def _widths(dim: int, steps: int) -> list[int]:
    """Channels after each halving: they double up to ``dim``, as the map halves."""
    return [max(8, dim // 2 ** (steps - 1 - step)) for step in range(steps)]


def _convolution(inputs: int, outputs: int, axes: int, *, kernel: int = 3, stride: int = 1) -> nn.Module:
    return CONVOLUTIONS[axes](inputs, outputs, kernel_size=kernel, stride=stride, padding=kernel // 2, bias=False)


def convolutional_stem(channels: int, dim: int, patch: int, axes: int) -> nn.Sequential:
    """3x3 convolutions of stride 2, each with group normalisation and ReLU, until one position is one patch."""
    layers: list[nn.Module] = []
    width = channels
    for wider in _widths(dim, _halvings(patch, minimum=1)):
        layers.extend([_convolution(width, wider, axes, stride=2), nn.GroupNorm(1, wider), nn.ReLU()])
        width = wider
    return nn.Sequential(*layers)


class ResidualStage(nn.Module):
    """Two 3x3 convolutions with batch normalisation and a shortcut; the first halves the map.

    No ReLU after the sum, so that tokens keep both signs. Batch and not group normalisation: with it 1,000 tissue tiles
    gave 90 % in 250 steps, with group normalisation 71 % (docs/log.md). A CNN has the same dependence on its batch.
    """

    def __init__(self, inputs: int, width: int, axes: int):
        super().__init__()
        norm = BATCH_NORMS[axes]
        self.conv1, self.norm1 = _convolution(inputs, width, axes, stride=2), norm(width)
        self.conv2, self.norm2 = _convolution(width, width, axes), norm(width)
        same = inputs == width
        self.shortcut = None if same else _convolution(inputs, width, axes, kernel=1)
        self.shortcut_norm = None if same else norm(width)
        self.halved = (slice(None), slice(None), *(slice(None, None, 2),) * axes)

    def forward(self, x: Float[Tensor, "B C *size"]) -> Float[Tensor, "B D *half"]:
        # Every second pixel is taken beforehand: see nn/resnet.py.
        residual = x[self.halved]
        if self.shortcut is not None and self.shortcut_norm is not None:
            residual = self.shortcut_norm(self.shortcut(residual))
        return residual + self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))


def residual_stages(channels: int, dim: int, patch: int, axes: int) -> nn.Sequential:
    """A 3x3 convolution of stride 2, then residual stages until one position is one patch: the front of a hybrid."""
    first, *wider = _widths(dim, _halvings(patch, minimum=2))
    layers: list[nn.Module] = [_convolution(channels, first, axes, stride=2), BATCH_NORMS[axes](first), nn.ReLU()]
    for inputs, width in zip([first, *wider], wider):
        layers.append(ResidualStage(inputs, width, axes))
    stem = nn.Sequential(*layers)
    for parameter in stem.parameters():
        if parameter.ndim > 1:  # the others scale and shift
            nn.init.kaiming_normal_(parameter, mode="fan_out", nonlinearity="relu")
    return stem


class PatchEmbed(nn.Module):
    """Pixels [B C ...] to tokens [B N D], in row-major order of the grid.

    Raises UsageError for an unknown stem, ModelError for images that do not fit.
    """

    def __init__(self, channels: int, dim: int, patch: int, *, stem: Stem = "linear", axes: int = 2):
        super().__init__()
        if stem not in get_args(Stem):
            raise unknown("stem", str(stem), get_args(Stem))
        self.channels, self.patch, self.axes, self.vectors = channels, patch, axes, stem == "grid"
        if stem in ("linear", "grid"):
            self.stem: nn.Module = nn.Identity()
            self.proj = PatchProjection(channels - self.vectors, dim, (patch,) * axes)
        else:
            convolutions = convolutional_stem if stem == "conv" else residual_stages
            self.stem = convolutions(channels, dim, patch, axes)
            self.proj = PatchProjection(dim, dim, (1,) * axes)

    def grid(self, size_px: tuple[int, ...]) -> Grid:
        """Patches along each axis of an image of this size; ModelError unless it is a multiple of the patch."""
        if any(length % self.patch or length < self.patch for length in size_px):
            below = [max(1, length // self.patch) * self.patch for length in size_px]
            above = [math.ceil(length / self.patch) * self.patch for length in size_px]
            nearest = [below] if below == above else [below, above]
            raise ModelError(
                f"the image size is not a multiple of the patch of {self.patch} px",
                got=" x ".join(map(str, size_px)) + " px",
                expected=f"multiples of {self.patch}",
                hint="nearest: " + " or ".join(" x ".join(map(str, size)) for size in nearest),
            )
        return tuple(length // self.patch for length in size_px)

    def present(self, pixels: Float[Tensor, "B C *size"]) -> Bool[Tensor, "B N"] | None:
        """The cells of a grid that have a vector; None for images."""
        return pixels[:, -1].flatten(1) > 0.5 if self.vectors else None

    def forward(self, pixels: Float[Tensor, "B C *size"]) -> Float[Tensor, "B N D"]:
        check_pixels(pixels, self.channels, self.axes)
        self.grid(tuple(pixels.shape[2:]))
        if self.vectors:
            pixels = pixels[:, :-1]
        if self.axes in CHANNELS_LAST and not isinstance(self.stem, nn.Identity):
            # 0.85 to 0.9 of the time of a step of the conv stem on one core; no loss for stages.
            pixels = pixels.contiguous(memory_format=CHANNELS_LAST[self.axes])
        return self.proj(self.stem(pixels))
