"""From pixels to tokens: a linear projection of patches, or a convolutional stem.

Dosovitskiy et al. 2021 (arXiv:2010.11929) and Xiao et al. 2021, "Early convolutions help transformers see
better" (arXiv:2106.14881). With ``positions``, the only place that knows how many axes an image has.
"""

from __future__ import annotations

import math
from typing import get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from saccade.architectures import PatchStem as Stem
from saccade.errors import ModelError, unknown
from saccade.nn.positions import Grid

CONVOLUTIONS: dict[int, type[nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


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


def convolutional_stem(channels: int, dim: int, patch: int, axes: int) -> nn.Sequential:
    """3x3 convolutions of stride 2, doubling their width up to ``dim``, until one position is one patch.

    Group instead of batch normalisation: a view must not depend on which images share its batch or process.
    """
    steps = patch.bit_length() - 1
    if 2**steps != patch or steps == 0:
        raise ModelError(
            "a convolutional stem halves the image again and again",
            got=f"patch {patch}",
            expected="a power of two, 2 or more",
            hint=f"patch {2 ** max(1, round(math.log2(max(2, patch))))}, or the plain stem without _conv",
        )
    layers: list[nn.Module] = []
    width = channels
    for step in range(steps):
        wider = max(8, dim // 2 ** (steps - 1 - step))
        layers.append(CONVOLUTIONS[axes](width, wider, kernel_size=3, stride=2, padding=1, bias=False))
        layers.extend([nn.GroupNorm(1, wider), nn.ReLU()])
        width = wider
    return nn.Sequential(*layers)


class PatchEmbed(nn.Module):
    """Pixels [B C ...] to tokens [B N D], in row-major order of the grid.

    Raises UsageError for an unknown stem, ModelError for images that do not fit.
    """

    def __init__(self, channels: int, dim: int, patch: int, *, stem: Stem = "linear", axes: int = 2):
        super().__init__()
        if stem not in get_args(Stem):
            raise unknown("stem", str(stem), get_args(Stem))
        self.channels, self.patch, self.axes = channels, patch, axes
        if stem == "conv":
            self.stem: nn.Module = convolutional_stem(channels, dim, patch, axes)
            self.proj = PatchProjection(dim, dim, (1,) * axes)
        else:
            self.stem = nn.Identity()
            self.proj = PatchProjection(channels, dim, (patch,) * axes)

    def grid(self, size_px: tuple[int, ...]) -> Grid:
        """Patches along each axis of an image of this size; ModelError when they do not come out even."""
        if any(length % self.patch or length < self.patch for length in size_px):
            below = [max(1, length // self.patch) * self.patch for length in size_px]
            above = [math.ceil(length / self.patch) * self.patch for length in size_px]
            nearest = [below] if below == above else [below, above]
            raise ModelError(
                f"the image cannot be cut into patches of {self.patch} px",
                got=" x ".join(map(str, size_px)) + " px",
                expected=f"multiples of {self.patch}",
                hint="nearest: " + " or ".join(" x ".join(map(str, size)) for size in nearest),
            )
        return tuple(length // self.patch for length in size_px)

    def forward(self, pixels: Float[Tensor, "B C *size"]) -> Float[Tensor, "B N D"]:
        if pixels.ndim != 2 + self.axes or pixels.shape[1] != self.channels:
            raise ModelError(
                "the pixels do not fit the network",
                got=f"shape {tuple(pixels.shape)}",
                expected=f"[B {self.channels} ...] with {self.axes} axes",
                hint="convert the images to the channels that the model's input asks for",
            )
        self.grid(tuple(pixels.shape[2:]))
        return self.proj(self.stem(pixels))
