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
NOBODY = "nobody weighs them: there is neither a slide level nor a trained head"


@dataclass(frozen=True)
class SlideMaps:
    """The maps of one slide. 1 is what an even share would be: of the slide for a region, of its region for a tile.

    region   None where nobody weighs the regions: all would be 1      text   what was weighed, and by whom
    """

    region: TileScores | None
    tile: TileScores
    composed: TileScores
    text: str

    def named(self) -> dict[Level, TileScores]:
        """The maps by their level, without those that say nothing."""
        found: dict[Level, TileScores] = {} if self.region is None else {"region": self.region}
        return found | {"tile": self.tile, "composed": self.composed}


def as_input(reader: Reader, grids: np.ndarray) -> torch.Tensor:
    """Grids [B D+1 Y X] as the network is given them, on its device, and the network ready to answer."""
    device = runtime.pick_device()
    reader.model.backbone.to(device).eval()
    return reader.as_input(grids).to(device)


def shares(reader: Reader, grids: np.ndarray) -> np.ndarray:
    """[B Y X]: what the class token takes from every tile in the last layer, mean over heads; sum 1 over the tiles."""
    x, network = as_input(reader, grids), reader.model.backbone
    assert has_attention(network)
    with torch.inference_mode():
        rows = network.attention(x, layer=-1, rows=CLS)[:, :, 0, network.prefix :].mean(dim=1)
    found = rows.float().cpu().numpy().reshape(len(grids), *grids.shape[2:])
    return found / np.maximum(found.sum(axis=(1, 2), keepdims=True), 1e-12)


def tile_shares(hierarchy: Hierarchy, tiles: SlideFeatures, blocks: list[Block]) -> list[np.ndarray]:
    """For every region the share of each of its tiles, in the order of ``block.rows``."""
    cells, found = cells_of(tiles), []
    for block in blocks:
        share = shares(hierarchy.region, fill(tiles, cells, block)[None])[0]
        y, x = cells[block.rows, 0] - block.top, cells[block.rows, 1] - block.left
        found.append(share[y, x])
    return found


def region_shares(hierarchy: Hierarchy, regions: SlideFeatures, head: FittedHead | None) -> tuple[np.ndarray, str]:
    """The share of every region of the slide, and by whom: a trained head, the slide level, or nobody (all alike)."""
    cells = cells_of(regions)
    block = cut_blocks(Path("slide"), cells, 0, 0.0)[0]
    grid = fill(regions, cells, block)
    y, x = cells[:, 0] - block.top, cells[:, 1] - block.left
    if head is not None:
        return head.weights(Bags(grid[None]))[0][y, x], "the trained head"
    if hierarchy.slide is not None:
        return shares(hierarchy.slide, grid[None])[0][y, x], "the slide level"
    even = np.full(len(cells), 1 / len(cells), np.float32)
    return even, "nobody: there is neither slide level nor head, all count alike"


@dataclass(frozen=True)
class Weights:
    """How much everything on one slide counts. 1 is what an even share would be.

    who       weighs the regions, in words      region [R]
    rows      [n] of the slide's tiles that lie in a region, region after region
    tile      [n] each of them within its region, ``composed`` [n] within the slide
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
    by_region, who = region_shares(hierarchy, regions, head)
    by_tile = tile_shares(hierarchy, tiles, blocks)
    rows = np.concatenate([block.rows for block in blocks])
    inside = np.concatenate([share * len(share) for share in by_tile])
    whole = np.concatenate([share * weight for share, weight in zip(by_tile, by_region)]) * len(rows)
    return Weights(who, by_region * len(blocks), rows, inside, whole)


def attend_slide(hierarchy: Hierarchy, tile_file: Path, region_file: Path, head: FittedHead | None) -> SlideMaps:
    """The maps of one slide from its two files of vectors. DataError where the files do not belong together."""
    tiles, regions = load_parquet(tile_file), load_parquet(region_file)
    down, across = step_of(tiles.about)
    blocks = cut_blocks(tile_file, cells_of(tiles), hierarchy.side, hierarchy.least)
    if len(blocks) != len(regions.coords):
        raise DataError(
            f"{region_file} does not belong to {tile_file}",
            got=f"{len(regions.coords)} regions",
            expected=f"{len(blocks)}",
            hint="remove it, and embed the slide again",
        )
    found = weigh(hierarchy, tiles, regions, blocks, head)
    coords, side = tiles.coords[found.rows], hierarchy.side
    tile = TileScores("attention of each region over its tiles", coords, across, found.tile, down)
    text, left_out = f"{len(blocks):,} regions of {side} x {side} tiles", len(tiles) - len(coords)
    if is_weighed(hierarchy, head):
        region = TileScores(
            f"weight of each region, by {found.who}", regions.coords, across * side, found.region, down * side
        )
        composed = TileScores("weight of the region times attention to the tile", coords, across, found.composed, down)
        text += f", weighed by {found.who}"
    else:
        region = None
        composed = TileScores("attention to the tile, all regions counting alike", coords, across, found.composed, down)
        text += f"; {NOBODY}, so there is no map of regions"
    if left_out:
        text += f"\n{left_out:,} of {len(tiles):,} tiles lie in regions with too little tissue and are left out"
    return SlideMaps(region, tile, composed, text)


def is_weighed(hierarchy: Hierarchy, head: FittedHead | None) -> bool:
    """Whether anything tells the regions of a slide apart."""
    return head is not None or hierarchy.slide is not None


def attend(
    model: Path, slide: str, level: str | None, tiling: Mapping[str, Any], console: Console, *, max_bad: float = 0.05
) -> list[SlideAttention]:
    """The map of one level of a slide, or with None those of all three; without that of regions where nobody weighs
    them. Raises UsageError where that is the one asked for.

    model    a hierarchy, or a run of ``finetune`` on one, whose head then weighs the regions
    tiling   ``data.slide_mpp``: resolution of a slide that does not say
    max_bad  share of its tiles that may be unreadable; they are left out
    """
    head = load_head(model) if not is_hierarchy(model) else None
    hierarchy = load(model if head is None else head.hierarchy)
    if level not in (None, *LEVELS):
        raise unknown("level", str(level), LEVELS)
    if level == "region" and not is_weighed(hierarchy, None if head is None else head.head):
        raise UsageError(
            f"there is no map of regions by {model}: {NOBODY}",
            expected="--level tile, composed or patch",
            hint=f"saccade finetune {model} SLIDES --out HEADS trains a head, saccade attend HEADS shows its weights",
        )
    tiles = slides_of(hierarchy.run, slide, tiling)
    if len(tiles.entries) != 1:
        raise UsageError("attend looks at one slide", got=f"{len(tiles.entries)} slides")
    if level == "patch":
        folder = hierarchy.run / "features" / "tile"
        embedder = tile_embedder(hierarchy.tile, tiles, folder, say=console.say, max_bad=max_bad)
        return [look_at_slide(embedder, SlideOptions(level="patch"), lambda a, b: console.progress(a, b, {}))]
    found = embed_levels(hierarchy, tiles, console, max_bad=max_bad)
    maps = attend_slide(hierarchy, found.tiles[0], found.regions[0], None if head is None else head.head)
    console.say(maps.text)
    name = f"{hierarchy.run.name} (hierarchy)"
    return [
        SlideAttention(tiles.slides[0], heat, name, SlideOptions(level=own))
        for own, heat in maps.named().items()
        if level in (None, own)
    ]
