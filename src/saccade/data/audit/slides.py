"""Audit of a set of slides: files, resolutions, tissue, tiles; and a sheet with the outlines of their masks."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from saccade.base import frames, run_folder
from saccade.base.files import write_file
from saccade.base.places import without_folders
from saccade.data.cache.image_cache import check_damage
from saccade.data.slides.slide import Slide, some_of
from saccade.data.slides.slide_source import SlideTiles
from saccade.data.slides.tissue_mask import Tissue, find_tissue

THUMB_PX, COLUMNS, MOST = 300, 4, 24
DRAWN = 8
"""Slides on the sheet of a run: their masks are made once more for it."""
COLOURS = {"tissue": (20, 150, 60), "pen": (230, 0, 200), "out of focus": (240, 140, 0)}


@dataclass(frozen=True)
class SlideLine:
    """One slide. ``size_px`` rows and columns, ``spacing_um`` of level 0; fractions as in tissue_mask.Tissue."""

    id: str
    vendor: str
    levels: int
    size_px: tuple[int, int]
    spacing_um: float
    mode: str
    tissue: float
    pen: float
    blur: float
    tiles: int
    label: str | None
    group: str | None
    split: str | None
    note: str


@dataclass(frozen=True)
class SlideAudit(frames.Tabular):
    """What ``saccade show`` prints of slides, and of the tiles that a training would see.

    skipped     slides without a resolution that are left out
    not_taken   files of the folder that are not slides; ``aside`` says why a table among them is not used
    """

    name: str
    mpp: float
    tile_px: int
    min_tissue: float
    slides: list[SlideLine]
    unreadable: list[tuple[str, str]]
    labels: dict[str, int]
    splits: dict[str, int]
    groups: int
    copies: list[list[str]]
    not_taken: list[str] = dataclasses.field(default_factory=list)
    aside: str = ""
    skipped: list[str] = dataclasses.field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def frame_columns(self) -> dict[str, list[Any]]:
        """One row per slide."""
        return frames.columns_of([vars(slide) for slide in self.slides])

    def _repr_html_(self) -> str:
        return frames.to_html(self.name, self.frame_columns())

    def text(self) -> str:
        """One line a slide, then what they are together."""
        tiles = sum(slide.tiles for slide in self.slides)
        lines = [
            self.name,
            f"  slides      {len(self.slides):,}" + (f", {len(self.unreadable)} unreadable" if self.unreadable else ""),
            f"  tiles       {tiles:,} of {self.tile_px} px at {self.mpp:g} um/px, with at least "
            f"{self.min_tissue:.0%} usable tissue",
        ]
        for kind, counts in (("labels", self.labels), ("splits", self.splits)):
            if counts:
                lines.append(f"  {kind:11s} " + ", ".join(f"{name}: {n:,}" for name, n in counts.items()) + " (slides)")
        lines.append(f"  groups      {self.groups:,}")
        lines += [f"  COPIES      {', '.join(ids)} are the same file" for ids in self.copies]
        if self.skipped:
            lines.append(f"  left out    {len(self.skipped):,} without a resolution: {some_of(self.skipped)}")
        if self.not_taken:
            lines.append(f"  not taken   {_counted(self.not_taken)}")
        if self.aside:
            lines.append(f"  table       {self.aside}")
        width = max(len(slide.id) for slide in self.slides)
        lines.append(f"  {'slide':{width}s}  {'vendor':12s} levels  rows x columns  um/px   background  tissue  tiles")
        for slide in self.slides:
            size = f"{slide.size_px[0]:,} x {slide.size_px[1]:,}"
            lines.append(
                f"  {slide.id:{width}s}  {slide.vendor:12s} {slide.levels:6d}  {size:>14s}  {slide.spacing_um:<6.4g}  "
                f"{slide.mode:10s}  {slide.tissue:6.1%}  {slide.tiles:,}"
            )
            pen = f"pen marks on {_percent(slide.pen)} of it" if slide.pen else ""
            blur = f"{_percent(slide.blur)} of its tissue out of focus" if slide.blur else ""
            defects = ", ".join(filter(None, (pen, blur)))
            lines += [f"  {'':{width}s}  {line}" for line in (defects, slide.note) if line]
        lines += [f"  UNREADABLE  {name}: {reason}" for name, reason in self.unreadable[:20]]
        return "\n".join(lines)


def _percent(value: float) -> str:
    return f"{value:.1%}" if value >= 0.0005 else "less than 0.1%"


def _counted(names: list[str]) -> str:
    """The number of files that are not slides, and two of them."""
    count, examples = len(names), ", ".join(names[:2]) + (", ..." if len(names) > 2 else "")
    return f"{count:,} {'files are not slides' if count > 1 else 'file is not a slide'}: {examples}"


def line_of(tiles: SlideTiles, number: int) -> SlideLine:
    """The line of one slide."""
    record, cut, slide = tiles.entries[number].record, tiles.tilings[number], tiles.slides[number]
    return SlideLine(
        id=record.id,
        vendor=slide.vendor,
        levels=len(slide.downsamples),
        size_px=slide.size_px,
        spacing_um=slide.known_um[1],
        mode=cut.mode,
        tissue=cut.fractions["tissue"],
        pen=cut.fractions["pen"],
        blur=cut.fractions["blur"],
        tiles=len(cut.grid),
        label=record.label,
        group=record.group,
        split=record.split,
        note=cut.note,
    )


def audit_slides(tiles: SlideTiles, *, max_bad: float = 0.05) -> SlideAudit:
    """Look at every slide. Raises TooManyDamaged, with the files named, above the fraction ``max_bad``."""
    check_damage(tiles.name, tiles.unreadable, len(tiles.unreadable) + len(tiles.entries), max_bad, what="slides")
    lines = [line_of(tiles, number) for number in range(len(tiles.entries))]
    by_hash: dict[str, list[str]] = {}
    for line, digest in zip(tiles.entries, tiles.hashes):
        by_hash.setdefault(digest, []).append(line.record.id)
    return SlideAudit(
        name=tiles.name,
        mpp=tiles.mpp,
        tile_px=tiles.tile_px,
        min_tissue=float(tiles.tiling.min_tissue or 0.0),
        slides=lines,
        unreadable=tiles.unreadable,
        labels=dict(sorted(Counter(line.label for line in lines if line.label is not None).items())),
        splits=dict(sorted(Counter(line.split for line in lines if line.split is not None).items())),
        groups=len({line.group or line.id for line in lines}),
        copies=[ids for ids in by_hash.values() if len(ids) > 1],
        not_taken=tiles.beside,
        aside=tiles.aside,
        skipped=tiles.skipped,
    )


def slide_sheet(tiles: SlideTiles, path: Path, numbers: Sequence[int] | None = None) -> Path:
    """A PNG of slides with outlines of tissue, pen marks and parts out of focus, and the tiles dotted.

    numbers   of the slides that are shown; the first ones by default
    """
    numbers_shown = range(min(MOST, len(tiles.entries))) if numbers is None else numbers
    columns = min(COLUMNS, len(numbers_shown))
    rows, step = -(-len(numbers_shown) // columns), THUMB_PX + 34
    sheet = Image.new("RGB", (columns * (THUMB_PX + 8) + 8, 26 + rows * step), "white")
    draw = ImageDraw.Draw(sheet)
    left = 8
    for name, colour in COLOURS.items():
        draw.rectangle((left, 8, left + 10, 18), fill=colour)
        draw.text((left + 15, 7), name, fill=(40, 40, 40))
        left += 25 + int(draw.textlength(name))
    draw.text((left, 7), f"dots: tiles of {tiles.tile_px} px at {tiles.mpp:g} um/px", fill=(40, 40, 40))
    for index, number in enumerate(numbers_shown):
        slide, grid = tiles.slides[number], tiles.grid(number)
        thumbnail, factor = outlined(slide, find_tissue(slide), THUMB_PX)
        thumb = Image.fromarray(thumbnail)
        dots = ImageDraw.Draw(thumb)
        for x, y in grid.coords:
            at = ((x + grid.step_px[1] / 2) / factor, (y + grid.step_px[0] / 2) / factor)
            dots.point(at, fill=(0, 0, 0) if slide.mode == "bright" else (255, 255, 255))
        row, column = divmod(index, columns)
        corner = (8 + column * (THUMB_PX + 8), 26 + row * step)
        sheet.paste(thumb, corner)
        label = tiles.entries[number].record.label
        caption = Path(tiles.entries[number].record.id).name + (f" ({label})" if label else "")
        draw.text((corner[0], corner[1] + THUMB_PX + 2), caption[:46], fill=(0, 0, 0))
        draw.text((corner[0], corner[1] + THUMB_PX + 15), f"{slide.mode}, {len(grid):,} tiles", fill=(90, 90, 90))
    return write_file(path, sheet.save)


def describe_slides(tiles: SlideTiles, numbers: Sequence[int], run: Path) -> dict[str, Any]:
    """What data.json of a run says of the slides it learns from; a few of them are drawn to ``run_folder.SLIDES_PNG``.

    Returns ``mpp`` and ``tile_px`` of the tiles, ``slides`` (a SlideLine each), ``unreadable`` (id and
    reason) and ``without_resolution`` (ids of slides that were left out).
    """
    sheet = run / run_folder.SLIDES_PNG
    if not sheet.exists():  # a hierarchy that is resumed has learned from the same slides
        spread = np.unique(np.linspace(0, len(numbers) - 1, min(DRAWN, len(numbers))).astype(int))
        slide_sheet(tiles, sheet, [int(numbers[k]) for k in spread])
    return {
        "mpp": tiles.mpp,
        "tile_px": tiles.tile_px,
        "slides": [dataclasses.asdict(line_of(tiles, int(number))) for number in numbers],
        "unreadable": [{"id": name, "reason": without_folders(reason)} for name, reason in tiles.unreadable],
        "without_resolution": tiles.skipped,
    }


def outlined(slide: Slide, mask: Tissue, longest_px: int) -> tuple[np.ndarray, float]:
    """A small picture uint8 [Y X 3] with the outlines of the masks, and pixels of level 0 a pixel of it."""
    small = slide.thumbnail(longest_px)
    small = small if slide.dark else slide.eight_bits(small)
    plane = small[:3] if len(small) >= 3 else np.repeat(small[:1], 3, axis=0)
    values = plane.transpose(1, 2, 0).astype(np.float32)
    if slide.dark:
        values = (values * 255 / max(float(np.percentile(values.max(axis=2), 99.5)), 1)).clip(0, 255) ** 0.7 * 255**0.3
    out = values.astype(np.uint8)
    for name, region in (("tissue", mask.tissue), ("out of focus", mask.blur), ("pen", mask.pen)):
        fitted = Image.fromarray(region).resize((out.shape[1], out.shape[0]), Image.Resampling.NEAREST)
        inside = np.asarray(fitted)
        out[inside ^ ndimage.binary_erosion(inside, iterations=1, border_value=1)] = COLOURS[name]
    return out, slide.size_px[0] / out.shape[0]
