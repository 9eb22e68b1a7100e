"""What is in a source: counts, sizes, bit depth, labels, groups, exact copies, damaged files."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from saccade.base import frames
from saccade.base.contracts import Record, Source
from saccade.base.machine import usable_cores
from saccade.data.audit.volumes import (
    OneVolume,
    VolumeFacts,
    between_text,
    counted_text,
    describe_volume,
    spacing_text,
    volume_facts,
    volume_rows,
)
from saccade.data.cache.image_cache import check_damage
from saccade.data.open import left_aside
from saccade.data.sources.files import FileSource
from saccade.data.sources.masks import USE_OF_MASKS
from saccade.errors import DamagedFile, UsageError


@dataclass(frozen=True)
class Audit:
    """What ``saccade show`` prints. Counts are by value.

    images       in the source; ``looked_at`` of them were read, ``readable`` without an error
    smallest_px  smallest rows and smallest columns, each over all images; ``largest_px`` likewise
    bits_used    bits that the largest whole number needs (12 for a 12-bit camera in 16-bit files); None for floats
    groups       how many; ``smallest_group`` and ``largest_group`` in images
    spacings_um  how many images have which pixel spacing, as text; empty where no file says
    duplicates   ids of byte-identical images, one list a set; ``leaks`` says which cross a split, group or label
    damaged      (id, reason); ``unlisted`` counts images that lie there and are not in the table; ``aside``
                 says why a table that lies there is not used
    hashes       content hash of every readable image by id; not in ``to_dict``
    left_aside   other images in the same files: label, macro, thumbnail, further series
    image_masks  mask files beside images; ``other_files`` files in formats that are not read, by suffix
    axes         2 for images; 3 for volumes, whose sizes are slices, rows, columns; ``volumes`` says more of them
    """

    name: str
    images: int
    looked_at: int
    readable: int
    smallest_px: tuple[int, ...]
    largest_px: tuple[int, ...]
    dtypes: dict[str, int]
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
    aside: str
    hashes: dict[str, str] = dataclasses.field(repr=False)
    axes: int = 2
    volumes: VolumeFacts | None = None
    image_masks: int = 0
    other_files: dict[str, int] = dataclasses.field(default_factory=dict)
    left_aside: dict[str, int] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Everything for JSON but ``hashes``, which is a line an image."""
        return {key: value for key, value in dataclasses.asdict(self).items() if key != "hashes"}

    def _repr_html_(self) -> str:
        return frames.text_to_html(render(self))


@dataclass(frozen=True)
class _ImageFacts:
    shape: tuple[int, ...]
    dtype: np.dtype
    low: float
    high: float
    spacing_um: tuple[float, ...] | None
    sha256: str
    volume: OneVolume | None = None
    left_aside: tuple[str, ...] = ()


def _look(source: Source, index: int) -> _ImageFacts | str:
    """What one image is, or why it cannot be used."""
    try:
        sample = source.read(index)
        pixels = sample.pixels
        low, high = float(pixels.min()), float(pixels.max())
        if not np.isfinite([low, high]).all():
            return f"{source.records[index].id}: contains NaN or infinite values"
        volume = describe_volume(sample) if source.axes == 3 else None
        aside = source.images_left_aside(index) if isinstance(source, FileSource) else ()
        digest = source.content_hash(index)
        return _ImageFacts(pixels.shape, pixels.dtype, low, high, sample.spacing_um, digest, volume, tuple(aside))
    except DamagedFile as error:
        return error.in_one_line()


