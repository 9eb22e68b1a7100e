"""A whole slide: pixels of any place at any resolution, in coordinates of level 0.

``open_slide`` takes OpenSlide where it can read the file, and tifffile for other TIFF. Label and macro pictures of a
file are never opened: they can carry names.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import math
import os
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from saccade.data.limits import SLIDE_RATIO, SMALL_SLIDE, check_ratio, damage_named
from saccade.data.slides.multi_file import parts_of
from saccade.data.slides.reader import Reader, Region
from saccade.data.slides.readers import open_reader
from saccade.data.slides.resample import margin_px, resample, touched
from saccade.errors import DamagedFile, DataError, UsageError

FINER = 0.9  # of the asked resolution: a level may be coarser than asked by a tenth, no more
NEAR = 1.01  # a level that is coarser by up to 1 % is the level asked for
SAME, SAME_PX = 0.0025, 1.0  # relative difference of a matching level, and pixels at its far end
BRIGHT, DARK = "bright", "dark"
PLAUSIBLE_UM = (0.02, 50.0)  # a pixel of a microscope; 72 dpi, the default of many programs, is 353 micrometres
COARSE_UM = 20.0  # no scanner's full resolution; may be the size of a pixel of an overview
WHOLE_HASH = 64 * 2**20
MOST_UNREAD = 0.25  # of its overview: a slide with more is not usable
AT_ONCE_BYTES = 64 * 2**20  # of source pixels: a slide of one level is reduced in parts, whatever its size
WIDE_PX = 2048  # parts are strips down to this height, halved: what is decoded for one is decoded again for the next
PIECE_PX = 32  # around damage a picture is put together from pieces down to this side


class Slide:
    """One open whole slide. Coordinates are pixels of level 0, (x, y) from the upper left corner.

    Attributes
    ----------
    size_px : tuple of int
        Rows and columns of level 0.
    downsamples : tuple of float
        Factor of each level to level 0; not whole numbers in general.
    spacing_um : tuple of float or None
        (y, x) of level 0 in micrometres per pixel; None where neither the file nor the user gives it.
    note : str
        What the user should know of how the file is read; "" for nothing.
    """

    def __init__(self, path: Path, reader: Reader, mpp: float | None = None, dark: bool | None = None):
        self.path, self.reader, self.note, self._dark = path, reader, reader.note, dark
        self.vendor = reader.vendor
        self.size_px = (int(reader.sizes_px[0][0]), int(reader.sizes_px[0][1]))
        self.downsamples = tuple(float(d) for d in reader.downsamples)
        self.spacing_um = reader.spacing_um
        if self.spacing_um is not None and not all(PLAUSIBLE_UM[0] <= v <= PLAUSIBLE_UM[1] for v in self.spacing_um):
            implausible = f"{self.spacing_um[1]:g} micrometres per pixel"
            self.note = f"its resolution of {implausible} is implausible for a microscope and is ignored"
            self.spacing_um = None
        if mpp is not None:
            if not PLAUSIBLE_UM[0] <= mpp <= PLAUSIBLE_UM[1]:
                raise UsageError(
                    f"{path}: implausible slide resolution",
                    got=f"{mpp:g} micrometres a pixel",
                    expected="0.02 to 50",
                )
            in_file = self.spacing_um
            if in_file is not None and abs(in_file[1] / mpp - 1) > 0.05:
                self.note = f"the file says {in_file[1]:g} micrometres per pixel; the given {mpp:g} is used"
            if mpp > COARSE_UM:
                self.note = f"{mpp:g} micrometres per pixel, as given, is coarse for a slide; check the value"
            self.spacing_um = (mpp, mpp)

    @property
    def known_um(self) -> tuple[float, float]:
        """``spacing_um``, or the error that says how to give it."""
        if self.spacing_um is None:
            raise no_resolution([str(self.path)])
        return self.spacing_um

    @cached_property
    def dark(self) -> bool:
        """Whether the background is dark (fluorescence): most of the slide nearly black, hardly any of it bright.

        Judged by 64 small places; a slide with channels of fluorescence is dark whatever they hold.
        """
        if self._dark is not None:
            return self._dark
        if self.reader.fluorescent:
            return True
        values, top = self._places, self.white
        return bool((values.max(axis=-1) < 0.3 * top).mean() > 0.5 and (values.min(axis=-1) > 0.7 * top).mean() < 0.1)

    @cached_property
    def white(self) -> float:
        """What counts as white: 255, of other number types than 8 bits the brightest of 64 small places."""
        return 255.0 if self.dtype == np.uint8 else max(float(np.percentile(self._places, 99.9)), 1.0)

    @cached_property
    def _places(self) -> np.ndarray:
        """[n 16 16 C] float32: 64 places spread over the coarsest level, a slide of one level being large."""
        level, side = len(self.downsamples) - 1, 16
        places = (np.arange(8) + 0.5) / 8
        rows, columns = self.reader.sizes_px[level]
        patches = []
        for y, x in itertools.product(places, places):
            with contextlib.suppress(DamagedFile):  # one bad place does not hide what the slide is
                patches.append(self.reader.read(level, int(x * columns), int(y * rows), (side, side), 128).pixels)
        if not patches:
            raise DamagedFile(f"{self.path}: its smallest level cannot be read", hint="copy it again")
        return np.stack(patches).astype(np.float32)

    @property
    def mode(self) -> str:
        return DARK if self.dark else BRIGHT

    @property
    def dtype(self) -> np.dtype:
        return self.reader.dtype

    @property
    def background(self) -> int:
        """What lies outside: white, black for fluorescence."""
        return 0 if self.dark else round(self.white)

    def eight_bits(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels of this slide as uint8, its white being 255."""
        if pixels.dtype == np.uint8:
            return pixels
        scaled: np.ndarray = np.rint(pixels.astype(np.float32) * (255 / self.white)).clip(0, 255).astype(np.uint8)
        return scaled

    def read(self, x: float, y: float, *, mpp: float, size_px: tuple[int, int]) -> np.ndarray:
        """Read a rectangle at a given resolution, resampled once from the next finer level.

        Parameters
        ----------
        x, y : float
            Upper left corner in pixels of level 0.
        mpp : float
            Micrometres per pixel of the result.
        size_px : tuple of int
            Rows and columns of the result.

        Returns
        -------
        ndarray
            [C Y X] in the number type of the file; outside of the slide the background.

        Raises
        ------
        UsageError
            ``mpp`` is finer than the slide.
        DataError
            The resolution of the slide is unknown.
        DamagedFile
            A part of the file cannot be decoded.
        """
        return self._scaled(x, y, self.factors(mpp), size_px, self.background)

    def factors(self, mpp: float) -> tuple[float, float]:
        """(y, x): pixels of level 0 a pixel at ``mpp``. Raises as ``read``."""
        um = self.known_um
        if mpp < FINER * max(um):
            raise UsageError(
                f"{self.path} does not have this resolution",
                got=f"{mpp:g} micrometres a pixel",
                expected=f"{max(um):.4g} or coarser",
                hint=f"--mpp {max(um):.4g}; upsampling adds no information",
            )
        return mpp / um[0], mpp / um[1]

    def reduced(self, x: float, y: float, downsample: float, size_px: tuple[int, int]) -> np.ndarray:
        """Like ``read`` with a factor of level 0 instead of micrometres: for slides without resolution."""
        return self._scaled(x, y, (downsample, downsample), size_px, self.background)

    def thumbnail(self, longest_px: int) -> np.ndarray:
        """The whole slide [C Y X], its longer side ``longest_px`` or its own, if smaller; see ``overview``."""
        return self.overview(longest_px)[0]

    def overview(self, longest_px: int) -> tuple[np.ndarray, np.ndarray]:
        """The whole slide and where it could not be read, as ``around_damage`` has them.

        Raises DamagedFile where that is a quarter of it.
        """
        factor = max(1.0, max(self.size_px) / longest_px)
        size = (max(1, round(self.size_px[0] / factor)), max(1, round(self.size_px[1] / factor)))
        return self.around_damage(0, 0, (self.size_px[0] / size[0], self.size_px[1] / size[1]), size, most=MOST_UNREAD)

    def around_damage(
        self, x: float, y: float, factors: tuple[float, float], size_px: tuple[int, int], *, most: float | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """For pictures: like ``reduced``, but what cannot be read is background; also where that is, bool [Y X].

        Raises DamagedFile where that is more than the fraction ``most`` of the picture; without ``most`` never.
        """
        with contextlib.suppress(DamagedFile):
            return self._scaled(x, y, factors, size_px, self.background), np.zeros(size_px, bool)
        by_tiles = self._by_tiles(x, y, factors, size_px, most)
        return self._by_pieces(x, y, factors, size_px, most) if by_tiles is None else by_tiles

    def _by_tiles(
        self, x: float, y: float, factors: tuple[float, float], size_px: tuple[int, int], most: float | None
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """As ``around_damage``, where the reader knows the tiles of the file; else None."""
        met: list[tuple[int, tuple[float, float], np.ndarray]] = []

        def read(level: int, left: int, top: int, size: tuple[int, int], fill: int) -> Region:
            partial = self.reader.read_around(level, left, top, size, fill)
            if partial is None:
                return Region(np.full((*size, self.reader.channels), fill, self.dtype), (top, left))
            met.append((level, partial[0].origin, partial[1]))
            return partial[0]

        pixels = self._scaled(x, y, factors, size_px, self.background, read)
        if not met:
            return None
        unread = np.zeros(size_px, bool)
        for level, origin, gaps in met:  # a large picture is read in parts
            step = self.downsamples[level]
            unread |= touched(gaps, (y / step, x / step), origin, factors, step, size_px)
        if most is not None and unread.mean() >= most:
            raise DamagedFile(f"{self.path}: cannot be read ({unread.mean():.0%} of it)", hint="copy it again")
        return np.where(unread, np.array(self.background, pixels.dtype), pixels), unread

    def _by_pieces(
        self, x: float, y: float, factors: tuple[float, float], size_px: tuple[int, int], most: float | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """As ``around_damage``, for any reader: what cannot be read is halved until it can, or is small."""
        unread, pieces = np.zeros(size_px, bool), [(0, 0, *size_px)]
        out = np.full((self.reader.channels, *size_px), self.background, self.dtype)
        while pieces:
            top, left, rows, columns = pieces.pop()
            piece = (slice(top, top + rows), slice(left, left + columns))
            try:
                pixels = self._scaled(
                    x + left * factors[1], y + top * factors[0], factors, (rows, columns), self.background
                )
            except DamagedFile:
                if max(rows, columns) > PIECE_PX:
                    pieces += _halves(top, left, rows, columns, rows >= columns)
                    continue
                unread[piece] = True
                if most is not None and unread.mean() >= most:
                    raise
                continue
            out[:, *piece] = pixels
        return out, unread

    def _scaled(
        self,
        x: float,
        y: float,
        factors: tuple[float, float],
        size_px: tuple[int, int],
        fill: int,
        read: Callable[[int, int, int, tuple[int, int], int], Region] | None = None,
    ) -> np.ndarray:
        """[C Y X], resampled once from the nearest finer level; ``read`` instead of the reader's."""
        read = read or self.reader.read
        level = max((i for i, d in enumerate(self.downsamples) if d <= min(factors) * NEAR), default=0)
        step = self.downsamples[level]
        first = (y / step, x / step)
        last = tuple(f + count * factor / step for f, count, factor in zip(first, size_px, factors))
        left_over = [abs(end - begin - count) for begin, end, count in zip(first, last, size_px)]
        if all(abs(f - round(f)) < 1e-3 for f in first) and all(
            off <= min(SAME_PX, SAME * count) for off, count in zip(left_over, size_px)
        ):
            # The level's own pixels are what was asked for: resampling would blur them, here more than there.
            top, left = (round(f) for f in first)
            region = read(level, left, top, size_px, fill)
            if region.origin == (top, left):
                return np.ascontiguousarray(region.pixels.transpose(2, 0, 1))
        out = np.empty((self.reader.channels, *size_px), self.dtype)
        self._resample(level, first, (factors[0] / step, factors[1] / step), fill, out, read)
        return out

    def _resample(
        self,
        level: int,
        first: tuple[float, float],
        scale: tuple[float, float],
        fill: int,
        out: np.ndarray,
        read: Callable[[int, int, int, tuple[int, int], int], Region],
    ) -> None:
        """Fill ``out`` [C Y X] from a level, ``first`` and ``scale`` (y, x) in its pixels; in parts where it is large.

        A part is read with a margin as wide as the filter: its pixels are those of the whole, to rounding (1 of 255:
        Pillow takes the box in single precision).
        """
        rows, columns = out.shape[1:]
        last = first[0] + rows * scale[0], first[1] + columns * scale[1]
        margin = margin_px(max(scale))
        top, left = (math.floor(f) - margin for f in first)
        bottom, right = (math.ceil(f) + margin for f in last)
        high, wide = bottom - top, right - left
        if high * wide * len(out) * out.itemsize > AT_ONCE_BYTES and max(rows, columns) > 1:
            strips = columns == 1 or (rows > 1 and high >= min(WIDE_PX, wide))
            for down, right_by, part_rows, part_columns in _halves(0, 0, rows, columns, strips):
                part = (slice(down, down + part_rows), slice(right_by, right_by + part_columns))
                begin = first[0] + down * scale[0], first[1] + right_by * scale[1]
                self._resample(level, begin, scale, fill, out[:, *part], read)
            return
        region = read(level, left, top, (high, wide), fill)
        (y0, x0), (y1, x1) = first, last
        box = (x0 - region.origin[1], y0 - region.origin[0], x1 - region.origin[1], y1 - region.origin[0])
        out[:] = resample(region.pixels, box, (rows, columns)).transpose(2, 0, 1)

    def content_hash(self) -> str:
        """SHA-256 of the file and its parts (``parts_of``).

        Of a file above 64 MiB: its size and 64 pieces evenly spread over it, the first and last included.
        """
        digest = hashlib.sha256()
        try:
            for file in (self.path, *parts_of(self.path)):
                _take(digest, file)
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read ({error.strerror})") from error
        return digest.hexdigest()


def _halves(top: int, left: int, rows: int, columns: int, strips: bool) -> list[tuple[int, int, int, int]]:
    if strips:
        return [(top, left, rows // 2, columns), (top + rows // 2, left, rows - rows // 2, columns)]
    return [(top, left, rows, columns // 2), (top, left + columns // 2, rows, columns - columns // 2)]


def _take(digest: hashlib._Hash, path: Path) -> None:
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= WHOLE_HASH:
            while piece := file.read(2**20):
                digest.update(piece)
            return
        digest.update(str(size).encode())
        for start in np.linspace(0, size - 2**16, 64).astype(np.int64):
            file.seek(int(start), os.SEEK_SET)
            digest.update(file.read(2**16))


def no_resolution(names: Sequence[str], broken: Sequence[str] = (), *, others: int = 0) -> DataError:
    """The error for slides without a resolution.

    ``broken`` are those that cannot be opened either; ``others`` counts slides that could be used without them.
    """
    skip = f"; or --skip-unknown-mpp to use the other {others:,} {'slide' if others == 1 else 'slides'}"
    return DataError(
        f"resolution unknown: {some_of(names)}",
        got=f"slides that cannot be opened: {some_of(broken)}" if broken else None,
        expected="micrometres a pixel of the largest level",
        hint="one of: a column mpp in the table of slides; --slide-mpp VALUE; the tags XResolution, YResolution and "
        "ResolutionUnit in the file. It is never guessed" + (skip if others else ""),
    )


def some_of(names: Sequence[str]) -> str:
    """The first five names, and how many more there are."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5:,} more" if len(names) > 5 else "")


def open_slide(path: str | Path, mpp: float | None = None, *, dark: bool | None = None) -> Slide:
    """Open a whole slide.

    Parameters
    ----------
    path : str or Path
        The file; of a MIRAX slide the .mrxs, of a DICOM slide its largest level.
    mpp : float, optional
        Resolution of level 0 in micrometres per pixel, for files without one or with a wrong one.
    dark : bool, optional
        Whether the background is dark, where that is known; otherwise it is detected when first needed.

    Returns
    -------
    Slide

    Raises
    ------
    DamagedFile
        No reader can open the file, or its header claims many times what is stored; the message names the file and
        the reason of each reader.
    UsageError
        ``mpp`` is implausible.
    """
    path = Path(path)
    reader = open_reader(path)
    with damage_named(str(path)):
        stored = sum(part.stat().st_size for part in (path, *parts_of(path)))
        rows, columns = reader.sizes_px[0]
        claimed = rows * columns * reader.channels * reader.dtype.itemsize
        check_ratio(claimed, stored, str(path), small=SMALL_SLIDE, times=SLIDE_RATIO)
        return Slide(path, reader, mpp, dark)
