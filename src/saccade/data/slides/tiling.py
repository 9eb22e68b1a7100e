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
    """How slides are cut into tiles. None is decided from the slides.

    Parameters
    ----------
    mpp : float, optional
        Micrometres per pixel of a tile; default 0.5, or that of the coarsest slide where it is coarser.
    tile_px : int, optional
        Side of a tile in pixels; default 256.
    min_tissue : float, optional
        Minimum fraction of usable tissue in a tile; default 0.5.
    slide_mpp : float, optional
        Resolution of level 0, in micrometres per pixel, for slides without one.
    assumed_mpp : tuple of float and frozenset of str, optional
        The ``slide_mpp`` that was given to a run, and the content hashes of the slides it was used for:
        it is used for no others.
    skip_unknown_mpp : bool
        Leave out slides without a resolution instead of failing; they are listed in ``SlideTiles.skipped``.
    from_model : bool
        These are the settings of a model, not of the user: on other images than slides they have no effect.

    Raises
    ------
    UsageError
        A value is out of range.
    """

    mpp: float | None = None
    tile_px: int | None = None
    min_tissue: float | None = None
    slide_mpp: float | None = None
    assumed_mpp: tuple[float, frozenset[str]] | None = None
    from_model: bool = False
    skip_unknown_mpp: bool = False

    @property
    def asked(self) -> bool:
        """Whether the user set anything."""
        return not self.from_model and self != Tiling()

    def __post_init__(self) -> None:
        for name, value in (("--mpp", self.mpp), ("--slide-mpp", self.slide_mpp), ("--tile", self.tile_px)):
            if value is not None and value <= 0:
                raise UsageError(f"{name} must be above 0", got=value)
        if self.min_tissue is not None and not 0 <= self.min_tissue <= 1:
            raise UsageError("--tissue must be a fraction between 0 and 1", got=self.min_tissue)


@dataclass(frozen=True)
class TileGrid:
    """The tiles of one slide.

    coords   [n 2] int64: (x, y) of the upper left corner in pixels of level 0
    cells    [n 2] int64: (row, column) on the lattice; row by row
    step_px  (y, x): side of a tile in pixels of level 0, not whole
    shape    rows and columns of the whole lattice, tiles without tissue included
    tissue   [n] float32: fraction of usable tissue
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
    slide: Slide, *, mpp: float, tile_px: int = TILE_PX, min_tissue: float = TISSUE, mask: Tissue | None = None
) -> TileGrid:
    """Tiles of one slide on a lattice from its upper left corner.

    Parameters
    ----------
    slide : Slide
    mpp : float
        Micrometres per pixel of a tile.
    tile_px : int
        Side of a tile in pixels.
    min_tissue : float
        Minimum fraction of usable tissue; 0 takes all tiles.
    mask : Tissue, optional
        The masks of the slide; None detects them.

    Returns
    -------
    TileGrid
        The same for the same slide. What lies beyond the edge of the slide counts as background.

    Raises
    ------
    UsageError
        ``mpp`` is finer than the slide.
    DataError
        The resolution of the slide is unknown.
    """
    down, across = (factor * tile_px for factor in slide.factors(mpp))
    rows, columns = int(np.ceil(slide.size_px[0] / down - 1e-9)), int(np.ceil(slide.size_px[1] / across - 1e-9))
    row, column = (v.ravel() for v in np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"))
    x, y = np.rint(column * across).astype(np.int64), np.rint(row * down).astype(np.int64)
    masks = mask or find_tissue(slide)
    fractions = masks.tissue_fraction(x, y, across, down)
    selected = fractions >= min_tissue if min_tissue > 0 else np.ones(len(x), dtype=bool)
    return TileGrid(
        coords=np.stack([x, y], axis=1)[selected],
        cells=np.stack([row, column], axis=1)[selected].astype(np.int64),
        step_px=(down, across),
        shape=(rows, columns),
        tissue=fractions[selected].astype(np.float32),
        mpp=mpp,
        tile_px=tile_px,
    )
