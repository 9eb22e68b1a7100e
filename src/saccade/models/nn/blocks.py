"""One layer of a transformer encoder, with the norm before (ViT) or after (Vaswani et al. 2017) each part.

LayerScale is Touvron et al. 2021 (arXiv:2103.17239), stochastic depth Huang et al. 2016 (arXiv:1603.09382).
Names of parameters are timm's, so that its weights load.
"""

from __future__ import annotations

import math
from typing import get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from saccade.base.contracts import Grid
from saccade.errors import ModelError, unknown
from saccade.models.attention_patterns import FULL, Pattern
from saccade.models.nn.attention import attend
from saccade.models.nn.positions import Rotation, rotate
from saccade.models.nn.sparse_attention import attend_local
from saccade.models.settings import Norm

NORM_EPS = 1e-6


class LayerScale(nn.Module):
    """A learned factor for every channel of a residual branch, small at the start."""

    def __init__(self, dim: int, initial: float):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), initial))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class DropPath(nn.Module):
    """Drop a residual branch for random samples; the others are scaled to keep the mean."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        if not self.training or self.rate == 0.0:
            return x
        keep = torch.rand(x.shape[0], 1, 1, device=x.device) >= self.rate
        return x * (keep / (1 - self.rate)).to(x.dtype)


def drop_rates(last: float, depth: int) -> list[float]:
    """Rates of stochastic depth, rising linearly from 0 in the first block to ``last``.

    Examples
    --------
    >>> drop_rates(0.2, 3)
    [0.0, 0.1, 0.2]
    """
    return [last * layer / max(1, depth - 1) for layer in range(depth)]


def initialise_linear(part: nn.Module) -> None:
    """Initialise all linear layers of a part: normal with standard deviation 0.02, truncated; biases 0."""
    for module in part.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def through(block: nn.Module, x: Tensor, *others: object, recompute: bool) -> Tensor:
    """``block(x, *others)``; with ``recompute``, activations are recomputed in the backward pass instead of stored.

    Chen et al. 2016 (arXiv:1604.06174): one tensor per block is stored instead of about sixteen, for a third more time.
    """
    if recompute and torch.is_grad_enabled():
        output: Tensor = checkpoint(block, x, *others, use_reentrant=False)
        return output
    return block(x, *others)


class Mlp(nn.Module):
    """Two linear layers with GELU between them."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class Attention(nn.Module):
    """Multi-head self-attention. Parameters are laid out as in timm: ``qkv`` and ``proj``.

    pattern   which tokens see which (see ``saccade.models.attention_patterns``)
    layer     index of the block; windows are shifted in odd layers
    """

    def __init__(self, dim: int, heads: int, pattern: Pattern = FULL, layer: int = 0):
        super().__init__()
        if dim % heads:
            raise ModelError(
                "the width is not divisible by the number of heads",
                got=f"{heads} heads",
                expected=f"a divisor of {dim}",
                hint="change the width or the heads",
            )
        self.heads, self.pattern, self.layer = heads, pattern, layer
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def split(
        self, tokens: Float[Tensor, "B N D"], rotation: Rotation | None
    ) -> tuple[Float[Tensor, "B H N Dk"], Float[Tensor, "B H N Dk"], Float[Tensor, "B H N Dk"]]:
        """Queries, keys and values of every head; queries and keys rotated by their positions."""
        batch, count, dim = tokens.shape
        qkv = self.qkv(tokens).view(batch, count, 3, self.heads, dim // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        if rotation is not None:
            query, key = rotate(query, rotation), rotate(key, rotation)
        return query, key, value

    def forward(
        self,
        tokens: Float[Tensor, "B N D"],
        rotation: Rotation | None = None,
        grid: Grid | None = None,
        key_mask: Bool[Tensor, "B 1 1 N"] | None = None,
    ) -> Float[Tensor, "B N D"]:
        """Attention among tokens.

        ``grid``, of the patches, which come last, is for sparse patterns; ``key_mask``, True for visible tokens, for
        full attention.
        """
        query, key, value = self.split(tokens, rotation)
        if self.pattern.kind == "full" or grid is None:
            mixed = attend(query, key, value, mask=key_mask)
        else:
            prefix = tokens.shape[1] - math.prod(grid)
            mixed = attend_local(query, key, value, pattern=self.pattern, grid=grid, prefix=prefix, layer=self.layer)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and MLP, each with a residual path. ``layer_scale`` None leaves LayerScale out.

    Raises UsageError for an unknown norm.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        norm: Norm = "pre",
        mlp_ratio: int = 4,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
        pattern: Pattern = FULL,
        layer: int = 0,
    ):
        super().__init__()
        if norm not in get_args(Norm):
            raise unknown("norm", str(norm), get_args(Norm))
        self.norm = norm
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn = Attention(dim, heads, pattern, layer)
        self.ls1 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = Mlp(dim, mlp_ratio * dim)
        self.ls2 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.drop_path = DropPath(drop_path)

    def queries_keys_values(
        self, x: Float[Tensor, "B N D"], rotation: Rotation | None
    ) -> tuple[Float[Tensor, "B H N Dk"], Float[Tensor, "B H N Dk"], Float[Tensor, "B H N Dk"]]:
        """Queries, keys and values of the attention of this block."""
        return self.attn.split(self.norm1(x) if self.norm == "pre" else x, rotation)

    def forward(
        self,
        x: Float[Tensor, "B N D"],
        rotation: Rotation | None = None,
        grid: Grid | None = None,
        key_mask: Bool[Tensor, "B 1 1 N"] | None = None,
    ) -> Float[Tensor, "B N D"]:
        if self.norm == "pre":
            x = x + self.drop_path(self.ls1(self.attn(self.norm1(x), rotation, grid, key_mask)))
            return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))
        x = self.norm1(x + self.drop_path(self.ls1(self.attn(x, rotation, grid, key_mask))))
        return self.norm2(x + self.drop_path(self.ls2(self.mlp(x))))
