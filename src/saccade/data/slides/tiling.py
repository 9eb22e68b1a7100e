"""Tiles of one physical size on a lattice that starts in the corner of a slide."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from saccade.data.slides.slide import Slide
from saccade.data.slides.tissue_mask import Tissue, find_tissue
from saccade.errors import UsageError

TILE_PX, TISSUE = 256, 0.5


@dataclass(frozen=True)
class Tiling:
    """How slides are cut. None is decided from the slides.

    mpp        micrometres a pixel of a tile; decided: 0.5, or the coarsest slide's own where that is coarser
    tile_px    side of a tile in pixels; decided: 256
    tissue     share of a tile that must be usable tissue; decided: 0.5
    slide_mpp  micrometres a pixel of level 0 for slides that do not say
    told       micrometres a pixel that a run was told for slides that do not say, and the content hashes of those it
               learned from: of no other slide is it taken
    usual      these are a model's habits, not the user's wish: for other images than slides they mean nothing
    """

    mpp: float | None = None
    tile_px: int | None = None
    tissue: float | None = None
    slide_mpp: float | None = None
    told: tuple[float, frozenset[str]] | None = None
    usual: bool = False

    @property
    def asked(self) -> bool:
        """Whether the user set anything."""
        return not self.usual and self != Tiling()

    def __post_init__(self) -> None:
        for name, value in (("--mpp", self.mpp), ("--slide-mpp", self.slide_mpp), ("--tile", self.tile_px)):
            if value is not None and value <= 0:
                raise UsageError(f"{name} must be above 0", got=value)
        if self.tissue is not None and not 0 <= self.tissue <= 1:
            raise UsageError("the share of tissue in a tile is a fraction", got=self.tissue, expected="0 to 1")


@dataclass(frozen=True)
class TileGrid:
    """The tiles of one slide.

    coords   [n 2] int64: (x, y) of the upper left corner in pixels of level 0
    cells    [n 2] int64: (row, column) on the lattice; row by row
    step_px  (y, x): side of a tile in pixels of level 0, not whole
    shape    rows and columns of the whole lattice, tiles without tissue included
    tissue   [n] float32: share of usable tissue
    """

    coords: np.ndarray
    cells: np.ndarray
    step_px: tuple[float, float]
    shape: tuple[int, int]
    tissue: np.ndarray
    mpp: float
    tile_px: int

    def __len__(self) -> int:
        return len(self.coords)


def tile_grid(
    slide: Slide, *, mpp: float, tile_px: int = TILE_PX, tissue: float = TISSUE, mask: Tissue | None = None
) -> TileGrid:
    """Tiles of ``tile_px`` pixels at ``mpp`` with at least the share ``tissue`` of usable tissue; 0 takes all of them.

    Tiles that reach over the edge count what lies outside as background. The same slide gives the same tiles, always.
    Raises UsageError where ``mpp`` is finer than the slide, DataError for a slide without resolution.
    """
    down, across = (factor * tile_px for factor in slide.factors(mpp))
    rows, columns = int(np.ceil(slide.size_px[0] / down - 1e-9)), int(np.ceil(slide.size_px[1] / across - 1e-9))
    row, column = (v.ravel() for v in np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"))
    x, y = np.rint(column * across).astype(np.int64), np.rint(row * down).astype(np.int64)
    masks = mask or find_tissue(slide)
    fractions = masks.share(x, y, across, down)
    selected = fractions >= tissue if tissue > 0 else np.ones(len(x), dtype=bool)
    return TileGrid(
        coords=np.stack([x, y], axis=1)[selected],
        cells=np.stack([row, column], axis=1)[selected].astype(np.int64),
        step_px=(down, across),
        shape=(rows, columns),
        tissue=fractions[selected].astype(np.float32),
        mpp=mpp,
        tile_px=tile_px,
    )
