"""Attention of any patch, attention rollout, or token similarity, as maps over the patch grid.

Attention of one query as in Caron et al. 2021 (DINO, arXiv:2104.14294), rollout as in Abnar and Zuidema 2020
(arXiv:2005.00928). Networks without attention (CNNs) give the similarity of their tokens instead.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from saccade.base.contracts import Features
from saccade.errors import ModelError, UsageError
from saccade.models.nn.attention import AttentiveNetwork, has_attention
from saccade.models.nn.network import Network
from saccade.viz.patch_maps import AttentionMap, Box, jaccard, threshold_mask, upsample

__all__ = ["AttentionMap", "attention_map", "jaccard", "threshold_mask", "token_similarity", "upsample"]

Query = Literal["cls"] | tuple[int, ...]


def token_similarity(features: Features, row: int | None) -> Float[Tensor, "N"]:
    """Cosine similarity of one token, or of the image vector, with every token.

    Parameters
    ----------
    features : Features
        Of one image.
    row : int, optional
        The token; None is the image vector.

    Returns
    -------
    Tensor
        [N], -1 to 1.

    Examples
    --------
    >>> features = Features(cls=torch.ones(1, 2), tokens=torch.tensor([[[1.0, 1.0], [1.0, -1.0]]]), grid=(1, 2))
    >>> [round(abs(value), 3) for value in token_similarity(features, None).tolist()]
    [1.0, 0.0]
    """
    query = features.cls[0] if row is None else features.tokens[0, row]
    tokens = torch.nn.functional.normalize(features.tokens[0].float(), dim=-1)
    return tokens @ torch.nn.functional.normalize(query.float(), dim=-1)


def attention_map(
    backbone: Network,
    pixels: Float[Tensor, "1 C *size"],
    *,
    query: Query,
    layer: int = -1,
    rollout: bool = False,
) -> AttentionMap:
    """The attention of one query over every patch of one image.

    Parameters
    ----------
    backbone : Backbone
        In eval mode.
    pixels : Tensor
        [1 C *size], normalised as the model's InputSpec says.
    query : "cls" or tuple of int
        The class token, or (y, x), of volumes (z, y, x), in pixels of the input: the patch that contains it.
    layer : int
        0-based, negative counts from the last; for attention only.
    rollout : bool
        Follow the attention through all layers instead of reading one.

    Returns
    -------
    AttentionMap
        Values [H *grid].

    Raises
    ------
    UsageError
        The query lies outside the image, the layer does not exist, or rollout of a network without attention.
    ModelError
        The network's tokens are not positions in the image.
    """
    size_px = tuple(pixels.shape[2:])
    attentive = has_attention(backbone)
    if rollout and not attentive:
        raise UsageError(
            "rollout needs a network with attention",
            got=backbone.name,
            hint="without --rollout the similarity of tokens is shown",
        )
    with torch.inference_mode():
        features = backbone(pixels)
        grid = _check_grid(features, backbone, len(size_px))
        patch = None if query == "cls" else _patch_at(query, grid, size_px)
        if has_attention(backbone):
            row = _token_row(backbone, patch)
            used = None if rollout else backbone.layer_index(layer)
            weights = backbone.rollout(pixels, row) if used is None else _rows(backbone, pixels, used, row)
            n_keys = weights.shape[1] if used is None else _n_keys(backbone, pixels, grid, used, row)
            patches, first = weights[:, backbone.prefix :], weights[:, : backbone.prefix].sum(dim=1)
        else:
            n_keys = None
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
        n_keys=n_keys,
    )


def _n_keys(backbone: AttentiveNetwork, pixels: Tensor, grid: tuple[int, ...], layer: int, row: int) -> int:
    """Number of keys that a query sees in a layer."""
    mask = backbone.key_mask(pixels, grid, layer, torch.tensor([row], device=pixels.device))
    return backbone.prefix + math.prod(grid) if mask is None else int(mask.reshape(-1, mask.shape[-1])[0].sum())


def _rows(backbone: AttentiveNetwork, pixels: Tensor, layer: int, row: int) -> Float[Tensor, "H N_all"]:
    rows = torch.tensor([row], device=pixels.device)
    return backbone.attention(pixels, layer=layer, rows=rows)[0, :, 0]


def _check_grid(features: Features, backbone: Network, axes: int) -> tuple[int, ...]:
    if not backbone.capabilities.has_tokens or len(features.grid) != axes:
        raise ModelError(
            f"the tokens of {backbone.name} are not positions in the image",
            got=f"a grid of {features.grid}" if backbone.capabilities.has_tokens else "no tokens",
            expected=f"a grid with {axes} axes",
        )
    return tuple(int(length) for length in features.grid)


def _patch_at(query: tuple[int, ...] | str, grid: tuple[int, ...], size_px: tuple[int, ...]) -> int:
    """Index, in row-major order, of the patch that contains the pixel."""
    names = "zyx"[-len(grid) :]
    if isinstance(query, str) or len(query) != len(grid):
        raise UsageError("invalid query", got=query, expected=f'"cls" or ({", ".join(names)}) in pixels')
    if not all(0 <= at < length for at, length in zip(query, size_px)):
        raise UsageError(
            "the query lies outside the image",
            got=", ".join(f"{name}={at}" for name, at in zip(names, query)),
            expected=" and ".join(f"0 <= {name} < {length}" for name, length in zip(names, size_px))
            + ", in pixels of the network's input",
        )
    cells = [at * length // side for at, length, side in zip(query, grid, size_px)]
    return int(np.ravel_multi_index(cells, grid))


def _token_row(backbone: AttentiveNetwork, patch: int | None) -> int:
    if patch is not None:
        return backbone.prefix + patch
    if backbone.prefix == 0:
        raise UsageError("this network has no class token", hint="choose a patch: --query Y,X")
    return 0


def _box(patch: int, grid: tuple[int, ...], size_px: tuple[int, ...]) -> Box:
    """Start of a patch along each axis, then its extent."""
    cells = [int(cell) for cell in np.unravel_index(patch, grid)]
    starts = [-(-cell * side // length) for cell, side, length in zip(cells, size_px, grid)]
    ends = [-(-(cell + 1) * side // length) for cell, side, length in zip(cells, size_px, grid)]
    return (*starts, *(end - start for start, end in zip(starts, ends)))
