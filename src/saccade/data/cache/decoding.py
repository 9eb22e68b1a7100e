"""Images of a source decoded in threads and reduced to the size in which a cache holds them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from saccade.base.contracts import Sample, Source
from saccade.base.machine import usable_cores
from saccade.data.images.downsample import (
    convert_channels,
    even_sides,
    finite,
    shrink,
    shrink_volume,
    to_supported_dtype,
)
from saccade.data.images.fingerprint import perceptual_hash, pixel_hash
from saccade.data.volumes.intensity import Intensity, to_unit
from saccade.errors import DamagedFile

Report = Callable[[int, int], None]
HASHED_PX = 1024  # of larger images the perceptual hash is that of the reduced image: less memory


@dataclass(frozen=True)
class Rules:
    """How large the decoded images are kept; ``intensity`` and ``size_mm`` for volumes (None: images)."""

    cache_px: int
    intensity: Intensity | None = None
    size_mm: float = 0.0


@dataclass
class Decoded:
    index: int
    pixels: np.ndarray | None
    original: tuple[int, ...] = (0, 0)
    low: float = 0.0
    high: float = 0.0
    sha256: str = ""
    reason: str = ""
    spacing_mm: tuple[float, ...] = ()
    grid: bool = False
    pixel_hash: str = ""
    perceptual: str = ""


def _decode(source: Source, index: int, rules: Rules) -> Decoded:
    try:
        sample = source.read(index)
        if sample.pixels.ndim != source.axes + 1:
            raise DamagedFile(
                f"{source.records[index].id}: {'images' if source.axes == 2 else 'volumes'} are expected here",
                got=f"shape {sample.pixels.shape}",
            )
        if rules.intensity is not None:
            pixels, spacing = _volume(sample, rules, rules.intensity)
        else:
            pixels, spacing = to_supported_dtype(sample.pixels), ()
        finite(pixels, source.records[index].id)
        low, high = float(pixels.min()), float(pixels.max())
        if rules.intensity is None and not sample.grid:
            pixels = shrink(pixels, rules.cache_px)
        original, digest = sample.pixels.shape[1:], source.content_hash(index)
        result = Decoded(index, pixels, original, low, high, digest, spacing_mm=spacing, grid=sample.grid)
        if not sample.grid:
            result.pixel_hash = pixel_hash(sample.pixels)
            if source.axes == 2:
                result.perceptual = perceptual_hash(sample.pixels if max(original) <= HASHED_PX else pixels)
        return result
    except DamagedFile as error:
        return Decoded(index, None, reason=error.in_one_line())


def _volume(sample: Sample, rules: Rules, intensity: Intensity) -> tuple[np.ndarray, tuple[float, ...]]:
    """[C T Y X] in 0..1 and reduced, with the spacing it then has.

    The finest voxel that is kept is the one that puts ``cache_px`` of them along the shortest side, in millimetres.
    """
    name, shape = sample.record.id, sample.pixels.shape[1:]
    if rules.size_mm and sample.spacing_mm is None:
        raise DamagedFile(f"{name}: its spacing is unknown, so --size-mm has no meaning", hint="leave out --size-mm")
    spacing = sample.spacing_mm or (1.0, 1.0, 1.0)
    span = rules.size_mm or min(n * mm for n, mm in zip(shape, spacing))
    sides = even_sides(shape, spacing, span / rules.cache_px)
    pixels = shrink_volume(to_unit(sample.pixels, intensity, name, sample.padding), sides)
    return pixels, tuple(mm * n / side for mm, n, side in zip(spacing, shape, sides))


def decode_all(source: Source, indices: Sequence[int], rules: Rules, report: Report | None) -> Iterator[Decoded]:
    """Decode in threads (decoders release the interpreter lock), hand back in order. A whole volume in each of many
    threads would not fit in memory."""
    most = usable_cores()
    with ThreadPoolExecutor(max_workers=most if rules.intensity is None else min(4, most)) as pool:
        for done, item in enumerate(pool.map(lambda i: _decode(source, i, rules), indices), start=1):
            if report is not None:
                report(done, len(indices))
            yield item


def with_channels(item: Decoded, channels: int, dtype: np.dtype | None, name: str) -> np.ndarray:
    """The pixels with this many channels. Raises DamagedFile where there are none, or not of ``kind`` (None: any)."""
    if item.pixels is None:
        raise DamagedFile(item.reason)
    pixels = convert_channels(item.pixels, channels, name)
    if dtype is not None and pixels.dtype != dtype:
        raise DamagedFile(f"{name}: number type {pixels.dtype} differs from the rest of the data ({dtype})")
    return pixels
