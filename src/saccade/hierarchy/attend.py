"""Where a hierarchy looks: one map a level over a slide, and the product of all of them.

Inside a tile the class token of the tile network over its patches, in a region the region network's over its tiles, on
the slide the slide level's (or a trained head's) over its regions. A composed map multiplies a region's share of the
slide with a tile's share of its region; as in figure 3 of Chen et al. 2022.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from saccade import runtime
from saccade.augment.views import normalise
from saccade.backbones.vit import ViT
from saccade.data.grids import Block, cells_of, cut_blocks, fill
from saccade.errors import DataError
from saccade.exchange import SlideFeatures, load_parquet
from saccade.hierarchy.heads import Bags, FittedHead
from saccade.hierarchy.levels import Hierarchy
from saccade.hierarchy.vectors import Reader

CLS = torch.tensor([0])


@dataclass(frozen=True)
class LevelMap:
    """Scores of squares of a slide: ``coords`` [n 2] (x, y) and ``side_px`` at level 0, ``scores`` [n].

    1 is what an even share would be: of its region for a tile, of the slide for a region.
    """

    name: str
    coords: np.ndarray
    side_px: float
    scores: np.ndarray

    def table(self) -> list[dict[str, Any]]:
        return [{"x": int(x), "y": int(y), "score": float(s)} for (x, y), s in zip(self.coords, self.scores)]


@dataclass(frozen=True)
class SlideMaps:
    """All maps of one slide: regions on the slide, tiles in their regions, and the composed one."""

    region: LevelMap
    tile: LevelMap
    composed: LevelMap
    text: str

    @property
    def levels(self) -> tuple[LevelMap, ...]:
        return self.region, self.tile, self.composed


def shares(reader: Reader, grids: np.ndarray) -> np.ndarray:
    """[B Y X]: what the class token takes from every tile in the last layer, mean over heads; sum 1 over the tiles."""
    device, network, spec = runtime.pick_device(), reader.model.backbone, reader.model.spec
    assert isinstance(network, ViT)
    network.to(device).eval()
    x = normalise((torch.from_numpy(grids).to(device) - spec.offset) / spec.scale, spec)
    with torch.inference_mode():
        rows = network.attention(x, layer=-1, rows=CLS)[:, :, 0, network.prefix :].mean(dim=1)
    found = rows.float().cpu().numpy().reshape(len(grids), *grids.shape[2:])
    return found / np.maximum(found.sum(axis=(1, 2), keepdims=True), 1e-12)


def _even(share: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Shares that sum to 1 as multiples of an even share."""
    return share * max(1, int(there.sum()))


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


def attend_slide(hierarchy: Hierarchy, tile_file: Path, region_file: Path, head: FittedHead | None) -> SlideMaps:
    """The maps of one slide from its two files of vectors. DataError where the files do not belong together."""
    tiles, regions = load_parquet(tile_file), load_parquet(region_file)
    cells, step = cells_of(tiles), float(tiles.about["tile_px_level0"])
    blocks = cut_blocks(tile_file, cells, hierarchy.side, hierarchy.least)
    if len(blocks) != len(regions.coords):
        raise DataError(
            f"{region_file} does not belong to {tile_file}",
            got=f"{len(regions.coords)} regions",
            expected=f"{len(blocks)}",
            hint="remove it, and embed the slide again",
        )
    by_region, who = region_shares(hierarchy, regions, head)
    by_tile = tile_shares(hierarchy, tiles, blocks)
    rows = np.concatenate([block.rows for block in blocks])
    inside = np.concatenate([share * len(share) for share in by_tile])
    whole = np.concatenate([share * weight for share, weight in zip(by_tile, by_region)]) * len(rows)
    region = LevelMap("region", regions.coords, step * hierarchy.side, _even(by_region, by_region > 0))
    tile = LevelMap("tile", tiles.coords[rows], step, inside)
    composed = LevelMap("composed", tiles.coords[rows], step, whole)
    text = f"{len(blocks)} regions of {hierarchy.side} x {hierarchy.side} tiles; regions weighted by {who}"
    return SlideMaps(region, tile, composed, text)
