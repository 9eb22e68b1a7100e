"""What is in a source: counts, sizes, bit depth, labels, groups, exact copies, damaged files; where volumes lie."""

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
from saccade.base.contracts import Record, Sample, Source
from saccade.base.machine import usable_cores
from saccade.data.cache.image_cache import check_damage
from saccade.data.open import left_aside
from saccade.data.sources.archive import ArchiveSource
from saccade.data.sources.folder import FolderSource
from saccade.data.volumes.intensity import constant_rim, likely_kind, padding_of, quantiles, usual_intensity
from saccade.data.volumes.orientation import tilt_degrees
from saccade.errors import DamagedFile, UsageError


@dataclass(frozen=True)
class VolumeFacts:
    """What is asked of volumes only. Spacings are (z, y, x) in millimetres; counts are by value.

    smallest_mm, largest_mm   smallest and largest extent of each axis over all volumes; None where no file says
    stored_as     where the files' own axes point; all are turned to LPS
    largest_tilt  angle to the patient's axes in degrees, of the most oblique volume
    quantiles     the lowest and the highest 0.5 %, and the lowest and the highest 99.5 % quantile of any volume
    intensity     the rule that brings them to 0..1 (decided), as a text
    padding       value that fills what was not measured, by number of volumes; ``rims`` value of constant outer planes
    masks         how many volumes have one; ``classes`` in how many masks each number is found
    """

    spacings_mm: dict[str, int]
    smallest_mm: tuple[float, ...] | None
    largest_mm: tuple[float, ...] | None
    stored_as: dict[str, int]
    largest_tilt: float
    modalities: dict[str, int]
    quantiles: tuple[float, float, float, float]
    intensity: str
    masks: int
    classes: dict[str, int]
    padding: dict[str, int] = dataclasses.field(default_factory=dict)
    rims: dict[str, int] = dataclasses.field(default_factory=dict)


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
    volume: _Volume | None = None


@dataclass(frozen=True)
class _Volume:
    spacing_mm: tuple[float, ...] | None
    stored_as: str
    tilt: float
    modality: str | None
    quantiles: tuple[float, float]
    padding: str | None
    rim: str | None
    kind: str
    classes: tuple[int, ...] | None


def _look(source: Source, index: int) -> _ImageFacts | str:
    """What one image is, or why it cannot be used."""
    try:
        sample = source.read(index)
        pixels = sample.pixels
        low, high = float(pixels.min()), float(pixels.max())
        if not np.isfinite([low, high]).all():
            return f"{source.records[index].id}: contains NaN or infinite values"
        volume = _volume(sample) if source.axes == 3 else None
        return _ImageFacts(pixels.shape, pixels.dtype, low, high, sample.spacing_um, source.content_hash(index), volume)
    except DamagedFile as error:
        return error.in_one_line()


def _padding(sample: Sample) -> str | None:
    """The values that the header calls padding where there are any, or else a value beyond any Hounsfield unit."""
    if sample.padding is not None:
        low, high = sample.padding
        return _range(low, high) if ((sample.pixels >= low) & (sample.pixels <= high)).any() else None
    lowest = padding_of(sample.pixels)
    return None if lowest is None else f"{lowest:g}"


def _volume(sample: Sample) -> _Volume:
    rim = constant_rim(sample.pixels)
    return _Volume(
        sample.spacing_mm,
        sample.stored_as or "unknown",
        0.0 if sample.affine is None else tilt_degrees(sample.affine),
        sample.modality,
        quantiles(sample.pixels, sample.padding),
        _padding(sample),
        None if rim is None else f"{rim[0]:g}",
        likely_kind(sample),
        None if sample.mask is None else tuple(np.unique(sample.mask).tolist()),
    )


def _volume_facts(images: Sequence[_ImageFacts]) -> VolumeFacts | None:
    volumes = [item.volume for item in images if item.volume is not None]
    if not volumes:
        return None
    extents = [(item.shape[1:], item.volume.spacing_mm) for item in images if item.volume and item.volume.spacing_mm]
    spans = np.array([[n * mm for n, mm in zip(shape, spacing)] for shape, spacing in extents])
    ends = np.array([volume.quantiles for volume in volumes])
    return VolumeFacts(
        spacings_mm=dict(Counter(_spacing(spacing, 3) for _, spacing in extents).most_common()),
        smallest_mm=_rounded(spans.min(axis=0)) if extents else None,
        largest_mm=_rounded(spans.max(axis=0)) if extents else None,
        stored_as=dict(Counter(volume.stored_as for volume in volumes).most_common()),
        largest_tilt=round(max(volume.tilt for volume in volumes), 1),
        modalities=dict(Counter(volume.modality for volume in volumes if volume.modality is not None)),
        quantiles=(*ends.min(axis=0).tolist(), *ends.max(axis=0).tolist()),
        intensity=usual_intensity(volume.kind for volume in volumes).text(),
        masks=sum(volume.classes is not None for volume in volumes),
        padding=dict(Counter(volume.padding for volume in volumes if volume.padding is not None)),
        rims=dict(Counter(volume.rim for volume in volumes if volume.rim is not None)),
        classes=dict(sorted(Counter(str(c) for volume in volumes for c in volume.classes or ()).items())),
    )


