"""Scores of squares of a slide, laid over it: PNG, pyramidal TIFF, a sheet of the highest and lowest squares, CSV.

Any level of a hierarchy can fill ``Heat``; nothing here knows models. No torch here.
"""

from __future__ import annotations

import csv
import io
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

OPACITY = 0.5
PICTURE_PX, TIFF_PX = 1400, 12_000  # longer sides
ENDS = (1, 99)  # percentiles that have the ends of the colours
INK, PAPER = (40, 40, 40), (255, 255, 255)


@dataclass(frozen=True)
class Heat:
    """Scores of squares on a lattice.

    name     what the scores are, in a few words
    coords   [n 2] int64: (x, y) of each square's corner in pixels of level 0
    side_px  side of a square in pixels of level 0, not whole; ``side_y_px`` its height where pixels are not square
    scores   [n] float
    """

    name: str
    coords: np.ndarray
    side_px: float
    scores: np.ndarray
    side_y_px: float | None = None

    def __post_init__(self) -> None:
        if not len(self.coords) or len(self.coords) != len(self.scores) or min(self.sides_px) <= 0:
            raise UsageError(
                "these are no scores of squares", got=f"{len(self.coords)} squares, {len(self.scores)} scores"
            )

    @property
    def sides_px(self) -> tuple[float, float]:
        """(y, x): side of a square in pixels of level 0."""
        return self.side_px if self.side_y_px is None else self.side_y_px, self.side_px

    @property
    def range(self) -> str:
        """The lowest and the highest score, in words."""
        return f"{self.scores.min():.3g} to {self.scores.max():.3g}"

    @cached_property
    def ends(self) -> tuple[float, float]:
        """Scores that have the first and the last colour; those beyond have the same."""
        low, high = np.percentile(self.scores, ENDS)
        return float(low), float(high if high > low else low + 1e-9)

    @property
    def marks(self) -> tuple[str, str]:
        """What is written at the ends of the scale of colours, and that scores lie beyond, where they do."""
        whole = float(self.scores.min()), float(self.scores.max())
        low, high, lowest, highest = (f"{value:.3g}" for value in (*np.clip(self.ends, *whole), *whole))
        return low if low == lowest else f"{low} and below", high if high == highest else f"{high} and above"

    def unit(self, scores: np.ndarray) -> np.ndarray:
        """Scores as places on the scale of colours, 0 to 1."""
        low, high = self.ends
        found: np.ndarray = ((scores - low) / (high - low)).clip(0, 1)
        return found

    @cached_property
    def _lattice(self) -> tuple[np.ndarray, np.ndarray]:
        """Scores [rows columns], NaN where no square is, and its corner (x, y)."""
        corner = self.coords.min(axis=0)
        cells = np.rint((self.coords - corner) / self.sides_px[::-1]).astype(int)
        grid = np.full((cells[:, 1].max() + 1, cells[:, 0].max() + 1), np.nan)
        grid[cells[:, 1], cells[:, 0]] = self.scores
        return grid, corner

    def sampled(self, top: int, size_px: tuple[int, int], downsample: float) -> np.ndarray:
        """Scores [rows columns] of a strip of the slide reduced by ``downsample``, from row ``top`` of it on."""
        (grid, corner), (down, across) = self._lattice, self.sides_px
        y = np.floor(((top + np.arange(size_px[0]) + 0.5) * downsample - corner[1]) / down).astype(int)
        x = np.floor(((np.arange(size_px[1]) + 0.5) * downsample - corner[0]) / across).astype(int)
        found = np.full(size_px, np.nan)
        rows, columns = (y >= 0) & (y < grid.shape[0]), (x >= 0) & (x < grid.shape[1])
        found[np.ix_(rows, columns)] = grid[np.ix_(y[rows], x[columns])]
        return found

    def save_csv(self, path: Path) -> Path:
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        down, across = self.sides_px
        height = [] if down == across else [f"{down:.3f}"]  # squares are no squares where pixels are none
        writer.writerow(["x", "y", "side", *(["side_y"] if height else []), "score"])
        for (x, y), score in zip(self.coords, self.scores):
            writer.writerow([int(x), int(y), f"{across:.3f}", *height, f"{score:.6g}"])
        return write_text(path, file.getvalue())


