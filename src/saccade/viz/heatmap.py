"""Scores of tiles over their slide: PNG, pyramidal TIFF, a sheet of the highest and lowest tiles, CSV. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from saccade.base.files import write_text
from saccade.data.slides.pyramid_writer import TILE_PX, write_pyramid
from saccade.data.slides.slide import Slide
from saccade.errors import UsageError
from saccade.viz.save import csv_text

OPACITY = 0.5
PICTURE_PX, TIFF_PX = 1400, 12_000  # longer sides
ENDS = (1, 99)  # percentiles at the ends of the colour scale
INK, PAPER = (40, 40, 40), (255, 255, 255)


@dataclass(frozen=True)
class TileScores:
    """Scores of squares on a lattice.

    Parameters
    ----------
    name : str
        What the scores are, in a few words.
    coords : ndarray
        [n 2] int64, (x, y) of each square's corner in pixels of level 0.
    side_px : float
        Side of a square in pixels of level 0.
    scores : ndarray
        [n].
    side_y_px : float, optional
        Height of a square where pixels are not square.
    """

    name: str
    coords: np.ndarray
    side_px: float
    scores: np.ndarray
    side_y_px: float | None = None

    def __post_init__(self) -> None:
        if not len(self.coords) or len(self.coords) != len(self.scores) or min(self.sides_px) <= 0:
            raise UsageError(
                "number of scores and tile coordinates differ",
                got=f"{len(self.coords)} squares, {len(self.scores)} scores",
            )

    @property
    def sides_px(self) -> tuple[float, float]:
        """(y, x): side of a square in pixels of level 0."""
        return self.side_px if self.side_y_px is None else self.side_y_px, self.side_px

    @property
    def range(self) -> str:
        """The lowest and the highest score as text."""
        return f"{self.scores.min():.3g} to {self.scores.max():.3g}"

    @cached_property
    def ends(self) -> tuple[float, float]:
        """Scores at the ends of the colour scale (percentiles 1 and 99)."""
        low, high = np.percentile(self.scores, ENDS)
        return float(low), float(high if high > low else low + 1e-9)

    @property
    def marks(self) -> tuple[str, str]:
        """Labels of the ends of the colour scale; they say where scores lie beyond."""
        limits = float(self.scores.min()), float(self.scores.max())
        low, high, lowest, highest = (f"{value:.3g}" for value in (*np.clip(self.ends, *limits), *limits))
        return low if low == lowest else f"{low} and below", high if high == highest else f"{high} and above"

    def unit(self, scores: np.ndarray) -> np.ndarray:
        """Scores as positions on the colour scale, 0 to 1."""
        low, high = self.ends
        scaled: np.ndarray = ((scores - low) / (high - low)).clip(0, 1)
        return scaled

    @cached_property
    def _lattice(self) -> tuple[np.ndarray, np.ndarray]:
        """Scores [rows columns], NaN where there is no square, and the corner (x, y)."""
        corner = self.coords.min(axis=0)
        cells = np.rint((self.coords - corner) / self.sides_px[::-1]).astype(int)
        grid = np.full((cells[:, 1].max() + 1, cells[:, 0].max() + 1), np.nan)
        grid[cells[:, 1], cells[:, 0]] = self.scores
        return grid, corner

    def sampled(self, top: int, size_px: tuple[int, int], downsample: float) -> np.ndarray:
        """Scores [rows columns] of a strip of the slide downsampled by ``downsample``, from its row ``top`` on."""
        (grid, corner), (down, across) = self._lattice, self.sides_px
        y = np.floor(((top + np.arange(size_px[0]) + 0.5) * downsample - corner[1]) / down).astype(int)
        x = np.floor(((np.arange(size_px[1]) + 0.5) * downsample - corner[0]) / across).astype(int)
        sampled = np.full(size_px, np.nan)
        rows, columns = (y >= 0) & (y < grid.shape[0]), (x >= 0) & (x < grid.shape[1])
        sampled[np.ix_(rows, columns)] = grid[np.ix_(y[rows], x[columns])]
        return sampled

    def save_csv(self, path: Path) -> Path:
        """Write one line per square: x, y, side, score. Raises StorageError."""
        down, across = self.sides_px
        height = [] if down == across else [f"{down:.3f}"]  # only where pixels are not square
        header = ["x", "y", "side", *(["side_y"] if height else []), "score"]
        rows = (
            [int(x), int(y), f"{across:.3f}", *height, f"{score:.6g}"]
            for (x, y), score in zip(self.coords, self.scores)
        )
        return write_text(path, csv_text(header, rows))


def colours(unit: np.ndarray) -> np.ndarray:
    """[... 3] float of values in 0..1: viridis, distinguishable with colour blindness and in grey print."""
    import matplotlib

    rgb: np.ndarray = 255 * matplotlib.colormaps["viridis"](unit)[..., :3]
    return rgb


def for_the_eye(pixels: np.ndarray, slide: Slide) -> np.ndarray:
    """[Y X 3] float 0..255 of [C Y X]; dark slides are brightened by one factor per slide."""
    plane = pixels[:3] if len(pixels) >= 3 else np.repeat(pixels[:1], 3, axis=0)
    if not slide.dark:
        return slide.eight_bits(plane).transpose(1, 2, 0).astype(np.float32)
    rgb = plane.transpose(1, 2, 0).astype(np.float32)
    return (rgb * 255 / brightest(slide)).clip(0, 255) ** 0.7 * 255**0.3


def brightest(slide: Slide) -> float:
    """The value that is displayed white on a dark slide."""
    return max(float(np.percentile(slide.thumbnail(512).max(axis=0), 99.5)), 1.0)


def blended(picture: np.ndarray, heat: TileScores, top: int, downsample: float) -> np.ndarray:
    """A strip of the slide [Y X 3] under the colours of its scores, uint8; areas without a score are unchanged."""
    scores = heat.sampled(top, picture.shape[:2], downsample)
    scored = ~np.isnan(scores)
    out = picture.copy()
    out[scored] = (1 - OPACITY) * picture[scored] + OPACITY * colours(heat.unit(scores[scored]))
    return np.rint(out).clip(0, 255).astype(np.uint8)


def picture(slide: Slide, heat: TileScores, longest_px: int = PICTURE_PX) -> Image.Image:
    """The whole slide under its scores, with a colour scale below."""
    downsample = max(1.0, max(slide.size_px) / longest_px)
    size = (max(1, int(slide.size_px[0] / downsample)), max(1, int(slide.size_px[1] / downsample)))
    pixels = for_the_eye(slide.around_damage(0, 0, (downsample, downsample), size)[0], slide)
    laid = Image.fromarray(blended(pixels, heat, 0, downsample))
    page = Image.new("RGB", (max(laid.width, 420), laid.height + 44), PAPER)
    page.paste(laid, (0, 0))
    draw, top = ImageDraw.Draw(page), laid.height + 8
    low, high = heat.marks
    bar = colours(np.linspace(0, 1, 160))[None].repeat(12, axis=0).astype(np.uint8)
    page.paste(Image.fromarray(bar), (110, top))
    draw.text((104 - draw.textlength(low), top), low, fill=INK)
    draw.text((276, top), high, fill=INK)
    brightened = "" if slide.mode == "bright" else "; slide brightened"
    draw.text((8, top + 18), f"{heat.name}; {len(heat.scores):,} squares, {heat.range}{brightened}", fill=INK)
    return page


def save_tiff(path: Path, slide: Slide, heat: TileScores) -> Path:
    """Write the slide under its scores, strip by strip, as a pyramidal TIFF of at most 12,000 pixels."""
    downsample = max(1.0, max(slide.size_px) / TIFF_PX)
    rows, columns = max(1, int(slide.size_px[0] / downsample)), max(1, int(slide.size_px[1] / downsample))

    def strips() -> Iterator[np.ndarray]:
        for top in range(0, rows, TILE_PX):
            size = (min(TILE_PX, rows - top), columns)
            pixels = for_the_eye(slide.around_damage(0, top * downsample, (downsample, downsample), size)[0], slide)
            yield blended(pixels, heat, top, downsample)

    um = None if slide.spacing_um is None else (slide.spacing_um[0] * downsample, slide.spacing_um[1] * downsample)
    return write_pyramid(path, (rows, columns), strips(), um=um)


def extremes(slide: Slide, heat: TileScores, *, count: int = 8, tile_px: int = 128) -> Image.Image:
    """The squares with the highest and with the lowest scores, each with its score."""
    count = min(count, len(heat.scores))
    order = np.argsort(-heat.scores, kind="stable")
    rows = (("highest", order[:count]), ("lowest", order[::-1][:count]))
    gap, line, head = 6, 16, 40
    page = Image.new("RGB", (count * (tile_px + gap) + gap, head + 2 * (tile_px + 2 * line + gap)), PAPER)
    draw = ImageDraw.Draw(page)
    draw.text((gap, 8), f"{slide.path.name}: {heat.name}", fill=INK)
    for number, (name, chosen) in enumerate(rows):
        top = head + number * (tile_px + 2 * line + gap)
        draw.text((gap, top - line), name, fill=INK)
        for column, index in enumerate(chosen):
            x, y = (int(v) for v in heat.coords[index])
            factors = (heat.sides_px[0] / tile_px, heat.sides_px[1] / tile_px)
            pixels = slide.around_damage(x, y, factors, (tile_px, tile_px))[0]
            tile = Image.fromarray(np.rint(for_the_eye(pixels, slide)).astype(np.uint8))
            left = gap + column * (tile_px + gap)
            page.paste(tile, (left, top))
            draw.text((left, top + tile_px + 2), f"{heat.scores[index]:.3g}", fill=INK)
    return page
