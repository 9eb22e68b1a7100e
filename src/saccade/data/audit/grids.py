"""What is in a source of grids of vectors: slides, tiles, the length of their vectors, regions, labels."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from saccade.base import frames
from saccade.data.cache.image_cache import check_damage
from saccade.data.feature_grids import GridSource
from saccade.data.slide_features import load_features

MOST = 40  # slides that are listed
ADVICE = "one network reads vectors of one length"


@dataclass(frozen=True)
class GridLine:
    """One slide. ``numbers``: the length of its vectors. ``mpp``, ``tile_px`` and ``tile_px_level0`` where the file
    says them: micrometres a pixel of a tile, its side in such pixels and in pixels of level 0."""

    id: str
    tiles: int
    regions: int
    numbers: int
    mpp: float | None
    tile_px: int | None
    tile_px_level0: float
    model: str | None
    label: str | None
    group: str | None
    split: str | None


@dataclass(frozen=True)
class GridAudit(frames.Tabular):
    """What ``saccade show`` prints of a folder of features.

    side    tiles along a region; 0: a slide is one grid
    min_fraction  minimum fraction of a region's tiles
    unit    what a vector is of: tiles, or regions where another level has read the tiles
    copies  slides of the same content under several names
    bad     slides with NaN or infinite vectors
    unreadable  (name, reason) of damaged files
    """

    name: str
    side: int
    min_fraction: float
    unit: str
    slides: list[GridLine]
    labels: dict[str, int]
    splits: dict[str, int]
    groups: int
    copies: list[list[str]]
    bad: list[str]
    unreadable: list[tuple[str, str]] = dataclasses.field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def frame_columns(self) -> dict[str, list[Any]]:
        """One row per slide."""
        return frames.columns_of([vars(slide) for slide in self.slides])

    def _repr_html_(self) -> str:
        return frames.to_html(self.name, self.frame_columns())

    def text(self) -> str:
        """What they are together, then one line a slide."""
        total, regions = sum(line.tiles for line in self.slides), sum(line.regions for line in self.slides)
        without = [line.id for line in self.slides if not line.regions]
        lines = [self.name, f"  slides      {len(self.slides):,}, a file of vectors each"]
        lines.append(f"  {self.unit:11s} {total:,}{_sizes(self.slides)}")
        widths = Counter(line.numbers for line in self.slides)
        lengths = ", ".join(f"{width:,} numbers" + f": {_slides(n)}" * (len(widths) > 1) for width, n in widths.items())
        lines.append(f"  vectors     {lengths}" + (f"; {ADVICE}" if len(widths) > 1 else ""))
        models = sorted({line.model for line in self.slides if line.model})
        lines += [f"  made by     {', '.join(models)}"] if models else []
        if self.side:
            what = f"{self.side} x {self.side} {self.unit}, at least {self.min_fraction:.0%} of them there"
            lines.append(f"  regions     {regions:,} of {what}")
        else:
            lines.append(f"  grids       {regions:,}, one a slide")
        for kind, counts in (("labels", self.labels), ("splits", self.splits)):
            listed = ", ".join(f"{name}: {n:,}" for name, n in counts.items())
            lines.append(f"  {kind:11s} {f'{listed} (slides)' if counts else 'none'}")
        lines.append(f"  groups      {self.groups:,}")
        lines += [f"  COPIES      {', '.join(ids)} are the same slide" for ids in self.copies]
        lines += [f"  NO REGION   {_slides(len(without))}: {', '.join(without[:5])}"] if without else []
        lines += [f"  UNREADABLE  {name}: {reason}" for name, reason in self.unreadable[:20]]
        lines += [f"  DAMAGED     {name}: NaN or infinite values" for name in self.bad[:20]]
        return "\n".join(lines + self._listed())

    def _listed(self) -> list[str]:
        width = max(len(line.id) for line in self.slides)
        lines = [f"  {'slide':{width}s}  {self.unit:>8s}  {'regions' if self.side else 'grids':>8s}  label"]
        for line in self.slides[:MOST]:
            lines.append(f"  {line.id:{width}s}  {line.tiles:8,}  {line.regions:8,}  {line.label or '-'}")
        more = len(self.slides) - MOST
        return lines + ([f"  and {more:,} more"] if more > 0 else [])


def _slides(count: int) -> str:
    return "1 slide" if count == 1 else f"{count:,} slides"


def _sizes(slides: list[GridLine]) -> str:
    """How large tiles are, of how many slides where they differ."""
    counts = Counter(_size(line) for line in slides)
    if len(counts) == 1:
        return f" of {next(iter(counts))}"
    return " of " + "; ".join(f"{size} ({_slides(n)})" for size, n in counts.most_common(4))


def _size(line: GridLine) -> str:
    side = f"{line.tile_px_level0:g} px of level 0"
    if line.tile_px is None or line.mpp is None:
        return f"{side}, micrometres unknown"
    return f"{line.tile_px:,} px at {line.mpp:g} um/px ({line.tile_px * line.mpp:,.4g} um a side, {side})"


def audit_grids(source: GridSource, *, max_bad: float = 0.05) -> GridAudit:
    """Read every file once. Raises TooManyDamaged, with the files named, above the fraction ``max_bad``."""
    check_damage(source.name, source.unreadable, len(source.unreadable) + len(source.files), max_bad, what="files")
    lines, bad = [], []
    regions = Counter(block.file for block in source.blocks)
    units = set()
    for file, record in source.files.items():
        features = load_features(file)
        about, name = features.about, str(features.about["slide"])
        units.add("regions" if about.get("below_sha256") and about.get("side") else "tiles")
        if not np.isfinite(features.features).all():
            bad.append(name)
        lines.append(
            GridLine(
                id=name,
                tiles=len(features),
                regions=regions[file],
                numbers=int(features.features.shape[1]),
                mpp=about.get("mpp"),
                tile_px=about.get("tile_px"),
                tile_px_level0=float(about["tile_px_level0"]),
                model=about.get("model"),
                label=record.label,
                group=record.group,
                split=record.split,
            )
        )
    return GridAudit(
        name=source.name,
        side=source.side,
        min_fraction=source.min_fraction,
        unit=units.pop() if len(units) == 1 else "vectors",
        slides=lines,
        labels=dict(sorted(Counter(line.label for line in lines if line.label is not None).items())),
        splits=dict(sorted(Counter(line.split for line in lines if line.split is not None).items())),
        groups=len({line.group for line in lines}),
        copies=_copies(source),
        bad=bad,
        unreadable=source.unreadable,
    )


def _copies(source: GridSource) -> list[list[str]]:
    """Names of slides that have the same regions, by content."""
    by_hash: dict[str, dict[Path, str]] = {}
    for index, block in enumerate(source.blocks):
        by_hash.setdefault(source.content_hash(index), {})[block.file] = source.slides[index]
    sets = {tuple(sorted(same.values())) for same in by_hash.values() if len(same) > 1}
    return sorted(list(names) for names in sets)
