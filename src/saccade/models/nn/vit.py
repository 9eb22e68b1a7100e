"""The vision transformer (Dosovitskiy et al. 2021, arXiv:2010.11929), initialised as in DINO and timm.

Registers are Darcet et al. 2024 (arXiv:2309.16588). Names of parameters are timm's, so that its weights load.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from saccade.base.contracts import Features, Grid, Hidden
from saccade.models.attention_patterns import parse_pattern
from saccade.models.backbones.vit import ViTSettings
from saccade.models.nn.attention import AttentiveNetwork, Heads
from saccade.models.nn.blocks import NORM_EPS, Block, drop_rates, initialise_linear, through
from saccade.models.nn.patch_embed import PatchEmbed
from saccade.models.nn.positions import Positions, Rotation
from saccade.models.nn.sparse_attention import visible


class ViT(AttentiveNetwork):
    """Patches, a class token, optional registers, and an encoder. Takes any size that patches divide.

    Parameters
    ----------
    settings : ViTSettings
        Everything that makes this network.

    Raises
    ------
    UsageError, ModelError
        The settings do not fit together.
    """

    settings: ViTSettings

    def __init__(self, settings: ViTSettings):
        s, prefix = settings, 1 + settings.registers
        super().__init__(s, dim=s.dim, stride_px=s.patch, depth=s.depth, heads=s.heads, prefix=prefix)
        self.patch = s.patch
        self.patch_embed = PatchEmbed(s.channels, s.dim, s.patch, stem=s.stem, axes=s.axes)
        self.pattern = parse_pattern(s.attention)
        # Prefix tokens have no positions: the sum of two learned vectors would be one learned vector.
        self.cls_token = nn.Parameter(torch.empty(1, 1, s.dim))
        self.reg_token = nn.Parameter(torch.empty(1, s.registers, s.dim)) if s.registers else None
        grid = self.patch_embed.grid((s.size_px,) * s.axes)
        self.positions = Positions(s.positions, grid, s.dim, s.heads, self.prefix)
        self.blocks = nn.ModuleList(
            Block(
                s.dim,
                s.heads,
                norm=s.norm,
                layer_scale=s.layer_scale,
                drop_path=rate,
                pattern=self.pattern,
                layer=layer,
            )
            for layer, rate in enumerate(drop_rates(s.drop_path, s.depth))
        )
        # A post-norm encoder already ends in a norm.
        self.norm = nn.LayerNorm(s.dim, eps=NORM_EPS) if s.norm == "pre" else nn.Identity()
        self._initialise()

    def _initialise(self) -> None:
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        if self.reg_token is not None:
            nn.init.trunc_normal_(self.reg_token, std=0.02)
        initialise_linear(self.blocks)

    def _enter(
        self, pixels: Tensor, keep: Tensor | None = None, hidden: Hidden | None = None
    ) -> tuple[Float[Tensor, "B N_all D"], Grid, Rotation | None]:
        """Input of the first block: class token, registers, patches in row-major order."""
        tokens = self.patch_embed(pixels)
        grid = self.patch_embed.grid(tuple(pixels.shape[2:]))
        if hidden is not None:
            tokens = torch.where(hidden.where[..., None], hidden.token.to(tokens.dtype), tokens)
        added = self.positions.added(grid, tokens, self._present_patches(pixels, keep))
        if added is not None:
            tokens = tokens + added
        rotation = self.positions.rotation(grid, tokens)
        if keep is not None:
            tokens = tokens.gather(1, keep[..., None].expand(-1, -1, self.dim))
            rotation = None if rotation is None else self._rotation_of(rotation, keep)
        first = [self.cls_token] if self.reg_token is None else [self.cls_token, self.reg_token]
        tokens = torch.cat([*(t.expand(tokens.shape[0], -1, -1) for t in first), tokens], dim=1)
        return tokens, grid, rotation

    def _rotation_of(self, rotation: Rotation, keep: Tensor) -> Rotation:
        """Rotations of the prefix and of the patches in ``keep``, separately for each image."""
        prefix = torch.arange(self.prefix, device=keep.device).expand(len(keep), -1)
        rows = torch.cat([prefix, keep + self.prefix], dim=1)
        cos, sin = rotation
        return cos[rows][:, None], sin[rows][:, None]

    def forward(
        self,
        pixels: Float[Tensor, "B C *size"],
        *,
        keep: Int[Tensor, "B M"] | None = None,
        hidden: Hidden | None = None,
    ) -> Features:
        """Compute the features after the final norm.

        Parameters
        ----------
        pixels : Tensor
            [B C *size], normalised.
        keep : Tensor, optional
            [B M], the patches that the encoder gets; the others are left out, and ``tokens`` has M of them.
        hidden : Hidden, optional
            Patches whose content is replaced by a token of the caller's; their positions remain.

        Both only where ``capabilities.maskable``.

        Raises
        ------
        ModelError
            The pixels do not fit the network.
        """
        x, grid, rotation = self._enter(pixels, keep, hidden)
        present = self._present_tokens(pixels, keep)
        for block in self.blocks:
            x = through(block, x, rotation, grid, present, recompute=self.checkpointing)
        x = self.norm(x)
        tokens = x[:, self.prefix :]
        if present is not None:
            tokens = tokens * present[:, 0, 0, self.prefix :, None]
        if self.settings.pool == "cls":
            return Features(cls=x[:, 0], tokens=tokens, grid=grid)
        if present is None:
            return Features(cls=tokens.mean(dim=1), tokens=tokens, grid=grid)
        count = present[..., self.prefix :].sum(dim=(1, 2, 3)).clamp_min(1)
        return Features(cls=tokens.sum(dim=1) / count[:, None], tokens=tokens, grid=grid)

    def projections(self, pixels: Float[Tensor, "B C *size"], layers: Sequence[int]) -> tuple[list[Heads], Grid]:
        """Queries, keys and values of some layers, [B H N_all Dk] each, and the grid of the patches."""
        x, grid, rotation = self._enter(pixels)
        key_mask = self._present_tokens(pixels)
        projections = []
        for index in range(max(layers) + 1):
            block = self._block(index)
            if index in layers:
                projections.append(block.queries_keys_values(x, rotation))
            if index < max(layers):
                x = block(x, rotation, grid, key_mask)
        return projections, grid

    def key_mask(self, pixels: Tensor, grid: Grid, layer: int, rows: Tensor) -> Tensor | None:
        """Which keys these queries see: those of an empty cell are never visible, a sparse pattern hides others."""
        present = self._present_tokens(pixels)
        if present is not None or self.pattern.kind == "full":
            return present
        return visible(self.pattern, grid, self.prefix, layer, rows)

    def without_positions(self) -> ViT:
        """A copy with the same weights whose tokens have no positions."""
        network = copy.deepcopy(self)
        network.positions = Positions("none", self.positions.grid, self.dim, self.heads, self.prefix)
        return network

    def _present_patches(self, pixels: Tensor, keep: Tensor | None) -> Bool[Tensor, "B N"] | None:
        """Patches that the convolution of positions may read: not empty and not left out; None for all."""
        present = self.patch_embed.present(pixels)
        if present is None or keep is None:
            return present
        return present & torch.zeros_like(present).scatter(1, keep, True)

    def _present_tokens(self, pixels: Tensor, keep: Tensor | None = None) -> Bool[Tensor, "B 1 1 N_all"] | None:
        """Tokens that are not empty cells of a grid; None for images, which have none."""
        present = self.patch_embed.present(pixels)
        if present is not None and keep is not None:
            present = present.gather(1, keep)
        return None if present is None else F.pad(present, (self.prefix, 0), value=True)[:, None, None]

    def _block(self, index: int) -> Block:
        block = self.blocks[index]
        assert isinstance(block, Block)
        return block