def _rounded(extents_mm: np.ndarray) -> tuple[float, ...]:
    """To 0.1 mm, and to three digits where that would be 0: volumes of micrometres are small."""
    return tuple(round(float(mm), 1) if mm >= 10 else float(f"{mm:.3g}") for mm in extents_mm)


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
        spacings_um=dict(Counter(_spacing(item.spacing_um) for item in facts if item.spacing_um is not None)),
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
        aside=left_aside(source),
        hashes={record.id: item.sha256 for record, item in readable},
        axes=source.axes,
        volumes=_volume_facts(facts),
        image_masks=len(source.image_masks) if isinstance(source, (FolderSource, ArchiveSource)) else 0,
        other_files=_by_suffix(source.others) if isinstance(source, (FolderSource, ArchiveSource)) else {},
    )


def _by_suffix(names: Sequence[str]) -> dict[str, int]:
    return dict(Counter(PurePosixPath(name).suffix.lower() or "no suffix" for name in names).most_common())


def _bits(low: int, high: int) -> int:
    """Bits that hold all whole numbers from ``low`` to ``high``, with a sign where ``low`` is negative."""
    return max(high.bit_length(), (-low - 1).bit_length() + 1 if low < 0 else 0, high.bit_length() + (low < 0))


def _spacing(spacing: Sequence[float], digits: int = 6) -> str:
    return " x ".join(f"{value:.{digits}g}" for value in spacing)


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
            _between(report.smallest_px, report.largest_px) + (" px" if report.axes == 2 else " voxels (z, y, x)"),
        ),
        ("pixels", f"{_counted(report.dtypes)}; values {low:g} to {high:g}{bits}"),
        ("channels", _counted(report.channels)),
    ]
    if report.volumes is not None:
        rows += _volume_rows(report.volumes)
    else:
        rows.append(("spacing", _counted(report.spacings_um) + (" (micrometres)" if report.spacings_um else "unknown")))
    rows += [
        ("labels", _counted(report.labels) or "none"),
        ("splits", _counted(report.splits) or "none: a split by group is drawn when it is needed"),
        ("groups", groups if report.groups else "none known"),
    ]
    if report.columns:
        rows.append(("columns", ", ".join(report.columns) + "  (choose with --group or --label)"))
    if report.unlisted:
        rows.append(("not listed", f"{report.unlisted:,} {images[:-1]} files are not in the table and are ignored"))
    if report.aside:
        rows.append(("table", report.aside))
    if report.image_masks:
        rows.append(("masks", f"{report.image_masks:,} files are masks of other images and are not used as images"))
    if report.other_files:
        rows.append(("not read", f"{_counted(report.other_files)} (files in other formats)"))
    rows.append(("copies", _sets(report.duplicates)))
    rows += [("LEAK", text) for text in report.leaks]
    rows.append(("damaged", f"{len(report.damaged):,}" if report.damaged else "none"))
    lines = [report.name] + [f"  {key:11s} {value}" for key, value in rows]
    lines += [f"    {name}: {reason}" for name, reason in report.damaged[:20]]
    return "\n".join(lines)


def _volume_rows(facts: VolumeFacts) -> list[tuple[str, str]]:
    rows = [("spacing", _counted(facts.spacings_mm, 6) + (" mm (z, y, x)" if facts.spacings_mm else "unknown"))]
    if facts.smallest_mm is not None and facts.largest_mm is not None:
        rows.append(("extent", _between(facts.smallest_mm, facts.largest_mm) + " mm"))
    oriented = [name for name in facts.stored_as if name != "unknown"]
    turned = "; read as LPS" + (f", up to {facts.largest_tilt:g} degrees oblique" if facts.largest_tilt > 0 else "")
    rows.append(("orientation", _counted(facts.stored_as) + (turned if oriented else "")))
    if facts.modalities:
        rows.append(("modality", _counted(facts.modalities)))
    if facts.padding:
        rows.append(("padding", f"{_counted(facts.padding)} (value: volumes; left out of the quantiles)"))
    if facts.rims:
        rows.append(("rim", f"{_counted(facts.rims)} (value of constant outer planes; left out of the quantiles)"))
    first, second, third, fourth = facts.quantiles
    rows.append(("dark end", f"{_range(first, third)} (0.5 % quantile of a volume)"))
    rows.append(("bright end", f"{_range(second, fourth)} (99.5 %)"))
    rows.append(("intensity", f"{facts.intensity} (data.intensity)"))
    if facts.masks:
        rows.append(("masks", f"{facts.masks:,}; classes by number of masks {_counted(facts.classes)}"))
    return rows


def _range(low: float, high: float) -> str:
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def _between(smallest: Sequence[float], largest: Sequence[float]) -> str:
    ends = [" x ".join(f"{value:g}" for value in sides) for sides in (smallest, largest)]
    return ends[0] if ends[0] == ends[1] else " to ".join(ends)


def _counted(values: dict[Any, int], limit: int = 12) -> str:
    listed = [f"{key}: {count:,}" for key, count in list(values.items())[:limit]]
    return ", ".join(listed) + (f" and {len(values) - limit} more" if len(values) > limit else "")


def _sets(duplicates: list[list[str]]) -> str:
    if not duplicates:
        return "none"
    extra = sum(len(ids) - 1 for ids in duplicates)
    return f"{extra:,} exact copies in {len(duplicates):,} sets, e.g. {', '.join(duplicates[0][:3])}"
