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
from saccade.data.archive import ArchiveSource
from saccade.data.folder import FolderSource
from saccade.data.loader import check_damage
from saccade.errors import DamagedFile, UsageError
from saccade.seeds import numpy_generator


@dataclass(frozen=True)
class Audit:
    """What ``saccade show`` prints. Counts are by value.

    images       in the source; ``looked_at`` of them were read, ``readable`` without an error
    smallest_px  smallest rows and smallest columns, each over all images; ``largest_px`` likewise
    bits_used    bits that the largest whole number needs (12 for a 12-bit camera in 16-bit files); None for floats
    groups       how many; ``smallest_group`` and ``largest_group`` in images
    spacings_um  how many images have which pixel spacing, as text; empty where no file says
    duplicates   ids of byte-identical images, one list a set; ``leaks`` says which cross a split, group or label
    damaged      (id, reason); ``unlisted`` counts images that lie there and are not in the table
    hashes       content hash of every readable image by id; not in ``to_dict``
    """

    name: str
    images: int
    looked_at: int
    readable: int
    smallest_px: tuple[int, ...]
    largest_px: tuple[int, ...]
    number_types: dict[str, int]
    bits_used: int | None
    channels: dict[int, int]
    value_range: tuple[float, float]
    spacings_um: dict[str, int]
    labels: dict[str, int]
    splits: dict[str, int]
    groups: int
    smallest_group: int
    largest_group: int
    columns: tuple[str, ...]
    duplicates: list[list[str]]
    leaks: list[str]
    damaged: list[tuple[str, str]]
    unlisted: int
    hashes: dict[str, str] = dataclasses.field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Everything for JSON but ``hashes``, which is a line an image."""
        return {key: value for key, value in dataclasses.asdict(self).items() if key != "hashes"}


@dataclass(frozen=True)
class _Seen:
    shape: tuple[int, ...]
    number_type: np.dtype
    low: float
    high: float
    spacing_um: tuple[float, ...] | None
    sha256: str


def _look(source: Source, index: int) -> _Seen | str:
    """What one image is, or why it cannot be used."""
    try:
        sample = source.read(index)
        pixels = sample.pixels
        low, high = float(pixels.min()), float(pixels.max())
        if not np.isfinite([low, high]).all():
            return f"{source.records[index].id}: contains NaN or infinite values"
        return _Seen(pixels.shape, pixels.dtype, low, high, sample.spacing_um, source.content_hash(index))
    except DamagedFile as error:
        return error.what


def audit(
    source: Source,
    *,
    max_bad: float = 0.05,
    limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Audit:
    """Read every image once, in threads (decoders release the interpreter lock).

    limit     read only so many images, spread evenly; counts from the records still cover all
    progress  called with (done, total)
    Raises TooManyDamaged, with the first twenty named, above the fraction ``max_bad``.
    """
    if limit is not None and limit < 1:
        raise UsageError("nothing to look at", got=f"limit {limit}", expected="at least 1")
    count = len(source) if limit is None else min(limit, len(source))
    indices = np.unique(np.linspace(0, len(source) - 1, count).astype(int)).tolist()
    whole: list[tuple[Record, _Seen]] = []
    damaged: list[tuple[str, str]] = []
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for index, seen in zip(indices, pool.map(lambda i: _look(source, i), indices)):
            if isinstance(seen, str):
                damaged.append((source.records[index].id, seen))
            else:
                whole.append((source.records[index], seen))
            if progress is not None:
                progress(len(whole) + len(damaged), count)
    check_damage(source.name, damaged, count, max_bad)
    return _summary(source, whole, damaged)


def _summary(source: Source, whole: list[tuple[Record, _Seen]], damaged: list[tuple[str, str]]) -> Audit:
    records, seen = list(source.records), [item for _, item in whole]
    sizes = np.array([item.shape[1:] for item in seen])
    low, high = min(item.low for item in seen), max(item.high for item in seen)
    groups = Counter(record.group for record in records if record.group is not None)
    copies, leaks = _copies(whole)
    return Audit(
        name=source.name,
        images=len(records),
        looked_at=len(whole) + len(damaged),
        readable=len(whole),
        smallest_px=tuple(sizes.min(axis=0).tolist()),
        largest_px=tuple(sizes.max(axis=0).tolist()),
        number_types=dict(Counter(str(item.number_type) for item in seen)),
        bits_used=None if any(item.number_type.kind == "f" for item in seen) else int(high).bit_length(),
        channels=dict(Counter(item.shape[0] for item in seen)),
        value_range=(low, high),
        spacings_um=dict(Counter(_spacing(item.spacing_um) for item in seen if item.spacing_um is not None)),
        labels=dict(sorted(Counter(r.label for r in records if r.label is not None).items())),
        splits=dict(sorted(Counter(r.split for r in records if r.split is not None).items())),
        groups=len(groups),
        smallest_group=min(groups.values(), default=0),
        largest_group=max(groups.values(), default=0),
        columns=tuple(sorted({key for record in records[:1] for key in record.extra})),
        duplicates=copies,
        leaks=leaks + _groups_in_two_splits(records),
        damaged=damaged,
        unlisted=source.unlisted if isinstance(source, (FolderSource, ArchiveSource)) else 0,
        hashes={record.id: item.sha256 for record, item in whole},
    )


def _spacing(spacing_um: tuple[float, ...]) -> str:
    return " x ".join(f"{value:g}" for value in spacing_um)


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
            named = ", ".join(record.id for record in across[0][:3])
            leaks.append(f"identical images in more than one {kind}: {len(across):,}, e.g. {named}")
    return [[record.id for record in members] for members in sets], leaks


def _groups_in_two_splits(records: list[Record]) -> list[str]:
    splits: dict[str, set[str]] = {}
    for record in records:
        if record.group is not None and record.split is not None:
            splits.setdefault(record.group, set()).add(record.split)
    across = sorted(group for group, names in splits.items() if len(names) > 1)
    return [f"groups in more than one split: {len(across):,}, e.g. {', '.join(across[:3])}"] if across else []


def render(found: Audit) -> str:
    """The audit as text, one line a property."""
    low, high = found.value_range
    size = " x ".join(map(str, found.smallest_px))
    if found.smallest_px != found.largest_px:
        size += " to " + " x ".join(map(str, found.largest_px))
    bits = f" ({found.bits_used} bits used)" if found.bits_used is not None else ""
    groups = f"{found.groups:,} of {found.smallest_group:,} to {found.largest_group:,} images"
    partly = f", {found.looked_at:,} looked at" if found.looked_at < found.images else ""
    rows = [
        ("images", f"{found.images:,}{partly}" + (f", {found.readable:,} readable" if found.damaged else "")),
        ("size", f"{size} px"),
        ("pixels", f"{_counted(found.number_types)}; values {low:g} to {high:g}{bits}"),
        ("channels", _counted(found.channels)),
        ("spacing", _counted(found.spacings_um) + (" (micrometres)" if found.spacings_um else "unknown")),
        ("labels", _counted(found.labels) or "none"),
        ("splits", _counted(found.splits) or "none: a split by group is drawn when it is needed"),
        ("groups", groups if found.groups else "none known"),
    ]
    if found.columns:
        rows.append(("columns", ", ".join(found.columns) + "  (choose with --group or --label)"))
    if found.unlisted:
        rows.append(("not listed", f"{found.unlisted:,} image files are not in the table and are left aside"))
    rows.append(("copies", _sets(found.duplicates)))
    rows += [("LEAK", text) for text in found.leaks]
    rows.append(("damaged", f"{len(found.damaged):,}" if found.damaged else "none"))
    lines = [found.name] + [f"  {key:11s} {value}" for key, value in rows]
    lines += [f"    {name}: {reason}" for name, reason in found.damaged[:20]]
    return "\n".join(lines)


def _counted(values: dict[Any, int], limit: int = 12) -> str:
    shown = [f"{key}: {count:,}" for key, count in list(values.items())[:limit]]
    return ", ".join(shown) + (f" and {len(values) - limit} more" if len(values) > limit else "")


def _sets(duplicates: list[list[str]]) -> str:
    if not duplicates:
        return "none"
    extra = sum(len(ids) - 1 for ids in duplicates)
    return f"{extra:,} exact copies in {len(duplicates):,} sets, e.g. {', '.join(duplicates[0][:3])}"


# --- contact sheet --------------------------------------------------------------------------------

GAP_PX, LINE_PX = 4, 14
PERCENTILES = (1, 99)


def contact_sheet(
    source: Source, path: Path, *, columns: int = 8, rows: int = 6, tile_px: int = 96, seed: int = 0
) -> Path:
    """A PNG of images drawn evenly over the labels, each with its label. Returns ``path``.

    8-bit images are shown as they are; others between their own 1st and 99th percentile over all channels shown,
    marked ``*`` and explained in the title. Of more than three channels the first three are shown, of two the
    first, of a volume the middle slice; the caption says so.
    """
    chosen = _evenly(source, columns * rows, seed)
    head_px = 2 * LINE_PX + 2 * GAP_PX
    step_y, step_x = tile_px + LINE_PX + GAP_PX, tile_px + GAP_PX
    lines = -(-len(chosen) // columns)
    sheet = Image.new("RGB", (max(columns * step_x + GAP_PX, 360), head_px + lines * step_y), "white")
    draw = ImageDraw.Draw(sheet)
    rule = f"* shown from {PERCENTILES[0]} to {PERCENTILES[1]} percentile of each image"
    marked = False
    for place, index in enumerate(chosen):
        y, x = divmod(place, columns)
        top, left = head_px + y * step_y, GAP_PX + x * step_x
        try:
            pixels = source.read(index).pixels
            sheet.paste(_tile(pixels, tile_px), (left, top))
            mark = _mark(pixels)
            marked |= mark.startswith("*")
        except DamagedFile:
            mark = " (damaged)"
        label = source.records[index].label or Path(source.records[index].id).stem
        room = tile_px // 6 - len(mark)
        draw.text((left, top + tile_px), label[: max(room, 1)] + mark, fill=(60, 60, 60))
    title = f"{source.name.rstrip('/').rsplit('/', 1)[-1]}: {len(chosen):,} of {len(source):,} images"
    draw.text((GAP_PX, GAP_PX), title, fill=(0, 0, 0))
    draw.text((GAP_PX, GAP_PX + LINE_PX), rule if marked else "8-bit images as they are", fill=(60, 60, 60))
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


def _mark(pixels: np.ndarray) -> str:
    """What the picture leaves out: ``*`` a window of the values, then channels and slices not shown."""
    mark = "" if pixels.dtype == np.uint8 else "*"
    if pixels.shape[0] not in (1, 3):
        mark += f" {3 if pixels.shape[0] > 3 else 1}/{pixels.shape[0]}ch"
    if pixels.ndim == 4:
        mark += f" z{pixels.shape[1] // 2}"
    return mark


def _tile(pixels: np.ndarray, tile_px: int) -> Image.Image:
    """One image as large as the tile allows; enlarged without smoothing, so that real pixels are seen."""
    picture = Image.fromarray(_shown(pixels))
    factor = tile_px / max(picture.size)
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    return picture.resize(size, Image.Resampling.NEAREST if factor > 1 else Image.Resampling.BOX)


def _shown(pixels: np.ndarray) -> np.ndarray:
    """[C Y X] (the middle slice of [C T Y X]) as uint8 [Y X 3] for the eye."""
    plane = pixels[:, pixels.shape[1] // 2] if pixels.ndim == 4 else pixels
    plane = plane[:3] if plane.shape[0] >= 3 else np.repeat(plane[:1], 3, axis=0)
    if plane.dtype != np.uint8:
        finite = plane[np.isfinite(plane)]
        low, high = np.percentile(finite, PERCENTILES) if finite.size else (0.0, 1.0)
        plane = np.nan_to_num((plane - low) / max(high - low, 1e-9), nan=0.0)
        plane = (plane.clip(0, 1) * 255).astype(np.uint8)
    return np.ascontiguousarray(plane.transpose(1, 2, 0))
