"""A backbone of its own: a transformer of a few layers over patches of 4 pixels, with a class token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from saccade.base.contracts import Features
from saccade.models.card import BackboneCard
from saccade.models.nn.attention import AttentiveNetwork, Heads
from saccade.models.nn.blocks import Block
from saccade.models.settings import BackboneSettings, Capabilities


@dataclass(frozen=True)
class SmallFormerSettings(BackboneSettings):
    """Layers and width; heads have a width of 8."""

    depth: int = 2
    width: int = 32

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(transformer=True, has_attention=True)

    @property
    def unit_px(self) -> int:
        return 4


class SmallFormer(AttentiveNetwork):
    """Patches, a class token, and transformer blocks."""

    def __init__(self, settings: SmallFormerSettings):
        s, heads = settings, settings.width // 8
        super().__init__(s, dim=s.width, stride_px=4, depth=s.depth, heads=heads, prefix=1)
        self.patches = nn.Conv2d(s.channels, s.width, 4, stride=4)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, s.width))
        self.blocks = nn.ModuleList(Block(s.width, heads) for _ in range(s.depth))

    def _enter(self, pixels: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        x = self.patches(pixels)
        tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], dim=1)
        return tokens, tuple(x.shape[2:])

    def forward(self, pixels: Tensor) -> Features:
        tokens, grid = self._enter(pixels)
        for block in self.blocks:
            tokens = block(tokens)
        return Features(cls=tokens[:, 0], tokens=tokens[:, 1:], grid=grid)

    def projections(self, pixels: Tensor, layers: Sequence[int]) -> tuple[list[Heads], tuple[int, ...]]:
        tokens, grid = self._enter(pixels)
        projections = []
        for index, block in enumerate(self.blocks):
            if index in layers:
                projections.append(block.queries_keys_values(tokens, None))
            tokens = block(tokens)
        return projections, grid

    def key_mask(self, pixels: Tensor, grid: tuple[int, ...], layer: int, rows: Tensor) -> None:
        return None

    def without_positions(self) -> SmallFormer:
        return self


CARD = BackboneCard(
    "small transformer",
    {"smallformer": SmallFormerSettings("smallformer")},
    SmallFormer,
    widen=lambda settings, width: replace(settings, width=width),
)
