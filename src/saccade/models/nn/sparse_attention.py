"""Sparse and local attention, exact, without the full attention matrix.

The patterns and their papers are in ``saccade.models.attention_patterns``. Queries are processed tile by tile together
with the keys that a tile needs, prefix tokens among them; a mask hides the keys that a single query does not see. Time
and memory grow with the number of tokens for windows and neighbourhoods, with its 1.5th power for axial attention of a
square grid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saccade.base.contracts import Grid
from saccade.models.attention_patterns import Pattern, Segment, nearest_start, parts
from saccade.models.nn.attention import attend
from saccade.models.nn.positions import coordinates

# --- the definition ------------------------------------------------------------------------------


def visible(pattern: Pattern, grid: Grid, prefix: int, layer: int, rows: Int[Tensor, "R"]) -> Bool[Tensor, "R N"]:
    """Mask of the keys (prefix tokens first) that some queries see; memory is O(R N)."""
    places = coordinates(grid, rows.device).long()
    count = prefix + len(places)
    if pattern.kind == "full":
        return torch.ones(len(rows), count, dtype=torch.bool, device=rows.device)
    mask = torch.ones(len(rows), count, dtype=torch.bool, device=rows.device)
    patches = rows >= prefix
    mask[patches, prefix:] = _visible_pairs(pattern, grid, layer, places[rows[patches] - prefix], places)
    return mask


def dense_mask(pattern: Pattern, grid: Grid, prefix: int, layer: int) -> Bool[Tensor, "N N"]:
    """The mask of all queries, for tests and small grids."""
    return visible(pattern, grid, prefix, layer, torch.arange(prefix + math.prod(grid)))


def _visible_pairs(
    pattern: Pattern, grid: Grid, layer: int, queries: Int[Tensor, "R A"], keys: Int[Tensor, "N A"]
) -> Bool[Tensor, "R N"]:
    q, k, reach = queries[:, None], keys[None], pattern.reach
    if pattern.kind == "axial":
        return (q != k).sum(dim=-1) <= 1
    if pattern.kind == "strided":
        return (q // reach == k // reach).all(dim=-1) | (q % reach == k % reach).all(dim=-1)
    if pattern.kind == "window":
        first = reach // 2 if layer % 2 else 0
        moved = reach - first if first else 0
        return ((q + moved) // reach == (k + moved) // reach).all(dim=-1)
    starts = [torch.tensor([nearest_start(i, reach, n) for i in range(n)], device=q.device) for n in grid]
    begin = torch.stack([start[q[..., a]] for a, start in enumerate(starts)], dim=-1)
    return ((k >= begin) & (k < begin + reach)).all(dim=-1)


# --- tables --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tiles:
    """One part of a pattern: T tiles of Q queries and K keys.

    Parameters
    ----------
    shape : tuple of int
        (T, Q, K).
    queries, keys : Tensor
        [T*Q] and [T*K], indices of patches, negative for prefix tokens; short tiles repeat their first token.
    mask : Tensor or None
        [T Q K], None where every query of a tile sees every key.
    position : Tensor
        [N], the position of each patch among the queries.
    """

    shape: tuple[int, int, int]
    queries: Int[Tensor, "TQ"]
    keys: Int[Tensor, "TK"]
    mask: Bool[Tensor, "T Q K"] | None
    position: Int[Tensor, "N"]


def _padded(lists: Sequence[Sequence[int]]) -> tuple[Int[Tensor, "S L"], Bool[Tensor, "S L"]]:
    longest = max(map(len, lists))
    values = torch.tensor([[*items, *[items[0]] * (longest - len(items))] for items in lists])
    real = torch.tensor([[True] * len(items) + [False] * (longest - len(items)) for items in lists])
    return values, real


def _product(axes: Sequence[Tensor], grid: Grid) -> Int[Tensor, "T L"]:
    """Row-major indices in the grid of all combinations of positions [S_a L_a] along the axes."""
    product = torch.zeros(1, 1, dtype=torch.long)
    for positions, length in zip(axes, grid):
        combined = product[:, None, :, None] * length + positions[None, :, None, :]
        product = combined.flatten(2).flatten(0, 1)
    return product


def _all_valid(axes: Sequence[Tensor]) -> Bool[Tensor, "T L"]:
    valid = torch.ones(1, 1, dtype=torch.bool)
    for real in axes:
        valid = (valid[:, None, :, None] & real[None, :, None, :]).flatten(2).flatten(0, 1)
    return valid


@lru_cache(maxsize=64)
def tables(pattern: Pattern, grid: Grid, prefix: int, odd_layer: bool, device: torch.device) -> tuple[Tiles, ...]:
    """Every part of a pattern on one grid; each pair of query and key is in exactly one of them."""
    with torch.inference_mode(False):  # cached tensors must be usable in training
        return tuple(
            _tiles(pattern, part, grid, 0 if number else prefix, number, device)
            for number, part in enumerate(parts(pattern, grid, int(odd_layer)))
        )


def _tiles(
    pattern: Pattern, part: list[list[Segment]], grid: Grid, prefix: int, number: int, device: torch.device
) -> Tiles:
    cut_queries, cut_keys = ([_padded([s[side] for s in axis]) for axis in part] for side in (0, 1))
    queries, keys = (_product([values for values, _ in cut], grid) for cut in (cut_queries, cut_keys))
    real_queries, real_keys = (_all_valid([real for _, real in cut]) for cut in (cut_queries, cut_keys))
    places = coordinates(grid).long()
    mask = real_keys[:, None] & _in_part(pattern, number, grid, places[queries], places[keys])
    # A query of padding would have no key, and its softmax would be NaN.
    mask = mask | ~real_queries[:, :, None]
    if prefix:
        first = torch.arange(prefix).expand(len(keys), prefix)
        keys = torch.cat([first - prefix, keys], dim=1)
        mask = torch.cat([mask.new_ones(*mask.shape[:2], prefix), mask], dim=2)
    position = torch.empty(math.prod(grid), dtype=torch.long)
    position[queries[real_queries]] = torch.arange(queries.numel()).view_as(queries)[real_queries]
    return Tiles(
        (len(queries), queries.shape[1], keys.shape[1]),
        queries.flatten().to(device),
        keys.flatten().to(device),
        None if mask.all() else mask.to(device),
        position.to(device),
    )


def _in_part(
    pattern: Pattern, number: int, grid: Grid, queries: Int[Tensor, "T Q A"], keys: Int[Tensor, "T K A"]
) -> Bool[Tensor, "T Q K"]:
    """Mask of the pairs that belong to a part: those of the pattern, without those of an earlier part."""
    q, k = queries[:, :, None], keys[:, None]
    if pattern.kind == "neighbourhood":
        starts = [torch.tensor([nearest_start(i, pattern.reach, n) for i in range(n)]) for n in grid]
        begin = torch.stack([start[queries[..., a]] for a, start in enumerate(starts)], dim=-1)[:, :, None]
        return ((k >= begin) & (k < begin + pattern.reach)).all(dim=-1)
    if number == 0:
        return torch.ones(len(queries), queries.shape[1], keys.shape[1], dtype=torch.bool)
    if pattern.kind == "strided":
        return (q // pattern.reach != k // pattern.reach).any(dim=-1)
    return (q != k).any(dim=-1)


# --- attention -----------------------------------------------------------------------------------


def attend_local(
    query: Float[Tensor, "B H N Dk"],
    key: Float[Tensor, "B H N Dk"],
    value: Float[Tensor, "B H N Dv"],
    *,
    pattern: Pattern,
    grid: Grid,
    prefix: int,
    layer: int,
) -> Float[Tensor, "B H N Dv"]:
    """softmax(Q K^T / sqrt(Dk)) V over the keys that each query sees; N counts prefix tokens and patches.

    Equal to ``attend`` with ``dense_mask``.
    """
    batch, heads = query.shape[:2]
    prefix_output = attend(query[:, :, :prefix], key, value) if prefix else None
    q, k, v = query[:, :, prefix:].flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1)
    cut = tables(pattern, grid, prefix, layer % 2 == 1, query.device)
    patches = _one_part(q, k, v, cut[0], prefix) if len(cut) == 1 else _several_parts(q, k, v, cut, prefix)
    patches = patches.unflatten(0, (batch, heads))
    return patches if prefix_output is None else torch.cat([prefix_output, patches], dim=2)


def _one_part(q: Tensor, k: Tensor, v: Tensor, tiles: Tiles, prefix: int) -> Float[Tensor, "BH N Dv"]:
    count, queries, keys = tiles.shape
    # Tiles take the role of heads: each has its own mask.
    tile_queries = q.index_select(1, tiles.queries).unflatten(1, (count, queries))
    seen_k, seen_v = (x.index_select(1, tiles.keys + prefix).unflatten(1, (count, keys)) for x in (k, v))
    mixed = attend(tile_queries, seen_k, seen_v, mask=tiles.mask)
    return mixed.flatten(1, 2).index_select(1, tiles.position)


def _several_parts(q: Tensor, k: Tensor, v: Tensor, cut: Sequence[Tiles], prefix: int) -> Float[Tensor, "BH N Dv"]:
    """One softmax over the scores of all parts, then the weighted sum of the values of each part."""
    scores = [_scores(q, k, tiles, prefix) for tiles in cut]
    weights = torch.softmax(torch.cat(scores, dim=-1), dim=-1).to(v.dtype).split([t.shape[2] for t in cut], dim=-1)
    total: Tensor | float = 0.0
    for tiles, part_weights in zip(cut, weights):
        count, queries, keys = tiles.shape
        tile_values = v.index_select(1, tiles.keys + prefix).unflatten(1, (count, keys))
        tiled = part_weights.index_select(1, tiles.queries).unflatten(1, (count, queries))
        total = total + (tiled @ tile_values).flatten(1, 2).index_select(1, tiles.position)
    assert isinstance(total, Tensor)
    return total


def _scores(q: Tensor, k: Tensor, tiles: Tiles, prefix: int) -> Float[Tensor, "BH N K"]:
    count, queries, keys = tiles.shape
    tile_queries = (q * q.shape[-1] ** -0.5).index_select(1, tiles.queries).unflatten(1, (count, queries))
    scores = tile_queries @ k.index_select(1, tiles.keys + prefix).unflatten(1, (count, keys)).transpose(-2, -1)
    if tiles.mask is not None:
        scores = scores.masked_fill(~tiles.mask, float("-inf"))
    return scores.flatten(1, 2).index_select(1, tiles.position)
