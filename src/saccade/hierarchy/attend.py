"""Where a hierarchy looks: one map a level over a slide, and the product of all of them.

Inside a tile the class token of the tile network over its patches, in a region the region network's over its tiles, on
the slide the slide level's (or a trained head's) over its regions. A composed map multiplies a region's share of the
slide with a tile's share of its region; as in figure 3 of Chen et al. 2022.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from saccade import runtime
from saccade.attention.slide import Level, SlideAttention, SlideOptions
from saccade.attention.slide import attend_slide as look_at_slide
from saccade.data.feature_grids import Block, cells_of, cut_blocks, fill
from saccade.data.slide_features import SlideFeatures, load_parquet, step_of
from saccade.errors import DataError, UsageError, unknown
from saccade.hierarchy.embed_regions import Reader
from saccade.hierarchy.evaluate_slides import embed_levels, slides_of
from saccade.hierarchy.head_io import load_head
from saccade.hierarchy.heads import Bags, FittedHead
from saccade.hierarchy.settings import is_hierarchy
from saccade.hierarchy.train_levels import Hierarchy, load, tile_embedder
from saccade.models.nn.attention import has_attention
from saccade.train.loop import Console
from saccade.viz.heatmap import TileScores

CLS = torch.tensor([0])
LEVELS = ("region", "tile", "composed", "patch")
UNWEIGHTED = "no attention over regions: this hierarchy has no slide level and no trained head"


@dataclass(frozen=True)
class SlideMaps:
    """Attention maps of one slide, in multiples of uniform attention: over the slide for regions, over its region for
    tiles.

    Parameters
    ----------
    region : TileScores or None
        Weight of each region; None without a slide level or a trained head.
    tile : TileScores
        Attention to each tile within its region.
    composed : TileScores
        Weight of the region times attention to the tile.
    text : str
        What the maps show, for people.
    """

    region: TileScores | None
    tile: TileScores
    composed: TileScores
    text: str

    def named(self) -> dict[Level, TileScores]:
        """The maps by level, without that of regions where it would be uniform."""
        maps: dict[Level, TileScores] = {} if self.region is None else {"region": self.region}
        return maps | {"tile": self.tile, "composed": self.composed}


def as_input(reader: Reader, grids: np.ndarray) -> torch.Tensor:
    """Grids [B D+1 Y X] as input of the network, on its device; puts the network into evaluation mode."""
    device = runtime.pick_device()
    reader.model.backbone.to(device).eval()
    return reader.as_input(grids).to(device)


def attention_fractions(reader: Reader, grids: np.ndarray) -> np.ndarray:
    """Attention of the class token to each tile in the last layer [B Y X], mean over heads, summing to 1 per grid."""
    x, network = as_input(reader, grids), reader.model.backbone
    assert has_attention(network)
    with torch.inference_mode():
        rows = network.attention(x, layer=-1, rows=CLS)[:, :, 0, network.prefix :].mean(dim=1)
    fractions = rows.float().cpu().numpy().reshape(len(grids), *grids.shape[2:])
    return fractions / np.maximum(fractions.sum(axis=(1, 2), keepdims=True), 1e-12)


def tile_fractions(hierarchy: Hierarchy, tiles: SlideFeatures, blocks: list[Block]) -> list[np.ndarray]:
    """For every region the attention to each of its tiles, in the order of ``block.rows``."""
    cells, fractions = cells_of(tiles), []
    for block in blocks:
        share = attention_fractions(hierarchy.region, fill(tiles, cells, block)[None])[0]
        y, x = cells[block.rows, 0] - block.top, cells[block.rows, 1] - block.left
        fractions.append(share[y, x])
    return fractions


def region_fractions(hierarchy: Hierarchy, regions: SlideFeatures, head: FittedHead | None) -> tuple[np.ndarray, str]:
    """Weight of every region of the slide [R], summing to 1, and its source (head, slide level, or uniform)."""
    cells = cells_of(regions)
    block = cut_blocks(Path("slide"), cells, 0, 0.0)[0]
    grid = fill(regions, cells, block)
    y, x = cells[:, 0] - block.top, cells[:, 1] - block.left
    if head is not None:
        return head.weights(Bags(grid[None]))[0][y, x], "the trained head"
    if hierarchy.slide is not None:
        return attention_fractions(hierarchy.slide, grid[None])[0][y, x], "the slide level"
    even = np.full(len(cells), 1 / len(cells), np.float32)
    return even, "uniform weights (no slide level, no trained head)"


@dataclass(frozen=True)
class Weights:
    """Weights of regions and tiles of one slide, in multiples of uniform weight.

    Parameters
    ----------
    who : str
        Source of the region weights.
    region : ndarray [R]
        Weight of each region.
    rows : ndarray [n]
        Indices of the tiles that are in a region, region after region.
    tile, composed : ndarray [n]
        Weight of each of these tiles within its region, and within the slide.
    """

    who: str
    region: np.ndarray
    rows: np.ndarray
    tile: np.ndarray
    composed: np.ndarray


def weigh(
    hierarchy: Hierarchy, tiles: SlideFeatures, regions: SlideFeatures, blocks: list[Block], head: FittedHead | None
) -> Weights:
    """The weights of the regions of one slide and of their tiles."""
    by_region, who = region_fractions(hierarchy, regions, head)
    by_tile = tile_fractions(hierarchy, tiles, blocks)
    rows = np.concatenate([block.rows for block in blocks])
    inside = np.concatenate([share * len(share) for share in by_tile])
    # In multiples of the even share of the region: tiles are not raised because their region holds few of them.
    composed = np.concatenate([share * len(share) * weight for share, weight in zip(by_tile, by_region)])
    composed *= len(rows) / composed.sum()
    return Weights(who, by_region * len(blocks), rows, inside, composed)


def attend_slide(hierarchy: Hierarchy, tile_file: Path, region_file: Path, head: FittedHead | None) -> SlideMaps:
    """Maps of one slide from its files of tile and region vectors. Raises DataError where these do not match."""
    tiles, regions = load_parquet(tile_file), load_parquet(region_file)
    down, across = step_of(tiles.about)
    blocks = cut_blocks(tile_file, cells_of(tiles), hierarchy.side, hierarchy.min_tissue)
    if len(blocks) != len(regions.coords):
        raise DataError(
            f"{region_file} does not belong to {tile_file}",
            got=f"{len(regions.coords)} regions",
            expected=f"{len(blocks)}",
            hint="remove it, and embed the slide again",
        )
    weights = weigh(hierarchy, tiles, regions, blocks, head)
    coords, side = tiles.coords[weights.rows], hierarchy.side
    tile = TileScores("attention of each region over its tiles", coords, across, weights.tile, down)
    text, left_out = f"{len(blocks):,} regions of {side} x {side} tiles", len(tiles) - len(coords)
    if is_weighed(hierarchy, head):
        region = TileScores(
            f"weight of each region, by {weights.who}", regions.coords, across * side, weights.region, down * side
        )
        composed = TileScores("weight of the region x attention to the tile", coords, across, weights.composed, down)
        text += f", weighed by {weights.who}"
    else:
        region = None
        composed = TileScores("attention to the tile, regions weighted equally", coords, across, weights.composed, down)
        text += f"; {UNWEIGHTED}"
    if left_out:
        text += f"\n{left_out:,} of {len(tiles):,} tiles are in regions with too little tissue and are skipped"
    return SlideMaps(region, tile, composed, text)


def is_weighed(hierarchy: Hierarchy, head: FittedHead | None) -> bool:
    """Whether regions have weights: from a slide level or a trained head."""
    return head is not None or hierarchy.slide is not None


def attend(
    model: Path, slide: str, level: str | None, tiling: Mapping[str, Any], console: Console, *, max_bad: float = 0.05
) -> list[SlideAttention]:
    """Attention maps of one slide.

    Parameters
    ----------
    model : Path
        A hierarchy, or a run of ``finetune`` on one, whose head then gives the weights of regions.
    slide : str
        The slide.
    level : {"region", "tile", "composed", "patch"} or None
        The map to make; None makes all but ``patch``, and leaves out ``region`` where regions have no weights.
    tiling : mapping
        ``data.slide_mpp``: resolution of a slide whose file has none.
    max_bad : float
        Fraction of the tiles that may be unreadable; they are skipped.

    Raises
    ------
    UsageError
        Unknown level, ``region`` without weights of regions, or more than one slide.
    """
    head = load_head(model) if not is_hierarchy(model) else None
    hierarchy = load(model if head is None else head.hierarchy)
    if level not in (None, *LEVELS):
        raise unknown("level", str(level), LEVELS)
    if level == "region" and not is_weighed(hierarchy, None if head is None else head.head):
        raise UsageError(
            f"{model}: {UNWEIGHTED}",
            expected="--level tile, composed or patch",
            hint=f"saccade finetune {model} SLIDES --out HEADS trains a head, saccade attend HEADS shows its weights",
        )
    tiles = slides_of(hierarchy.run, slide, tiling)
    if len(tiles.entries) != 1:
        raise UsageError("attend takes one slide", got=f"{len(tiles.entries)} slides")
    if level == "patch":
        folder = hierarchy.run / "features" / "tile"
        embedder = tile_embedder(hierarchy.tile, tiles, folder, say=console.say, max_bad=max_bad)
        return [look_at_slide(embedder, SlideOptions(level="patch"), lambda a, b: console.progress(a, b, {}))]
    embedded = embed_levels(hierarchy, tiles, console, max_bad=max_bad)
    maps = attend_slide(hierarchy, embedded.tiles[0], embedded.regions[0], None if head is None else head.head)
    console.say(maps.text)
    name = f"{hierarchy.run.name} (hierarchy)"
    return [
        SlideAttention(tiles.slides[0], heat, name, SlideOptions(level=map_level))
        for map_level, heat in maps.named().items()
        if level in (None, map_level)
    ]
