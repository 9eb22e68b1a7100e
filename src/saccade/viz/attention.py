"""Where does the model look? Attention of any patch, attention rollout, or token similarity.

Self-attention of one query as in Caron et al. 2021 (DINO, arXiv:2104.14294), rollout as in Abnar and Zuidema
2020 (arXiv:2005.00928). Networks without attention (CNNs) are asked how alike their own tokens are instead.
"""

from __future__ import annotations

from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from saccade.contracts import Backbone, Features
from saccade.errors import ModelError, UsageError
from saccade.viz.maps import AttentionMap, Box, jaccard, threshold_mask, upsample

__all__ = ["AttentionMap", "attention_map", "jaccard", "threshold_mask", "token_similarity", "upsample"]

Query = Literal["cls"] | tuple[int, int]


@runtime_checkable
class Attentive(Protocol):
    """A backbone with attention: rows of any layer on request, class and register tokens first."""

    prefix: int
    depth: int
    heads: int

    def attention(self, pixels: Tensor, *, layer: int, rows: Tensor) -> Tensor: ...

    def rollout(self, pixels: Tensor, row: int) -> Tensor: ...


def token_similarity(features: Features, row: int | None) -> Float[Tensor, "N"]:
    """Cosine similarity of one token (or, for None, of the image's own vector) with every token; -1 to 1."""
    query = features.cls[0] if row is None else features.tokens[0, row]
    tokens = torch.nn.functional.normalize(features.tokens[0].float(), dim=-1)
    return tokens @ torch.nn.functional.normalize(query.float(), dim=-1)


def attention_map(
    backbone: Backbone,
    pixels: Float[Tensor, "1 C Y X"],
    *,
    query: Query,
    layer: int = -1,
    rollout: bool = False,
) -> AttentionMap:
    """What one query of one image takes from every patch.

    pixels   normalised as the model's InputSpec says; the backbone should be in eval mode
    query    "cls", or (y, x) in pixels of the input: the patch that holds this pixel asks
    layer    0-based, negative counts from the last; only for attention
    rollout  follow the attention through all layers instead of reading one
    Raises UsageError for a query outside the image, a layer that is not there, or rollout of a network
    without attention; ModelError when the network's tokens are not a plane.
    """
    size_px = (int(pixels.shape[-2]), int(pixels.shape[-1]))
    attentive = isinstance(backbone, Attentive)
    if rollout and not attentive:
        raise UsageError(
            "rollout needs a network with attention",
            got=backbone.name,
            hint="leave out --rollout: the similarity of tokens is shown instead",
        )
    with torch.inference_mode():
        features = backbone(pixels)
        grid = _plane(features, backbone)
        patch = None if query == "cls" else _patch_at(query, grid, size_px)
        if isinstance(backbone, Attentive):
            row = _token_row(backbone, patch)
            used = None if rollout else _layer(backbone, layer)
            whole = backbone.rollout(pixels, row) if used is None else _rows(backbone, pixels, used, row)
            patches, first = whole[:, backbone.prefix :], whole[:, : backbone.prefix].sum(dim=1)
        else:
            used, patches, first = None, token_similarity(features, patch)[None], torch.zeros(1)
    values = patches.float().cpu().numpy().reshape(-1, *grid).astype(np.float32)
    return AttentionMap(
        values=values,
        mean=values.mean(axis=0),
        grid=grid,
        size_px=size_px,
        query_box=None if patch is None else _box(patch, grid, size_px),
        kind="rollout" if rollout else "attention" if attentive else "similarity",
        prefix_share=first.float().cpu().numpy(),
        layer=used,
    )


def _rows(backbone: Attentive, pixels: Tensor, layer: int, row: int) -> Float[Tensor, "H N_all"]:
    rows = torch.tensor([row], device=pixels.device)
    return backbone.attention(pixels, layer=layer, rows=rows)[0, :, 0]


def _plane(features: Features, backbone: Backbone) -> tuple[int, int]:
    if len(features.grid) != 2:
        raise ModelError(
            f"the tokens of {backbone.name} are not a plane",
            got=f"a grid of {features.grid}",
            expected="rows, columns",
        )
    return int(features.grid[0]), int(features.grid[1])


def _patch_at(query: tuple[int, int] | str, grid: tuple[int, int], size_px: tuple[int, int]) -> int:
    """Index, in row-major order, of the patch that holds the pixel."""
    if isinstance(query, str):
        raise UsageError("the query does not fit", got=query, expected='"cls" or (y, x) in pixels')
    y, x = query
    if not (0 <= y < size_px[0] and 0 <= x < size_px[1]):
        raise UsageError(
            "the query lies outside the image",
            got=f"y={y}, x={x}",
            expected=f"0 <= y < {size_px[0]} and 0 <= x < {size_px[1]}, in pixels of the network's input",
        )
    return int(y * grid[0] // size_px[0]) * grid[1] + int(x * grid[1] // size_px[1])


def _token_row(backbone: Attentive, patch: int | None) -> int:
    if patch is not None:
        return backbone.prefix + patch
    if backbone.prefix == 0:
        raise UsageError("this network has no class token to ask", hint="ask a patch: --query Y,X")
    return 0


def _layer(backbone: Attentive, layer: int) -> int:
    if not -backbone.depth <= layer < backbone.depth:
        raise UsageError("no such layer", got=layer, expected=f"{-backbone.depth} to {backbone.depth - 1}")
    return layer % backbone.depth


def _box(patch: int, grid: tuple[int, int], size_px: tuple[int, int]) -> Box:
    row, column = divmod(patch, grid[1])
    top, left = -(-row * size_px[0] // grid[0]), -(-column * size_px[1] // grid[1])
    bottom, right = -(-(row + 1) * size_px[0] // grid[0]), -(-(column + 1) * size_px[1] // grid[1])
    return top, left, bottom - top, right - left
