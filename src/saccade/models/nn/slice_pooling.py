"""2.5D: a network for images is applied to some slices of a volume, and the mean of their vectors is the volume's.

The usual fall-back where pretrained weights exist for images only, or where a volume has few, thick slices. Structures
across slices are not seen; a 3D network or inflated weights (``backbones/weight_formats``) see them.
"""

from __future__ import annotations

import dataclasses

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saccade.base.contracts import Features
from saccade.errors import UsageError
from saccade.models.nn.network import Network
from saccade.models.nn.patch_embed import check_pixels


def slice_indices(depth: int, count: int) -> Int[Tensor, "N"]:
    """``count`` equidistant slices, the outer ones half a distance from the ends; UsageError for too few slices.

    Examples
    --------
    >>> slice_indices(8, 2)
    tensor([2, 6])
    """
    if count > depth:
        raise UsageError("a view has fewer slices than model.slices", got=depth, expected=f"{count} or more")
    return ((torch.arange(count) + 0.5) * depth / count).long()


class SlicePooling(Network):
    """Apply ``network`` to ``slices`` slices of a volume; the tokens of all slices, slice after slice."""

    def __init__(self, network: Network, slices: int):
        super().__init__(
            network.settings,
            dim=network.dim,
            stride_px=network.stride_px,
            capabilities=dataclasses.replace(
                network.capabilities, has_attention=False, has_positions=False, maskable=False, axes=(3,)
            ),
            arguments=network.config() | {"axes": 3, "slices": slices},
        )
        self.network, self.slices = network, slices

    def forward(self, pixels: Float[Tensor, "B C T Y X"]) -> Features:
        """Mean of the slices' vectors, and all their tokens: grid (slices, rows, columns)."""
        check_pixels(pixels, self.channels, axes=3)
        indices = slice_indices(pixels.shape[2], self.slices).to(pixels.device)
        planes = pixels.index_select(2, indices).transpose(1, 2).flatten(0, 1)
        features: Features = self.network(planes)
        batch = len(pixels)
        vectors = features.cls.unflatten(0, (batch, self.slices)).mean(dim=1)
        tokens = features.tokens.unflatten(0, (batch, self.slices)).flatten(1, 2)
        return Features(cls=vectors, tokens=tokens, grid=(self.slices, *features.grid))
