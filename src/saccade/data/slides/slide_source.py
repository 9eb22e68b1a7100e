"""Tiles of many slides as one Source: nothing is written, a tile is read from its slide when it is asked for."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from saccade.base.contracts import Sample, Source
from saccade.base.machine import usable_cores
from saccade.data.limits import damage_named
from saccade.data.slides.slide import DARK, FINER, no_resolution, open_slide, some_of
from saccade.data.slides.slide_pool import SlideEntry, SlidePool, open_entry
from saccade.data.slides.tiling import TILE_PX, TISSUE, TileGrid, Tiling, tile_grid
from saccade.data.slides.tissue_mask import find_tissue
from saccade.data.sources.source import Selection, TileRecords
from saccade.errors import DamagedFile, DataError, UsageError

USUAL_UM = 0.5  # 20x, what most published encoders are trained at


def tiles_in(source: Source) -> tuple[SlideTiles, np.ndarray] | None:
    """The slides behind a source, and which of their tiles it has; None for other images."""
    if isinstance(source, SlideTiles):
        return source, np.arange(len(source))
    if isinstance(source, Selection):
        inner = tiles_in(source.source)
        return None if inner is None else (inner[0], inner[1][source.indices])
    return None


def skipped_note(source: Source) -> str:
    """The slides that ``Tiling.skip_unknown_mpp`` left out, as a sentence; "" for none and for other images."""
    tiles = tiles_in(source)
    if tiles is None or not tiles[0].skipped:
        return ""
    names = tiles[0].skipped
    return f"{len(names):,} {'slide' if len(names) == 1 else 'slides'} without a resolution left out: {some_of(names)}"


@dataclass(frozen=True)
class TilingResult:
    """Tiles of one slide, its mode (bright or dark), the fractions of tissue_mask.Tissue, content hash and note."""

    grid: TileGrid
    mode: str
    fractions: dict[str, float]
    sha256: str
    note: str


class SlideTiles:
    """Tiles of slides; satisfies contracts.Source.

    entries     the slides that can be read; ``unreadable`` (id, reason) those that cannot
    skipped     slides without a resolution that are left out (``Tiling.skip_unknown_mpp``)
    slides      ``slides[k]`` opens the k-th, ``tilings[k]`` has its tiles and their statistics
    slide_of    [n] number of each tile's slide; ``coords`` [n 2] (x, y) in pixels of level 0
    tiling      resolved: resolution, side and minimum tissue
    beside      files of the folder that are not slides; ``aside`` says why a table among them is not used
    Raises DataError for slides without resolution and where no slide can be read or none has tissue, UsageError.
    """

    def __init__(self, name: str, entries: Sequence[SlideEntry], tiling: Tiling, *, beside: Sequence[str] = ()):
        self.name, self.axes, self.beside, self.aside = name, 2, list(beside), ""
        if tiling.assumed_mpp and not tiling.slide_mpp:
            entries = _in_threads(lambda entry: _with_assumed_mpp(entry, *tiling.assumed_mpp), entries)
        tiling = dataclasses.replace(tiling, assumed_mpp=None)
        resolutions = _in_threads(lambda entry: _resolution(entry, tiling.slide_mpp), entries)
        readable = {entry.record.id: um for entry, um in zip(entries, resolutions) if not isinstance(um, str)}
        without = [slide for slide, um in readable.items() if um == 0]
        if without and not (tiling.skip_unknown_mpp and any(readable.values())):
            broken = [entry.record.id for entry, um in zip(entries, resolutions) if isinstance(um, str)]
            raise no_resolution(without, broken, others=len(readable) - len(without))
        self.skipped = without
        entries, resolutions = zip(*((entry, um) for entry, um in zip(entries, resolutions) if um != 0))
        readable = {slide: um for slide, um in readable.items() if um}
        self.tiling = _resolve(tiling, readable) if readable else tiling
        results = _in_threads(
            lambda both: both[1] if isinstance(both[1], str) else self._look(both[0]), zip(entries, resolutions)
        )
        readable_slides = [(entry, result) for entry, result in zip(entries, results) if not isinstance(result, str)]
        self.unreadable = [
            (entry.record.id, result) for entry, result in zip(entries, results) if isinstance(result, str)
        ]
        if not readable_slides and len(entries) == 1 and entries[0].path == Path(name):
            raise DamagedFile(f"{name}: {self.unreadable[0][1]}", hint="copy it again")
        if not readable_slides:
            listed = "\n".join(f"    {file}: {reason}" for file, reason in self.unreadable[:20])
            raise DataError(f"{name}: none of {len(entries):,} slides can be read\n{listed}")
        self.entries = [entry for entry, _ in readable_slides]
        self.tilings = [result for _, result in readable_slides]
        self.hashes = [result.sha256 for result in self.tilings]
        self.slides = SlidePool(self.entries, self.tiling.slide_mpp, [result.mode == DARK for result in self.tilings])
        self.slide_of = np.repeat(np.arange(len(self.entries)), [len(result.grid) for result in self.tilings])
        self.coords = np.concatenate([result.grid.coords for result in self.tilings])
        if not len(self.coords):
            raise DataError(
                f"{name}: no tile with enough tissue",
                got=f"{len(self.entries):,} slides, tiles of {self.tile_px} px at {self.mpp:g} micrometres a pixel",
                hint="saccade show --sheet draws the masks; lower --tissue, or take smaller tiles",
            )
        self.records = TileRecords([entry.record for entry in self.entries], self.slide_of, self.coords)

    def _look(self, entry: SlideEntry) -> TilingResult | str:
        """The tiles of one slide, or why it cannot be used. The masks are not kept: a thousand of them are 2 GiB."""
        assert self.tiling.min_tissue is not None
        try:
            with damage_named(str(entry.path)):
                slide = open_entry(entry, self.tiling.slide_mpp)
                mask = find_tissue(slide)
                grid = tile_grid(
                    slide, mpp=self.mpp, tile_px=self.tile_px, min_tissue=self.tiling.min_tissue, mask=mask
                )
            damage = f"{mask.hidden:.1%} of it cannot be read" if mask.hidden else ""
            places = f"{mask.unread} of the regions sampled for focus cannot be read" if mask.unread else ""
            note = "; ".join(filter(None, (slide.note, damage, places)))
            return TilingResult(grid, mask.mode, mask.fractions(), slide.content_hash(), note)
        except DataError as error:
            if entry.path == Path(self.name) and not isinstance(error, DamagedFile):
                raise
            return _reason(entry, error)

    @property
    def mpp(self) -> float:
        assert self.tiling.mpp is not None
        return self.tiling.mpp

    @property
    def tile_px(self) -> int:
        assert self.tiling.tile_px is not None
        return self.tiling.tile_px

    def grid(self, number: int) -> TileGrid:
        """The tiles of one slide."""
        return self.tilings[number].grid

    def tiles_of(self, number: int) -> np.ndarray:
        """Indices of the tiles of one slide, in the order of its grid."""
        return np.flatnonzero(self.slide_of == number)

    def __len__(self) -> int:
        return len(self.coords)

    def read(self, index: int) -> Sample:
        x, y = (int(v) for v in self.coords[index])
        slide = self.slides[int(self.slide_of[index])]
        pixels = slide.read(x, y, mpp=self.mpp, size_px=(self.tile_px, self.tile_px))
        return Sample(pixels, self.records[index], spacing_um=(self.mpp, self.mpp))

    def sample(self) -> Sample:
        """A tile that can be read, the first if it can. Raises DamagedFile where none of 64 spread over all can."""
        chosen = np.unique(np.linspace(0, len(self) - 1, min(64, len(self))).astype(int))
        for index in chosen[:-1]:
            with contextlib.suppress(DamagedFile):
                return self.read(int(index))
        return self.read(int(chosen[-1]))

    def content_hash(self, index: int) -> str:
        """Of the whole slide: what has seen one tile of it has seen the slide."""
        return self.hashes[int(self.slide_of[index])]


def _resolution(entry: SlideEntry, slide_mpp: float | None) -> float | str:
    """Micrometres per pixel of level 0, 0 where it is unknown, or why the slide cannot be opened."""
    try:
        return max(open_entry(entry, slide_mpp).spacing_um or (0.0,))
    except DamagedFile as error:
        return _reason(entry, error)


def _with_assumed_mpp(entry: SlideEntry, mpp: float, slides: frozenset[str]) -> SlideEntry:
    """The slide with ``mpp``, where neither its row nor its file says and it is one of ``slides``."""
    if _resolution(entry, None) == 0 and open_slide(entry.path).content_hash() in slides:
        return dataclasses.replace(entry, mpp=mpp)
    return entry


def _reason(entry: SlideEntry, error: DataError) -> str:
    """The error of a slide without its name, which is listed beside it."""
    return error.in_one_line().removeprefix(f"{entry.path}: ")


def _in_threads(work, items: Iterable):
    with ThreadPoolExecutor(max_workers=min(8, usable_cores())) as pool:
        return list(pool.map(work, items))


def _resolve(tiling: Tiling, resolutions: dict[str, float]) -> Tiling:
    """The Nones of a tiling, from micrometres a pixel of every slide."""
    coarsest = max(resolutions.values())
    mpp = tiling.mpp or max(USUAL_UM, round(coarsest, 4))
    finer = [name for name, um in resolutions.items() if mpp < FINER * um]
    if finer:
        raise UsageError(
            f"{len(finer):,} of {len(resolutions):,} slides are coarser than --mpp {mpp:g}",
            got=", ".join(f"{name} ({resolutions[name]:.4g})" for name in finer[:5]),
            hint=f"--mpp {coarsest:.4g}, or leave these slides out; upsampling adds no information",
        )
    return dataclasses.replace(
        tiling,
        mpp=mpp,
        tile_px=tiling.tile_px or TILE_PX,
        min_tissue=TISSUE if tiling.min_tissue is None else tiling.min_tissue,
    )
