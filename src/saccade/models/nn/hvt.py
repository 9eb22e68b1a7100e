"""HVT, a ViT that pools its tokens (Pan et al. 2021, arXiv:2103.10619).

No class token, max pooling of tokens between blocks, new learned positions after each pooling, and the mean of the last
tokens as the image's vector. The paper pools the row-major sequence (3 tokens, every second kept), which joins
neighbours of one row only, wraps from row to row, and leaves no map. Here the plane is pooled, 3 x 3 tokens with stride
2: a token still stands for a square of the image, and tokens can be compared place by place. The price: a pooling keeps
a quarter of the tokens, not half; in a volume, where 3 x 3 x 3 are pooled, an eighth. Sides are rounded up, so one
token stays one.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from saccade.base.contracts import Features, Grid
from saccade.models.backbones.hvt import HVTSettings
from saccade.models.nn.blocks import NORM_EPS, Block, drop_rates, initialise_linear, through
from saccade.models.nn.network import Network
from saccade.models.nn.patch_embed import PatchEmbed
from saccade.models.nn.positions import Positions

MLP_RATIO = 4


def pool_tokens(x: Float[Tensor, "B N D"], grid: Grid) -> tuple[Float[Tensor, "B M D"], Grid]:
    """Max pooling over 3 x 3 (x 3) tokens with stride 2; sides are rounded up."""
    pool = F.max_pool2d if len(grid) == 2 else F.max_pool3d
    # Tokens are a plane with channels last: nothing is copied.
    plane = pool(x.unflatten(1, grid).movedim(-1, 1), 3, stride=2, padding=1)
    return plane.movedim(1, -1).flatten(1, -2), tuple(plane.shape[2:])


class HVT(Network):
    """A ViT without class token that pools its tokens before the blocks ``settings.pools``.

    Takes any size that patches divide. Raises ModelError where ``settings.size_px`` is not a multiple of the patch.
    """

    settings: HVTSettings

    def __init__(self, settings: HVTSettings):
        s = settings
        super().__init__(s, dim=s.dim, stride_px=s.patch * 2 ** len(s.pools))
        self.patch = s.patch
        self.patch_embed = PatchEmbed(s.channels, s.dim, s.patch, axes=s.axes)
        grid, tables = self.patch_embed.grid((s.size_px,) * s.axes), []
        for _ in range(1 + len(s.pools)):
            tables.append(Positions("learned", grid, s.dim, s.heads, prefix=0))
            grid = tuple(math.ceil(length / 2) for length in grid)
        self.positions = nn.ModuleList(tables)
        rates = drop_rates(s.drop_path, s.depth)
        self.blocks = nn.ModuleList(Block(s.dim, s.heads, mlp_ratio=MLP_RATIO, drop_path=rate) for rate in rates)
        self.norm = nn.LayerNorm(s.dim, eps=NORM_EPS)
        initialise_linear(self.blocks)

    def forward(self, pixels: Float[Tensor, "B C *size"]) -> Features:
        """The last tokens after the norm, their mean as the image's vector; ModelError when the pixels do not fit."""
        x = self.patch_embed(pixels)
        grid, pooled = self.patch_embed.grid(tuple(pixels.shape[2:])), 0
        x = self._with_positions(x, grid, pooled)
        for index, block in enumerate(self.blocks):
            if index in self.settings.pools:
                x, grid = pool_tokens(x, grid)
                pooled += 1
                x = self._with_positions(x, grid, pooled)
            x = through(block, x, recompute=self.checkpointing)
        x = self.norm(x)
        return Features(cls=x.mean(dim=1), tokens=x, grid=grid)

    def _with_positions(self, x: Float[Tensor, "B N D"], grid: Grid, pooled: int) -> Float[Tensor, "B N D"]:
        """Tokens plus the position embeddings after this many poolings."""
        positions = self.positions[pooled]
        assert isinstance(positions, Positions)
        added = positions.added(grid, x)
        return x if added is None else x + added
