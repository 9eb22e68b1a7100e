"""What is in a source: counts, sizes, bit depth, labels, groups, exact copies, damaged files; a contact sheet."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from saccade.contracts import Record, Source
from saccade.data.loader import check_damage
from saccade.errors import DamagedFile
from saccade.seeds import numpy_generator


@dataclass(frozen=True)
class Audit:
    """What ``saccade show`` prints. Sizes are (rows, columns); counts are by value."""

    name: str
    images: int
    readable: int
    smallest_px: tuple[int, ...]
    largest_px: tuple[int, ...]
    number_types: dict[str, int]
    channels: dict[int, int]
    value_range: tuple[float, float]
    labels: dict[str, int]
    splits: dict[str, int]
    groups: int
    largest_group: int
    columns: tuple[str, ...]
    duplicates: list[list[str]]
    leaks: list[str]
    damaged: list[tuple[str, str]]
    unlisted: int

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class _Seen:
    shape: tuple[int, ...]
    number_type: str
    low: float
    high: float
    sha256: str
    reason: str = ""


def audit(source: Source, *, max_bad: float = 0.05, progress: Callable[[int, int], None] | None = None) -> Audit:
    """Read every image once. Raises TooManyDamaged, with the files named, above ``max_bad``."""

    def look(index: int) -> _Seen:
        try:
            pixels = source.read(index).pixels
        except DamagedFile as error:
            return _Seen((), "", 0, 0, "", error.what)
        low, high = float(pixels.min()), float(pixels.max())
        return _Seen(pixels.shape, str(pixels.dtype), low, high, source.content_hash(index))

    seen: list[_Seen] = []
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        for done, item in enumerate(pool.map(look, range(len(source))), start=1):
            seen.append(item)
            if progress is not None:
                progress(done, len(source))
    records = list(source.records)
    damaged = [(record.id, item.reason) for record, item in zip(records, seen) if item.reason]
    check_damage(source.name, damaged, len(source), max_bad)
    whole = [(record, item) for record, item in zip(records, seen) if not item.reason]
    sizes = [item.shape[1:] for _, item in whole]
    groups = Counter(record.group for record in records if record.group is not None)
    copies, leaks = _copies(whole)
    return Audit(
        name=source.name,
        images=len(source),
        readable=len(whole),
        smallest_px=min(sizes, key=np.prod),
        largest_px=max(sizes, key=np.prod),
        number_types=dict(Counter(item.number_type for _, item in whole)),
        channels=dict(Counter(item.shape[0] for _, item in whole)),
        value_range=(min(item.low for _, item in whole), max(item.high for _, item in whole)),
        labels=dict(sorted(Counter(r.label for r in records if r.label is not None).items())),
        splits=dict(sorted(Counter(r.split for r in records if r.split is not None).items())),
        groups=len(groups),
        largest_group=max(groups.values(), default=0),
        columns=tuple(sorted({key for record in records[:1] for key in record.extra})),
        duplicates=copies,
        leaks=leaks,
        damaged=damaged,
        unlisted=int(getattr(source, "unlisted", 0)),
    )


def _copies(whole: list[tuple[Record, _Seen]]) -> tuple[list[list[str]], list[str]]:
    """Sets of byte-identical images, and a sentence for those that lie in different parts, groups or classes."""
    by_hash: dict[str, list[Record]] = {}
    for record, item in whole:
        by_hash.setdefault(item.sha256, []).append(record)
    sets = [members for members in by_hash.values() if len(members) > 1]
    leaks = []
    for kind in ("split", "group", "label"):
        across = [m for m in sets if len({getattr(r, kind) for r in m}) > 1]
        if across:
            leaks.append(f"{len(across)} images lie in more than one {kind}: " + ", ".join(r.id for r in across[0][:3]))
    return [[record.id for record in members] for members in sets], leaks


def render(found: Audit) -> str:
    """The audit as text."""

    def counted(values: dict[Any, int], limit: int = 12) -> str:
        shown = [f"{key} {count:,}" for key, count in list(values.items())[:limit]]
        return ", ".join(shown) + (f" and {len(values) - limit} more" if len(values) > limit else "")

    def size(px: tuple[int, ...]) -> str:
        return " x ".join(map(str, px))

    same = found.smallest_px == found.largest_px
    low, high = found.value_range
    rows = [
        ("images", f"{found.images:,}" + (f", {found.readable:,} readable" if found.damaged else "")),
        ("size", size(found.smallest_px) + ("" if same else f" to {size(found.largest_px)}") + " px"),
        ("pixels", f"{counted(found.number_types)}; values {low:g} to {high:g}"),
        ("channels", counted(found.channels)),
        ("labels", counted(found.labels) or "none"),
        ("splits", counted(found.splits) or "none: a split by group is drawn when it is needed"),
        (
            "groups",
            f"{found.groups:,}, largest {found.largest_group:,} images" if found.groups else "none known",
        ),
    ]
    if found.columns:
        rows.append(("columns", ", ".join(found.columns) + "  (choose with --group or --label)"))
    if found.unlisted:
        rows.append(("not listed", f"{found.unlisted:,} image files are not in the table and are left aside"))
    rows.append(("copies", _sets(found.duplicates)))
    rows += [("LEAK", text) for text in found.leaks]
    rows.append(("damaged", f"{len(found.damaged)}" if found.damaged else "none"))
    lines = [found.name] + [f"  {key:11s} {value}" for key, value in rows]
    lines += [f"    {name}: {reason}" for name, reason in found.damaged[:20]]
    return "\n".join(lines)


def _sets(duplicates: list[list[str]]) -> str:
    if not duplicates:
        return "none"
    extra = sum(len(ids) - 1 for ids in duplicates)
    return f"{extra:,} exact copies in {len(duplicates):,} sets, e.g. {', '.join(duplicates[0][:3])}"


# --- contact sheet --------------------------------------------------------------------------------


def contact_sheet(
    source: Source, path: Path, *, columns: int = 8, rows: int = 6, tile_px: int = 96, seed: int = 0
) -> Path:
    """A PNG of images drawn evenly over the labels, each with its label. Returns ``path``.

    8-bit images are shown as they are; others between their own 1st and 99th percentile, and marked ``*``.
    Of more than three channels the first three are shown.
    """
    line_px = 14
    chosen = _evenly(source, columns * rows, seed)
    height = -(-len(chosen) // columns) * (tile_px + line_px + 4) + 4
    sheet = Image.new("RGB", (columns * (tile_px + 4) + 4, height), "white")
    draw = ImageDraw.Draw(sheet)
    for place, index in enumerate(chosen):
        y, x = divmod(place, columns)
        top, left = 4 + y * (tile_px + line_px + 4), 4 + x * (tile_px + 4)
        try:
            pixels = source.read(index).pixels
            shown, mark = _shown(pixels), "" if pixels.dtype == np.uint8 else "*"
            picture = Image.fromarray(shown)
            picture.thumbnail((tile_px, tile_px))
            sheet.paste(picture, (left, top))
        except DamagedFile:
            mark = " (damaged)"
        text = (source.records[index].label or Path(source.records[index].id).stem) + mark
        draw.text((left, top + tile_px), text[:16], fill=(60, 60, 60))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
    return path


def _evenly(source: Source, count: int, seed: int) -> list[int]:
    by_label: dict[str, list[int]] = {}
    for index in numpy_generator(seed, "sheet").permutation(len(source)):
        by_label.setdefault(str(source.records[int(index)].label), []).append(int(index))
    queues = [by_label[label] for label in sorted(by_label)]
    chosen: list[int] = []
    while len(chosen) < min(count, len(source)):
        for queue in queues:
            if queue and len(chosen) < count:
                chosen.append(queue.pop())
    return sorted(chosen, key=lambda i: (str(source.records[i].label), i))


def _shown(pixels: np.ndarray) -> np.ndarray:
    """[C Y X] (the middle slice of [C T Y X]) as uint8 [Y X 3] for the eye."""
    plane = pixels[:, pixels.shape[1] // 2] if pixels.ndim == 4 else pixels
    plane = plane[:3] if plane.shape[0] >= 3 else np.repeat(plane[:1], 3, axis=0)
    if plane.dtype != np.uint8:
        low, high = np.percentile(plane, [1, 99])
        plane = np.clip((plane - low) / max(high - low, 1e-9) * 255, 0, 255).astype(np.uint8)
    return np.ascontiguousarray(plane.transpose(1, 2, 0))
