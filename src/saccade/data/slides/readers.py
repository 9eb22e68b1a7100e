"""Which reader opens a file: OpenSlide, and tifffile for the TIFF that OpenSlide cannot read."""

from __future__ import annotations

import importlib.util
import math
import threading
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

from saccade.data.formats import by_name
from saccade.data.images.tiff import check_count
from saccade.data.limits import damage_named
from saccade.data.slides.reader import CheckedReader, Reader, Region
from saccade.data.slides.tiff_reader import TiffReader, check_tile, is_tiff, listening
from saccade.errors import DamagedFile, SaccadeError, require

CACHE_BYTES = 32 * 2**20
Tile = tuple[int, int, int]  # level, row, column


class OpenSlideReader:
    """Levels through OpenSlide; pixels are uint8 [Y X 3]. Threads may share one; processes may not.

    After an error a handle of OpenSlide only repeats it, and opening another takes as long as reading many tiles: tiles
    of the file that cannot be decoded are remembered, and not asked for again.
    """

    def __init__(self, path: Path, module: Any):
        self.path, self.module = path, module
        self.dtype, self.channels, self.fluorescent = np.dtype(np.uint8), 3, False
        self._lock = threading.Lock()
        self._damaged: set[Tile] = set()
        self._slide = self._open()
        properties = self._slide.properties
        aside = sorted(self._slide.associated_images)  # they may show names, and are never opened
        self.note = f"left aside: {', '.join(aside)}" if aside else ""
        self.vendor = str(properties.get("openslide.vendor", "unknown"))
        self.sizes_px = [(rows, columns) for columns, rows in self._slide.level_dimensions]
        self.downsamples = list(self._slide.level_downsamples)
        x, y = properties.get("openslide.mpp-x"), properties.get("openslide.mpp-y")
        self.spacing_um = (float(y), float(x)) if x and y else None
        self._sides_px = [_tile_px(properties, level) for level in range(len(self.sizes_px))]
        for sides in self._sides_px:
            check_tile(sides or (0, 0), 4, str(path))  # OpenSlide ends the process where memory is short

    def _open(self) -> Any:
        slide = self.module.OpenSlide(str(self.path))
        slide.set_cache(self.module.OpenSlideCache(CACHE_BYTES))
        return slide

    def read(self, level: int, left: int, top: int, size_px: tuple[int, int], fill: int) -> Region:
        before_y, before_x = max(0, -top), max(0, -left)  # OpenSlide shifts what begins outside
        rows, columns = size_px[0] - before_y, size_px[1] - before_x
        if rows <= 0 or columns <= 0:
            return Region(np.full((*size_px, 3), fill, np.uint8), (top, left))
        # OpenSlide wants whole pixels of level 0; what the level makes of them is a fraction, which it interpolates.
        step = self.downsamples[level]
        x, y = round(max(0, left) * step), round(max(0, top) * step)
        region = self._region(level, (x, y), (columns, rows))
        alpha = region.getchannel("A")
        if alpha.getextrema()[0] == 255:
            pixels = np.asarray(region.convert("RGB"))
        else:
            composite = Image.new("RGB", region.size, (fill, fill, fill))  # outside, or never scanned
            composite.paste(region, mask=alpha)
            pixels = np.asarray(composite)
        if before_y or before_x:
            pixels = np.pad(pixels, ((before_y, 0), (before_x, 0), (0, 0)), constant_values=fill)
        return Region(pixels, (y / step - before_y, x / step - before_x))

    def _region(self, level: int, at: tuple[int, int], size: tuple[int, int]) -> Image.Image:
        """``size`` (columns, rows) of a level from ``at`` (x, y) in pixels of level 0, RGBA. Raises DamagedFile."""
        if self._damaged and not self._damaged.isdisjoint(self._tiles_at(level, at, size)):
            raise self._error(at, "a tile of the file is damaged")
        handle = self._slide
        try:
            return handle.read_region(at, level, size)
        except self.module.OpenSlideError as error:
            tiles = self._tiles_at(level, at, size)
            bad = {tile for tile in tiles if self._twin is not None and self._twin.is_damaged(*tile)}
            if not bad:
                return self._again(at, level, size)
            self._damaged |= bad
            self._anew(handle)
            raise self._error(at, error) from error

    def _again(self, at: tuple[int, int], level: int, size: tuple[int, int]) -> Image.Image:
        """Once more, through a handle of its own: after an error a handle only repeats it, also to other threads."""
        handle = self._open()
        try:
            region: Image.Image = handle.read_region(at, level, size)
        except self.module.OpenSlideError as error:
            self._slide = self._open()
            raise self._error(at, error) from error
        self._slide = handle
        return region

    def _error(self, at: tuple[int, int], reason: object) -> DamagedFile:
        return DamagedFile(f"{self.path}: cannot be read at {at[0]}, {at[1]} ({reason})", hint="copy it again")

    def _anew(self, handle: Any) -> None:
        """Another handle instead of one that met an error, unless another thread has seen to it."""
        with self._lock:
            if self._slide is handle:
                self._slide = self._open()

    @cached_property
    def _twin(self) -> TiffReader | None:
        """tifffile on the same levels and tiles, to look at single tiles of a damaged file; None where it sees others.

        NDPI and formats other than TIFF have none.
        """
        if not is_tiff(self.path):
            return None
        try:
            twin = TiffReader(self.path)
        except DamagedFile:
            return None
        same = twin.sizes_px == self.sizes_px and twin.tiles_px() == self._sides_px
        return twin if same and all(self._sides_px) else None

    def _tiles_at(self, level: int, at: tuple[int, int], size: tuple[int, int]) -> list[Tile]:
        """The tiles of the file below a region; none where they are not known."""
        if self._twin is None:
            return []
        step, side, ends = self.downsamples[level], self._twin.tiles_px()[level] or (1, 1), self.sizes_px[level]
        ranges = [
            range(int(start / step // tile), math.ceil(min(start / step + count, end) / tile))
            for start, count, tile, end in zip(at[::-1], size[::-1], side, ends)
        ]
        return [(level, row, column) for row in ranges[0] for column in ranges[1]]

    def read_around(
        self, level: int, left: int, top: int, size_px: tuple[int, int], fill: int
    ) -> tuple[Region, np.ndarray] | None:
        if self._twin is None:
            return None
        region, gaps = self._twin.read_around(level, left, top, size_px, fill)
        colours = region.pixels[..., :3]
        return Region(np.broadcast_to(colours, (*size_px, 3)), region.origin), gaps


def _tile_px(properties: Any, level: int) -> tuple[int, int] | None:
    """(rows, columns) of the tiles that a level is stored in, from its corner; None where it is stored otherwise."""
    sides = [properties.get(f"openslide.level[{level}].tile-{side}") for side in ("height", "width")]
    return (int(sides[0]), int(sides[1])) if all(sides) else None


def _beyond(path: Path, module: Any) -> bool:
    """Whether OpenSlide would open a TIFF and lose something: more than 8 bits, channels, the levels of OME-TIFF.

    Raises DamagedFile where a page has fewer tiles than its size needs: OpenSlide looks for each of them.
    """
    try:
        with listening(), tifffile.TiffFile(path) as file:
            for page in (item.aspage() for item in file.pages):
                if page.is_tiled:
                    check_count(page, str(path))
            first = file.pages.first.aspage()
            other = file.is_ome or first.dtype != np.uint8 or first.samplesperpixel not in (1, 3, 4)
            return other and module.OpenSlide.detect_format(str(path)) == "generic-tiff"
    except SaccadeError:
        raise
    except Exception:  # nearly anything is raised on broken bytes; OpenSlide says what is wrong
        return False


def open_reader(path: Path) -> Reader:
    """The reader of the file's format. Raises DamagedFile, naming the file, where it cannot be opened."""
    if not path.is_file():
        raise DamagedFile(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise DamagedFile(f"{path}: empty file", hint="copy it again from where it came")
    card = by_name(path.name, "slide")
    with damage_named(str(path), "cannot be opened as a slide"):
        reader: Reader = card.load()(path) if card else open_scanner_file(path)
        return CheckedReader(reader, str(path))


def open_scanner_file(path: Path) -> Reader:
    """OpenSlide, and tifffile for TIFF that OpenSlide cannot read. Raises DamagedFile with the reasons of both."""
    tiff = is_tiff(path)
    reasons = []
    if not tiff or importlib.util.find_spec("openslide") is not None:
        module = require("openslide", "slides", f"the slide {path.name}")
        try:
            if not (tiff and _beyond(path, module)):
                return OpenSlideReader(path, module)
        except module.OpenSlideError as error:
            reasons.append(f"OpenSlide: {str(error).rstrip('.') or 'unknown kind of file'}")
    if tiff:
        try:
            return TiffReader(path)
        except DamagedFile as error:
            reasons.append(f"tifffile: {error.what.removeprefix(f'{path}: ')}")
    hint = "copy it again"
    if any("image flavor" in reason for reason in reasons):
        hint = "its DICOM header has no complete ImageType; set it to ORIGINAL, PRIMARY, VOLUME, NONE"
    raise DamagedFile(f"{path}: cannot be opened as a slide ({'; '.join(reasons)})", hint=hint)
