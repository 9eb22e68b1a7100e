"""Decode once, then serve batches in an order that needs no memory.

Every image is decoded a single time into one contiguous array (a memory map above a size limit), in the
file's own number type, its shorter side reduced to ``cache_px``. Images of different shape lie side by
side. A volume is brought to 0..1 first, and none of its axes is kept finer, in millimetres, than the shortest
one needs. The order of a run is a function of (seed, position) alone, so a resumed run, or one with more
processes, sees the same images at the same step.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from saccade.base.contracts import Batch, InputSpec, Record, Source
from saccade.base.random import numpy_generator
from saccade.data.cache.decoding import Decoded, Report, Rules, decode_all, with_channels
from saccade.data.cache.growable_array import GrowingArray
from saccade.data.images.downsample import (
    LUMINANCE,
)
from saccade.data.probe import usual_channels
from saccade.data.slides.streaming import TileStore
from saccade.data.sources.source import pick
from saccade.data.volumes.intensity import STEPS, Intensity, decide_intensity
from saccade.errors import DamagedFile, TooManyDamaged, UsageError


@dataclass(frozen=True)
class ImageCache:
    """All readable images of a source, decoded and reduced.

    flat      every pixel of every image, one after another, in the files' own type; or the tiles of slides, which
              are read when they are wanted: ``starts`` are then their numbers
    shapes    [N 1+A] channels, then rows, columns (slices, rows, columns); ``starts`` [N] first element of each
              image in ``flat``
    records   N records of the readable images; ``hashes`` their content hashes
    original_px  [N A] rows and columns (slices, rows and columns) before reduction
    damaged   (id, reason) of the images that could not be read
    offset, scale   bring the pixel range to 0..1 (see InputSpec)
    labels    [N] number of each image's class, set by ``numbered``
    spacing_mm  [N A] size of the voxels in ``flat``, of volumes; ones where a file does not say
    intensity, size_mm   what was done to volumes, and the cube they are seen through (see InputSpec)
    grid      the images are grids of vectors (see Sample)
    pixel_hashes, perceptual   N fingerprints of the decoded images (data/images/fingerprint.py); empty for tiles
              that are read when they are wanted, and for grids; ``perceptual`` also for volumes
    """

    flat: np.ndarray | TileStore
    shapes: np.ndarray
    starts: np.ndarray
    records: Sequence[Record]
    hashes: list[str]
    original_px: np.ndarray
    damaged: list[tuple[str, str]]
    offset: float
    scale: float
    mean: tuple[float, ...] = field(default=())
    std: tuple[float, ...] = field(default=())
    labels: np.ndarray | None = None
    spacing_mm: np.ndarray | None = None
    intensity: Intensity | None = None
    size_mm: float = 0.0
    grid: bool = False
    pixel_hashes: Sequence[str] = ()
    perceptual: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.records)

    @property
    def axes(self) -> int:
        return self.shapes.shape[1] - 1

    @property
    def channels(self) -> int:
        return int(self.shapes[0, 0])

    def image(self, index: int) -> np.ndarray:
        """[C Y X] or [C T Y X] in the files' own type."""
        shape = [int(side) for side in self.shapes[index]]
        start = int(self.starts[index])
        if isinstance(self.flat, TileStore):
            return self.flat.images(np.array([start]))[0]
        return self.flat[start : start + math.prod(shape)].reshape(shape)

    def batch(self, indices: np.ndarray) -> Batch:
        """The images at ``indices`` as one padded batch."""
        shapes = self.shapes[indices]
        dtype = np.uint8 if self.flat.dtype == np.uint8 else np.float32  # torch knows little arithmetic on 16 bits
        if isinstance(self.flat, TileStore):
            stacked = self.flat.images(self.starts[indices]).astype(dtype, copy=False)
        elif (shapes == shapes[0]).all():
            stacked = np.stack([self.image(int(i)) for i in indices]).astype(dtype, copy=False)
        else:
            stacked = np.zeros((len(indices), *shapes.max(axis=0)), dtype)
            for b, i in enumerate(indices):
                image = self.image(int(i))
                inside: Any = (b, *(slice(side) for side in image.shape))
                stacked[inside] = image
        sizes = torch.from_numpy(shapes[:, 1:].astype(np.int64))
        numbers = torch.from_numpy(np.asarray(indices, dtype=np.int64))
        labels = None if self.labels is None else torch.from_numpy(self.labels[indices])
        spacing = None
        if self.spacing_mm is not None:
            spacing = torch.from_numpy(self.spacing_mm[indices].astype(np.float32))
        return Batch(torch.from_numpy(stacked), sizes, numbers, self.offset, self.scale, labels, spacing)

    @property
    def streamed(self) -> bool:
        """Whether pixels are read when they are wanted."""
        return isinstance(self.flat, TileStore)

    def expect(self, indices: np.ndarray) -> None:
        """Says which images come next: tiles that are read when wanted are read ahead; decoded images are there."""
        if isinstance(self.flat, TileStore):
            self.flat.expect(self.starts[indices])

    def select(self, indices: np.ndarray) -> ImageCache:
        """Some of the images; the pixels are shared, range and damaged files stay those of the whole."""
        chosen = np.asarray(indices, dtype=np.int64)
        return dataclasses.replace(
            self,
            shapes=self.shapes[chosen],
            starts=self.starts[chosen],
            records=pick(self.records, chosen),
            hashes=[self.hashes[int(i)] for i in chosen],
            pixel_hashes=[self.pixel_hashes[int(i)] for i in chosen] if self.pixel_hashes else (),
            perceptual=[self.perceptual[int(i)] for i in chosen] if self.perceptual else (),
            original_px=self.original_px[chosen],
            labels=None if self.labels is None else self.labels[chosen],
            spacing_mm=None if self.spacing_mm is None else self.spacing_mm[chosen],
        )

    def numbered(self, classes: Sequence[str]) -> ImageCache:
        """The same images with the number of each one's class; KeyError for a label that is not among them."""
        number = {name: i for i, name in enumerate(classes)}
        return dataclasses.replace(self, labels=np.array([number[str(r.label)] for r in self.records], np.int64))