def colours(unit: np.ndarray) -> np.ndarray:
    """[... 3] float: viridis, which is told apart by everyone and in grey print."""
    import matplotlib

    found: np.ndarray = 255 * matplotlib.colormaps["viridis"](unit)[..., :3]
    return found


def for_the_eye(pixels: np.ndarray, slide: Slide) -> np.ndarray:
    """[Y X 3] float 0..255 of [C Y X]; dark slides are brightened, the same everywhere on a slide."""
    plane = pixels[:3] if len(pixels) >= 3 else np.repeat(pixels[:1], 3, axis=0)
    if not slide.dark:
        return slide.eight_bits(plane).transpose(1, 2, 0).astype(np.float32)
    found = plane.transpose(1, 2, 0).astype(np.float32)
    return (found * 255 / brightest(slide)).clip(0, 255) ** 0.7 * 255**0.3


def brightest(slide: Slide) -> float:
    """What is shown white on a dark slide."""
    return max(float(np.percentile(slide.thumbnail(512).max(axis=0), 99.5)), 1.0)


def blended(picture: np.ndarray, heat: Heat, top: int, downsample: float) -> np.ndarray:
    """A strip of the slide [Y X 3] under the colours of its scores, uint8; places without a score stay as they are."""
    scores = heat.sampled(top, picture.shape[:2], downsample)
    there = ~np.isnan(scores)
    out = picture.copy()
    out[there] = (1 - OPACITY) * picture[there] + OPACITY * colours(heat.unit(scores[there]))
    return np.rint(out).clip(0, 255).astype(np.uint8)


def picture(slide: Slide, heat: Heat, longest_px: int = PICTURE_PX) -> Image.Image:
    """The whole slide under its scores, with a scale of colours below."""
    downsample = max(1.0, max(slide.size_px) / longest_px)
    size = (max(1, int(slide.size_px[0] / downsample)), max(1, int(slide.size_px[1] / downsample)))
    seen = for_the_eye(slide.around_damage(0, 0, (downsample, downsample), size)[0], slide)
    laid = Image.fromarray(blended(seen, heat, 0, downsample))
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


def save_tiff(path: Path, slide: Slide, heat: Heat) -> Path:
    """The slide under its scores as a pyramidal TIFF with resolution, at most 12,000 pixels along; strip by strip."""
    downsample = max(1.0, max(slide.size_px) / TIFF_PX)
    rows, columns = max(1, int(slide.size_px[0] / downsample)), max(1, int(slide.size_px[1] / downsample))

    def strips() -> Iterator[np.ndarray]:
        for top in range(0, rows, TILE_PX):
            size = (min(TILE_PX, rows - top), columns)
            seen = for_the_eye(slide.around_damage(0, top * downsample, (downsample, downsample), size)[0], slide)
            yield blended(seen, heat, top, downsample)

    um = None if slide.spacing_um is None else (slide.spacing_um[0] * downsample, slide.spacing_um[1] * downsample)
    return write_pyramid(path, (rows, columns), strips(), um=um)


def extremes(slide: Slide, heat: Heat, *, count: int = 8, tile_px: int = 128) -> Image.Image:
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
        for place, index in enumerate(chosen):
            x, y = (int(v) for v in heat.coords[index])
            factors = (heat.sides_px[0] / tile_px, heat.sides_px[1] / tile_px)
            seen = slide.around_damage(x, y, factors, (tile_px, tile_px))[0]
            tile = Image.fromarray(np.rint(for_the_eye(seen, slide)).astype(np.uint8))
            left = gap + place * (tile_px + gap)
            page.paste(tile, (left, top))
            draw.text((left, top + tile_px + 2), f"{heat.scores[index]:.3g}", fill=INK)
    return page
