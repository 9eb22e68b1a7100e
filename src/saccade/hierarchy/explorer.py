"""What a hierarchy sees on a slide, for the page: how much its regions count, and where any tile of a region looks.

Vectors of tiles and regions are taken from the hierarchy's own files where they are there, and are made in the
background otherwise. They stay in memory: a page that is looked at writes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from saccade.attention.background_jobs import SlideJobs, SlideProgress, TilesDone
from saccade.attention.explorer import ModelView, record
from saccade.base.cache import LruCache
from saccade.data.feature_grids import Block, cells_of, fill
from saccade.data.slide_features import SlideFeatures, load_parquet
from saccade.data.slides.slide_source import SlideTiles
from saccade.errors import out_of_range
from saccade.features.slide_files import read_if_current
from saccade.hierarchy.attend import Weights, as_input, weigh
from saccade.hierarchy.embed_regions import grid_vectors
from saccade.hierarchy.head_io import load_head
from saccade.hierarchy.train_levels import Hierarchy, load, tile_embedder, tile_file
from saccade.models.nn.attention import has_attention

SLIDES_BYTES, LOOKS_BYTES = 512 * 2**20, 128 * 2**20
REGION_PX = 512


@dataclass(frozen=True)
class SlideRequest:
    """A slide of a hierarchy. ``key`` stands for both; ``number`` is the slide's among ``tiles``."""

    key: str
    folder: Path
    head: Path | None
    tiles: SlideTiles
    number: int


@dataclass(frozen=True)
class Regions:
    """What is kept of a slide.

    tiles    their vectors, in the order of the slide's grid      cells   [n 2] (row, column) of each
    places   [n] number of each in that grid, which has ``count`` tiles: those that cannot be read have no vector
    blocks   the R regions                                        weights of both
    """

    hierarchy: Hierarchy
    tiles: SlideFeatures
    cells: np.ndarray
    places: np.ndarray
    count: int
    blocks: list[Block]
    weights: Weights

    @property
    def nbytes(self) -> int:
        return self.tiles.features.nbytes + self.cells.nbytes + 4 * 16 * len(self.cells)

    def about(self) -> dict[str, Any]:
        """What the page must know: which regions there are (row, column among regions), and in which each tile lies."""
        of = np.full(self.count, -1)
        for number, block in enumerate(self.blocks):
            of[self.places[block.rows]] = number
        network, side = self.hierarchy.region.model.backbone, self.hierarchy.side
        assert has_attention(network)
        return {
            "side": side,
            "who": self.weights.who,
            "regions": [[block.top // side, block.left // side] for block in self.blocks],
            "region_of": of.tolist(),
            "unread": np.setdiff1d(np.arange(self.count), self.places).tolist(),
            "depth": network.depth,
            "heads": network.heads,
        }

    def tile_weights(self, *, composed: bool) -> np.ndarray:
        """[count] of every tile of the grid: of its region, or with ``composed`` of the slide.

        NaN for tiles outside all regions, and for those that cannot be read.
        """
        found = np.full(self.count, np.nan, np.float32)
        found[self.places[self.weights.rows]] = self.weights.composed if composed else self.weights.tile
        return found


class RegionViews:
    """Slides that were looked at by hierarchies, the newest ones. One is worked on at a time."""

    def __init__(self, slides_bytes: int = SLIDES_BYTES, looks_bytes: int = LOOKS_BYTES):
        self._slides: SlideJobs[str, Regions] = SlideJobs("regions", slides_bytes)
        self._looks: LruCache[tuple[str, int], ModelView] = LruCache(looks_bytes)
        self._hierarchies: dict[Path, Hierarchy] = {}

    def start(self, asked: SlideRequest) -> SlideProgress:
        """Begin with a slide unless it is there or on its way; how far it is, in tiles."""
        total = len(asked.tiles.grid(asked.number))
        return self._slides.start(asked.key, total, lambda done: self._make(asked, done))

    def state(self, key: str) -> SlideProgress | None:
        """None where nobody has asked, or where the slide had to make room."""
        return self._slides.state(key)

    def regions(self, key: str) -> Regions:
        """Raises UsageError for a slide that has not been looked at."""
        return self._slides.result(key)

    def view(self, asked: SlideRequest, region: int) -> ModelView:
        """What the region network compares inside one region, and the region as it looks.

        Raises UsageError for a region that is not there.
        """
        found = self.regions(asked.key)
        if not 0 <= region < len(found.blocks):
            raise out_of_range("region", region, len(found.blocks) - 1)
        seen = self._looks.get((asked.key, region))
        if seen is None:
            seen = _seen(found, asked, found.blocks[region])
            self._looks.put((asked.key, region), seen, seen.nbytes)
        return seen

    def has_tile(self, key: str, region: int) -> list[bool]:
        """[N] which places of a region have a tile."""
        found = self.regions(key)
        block = found.blocks[region]
        there = np.zeros(block.size, bool)
        there[tuple((found.cells[block.rows] - (block.top, block.left)).T)] = True
        return there.reshape(-1).tolist()

    def _make(self, asked: SlideRequest, done: TilesDone) -> Regions:
        if asked.folder not in self._hierarchies:
            self._hierarchies[asked.folder] = load(asked.folder)
        return look(self._hierarchies[asked.folder], asked, done)


def look(hierarchy: Hierarchy, asked: SlideRequest, done: TilesDone) -> Regions:
    """Vectors and weights of one slide; ``done`` hears how many tiles more have been looked at. Raises SaccadeError.

    Tiles that cannot be read are left out, however many: the page shows what there is, and says how much is missing.
    """
    tiles, number, folder = asked.tiles, asked.number, hierarchy.run / "features"
    embedder = tile_embedder(hierarchy.tile, tiles, folder / "tile", say=lambda _: None, max_bad=1.0)
    file = folder / "tile" / tile_file(tiles, number)
    kept = (
        read_if_current(file, embedder.about(number), max_bad=1.0) is not None
    )  # whoever embedded it took it as it is
    below = load_parquet(file) if kept else embedder.slide(number, done)
    blocks, regions = grid_vectors(
        hierarchy.region, below, file, folder / "region", side=hierarchy.side, least=hierarchy.least
    )
    head = load_head(asked.head).head if asked.head is not None else None
    cells, known = cells_of(below), {tuple(cell): i for i, cell in enumerate(tiles.grid(number).cells.tolist())}
    places = np.array([known[tuple(cell)] for cell in cells.tolist()], np.int64)
    weights = weigh(hierarchy, below, regions, blocks, head)
    return Regions(hierarchy, below, cells, places, len(known), blocks, weights)


def _seen(found: Regions, asked: SlideRequest, block: Block) -> ModelView:
    reader = found.hierarchy.region
    network = reader.model.backbone
    assert has_attention(network)
    with torch.inference_mode():
        qkv, grid = record(network, as_input(reader, fill(found.tiles, found.cells, block)[None]))
    step_y, step_x = asked.tiles.grid(asked.number).step_px
    slide, side = asked.tiles.slides[asked.number], found.hierarchy.side
    factor = max(1.0, max(step_y, step_x) * side / REGION_PX)
    size = (max(1, round(step_y * side / factor)), max(1, round(step_x * side / factor)))
    picture, unread = slide.around_damage(block.left * step_x, block.top * step_y, (factor, factor), size)
    missing = unread if unread.any() else None
    return ModelView(reader.model.name, picture, grid, network.prefix, None, qkv, None, unread=missing)