def _intensity(source: Source, given: Intensity | None, size_mm: float) -> Intensity | None:
    """What brings volumes to 0..1; None for images, of which nothing of the kind may be asked (UsageError)."""
    if source.axes == 3:
        return given or decide_intensity(source)
    if given is not None or size_mm:
        raise UsageError("data.intensity and data.size_mm have no effect on images", got=f"images in {source.name}")
    return None


def _range_of(decoded: Sequence[Decoded], dtype: np.dtype, intensity: Intensity | None) -> tuple[float, float]:
    """(offset, scale) of all that was decoded; 0 and 1 of a volume mean what its rule says, reached or not."""
    if decoded[0].grid:
        return 0.0, 1.0
    if intensity is not None and intensity.kind != "range":
        return 0.0, float(STEPS)
    return _pixel_range(dtype, min(k.low for k in decoded), max(k.high for k in decoded))


def _pixel_range(dtype: np.dtype, low: float, high: float) -> tuple[float, float]:
    """(offset, scale): fixed for 8-bit data, the observed range for 16-bit and float data."""
    if dtype == np.uint8:
        return 0.0, 255.0
    return low, (high - low) or 1.0


def build_cache(
    source: Source,
    *,
    cache_px: int,
    channels: int | None = None,
    max_bad: float = 0.05,
    memory_limit_mib: float = 8192,
    report: Report | None = None,
    intensity: Intensity | None = None,
    size_mm: float = 0.0,
) -> ImageCache:
    """Decode all images of a source into one array.

    Parameters
    ----------
    source : Source
    cache_px : int
        Shorter side after reduction, in pixels; smaller images keep their size.
    channels : int, optional
        None takes the most frequent number of channels of the first 64 images.
    max_bad : float
        Fraction of damaged images above which the build fails. Others are left out and listed in ``damaged``.
    memory_limit_mib : float
        Above this the array is moved to an unnamed file.
    report : callable, optional
        Called with (done, total).
    intensity : Intensity, optional
        Of volumes; None is decided from the data.
    size_mm : float
        Of volumes: extent of ``cache_px`` voxels; 0 stands for the shortest side of each volume.

    Returns
    -------
    ImageCache

    Raises
    ------
    TooManyDamaged
        The message names the first twenty files.
    UsageError
        ``intensity`` or ``size_mm`` is given for images.
    """
    intensity = _intensity(source, intensity, size_mm)
    store = GrowingArray(memory_limit_mib)
    decoded: list[Decoded] = []
    shapes: list[tuple[int, ...]] = []
    damaged: list[tuple[str, str]] = []
    dtype: np.dtype | None = None
    channels = channels or usual_channels(source)
    for item in decode_all(source, range(len(source)), Rules(cache_px, intensity, size_mm), report):
        name = source.records[item.index].id
        try:
            pixels = with_channels(item, channels, dtype, name)
        except DamagedFile as error:
            damaged.append((name, error.in_one_line()))
            continue
        dtype = pixels.dtype
        store.add(pixels)
        shapes.append(pixels.shape)
        item.pixels = None
        decoded.append(item)
    check_damage(source.name, damaged, len(source), max_bad)
    assert dtype is not None
    shape_table = np.array(shapes, dtype=np.int64)
    counts = shape_table.prod(axis=1)
    offset, scale = _range_of(decoded, dtype, intensity)
    cache = ImageCache(
        flat=store.array(dtype),
        shapes=shape_table,
        starts=np.concatenate([[0], np.cumsum(counts)[:-1]]),
        records=pick(source.records, [k.index for k in decoded]),
        hashes=[k.sha256 for k in decoded],
        original_px=np.array([k.original for k in decoded]),
        damaged=damaged,
        offset=offset,
        scale=scale,
        spacing_mm=np.array([k.spacing_mm for k in decoded]) if source.axes == 3 else None,
        intensity=intensity,
        size_mm=size_mm,
        grid=decoded[0].grid,
        pixel_hashes=() if decoded[0].grid else [k.pixel_hash for k in decoded],
        perceptual=[k.perceptual for k in decoded] if any(k.perceptual for k in decoded) else (),
    )
    return with_statistics(cache)


