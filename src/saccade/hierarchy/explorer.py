"""A hierarchy on one slide, for the local page: weights of regions, and attention between the tiles of a region.

Vectors come from the hierarchy's files where these are up to date, and are computed in the background otherwise. They
stay in memory: viewing a page writes nothing.
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
    """A slide of a hierarchy. ``key`` identifies both; ``number`` is the index of the slide in ``tiles``."""

    key: str
    folder: Path
    head: Path | None
    tiles: SlideTiles
    number: int


@dataclass(frozen=True)
class Regions:
    """The regions of one slide in memory.

    Parameters
    ----------
    hierarchy : Hierarchy
        The hierarchy.
    tiles : SlideFeatures
        Vectors of the n readable tiles.
    cells : ndarray [n 2]
        (row, column) of each of them.
    places : ndarray [n]
        Index of each of them among all ``count`` tiles of the slide.
    count : int
        Number of tiles, with unreadable ones.
    blocks : list of Block
        The R regions.
    weights : Weights
        Weights of regions and tiles.
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
        """Summary for the page: (row, column) of each region, and the region of each tile."""
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
        """Weight of every tile [count] within its region, or with ``composed`` within the slide.

        NaN for tiles outside all regions and for unreadable ones.
        """
        weights = np.full(self.count, np.nan, np.float32)
        weights[self.places[self.weights.rows]] = self.weights.composed if composed else self.weights.tile
        return weights


class RegionViews:
    """The most recently viewed slides of hierarchies. One is computed at a time."""

    def __init__(self, slides_bytes: int = SLIDES_BYTES, looks_bytes: int = LOOKS_BYTES):
        self._slides: SlideJobs[str, Regions] = SlideJobs("regions", slides_bytes)
        self._looks: LruCache[tuple[str, int], ModelView] = LruCache(looks_bytes)
        self._hierarchies: dict[Path, Hierarchy] = {}

    def start(self, asked: SlideRequest) -> SlideProgress:
        """Start to compute a slide, unless it is computed or in progress. Returns its progress in tiles."""
        total = len(asked.tiles.grid(asked.number))
        return self._slides.start(asked.key, total, lambda done: self._make(asked, done))

    def state(self, key: str) -> SlideProgress | None:
        """Progress of a slide; None where it was not requested or has been evicted."""
        return self._slides.state(key)

    def regions(self, key: str) -> Regions:
        """The computed slide. Raises UsageError where it is not computed."""
        return self._slides.result(key)

    def view(self, asked: SlideRequest, region: int) -> ModelView:
        """Queries and keys of the region network inside one region, and a picture of the region.

        Raises UsageError for a region number out of range.
        """
        regions = self.regions(asked.key)
        if not 0 <= region < len(regions.blocks):
            raise out_of_range("region", region, len(regions.blocks) - 1)
        view = self._looks.get((asked.key, region))
        if view is None:
            view = _model_view(regions, asked, regions.blocks[region])
            self._looks.put((asked.key, region), view, view.nbytes)
        return view

    def has_tile(self, key: str, region: int) -> list[bool]:
        """Which cells of a region have a tile [N]."""
        regions = self.regions(key)
        block = regions.blocks[region]
        there = np.zeros(block.size, bool)
        there[tuple((regions.cells[block.rows] - (block.top, block.left)).T)] = True
        return there.reshape(-1).tolist()

    def _make(self, asked: SlideRequest, done: TilesDone) -> Regions:
        if asked.folder not in self._hierarchies:
            self._hierarchies[asked.folder] = load(asked.folder)
        return look(self._hierarchies[asked.folder], asked, done)


def look(hierarchy: Hierarchy, asked: SlideRequest, done: TilesDone) -> Regions:
    """Compute vectors and weights of one slide; ``done`` is called with the number of further tiles embedded.

    Unreadable tiles are skipped, however many; the page says how many. Raises SaccadeError.
    """
    tiles, number, folder = asked.tiles, asked.number, hierarchy.run / "features"
    embedder = tile_embedder(hierarchy.tile, tiles, folder / "tile", say=lambda _: None, max_bad=1.0)
    file = folder / "tile" / tile_file(tiles, number)
    is_embedded = (
        read_if_current(file, embedder.about(number), max_bad=1.0) is not None
    )  # whoever embedded it took it as it is
    below = load_parquet(file) if is_embedded else embedder.slide(number, done)
    blocks, regions = grid_vectors(
        hierarchy.region, below, file, folder / "region", side=hierarchy.side, min_tissue=hierarchy.min_tissue
    )
    head = load_head(asked.head).head if asked.head is not None else None
    cells, number_of = cells_of(below), {tuple(cell): i for i, cell in enumerate(tiles.grid(number).cells.tolist())}
    places = np.array([number_of[tuple(cell)] for cell in cells.tolist()], np.int64)
    weights = weigh(hierarchy, below, regions, blocks, head)
    return Regions(hierarchy, below, cells, places, len(number_of), blocks, weights)


def _model_view(regions: Regions, asked: SlideRequest, block: Block) -> ModelView:
    reader = regions.hierarchy.region
    network = reader.model.backbone
    assert has_attention(network)
    with torch.inference_mode():
        qkv, grid = record(network, as_input(reader, fill(regions.tiles, regions.cells, block)[None]))
    step_y, step_x = asked.tiles.grid(asked.number).step_px
    slide, side = asked.tiles.slides[asked.number], regions.hierarchy.side
    factor = max(1.0, max(step_y, step_x) * side / REGION_PX)
    size = (max(1, round(step_y * side / factor)), max(1, round(step_x * side / factor)))
    picture, unread = slide.around_damage(block.left * step_x, block.top * step_y, (factor, factor), size)
    missing = unread if unread.any() else None
    return ModelView(reader.model.name, picture, grid, network.prefix, None, qkv, None, unread=missing)
