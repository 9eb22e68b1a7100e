"""The vision transformer (Dosovitskiy et al. 2021, arXiv:2010.11929), initialised as in DINO and timm.

Registers are Darcet et al. 2024 (arXiv:2309.16588), attention rollout Abnar and Zuidema 2020
(arXiv:2005.00928). Attention is computed on request, for the rows asked for, on the model as trained.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from saccade.base.contracts import Features, Hidden
from saccade.errors import UsageError, unknown
from saccade.models.attention_patterns import parse_pattern
from saccade.models.nn.attention import attention_rows
from saccade.models.nn.blocks import NORM_EPS, Block, drop_rates, through
from saccade.models.nn.patch_embed import PatchEmbed
from saccade.models.nn.positions import Grid, Positions, Rotation
from saccade.models.nn.sparse_attention import visible
from saccade.models.settings import ViTSettings, arguments

HeadFusion = Literal["mean", "max", "min"]
Heads = tuple[Tensor, Tensor, Tensor]
"""Queries, keys and values of one layer, [B H N Dk] each."""
CHUNK_ELEMENTS = 2**24  # attention weights held at once by rollout: 64 MiB in float32


class ViT(nn.Module):
    """Patches, a class token, registers if wanted, and an encoder. Any image or volume size that patches divide.

    checkpointing   forget what a block computes inside and compute it again for the gradients
    Raises UsageError and ModelError for settings that do not fit together.
    """

    def __init__(self, settings: ViTSettings):
        super().__init__()
        s = self.settings = settings
        self.name, self.dim, self.depth, self.heads = s.name, s.dim, s.depth, s.heads
        self.channels, self.patch, self.stride_px = s.channels, s.patch, s.patch
        self.prefix = 1 + s.registers
        self.checkpointing = False
        self.patch_embed = PatchEmbed(s.channels, s.dim, s.patch, stem=s.stem, axes=s.axes)
        self.pattern = parse_pattern(s.attention)
        # A position for prefix tokens would only be a second name for the token itself: they have none.
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
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def config(self) -> dict[str, object]:
        """Arguments of ``backbones.build.build`` that make this network again."""
        return arguments(self.settings)

    def _enter(
        self, pixels: Tensor, keep: Tensor | None = None, hidden: Hidden | None = None
    ) -> tuple[Float[Tensor, "B N_all D"], Grid, Rotation | None]:
        """Tokens as the first block gets them: class token, registers, patches in row-major order."""
        tokens = self.patch_embed(pixels)
        grid = self.patch_embed.grid(tuple(pixels.shape[2:]))
        if hidden is not None:
            tokens = torch.where(hidden.where[..., None], hidden.token.to(tokens.dtype), tokens)
        added = self.positions.added(grid, tokens, self._there(pixels, keep))
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
        """The turns of the prefix and of the patches that are kept, for every image its own."""
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
        """Features after the final norm; ModelError when the pixels do not fit.

        keep     numbers of the patches that the encoder sees; the others are left out, and ``tokens`` has M of them
        hidden   patches whose content is replaced by a token of the caller's, while their place stays known
        Both only where ``settings.maskable``.
        """
        x, grid, rotation = self._enter(pixels, keep, hidden)
        seen = self._seen(pixels, keep)
        for block in self.blocks:
            x = through(block, x, rotation, grid, seen, recompute=self.checkpointing)
        x = self.norm(x)
        tokens = x[:, self.prefix :]
        if seen is not None:  # what stands for nothing says nothing
            tokens = tokens * seen[:, 0, 0, self.prefix :, None]
        if self.settings.pool == "cls":
            return Features(cls=x[:, 0], tokens=tokens, grid=grid)
        if seen is None:
            return Features(cls=tokens.mean(dim=1), tokens=tokens, grid=grid)
        count = seen[..., self.prefix :].sum(dim=(1, 2, 3)).clamp_min(1)
        return Features(cls=tokens.sum(dim=1) / count[:, None], tokens=tokens, grid=grid)

    def attention(
        self, pixels: Float[Tensor, "B C *size"], *, layer: int = -1, rows: Int[Tensor, "R"]
    ) -> Float[Tensor, "B H R N_all"]:
        """Attention weights of a few queries in one layer: 0 the class token, then registers, then patches.

        Every layer runs on its usual path; weights exist for the asked rows only. Raises UsageError for a
        layer or row that is not there.
        """
        if not -self.depth <= layer < self.depth:
            raise UsageError("no such layer", got=layer, expected=f"{-self.depth} to {self.depth - 1}")
        x, grid, rotation = self._enter(pixels)
        self._check_rows(rows, x.shape[1])
        layer %= self.depth
        seen = self._seen(pixels)
        for index in range(layer):
            x = self.blocks[index](x, rotation, grid, seen)
        query, key, _ = self._block(layer).queries_keys_values(x, rotation)
        mask = self._mask(grid, layer, rows.to(query.device)) if seen is None else seen
        return attention_rows(query, key, rows, mask)

    def compared(self, pixels: Float[Tensor, "B C *size"]) -> tuple[list[Heads], Grid]:
        """What every layer compares and hands over, [B H N_all Dk] each, and the grid of the patches.

        Of these, any row of any layer is a product away. Memory is O(depth N D); no weights are made.
        """
        x, grid, rotation = self._enter(pixels)
        seen = self._seen(pixels)
        found = []
        for index in range(self.depth):
            found.append(self._block(index).queries_keys_values(x, rotation))
            if index + 1 < self.depth:
                x = self.blocks[index](x, rotation, grid, seen)
        return found, grid

    def rollout(
        self, pixels: Float[Tensor, "B C *size"], row: int, *, head_fusion: HeadFusion = "mean"
    ) -> Float[Tensor, "B N_all"]:
        """What one token of the last layer draws from every input token: row of the product of (A + I) / 2.

        Taken from the last layer to the first as vector times matrix, in chunks of matrix rows, so no
        N x N matrix is ever held; queries and keys of all layers are. Rows of fused heads are scaled to
        sum 1. Raises UsageError for a row that is not there or an unknown fusion.
        """
        if head_fusion not in get_args(HeadFusion):
            raise unknown("head fusion", str(head_fusion), get_args(HeadFusion))
        compared, grid = self.compared(pixels)
        batch, _, count, _ = compared[0][0].shape
        self._check_rows(torch.tensor([row]), count)
        query, seen = compared[0][0], self._seen(pixels)
        weights = torch.zeros(batch, count, device=query.device, dtype=torch.promote_types(query.dtype, torch.float32))
        weights[:, row] = 1.0
        for index in reversed(range(self.depth)):
            mask = functools.partial(self._mask, grid, index) if seen is None else lambda _: seen
            weights = 0.5 * weights + 0.5 * _through(weights, *compared[index][:2], head_fusion, mask)
        return weights

    def _there(self, pixels: Tensor, keep: Tensor | None) -> Bool[Tensor, "B N"] | None:
        """Patches that may tell their neighbours something: those of a grid that are there and are not left out."""
        present = self.patch_embed.present(pixels)
        if present is None or keep is None:
            return present
        return present & torch.zeros_like(present).scatter(1, keep, True)

    def _seen(self, pixels: Tensor, keep: Tensor | None = None) -> Bool[Tensor, "B 1 1 N_all"] | None:
        """Tokens that stand for something: all of an image (None), of a grid those whose tile is there."""
        present = self.patch_embed.present(pixels)
        if present is not None and keep is not None:
            present = present.gather(1, keep)
        return None if present is None else F.pad(present, (self.prefix, 0), value=True)[:, None, None]

    def _mask(self, grid: Grid, layer: int, rows: Tensor) -> Tensor | None:
        """Which tokens these queries see in one layer; None for all."""
        full = self.pattern.kind == "full"
        return None if full else visible(self.pattern, grid, self.prefix, layer, rows)

    def _block(self, index: int) -> Block:
        block = self.blocks[index]
        assert isinstance(block, Block)
        return block

    def _check_rows(self, rows: Tensor, count: int) -> None:
        if rows.numel() and (int(rows.min()) < 0 or int(rows.max()) >= count):
            raise UsageError(
                "no such token",
                got=f"rows {int(rows.min())} to {int(rows.max())}",
                expected=f"0 to {count - 1}: {self.prefix} class and register tokens, then patches",
            )


def _fuse(weights: Float[Tensor, "B H R N"], head_fusion: HeadFusion) -> Float[Tensor, "B R N"]:
    if head_fusion == "mean":
        return weights.mean(dim=1)
    fused = weights.amax(dim=1) if head_fusion == "max" else weights.amin(dim=1)
    return fused / fused.sum(dim=-1, keepdim=True)


def _through(
    weights: Tensor, query: Tensor, key: Tensor, head_fusion: HeadFusion, mask: Callable[[Tensor], Tensor | None]
) -> Float[Tensor, "B N"]:
    """``weights`` [B N] times the attention matrix [B N N], built a few rows at a time; mask(rows) is what they see."""
    batch, heads, count, _ = query.shape
    size = max(1, CHUNK_ELEMENTS // (batch * heads * count))
    total = torch.zeros_like(weights)
    for start in range(0, count, size):
        rows = torch.arange(start, min(start + size, count), device=query.device)
        part = attention_rows(query, key, rows, mask(rows))
        fused = _fuse(part, head_fusion)
        total += torch.einsum("br,brn->bn", weights[:, rows], fused)
    return total