def audit(
    source: Source,
    *,
    max_bad: float = 0.05,
    limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Audit:
    """Read every image once and summarise the source.

    Parameters
    ----------
    source : Source
    max_bad : float
        Fraction of damaged images above which the audit fails.
    limit : int, optional
        Read only this many images, evenly spread; counts of labels, splits and groups still cover all.
    progress : callable, optional
        Called with (done, total).

    Returns
    -------
    Audit

    Raises
    ------
    TooManyDamaged
        The message names the first twenty files.
    """
    if limit is not None and limit < 1:
        raise UsageError("nothing to look at", got=f"limit {limit}", expected="at least 1")
    count = len(source) if limit is None else min(limit, len(source))
    indices = np.unique(np.linspace(0, len(source) - 1, count).astype(int)).tolist()
    readable: list[tuple[Record, _ImageFacts]] = []
    damaged: list[tuple[str, str]] = []
    with ThreadPoolExecutor(max_workers=min(8, usable_cores())) as pool:
        for index, result in zip(indices, pool.map(lambda i: _look(source, i), indices)):
            if isinstance(result, str):
                damaged.append((source.records[index].id, result))
            else:
                readable.append((source.records[index], result))
            if progress is not None:
                progress(len(readable) + len(damaged), count)
    check_damage(source.name, damaged, count, max_bad)
    return _summary(source, readable, damaged)


def _summary(source: Source, readable: list[tuple[Record, _ImageFacts]], damaged: list[tuple[str, str]]) -> Audit:
    records, facts = list(source.records), [item for _, item in readable]
    sizes = np.array([item.shape[1:] for item in facts])
    low, high = min(item.low for item in facts), max(item.high for item in facts)
    groups = Counter(record.group for record in records if record.group is not None)
    copies, leaks = _copies(readable)
    files = source if isinstance(source, FileSource) else None
    return Audit(
        name=source.name,
        images=len(records),
        looked_at=len(readable) + len(damaged),
        readable=len(readable),
        smallest_px=tuple(sizes.min(axis=0).tolist()),
        largest_px=tuple(sizes.max(axis=0).tolist()),
        dtypes=dict(Counter(str(item.dtype) for item in facts)),
        bits_used=None if any(item.dtype.kind == "f" for item in facts) else _bits(int(low), int(high)),
        channels=dict(Counter(item.shape[0] for item in facts)),
        value_range=(low, high),
        spacings_um=dict(Counter(spacing_text(item.spacing_um) for item in facts if item.spacing_um is not None)),
        labels=dict(sorted(Counter(r.label for r in records if r.label is not None).items())),
        splits=dict(sorted(Counter(r.split for r in records if r.split is not None).items())),
        groups=len(groups),
        smallest_group=min(groups.values(), default=0),
        largest_group=max(groups.values(), default=0),
        columns=tuple(sorted({key for record in records[:1] for key in record.extra})),
        duplicates=copies,
        leaks=leaks + _groups_in_two_splits(records),
        damaged=damaged,
        unlisted=files.unlisted if files else 0,
        aside=left_aside(source),
        hashes={record.id: item.sha256 for record, item in readable},
        axes=source.axes,
        volumes=volume_facts([(item.shape, item.volume) for item in facts if item.volume is not None]),
        image_masks=sum(map(len, files.image_masks.values())) if files else 0,
        other_files=_by_suffix(files.others) if files else {},
        left_aside=dict(Counter(name for item in facts for name in item.left_aside).most_common()),
    )


def _by_suffix(names: Sequence[str]) -> dict[str, int]:
    return dict(Counter(PurePosixPath(name).suffix.lower() or "no suffix" for name in names).most_common())


def _bits(low: int, high: int) -> int:
    """Bits that hold all whole numbers from ``low`` to ``high``, with a sign where ``low`` is negative."""
    return max(high.bit_length(), (-low - 1).bit_length() + 1 if low < 0 else 0, high.bit_length() + (low < 0))


def _copies(readable: list[tuple[Record, _ImageFacts]]) -> tuple[list[list[str]], list[str]]:
    """Sets of byte-identical images, and a sentence for those that lie in different parts, groups or classes."""
    by_hash: dict[str, list[Record]] = {}
    for record, item in readable:
        by_hash.setdefault(item.sha256, []).append(record)
    sets = [members for members in by_hash.values() if len(members) > 1]
    leaks = []
    for kind in ("split", "group", "label"):
        across = [m for m in sets if len({getattr(r, kind) for r in m}) > 1]
        if across:
            examples = ", ".join(record.id for record in across[0][:3])
            leaks.append(f"identical images in more than one {kind}: {len(across):,}, e.g. {examples}")
    return [[record.id for record in members] for members in sets], leaks


def _groups_in_two_splits(records: list[Record]) -> list[str]:
    splits: dict[str, set[str]] = {}
    for record in records:
        if record.group is not None and record.split is not None:
            splits.setdefault(record.group, set()).add(record.split)
    across = sorted(group for group, names in splits.items() if len(names) > 1)
    return [f"groups in more than one split: {len(across):,}, e.g. {', '.join(across[:3])}"] if across else []


def render(report: Audit) -> str:
    """The audit as text, one line a property."""
    low, high = report.value_range
    images = "images" if report.axes == 2 else "volumes"
    bits = f" ({report.bits_used} bits used)" if report.bits_used is not None else ""
    groups = f"{report.groups:,} of {report.smallest_group:,} to {report.largest_group:,} {images}"
    partly = f", {report.looked_at:,} looked at" if report.looked_at < report.images else ""
    rows = [
        (images, f"{report.images:,}{partly}" + (f", {report.readable:,} readable" if report.damaged else "")),
        (
            "size",
            between_text(report.smallest_px, report.largest_px) + (" px" if report.axes == 2 else " voxels (z, y, x)"),
        ),
        ("pixels", f"{counted_text(report.dtypes)}; values {low:g} to {high:g}{bits}"),
        ("channels", counted_text(report.channels)),
    ]
    if report.volumes is not None:
        rows += volume_rows(report.volumes)
    else:
        rows.append(
            ("spacing", counted_text(report.spacings_um) + (" (micrometres)" if report.spacings_um else "unknown"))
        )
    rows += [
        ("labels", counted_text(report.labels) or "none"),
        ("splits", counted_text(report.splits) or "none: a split by group is drawn when it is needed"),
        ("groups", groups if report.groups else "none known"),
    ]
    if report.columns:
        rows.append(("columns", ", ".join(report.columns) + "  (choose with --group or --label)"))
    if report.unlisted:
        rows.append(("not listed", f"{report.unlisted:,} {images[:-1]} files are not in the table and are ignored"))
    masks = f"{report.image_masks:,} files are masks of other images, and not images; {USE_OF_MASKS}"
    rows += [("table", report.aside)] if report.aside else []
    aside = f"{counted_text(report.left_aside)} (other images in the same files)"
    rows += [("left aside", aside)] if report.left_aside else []
    rows += [("masks", masks)] if report.image_masks else []
    rows += [("not read", f"{counted_text(report.other_files)} (files in other formats)")] if report.other_files else []
    rows.append(("copies", _sets(report.duplicates)))
    rows += [("LEAK", text) for text in report.leaks]
    rows.append(("damaged", f"{len(report.damaged):,}" if report.damaged else "none"))
    lines = [report.name] + [f"  {key:11s} {value}" for key, value in rows]
    lines += [f"    {name}: {reason}" for name, reason in report.damaged[:20]]
    return "\n".join(lines)


def _sets(duplicates: list[list[str]]) -> str:
    if not duplicates:
        return "none"
    extra = sum(len(ids) - 1 for ids in duplicates)
    return f"{extra:,} exact copies in {len(duplicates):,} sets, e.g. {', '.join(duplicates[0][:3])}"
