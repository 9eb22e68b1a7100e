"""Grids of vectors: what another network said of the tiles of slides, as images for the next level.

A folder with ``grids.json`` is such a source: it names files of features (one a slide, see ``exchange``) and the side
of a block. Every block of tiles is one sample [D + 1, Y, X]; the last channel says which tiles are there. So the second
level of HIPT (Chen et al. 2022, arXiv:2206.02647) is the same training once more, on vectors instead of pixels.
A folder of HDF5 files of features (of TRIDENT, CLAM or ``saccade embed --out FOLDER.h5``) is such a source as it is.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from saccade.base.contracts import Record, Sample
from saccade.base.run_folder import read_json, write_json
from saccade.data.formats import TEXT_SUFFIXES, has_suffix, suffixes
from saccade.data.limits import check_claim, damage_named
from saccade.data.slide_features import FLOAT_BYTES, SlideFeatures, load_features, step_of
from saccade.data.sources.source import records_from_rows
from saccade.data.sources.tables import read_table, table_in
from saccade.errors import DamagedFile, DataError, UsageError

FILE = "grids.json"
SIDE, MIN_FRACTION = 16, 0.25  # of features that no hierarchy has cut into regions: HIPT's 4,096 pixels in tiles of 256


@dataclass(frozen=True)
class Block:
    """A rectangle of the lattice of one slide: cells from ``top``, ``left`` on; ``rows`` of ``features`` lie in it."""

    file: Path
    top: int
    left: int
    size: tuple[int, int]
    rows: np.ndarray


def cells_of(features: SlideFeatures) -> np.ndarray:
    """[n 2] int64 (row, column) of each tile on the lattice that starts at (0, 0)."""
    step = step_of(features.about)
    if not (np.isfinite(step).all() and min(step) > 0):
        raise DamagedFile("the side of its tiles is not a length", got=f"{step[0]:g} x {step[1]:g} pixels of level 0")
    return np.rint(features.coords[:, ::-1] / step).astype(np.int64)


def cut_blocks(file: Path, cells: np.ndarray, side: int, min_fraction: float) -> list[Block]:
    """The blocks of ``side`` x ``side`` cells on a lattice from (0, 0) with at least the fraction ``min_fraction`` of
    their tiles; with ``side`` 0 one block around all tiles, however few."""
    if not len(cells):
        return []
    if side == 0:
        low, high = cells.min(axis=0), cells.max(axis=0) + 1
        size = (int(high[0] - low[0]), int(high[1] - low[1]))
        return [Block(file, int(low[0]), int(low[1]), size, np.arange(len(cells)))]
    corners, which = np.unique(cells // side, axis=0, return_inverse=True)
    blocks = []
    for number, (row, column) in enumerate(corners):
        inside = np.flatnonzero(which.reshape(-1) == number)
        if len(inside) >= min_fraction * side * side:
            blocks.append(Block(file, int(row) * side, int(column) * side, (side, side), inside))
    return blocks


def fill(features: SlideFeatures, cells: np.ndarray, block: Block) -> np.ndarray:
    """The block as [D + 1, Y, X] float32; zeros where no tile is."""
    grid = np.zeros((features.features.shape[1] + 1, *block.size), np.float32)
    y, x = cells[block.rows, 0] - block.top, cells[block.rows, 1] - block.left
    grid[:-1, y, x] = features.features[block.rows].T
    grid[-1, y, x] = 1.0
    return grid


class GridSource:
    """Blocks of feature grids of many slides; satisfies contracts.Source.

    side    tiles along each side of a block; 0: every slide is one grid
    min_fraction   minimum fraction of a block's tiles
    records_by_file  what a table says of the slides, by file; None: what the files themselves say
    unreadable  (name, reason) of damaged files
    files   each file, also without a block, and its slide's record
    Label, group and split are those of the slide.
    ``places`` [N 2] int64: (x, y) of each block at level 0.
    """

    def __init__(
        self,
        name: str,
        files: Sequence[Path],
        *,
        side: int,
        min_fraction: float,
        records_by_file: Mapping[Path, Record] | None = None,
    ):
        self.name, self.axes, self.side, self.min_fraction = name, 2, side, min_fraction
        self.files: dict[Path, Record] = {}
        self.records: list[Record] = []
        self.blocks: list[Block] = []
        self.slides: list[str] = []
        self._hashes: list[str] = []
        self.unreadable: list[tuple[str, str]] = []
        self._corners: list[tuple[int, int]] = []
        for file in files:
            try:
                with damage_named(str(file)):
                    self._add(file, None if records_by_file is None else records_by_file[file])
            except DamagedFile as error:
                self.unreadable.append((file.name, error.in_one_line().removeprefix(f"{file}: ")))
        self.places = np.array(self._corners, np.int64).reshape(-1, 2)
        if len(self.unreadable) == len(files) > 0:
            listed = "\n".join(f"    {name}: {reason}" for name, reason in self.unreadable[:20])
            raise DamagedFile(f"{name}: none of {len(files):,} files of features can be read\n{listed}")
        if not self.blocks:
            raise DataError(
                f"{name}: no grids",
                got=f"{len(files)} files of features",
                expected=f"blocks of {side} x {side} tiles, {min_fraction:.0%} of them there",
                hint=f"smaller regions or less tissue: hipt.region_px, hipt.min_tissue; side, least in {FILE}",
            )

    def _add(self, file: Path, record: Record | None) -> None:
        """The blocks of one slide."""
        features = _features(file)
        about, (down, across) = dict(features.about), step_of(features.about)
        if record is not None:
            about |= {name: getattr(record, name) for name in ("label", "group", "split")}
        content = about.get("slide_sha256") or _sha256(file)
        blocks = cut_blocks(file, cells_of(features), self.side, self.min_fraction)
        for block in blocks:
            claimed = math.prod(block.size) * (features.features.shape[1] + 1) * FLOAT_BYTES
            check_claim(claimed, features.features.nbytes, str(file))
        slide = str(about["slide"])
        self.files[file] = _record(slide, slide, about)
        for block in blocks:
            x, y = round(block.left * across), round(block.top * down)
            words = (content, about.get("model_sha256"), self.side, block.top, block.left)
            self.blocks.append(block)
            self.slides.append(slide)
            self._hashes.append(hashlib.sha256(" ".join(map(str, words)).encode()).hexdigest())
            self.records.append(_record(f"{slide}#{x},{y}" if self.side else slide, slide, about))
            self._corners.append((x, y))

    def __len__(self) -> int:
        return len(self.records)

    def read(self, index: int) -> Sample:
        block = self.blocks[index]
        features = _features(block.file)
        return Sample(fill(features, cells_of(features), block), self.records[index], grid=True)

    def content_hash(self, index: int) -> str:
        """Of slide, model and place: the same for the same vectors."""
        return self._hashes[index]


def _sha256(file: Path) -> str:
    """Of the file itself: other programs do not say which slide it was made of."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _record(name: str, slide: str, about: dict[str, Any]) -> Record:
    return Record(id=name, label=about.get("label"), group=about.get("group") or slide, split=about.get("split"))


