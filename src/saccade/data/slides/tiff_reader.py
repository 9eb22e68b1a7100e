"""Slides in TIFF through tifffile, tile by tile: what OpenSlide does not read (16 bits, many channels, other codecs).

Only the segments that a region touches are decoded; a few stay in memory, because neighbouring regions share them.
What is transparent shows the background, as through OpenSlide; an alpha channel is never handed over.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from saccade.base.cache import LruCache
from saccade.data.formats import TIFF_MAGIC
from saccade.data.images.length_units import length_um
from saccade.data.images.tiff import (
    check_page,
    check_text,
    main_series,
    parse_xml,
    samples_dtype,
    series_left_aside,
    to_samples,
)
from saccade.data.limits import damage_named
from saccade.data.slides.reader import Region
from saccade.errors import DamagedFile

CACHE_BYTES = 64 * 2**20
CUT_OFF = "offset"  # in what tifffile says of a file that points beyond its end
XML_PACKET = 700
SEGMENT_BYTES = 512 * 2**20
ALPHA = (tifffile.EXTRASAMPLE.ASSOCALPHA, tifffile.EXTRASAMPLE.UNASSALPHA)


def is_tiff(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4) in TIFF_MAGIC
    except OSError:
        return False


@contextlib.contextmanager
def listening() -> Iterator[list[str]]:
    """What tifffile says of a file on its own log, in a list instead: the errors raised here are enough."""
    messages: list[str] = []

    def take(record: logging.LogRecord) -> bool:
        messages.append(record.getMessage())
        return False

    log = logging.getLogger("tifffile")
    log.addFilter(take)
    try:
        yield messages
    finally:
        log.removeFilter(take)


def check_tile(size_px: tuple[int, int], pixel_bytes: int, name: str) -> None:
    """Raise DamagedFile where the tiles or strips of a slide are too large to be decoded one by one."""
    if size_px[0] * size_px[1] * pixel_bytes > SEGMENT_BYTES:
        raise DamagedFile(
            f"{name}: its tiles or strips are too large to be read in parts",
            got=f"pieces of {size_px[0]:,} x {size_px[1]:,} pixels",
            hint="save it with tiles, for example with vips tiffsave --tile --pyramid",
        )


class TiffReader:
    """Levels of a TIFF; pixels [Y X C] in the file's own type. Threads may share one; processes may not."""

    def __init__(self, path: Path):
        self.path = path
        try:
            with listening() as messages, damage_named(str(path), "not a readable TIFF"):
                self._file = tifffile.TiffFile(path)
                series, areas = _main_series(self._file)
                planes = _planes(self._file, series)
                self._levels = _levels(self._file, series, planes)
                self.spacing_um = _spacing(self._file, planes[0])
                aside = _left_aside(self._file, series, self._levels)
        except DamagedFile as error:
            if any(CUT_OFF in line for line in messages):
                raise DamagedFile(f"{path}: the file is cut off", hint="copy it again") from error
            raise
        first = planes[0]
        self.dtype = samples_dtype(first)
        self.channels = sum(plane.samplesperpixel - (_alpha(plane) is not None) for plane in planes)
        grey = first.photometric in (tifffile.PHOTOMETRIC.MINISBLACK, tifffile.PHOTOMETRIC.MINISWHITE)
        self.fluorescent = bool(grey) and self.channels not in (1, 3)
        self.vendor = "ome-tiff" if self._file.is_ome else "tiff"
        self.note = "read by tifffile" + ("" if first.is_tiled else "; not tiled, which is slow")
        if aside:
            self.note += f"; left aside: {', '.join(aside)}"
        if areas > 1:
            self.note += f"; only the largest of {areas} scanned areas is read"
        if self._file.is_bif:
            self.note += "; overlapping tiles are not merged: a strip at their edges appears twice"
        self.sizes_px = [(int(level[0].imagelength), int(level[0].imagewidth)) for level in self._levels]
        rows, columns = self.sizes_px[0]
        self.downsamples = [0.5 * (rows / r + columns / c) for r, c in self.sizes_px]
        self._check()
        self._segments: LruCache[tuple[int, int, int], np.ndarray] = LruCache(CACHE_BYTES)

    def _check(self) -> None:
        """What the pages claim is compared with the file before anything is decoded."""
        for level in self._levels:
            for page in level:
                check_page(page, page.parent.filehandle.size, str(self.path))
                check_tile(_segment_px(page), page.samplesperpixel * page.dtype.itemsize, str(self.path))

    def read(self, level: int, left: int, top: int, size_px: tuple[int, int], fill: int) -> Region:
        planes = [self._plane(level, number, left, top, size_px, fill) for number in range(len(self._levels[level]))]
        return Region(planes[0] if len(planes) == 1 else np.concatenate(planes, axis=2), (top, left))

    def tiles_px(self) -> list[tuple[int, int] | None]:
        """(rows, columns) of the tiles of each level; None for one in strips."""
        first = [level[0] for level in self._levels]
        return [(int(page.tilelength), int(page.tilewidth)) if page.is_tiled else None for page in first]

    def is_damaged(self, level: int, row: int, column: int) -> bool:
        """Whether a tile (or strip) of a level cannot be decoded."""
        page = self._levels[level][0]
        across = math.ceil(page.imagewidth / _segment_px(page)[1])
        try:
            self._segment(level, 0, row * across + column)
        except DamagedFile:
            return True
        return False

    def read_around(
        self, level: int, left: int, top: int, size_px: tuple[int, int], fill: int
    ) -> tuple[Region, np.ndarray]:
        gaps = np.zeros(size_px, bool)
        numbers = range(len(self._levels[level]))
        planes = [self._plane(level, number, left, top, size_px, fill, gaps) for number in numbers]
        return Region(planes[0] if len(planes) == 1 else np.concatenate(planes, axis=2), (top, left)), gaps

    def _plane(
        self,
        level: int,
        number: int,
        left: int,
        top: int,
        size_px: tuple[int, int],
        fill: int,
        gaps: np.ndarray | None = None,
    ) -> np.ndarray:
        """One page [Y X S]. Damage is an error; with ``gaps`` [Y X] it is marked there."""
        page = self._levels[level][number]
        apart = page.planarconfig == tifffile.PLANARCONFIG.SEPARATE and page.samplesperpixel > 1
        alpha = _alpha(page)
        out = np.full((*size_px, page.samplesperpixel), fill, self.dtype)
        if alpha is not None:
            out[..., alpha] = _opaque(self.dtype)  # what lies outside is the background already
        rows, columns = _segment_px(page)
        across, down = math.ceil(page.imagewidth / columns), math.ceil(page.imagelength / rows)
        bottom, right = min(top + size_px[0], page.imagelength), min(left + size_px[1], page.imagewidth)
        for row in range(max(0, top) // rows, math.ceil(max(0, bottom) / rows)):
            for column in range(max(0, left) // columns, math.ceil(max(0, right) / columns)):
                for sample in range(page.samplesperpixel if apart else 1):
                    try:
                        piece = self._segment(level, number, (sample * down + row) * across + column)
                    except DamagedFile:
                        if gaps is None:
                            raise
                        ends = ((row * rows, (row + 1) * rows, top), (column * columns, (column + 1) * columns, left))
                        gaps[tuple(slice(max(0, a - start), max(0, b - start)) for a, b, start in ends)] = True
                        continue
                    if piece is None:
                        continue  # a sparse file: nothing was stored here
                    y0, x0 = max(top, row * rows), max(left, column * columns)
                    y1, x1 = min(bottom, row * rows + piece.shape[0]), min(right, column * columns + piece.shape[1])
                    part = piece[y0 - row * rows : y1 - row * rows, x0 - column * columns : x1 - column * columns]
                    where = slice(sample, sample + 1) if apart else slice(None)
                    out[y0 - top : y1 - top, x0 - left : x1 - left, where] = part
        return out if alpha is None else _laid_over(out, alpha, fill, page.extrasamples)

    def _file_of(self, page: Any) -> Any:
        """The open file of a page: another one for the planes of an OME-TIFF in several files."""
        handle = page.parent.filehandle
        if handle.closed:
            handle.open()
        return handle

    def _segment(self, level: int, number: int, index: int) -> np.ndarray | None:
        """One tile or strip [Y X S], decoded."""
        key = (level, number, index)
        cached = self._segments.get(key)
        if cached is not None:
            return cached
        page = self._levels[level][number]
        start, count = page.dataoffsets[index], page.databytecounts[index]
        if not count:
            return None
        with damage_named(f"{self.path}: tile {index}"):
            data = os.pread(self._file_of(page).fileno(), count, start)
            decoded, _, shape = page.decode(data, index, jpegtables=page.jpegtables)
        if decoded is None:
            return None
        piece: np.ndarray = to_samples(decoded[0, : shape[1], : shape[2]], page)
        self._segments.put(key, piece, piece.nbytes)
        return piece


def _alpha(page: Any) -> int | None:
    """Which sample of a page says how opaque it is; None where none does."""
    kinds = [kind in ALPHA for kind in page.extrasamples]
    return page.samplesperpixel - len(kinds) + kinds.index(True) if True in kinds else None


def _opaque(dtype: np.dtype) -> int:
    return int(np.iinfo(dtype).max) if dtype.kind in "ui" else 1


def _laid_over(pixels: np.ndarray, alpha: int, fill: int, kinds: tuple[int, ...]) -> np.ndarray:
    """[Y X C - 1]: the other samples, over a background of ``fill`` where they are not opaque."""
    opaque, others = _opaque(pixels.dtype), np.delete(pixels, alpha, axis=2)
    if (pixels[..., alpha] == opaque).all():
        return others
    opacity = pixels[..., alpha : alpha + 1].astype(np.float32) / opaque
    visible = others if tifffile.EXTRASAMPLE.ASSOCALPHA in kinds else others * opacity  # associated: multiplied already
    laid = visible + fill * (1 - opacity)
    if pixels.dtype.kind in "ui":
        laid = np.rint(laid).clip(0, opaque)
    return laid.astype(pixels.dtype)


def _segment_px(page: Any) -> tuple[int, int]:
    if page.is_tiled:
        return int(page.tilelength), int(page.tilewidth)
    return min(int(page.rowsperstrip), int(page.imagelength)), int(page.imagewidth)


def _main_series(file: tifffile.TiffFile) -> tuple[Any, int]:
    """The series of the slide itself, and how many scanned areas the file has. Raises DamagedFile for none.

    A Leica SCN begins with its macro picture, which shows the label: an image that covers the whole glass (as
    OpenSlide tells it) is never taken.
    """
    name = str(file.filehandle.path)
    if not file.is_scn:
        return main_series(file, name), 1
    check_text(file, name)
    series = list(file.series)
    is_main = [not covers for covers in _covers_glass(file.pages.first.aspage().description, name)]
    series = [candidate for candidate, main in zip(series, is_main) if main] if len(is_main) == len(series) else []
    if not series:
        raise DamagedFile(f"{name}: no image in this TIFF")
    return max(series, key=lambda candidate: math.prod(candidate.shape)), len(series)


def _left_aside(file: tifffile.TiffFile, main: Any, levels: list[list[Any]]) -> list[str]:
    """The other images of the file, but those that are its levels, and those of SCN and BIF, which have other notes."""
    if file.is_scn or file.is_bif:
        return []
    used = {page.index for level in levels for page in level}
    others = [item for item in file.series if item is main or item.keyframe.index not in used]
    return series_left_aside(others, main)


def _covers_glass(description: str, name: str) -> list[bool]:
    """Of every image in the text of a Leica SCN: whether its view is the whole glass."""
    covers = []
    for collection in parse_xml(description, name).iterfind("{*}collection"):
        for image in collection.iterfind("{*}image"):
            view = image.find("{*}view")
            covers.append(
                view is None
                or (
                    view.get("offsetX") == view.get("offsetY") == "0"
                    and all(view.get(side) == collection.get(side) for side in ("sizeX", "sizeY"))
                )
            )
    return covers


def _planes(file: tifffile.TiffFile, series: Any) -> list[Any]:
    """Pages of the full picture: one, or one a channel. Raises DamagedFile for stacks."""
    sizes = dict(zip(series.axes, series.shape))
    others = [axis for axis in series.axes if axis not in "YXSC" and sizes[axis] > 1]
    if others or "Y" not in sizes or "X" not in sizes:
        raise DamagedFile(
            f"{file.filehandle.path}: a stack, not a slide", got=f"axes {series.axes}, shape {series.shape}"
        )
    pages = [page for page in series.pages if page is not None]
    return [page.aspage() for page in pages]


def _levels(file: tifffile.TiffFile, series: Any, planes: list[Any]) -> list[list[Any]]:
    """Pages of every level: those that tifffile finds, or the smaller copies of the first page among the others."""
    from_tifffile = [[page.aspage() for page in level.pages if page is not None] for level in series.levels]
    levels, first = [planes], planes[0]
    if len(planes) > 1 or file.is_scn or file.is_bif:
        return from_tifffile
    for page in list(file.pages)[1:]:
        candidate = page.aspage()
        same = candidate.is_tiled == first.is_tiled and candidate.dtype == first.dtype
        if (
            not same
            or candidate.samplesperpixel != first.samplesperpixel
            or candidate.imagewidth >= levels[-1][0].imagewidth
        ):
            continue
        ratio = first.imagewidth / candidate.imagewidth
        # A label or macro picture has another shape.
        if abs(first.imagelength / ratio - candidate.imagelength) <= 1 and ratio > 1.5:
            levels.append([candidate])
    return levels if len(levels) > len(from_tifffile) else from_tifffile


def _spacing(file: tifffile.TiffFile, plane: Any) -> tuple[float, float] | None:
    """(y, x) in micrometres from OME-XML, the text of Aperio or Ventana, or the tags of the full picture's page.

    None where none has a unit.
    """
    if file.is_ome and file.ome_metadata:
        root = parse_xml(file.ome_metadata, str(file.filehandle.path))
        pixels = next((element for element in root.iter() if element.tag.endswith("}Pixels")), None)
        if pixels is not None and pixels.get("PhysicalSizeX") and pixels.get("PhysicalSizeY"):
            unit = [length_um(pixels.get(f"PhysicalSize{axis}Unit", "µm")) or 0.0 for axis in "YX"]
            sides = [float(pixels.get(f"PhysicalSize{axis}", "0")) * u for axis, u in zip("YX", unit)]
            if min(sides) > 0:
                return sides[0], sides[1]
    first: Any = file.pages.first.aspage()
    match = re.search(r"\bMPP = ([0-9.]+)", str(first.description)) if file.is_svs else None
    if file.is_bif:
        packet = first.tags.get(XML_PACKET)
        match = re.search(r'\bScanRes="([0-9.]+)"', bytes(packet.value).decode("latin-1")) if packet else None
    if match:
        return float(match[1]), float(match[1])
    tags = plane.tags
    x, y, unit_tag = tags.get("XResolution"), tags.get("YResolution"), tags.get("ResolutionUnit")
    um = {2: 25_400.0, 3: 10_000.0}.get(int(unit_tag.value) if unit_tag else 1)
    if um is None or x is None or y is None or not x.value[0] or not y.value[0]:
        return None
    return um * y.value[1] / y.value[0], um * x.value[1] / x.value[0]
