"""What a source of volumes is, for ``saccade show``: spacings, extents, orientation, intensities, padding, masks."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from saccade.base.contracts import Sample
from saccade.data.sources.masks import USE_OF_MASKS
from saccade.data.volumes.intensity import constant_rim, likely_kind, padding_of, quantiles, usual_intensity
from saccade.data.volumes.orientation import tilt_degrees


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
class OneVolume:
    """What ``describe_volume`` says of one volume; lists of values as text."""

    spacing_mm: tuple[float, ...] | None
    stored_as: str
    tilt: float
    modality: str | None
    quantiles: tuple[float, float]
    padding: str | None
    rim: str | None
    kind: str
    classes: tuple[int, ...] | None


def _padding(sample: Sample) -> str | None:
    """The values that the header calls padding where there are any, or else a value beyond any Hounsfield unit."""
    if sample.padding is not None:
        low, high = sample.padding
        return range_text(low, high) if ((sample.pixels >= low) & (sample.pixels <= high)).any() else None
    lowest = padding_of(sample.pixels)
    return None if lowest is None else f"{lowest:g}"


def describe_volume(sample: Sample) -> OneVolume:
    """What one volume is."""
    rim = constant_rim(sample.pixels)
    return OneVolume(
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


def volume_facts(images: Sequence[tuple[tuple[int, ...], OneVolume]]) -> VolumeFacts | None:
    """The facts of all volumes, each with its shape [C T Y X]; None where there are none."""
    volumes = [volume for _, volume in images]
    if not volumes:
        return None
    extents = [(shape[1:], volume.spacing_mm) for shape, volume in images if volume.spacing_mm]
    spans = np.array([[n * mm for n, mm in zip(shape, spacing)] for shape, spacing in extents])
    ends = np.array([volume.quantiles for volume in volumes])
    return VolumeFacts(
        spacings_mm=dict(Counter(spacing_text(spacing, 3) for _, spacing in extents).most_common()),
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


def volume_rows(facts: VolumeFacts) -> list[tuple[str, str]]:
    """Titles and texts of the lines of ``show``."""
    rows = [("spacing", counted_text(facts.spacings_mm, 6) + (" mm (z, y, x)" if facts.spacings_mm else "unknown"))]
    if facts.smallest_mm is not None and facts.largest_mm is not None:
        rows.append(("extent", between_text(facts.smallest_mm, facts.largest_mm) + " mm"))
    oriented = [name for name in facts.stored_as if name != "unknown"]
    turned = "; read as LPS" + (f", up to {facts.largest_tilt:g} degrees oblique" if facts.largest_tilt > 0 else "")
    rows.append(("orientation", counted_text(facts.stored_as) + (turned if oriented else "")))
    if facts.modalities:
        rows.append(("modality", counted_text(facts.modalities)))
    if facts.padding:
        rows.append(("padding", f"{counted_text(facts.padding)} (value: volumes; left out of the quantiles)"))
    if facts.rims:
        rows.append(("rim", f"{counted_text(facts.rims)} (value of constant outer planes; left out of the quantiles)"))
    first, second, third, fourth = facts.quantiles
    rows.append(("dark end", f"{range_text(first, third)} (0.5 % quantile of a volume)"))
    rows.append(("bright end", f"{range_text(second, fourth)} (99.5 %)"))
    rows.append(("intensity", f"{facts.intensity} (data.intensity)"))
    if facts.masks:
        rows.append(
            ("masks", f"{facts.masks:,}; classes by number of masks {counted_text(facts.classes)}; {USE_OF_MASKS}")
        )
    return rows


def spacing_text(spacing: Sequence[float], digits: int = 6) -> str:
    return " x ".join(f"{value:.{digits}g}" for value in spacing)


def range_text(low: float, high: float) -> str:
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def between_text(smallest: Sequence[float], largest: Sequence[float]) -> str:
    ends = [" x ".join(f"{value:g}" for value in sides) for sides in (smallest, largest)]
    return ends[0] if ends[0] == ends[1] else " to ".join(ends)


def counted_text(values: dict[Any, int], limit: int = 12) -> str:
    listed = [f"{key}: {count:,}" for key, count in list(values.items())[:limit]]
    return ", ".join(listed) + (f" and {len(values) - limit} more" if len(values) > limit else "")
