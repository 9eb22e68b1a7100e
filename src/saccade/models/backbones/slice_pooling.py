"""2.5D: a network for images looks at some slices of a volume, and their mean is the volume's vector.

The usual fall-back where pretrained weights exist for images only, or where a volume has few, thick slices. What lies
in several slices is never seen together; a 3D network or inflated weights (``backbones/layouts``) see it.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from saccade.base.contracts import Features
from saccade.errors import UsageError
from saccade.models.nn.patch_embed import check_pixels


def chosen_slices(depth: int, count: int) -> Int[Tensor, "N"]:
    """``count`` slices at even distances, the outer ones half a distance from the ends; UsageError for too few."""
    if count > depth:
        raise UsageError("a view has fewer slices than the network wants", got=depth, expected=f"{count} or more")
    return ((torch.arange(count) + 0.5) * depth / count).long()


class Sliced(nn.Module):
    """``network`` on ``slices`` slices; the tokens of all of them, slice after slice."""

    def __init__(self, network: Any, slices: int):
        super().__init__()
        self.network, self.slices = network, slices
        self.settings, self.name, self.dim = network.settings, network.name, network.dim
        self.channels, self.stride_px = network.channels, network.stride_px

    def config(self) -> dict[str, object]:
        """Arguments of ``backbones.build.build`` that make this network again."""
        own: dict[str, object] = self.network.config()
        return own | {"axes": 3, "slices": self.slices}

    def forward(self, pixels: Float[Tensor, "B C T Y X"]) -> Features:
        """Mean of the slices' vectors, and all their tokens: grid (slices, rows, columns)."""
        check_pixels(pixels, self.channels, axes=3)
        rows = chosen_slices(pixels.shape[2], self.slices).to(pixels.device)
        planes = pixels.index_select(2, rows).transpose(1, 2).flatten(0, 1)
        found: Features = self.network(planes)
        batch = len(pixels)
        vectors = found.cls.unflatten(0, (batch, self.slices)).mean(dim=1)
        tokens = found.tokens.unflatten(0, (batch, self.slices)).flatten(1, 2)
        return Features(cls=vectors, tokens=tokens, grid=(self.slices, *found.grid))