def check_damage(
    name: str, damaged: Sequence[tuple[str, str]], total: int, max_bad: float, *, what: str = "images"
) -> None:
    """Raise TooManyDamaged, with the files named, when more than ``max_bad`` of all are damaged; ``what`` they are."""
    if total and (len(damaged) > max_bad * total or len(damaged) == total):
        listed = "\n".join(f"    {file}: {reason}" for file, reason in damaged[:20])
        more = f"\n    and {len(damaged) - 20} more" if len(damaged) > 20 else ""
        raise TooManyDamaged(
            f"{name}: {len(damaged)} of {total} {what} cannot be used\n{listed}{more}",
            expected=f"at most {max_bad:.1%}",
            hint="repair or remove them, or raise --max-bad",
        )


def with_statistics(cache: ImageCache) -> ImageCache:
    """Per-channel mean and standard deviation in 0..1, from at most 2,000 images evenly spread.

    Of tiles that are read when wanted, 256. Of grids, those of the tiles that are there.
    """
    most = 256 if isinstance(cache.flat, TileStore) else 2000
    chosen = np.unique(np.linspace(0, len(cache) - 1, min(most, len(cache))).astype(int))
    cache.expect(chosen)
    sums = np.zeros((2, cache.channels))
    count = 0
    for index in chosen:
        pixels = (cache.image(int(index)).astype(np.float64) - cache.offset) / cache.scale
        flat = pixels[:, pixels[-1] > 0.5] if cache.grid else pixels.reshape(cache.channels, -1)
        sums += np.stack([flat.sum(axis=1), (flat**2).sum(axis=1)])
        count += flat.shape[1]
    mean = sums[0] / max(1, count)
    std = np.sqrt(np.maximum(sums[1] / max(1, count) - mean**2, 1e-8))
    if cache.grid:  # whether a tile is there stays 0 or 1
        mean[-1], std[-1] = 0.0, 1.0
    rounded = (tuple(float(round(v, 4)) for v in mean), tuple(float(round(max(v, 1e-3), 4)) for v in std))
    return dataclasses.replace(cache, mean=rounded[0], std=rounded[1])


def input_spec(cache: ImageCache, size_px: int, *, grey: bool) -> InputSpec:
    """The InputSpec that the statistics of this cache suggest."""
    mean, std = cache.mean, cache.std
    if grey and cache.channels == 3:
        luminance = float(np.dot(mean, LUMINANCE))
        mean, std = (round(luminance, 4),) * 3, (round(float(np.mean(std)), 4),) * 3
    return InputSpec(
        channels=cache.channels,
        size_px=size_px,
        offset=cache.offset,
        scale=cache.scale,
        mean=mean,
        std=std,
        grey=grey,
        axes=cache.axes,
        intensity=cache.intensity.kind if cache.intensity else "",
        window=cache.intensity.window if cache.intensity else (),
        size_mm=cache.size_mm,
        grid=cache.grid,
    )


def fit_range(spec: InputSpec, dtype: np.dtype, low: float, high: float) -> InputSpec:
    """The spec with the range of pixels of another depth: unchanged where both have 8 bits, or both more."""
    if spec.eight_bit == (dtype == np.uint8):
        return spec
    offset, scale = _pixel_range(dtype, low, high)
    return dataclasses.replace(spec, offset=offset, scale=scale)


def batch_indices(images: int, step: int, batch: int, seed: int) -> np.ndarray:
    """The images of one step: every epoch is a permutation, cut into whole batches.

    The remainder of an epoch is left out, so no batch holds an image twice. A step of more images than there are takes
    one permutation after another.

    Parameters
    ----------
    images : int
        Number of images.
    step : int
        Position in the run.
    batch : int
        Images per step.
    seed : int
        Seed of the run.

    Returns
    -------
    ndarray
        [batch] int64, a function of the arguments alone.
    """
    batches_per_epoch = images // batch
    if batches_per_epoch:
        epoch, number = divmod(step, batches_per_epoch)
        return _order(images, epoch, seed)[number * batch : (number + 1) * batch]
    first = step * batch
    epochs = range(first // images, (first + batch - 1) // images + 1)
    stream = np.concatenate([_order(images, epoch, seed) for epoch in epochs])
    return stream[first % images :][:batch]


def _order(images: int, epoch: int, seed: int) -> np.ndarray:
    return numpy_generator(seed, "order", epoch).permutation(images)