def _features(file: Path) -> SlideFeatures:
    return _cached_features(file, file.stat().st_mtime_ns)


@lru_cache(maxsize=4)  # blocks are read slide by slide
def _cached_features(file: Path, _written: int) -> SlideFeatures:
    features = load_features(file)
    if "tile_px_level0" not in features.about:
        raise DataError(f"{file}: attribute tile_px_level0 is missing", expected="tile_px_level0 in its attributes")
    return features


def write_grids(folder: Path, files: Sequence[Path], *, side: int, min_fraction: float) -> Path:
    """Make ``folder`` a source of the blocks of these files, named relative to it. Returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [os.path.relpath(file, folder) for file in files]
    write_json(folder / FILE, {"side": side, "least": min_fraction, "files": names})
    return folder


def open_grids(folder: Path) -> GridSource:
    """The source that ``grids.json`` in ``folder`` describes. Raises DataError, naming a file that is not there."""
    values = read_json(folder / FILE)
    files = [folder / name for name in values["files"]]
    gone = [file for file in files if not file.is_file()]
    if gone:
        raise DataError(f"{folder / FILE} names missing feature files", got=gone[0], hint="embed the slides again")
    if int(values["side"]) < 0:
        raise UsageError(f"{folder / FILE}: side counts tiles", got=values["side"], expected="0 or more")
    return GridSource(str(folder), files, side=int(values["side"]), min_fraction=float(values["least"]))


def holds_features(folder: Path) -> bool:
    """Whether a folder holds files of features (HDF5), and beside them at most tables."""
    any_features = False
    for path in folder.iterdir():
        name = path.name.lower()
        if has_suffix(name, "features"):
            any_features = True
        elif not name.endswith((*suffixes("table"), *TEXT_SUFFIXES)) and not name.startswith("."):
            return False
    return any_features


def open_features(
    folder: Path, *, manifest: Path | None, label: str | None, group: str | None, keep_na: bool = False
) -> GridSource:
    """The regions of the slides whose features lie in ``folder``, a file a slide: 16 x 16 tiles, a quarter of them
    there. A ``grids.json`` in the folder names others.

    manifest   a table (path, label, patient or group, split) that names the files, or slides of the same names; one in
               the folder is found by itself
    """
    files = sorted(path for path in folder.iterdir() if has_suffix(path.name, "features"))
    table_path = manifest or table_in(folder)
    if table_path is None:
        if label or group:
            raise DataError(f"{folder} has no table of columns", got=f"--label or --group {label or group}")
        return GridSource(str(folder), files, side=SIDE, min_fraction=MIN_FRACTION)
    table, stems = read_table(table_path), {file.stem: str(file) for file in files}
    group = group or table.patient_column

    def find(path: str) -> str | None:
        return stems.get(PurePosixPath(path.replace("\\", "/")).stem)

    rows = records_from_rows(table, find, label=label, group=group, keep_na=keep_na)
    records = {Path(record.id): record for record in rows}
    return GridSource(str(folder), list(records), side=SIDE, min_fraction=MIN_FRACTION, records_by_file=records)
