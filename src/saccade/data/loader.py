"""Decode once, then serve batches in an order that needs no memory.

Every image is decoded a single time into one contiguous array (a memory map above a size limit), in the
file's own number type, its shorter side reduced to ``cache_px``. Images of different shape lie side by
side. The order of a run is a function of (seed, position) alone, so a resumed run, or one with more
processes, sees the same images at the same step.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import IO

import numpy as np
import torch
import torch.nn.functional as F

from saccade.contracts import Batch, InputSpec, Record, Source
from saccade.errors import DamagedFile, DataError, StorageError, TooManyDamaged
from saccade.seeds import numpy_generator

LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601
Report = Callable[[int, int], None]


@dataclass(frozen=True)
class ImageCache:
    """All readable images of a source, decoded and reduced.

    flat      every pixel of every image, one after another, in the files' own type
    shapes    [N 3] channels, rows, columns; ``starts`` [N] first element of each image in ``flat``
    records   N records of the readable images; ``hashes`` their content hashes
    original_px  [N 2] rows and columns before reduction
    damaged   (id, reason) of the images that could not be read
    offset, scale   bring the pixel range to 0..1 (see InputSpec)
    labels    [N] number of each image's class, set by ``numbered``
    """

    flat: np.ndarray
    shapes: np.ndarray
    starts: np.ndarray
    records: list[Record]
    hashes: list[str]
    original_px: np.ndarray
    damaged: list[tuple[str, str]]
    offset: float
    scale: float
    mean: tuple[float, ...] = field(default=())
    std: tuple[float, ...] = field(default=())
    labels: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.records)

    @property
    def channels(self) -> int:
        return int(self.shapes[0, 0])

    def image(self, index: int) -> np.ndarray:
        """[C Y X] in the files' own type."""
        c, y, x = (int(v) for v in self.shapes[index])
        start = int(self.starts[index])
        return self.flat[start : start + c * y * x].reshape(c, y, x)

    def batch(self, indices: np.ndarray) -> Batch:
        """The images at ``indices`` as one padded batch."""
        shapes = self.shapes[indices]
        rows, columns = int(shapes[:, 1].max()), int(shapes[:, 2].max())
        kept = np.uint8 if self.flat.dtype == np.uint8 else np.float32  # torch knows little arithmetic on 16 bits
        if (shapes == shapes[0]).all():
            stacked = np.stack([self.image(int(i)) for i in indices]).astype(kept, copy=False)
        else:
            stacked = np.zeros((len(indices), self.channels, rows, columns), kept)
            for b, i in enumerate(indices):
                image = self.image(int(i))
                stacked[b, :, : image.shape[1], : image.shape[2]] = image
        sizes = torch.from_numpy(shapes[:, 1:].astype(np.int64))
        numbers = torch.from_numpy(np.asarray(indices, dtype=np.int64))
        labels = None if self.labels is None else torch.from_numpy(self.labels[indices])
        return Batch(torch.from_numpy(stacked), sizes, numbers, self.offset, self.scale, labels)

    def select(self, indices: np.ndarray) -> ImageCache:
        """Some of the images; the pixels are shared, range and damaged files stay those of the whole."""
        chosen = np.asarray(indices, dtype=np.int64)
        return dataclasses.replace(
            self,
            shapes=self.shapes[chosen],
            starts=self.starts[chosen],
            records=[self.records[int(i)] for i in chosen],
            hashes=[self.hashes[int(i)] for i in chosen],
            original_px=self.original_px[chosen],
            labels=None if self.labels is None else self.labels[chosen],
        )

    def numbered(self, classes: Sequence[str]) -> ImageCache:
        """The same images with the number of each one's class; KeyError for a label that is not among them."""
        number = {name: i for i, name in enumerate(classes)}
        return dataclasses.replace(self, labels=np.array([number[str(r.label)] for r in self.records], np.int64))


def convert_channels(pixels: np.ndarray, channels: int, name: str) -> np.ndarray:
    """Grey becomes colour by repetition, colour becomes grey by luminance; anything else is an error."""
    have = pixels.shape[0]
    if have == channels:
        return pixels
    if have == 1:
        return np.repeat(pixels, channels, axis=0)
    if have == 3 and channels == 1:
        grey = np.tensordot(np.array(LUMINANCE, np.float32), pixels.astype(np.float32), axes=1)[None]
        return np.rint(grey).astype(pixels.dtype) if pixels.dtype.kind == "u" else grey
    raise DamagedFile(
        f"{name}: number of channels differs from the rest of the data",
        got=f"{have} channels",
        expected=f"{channels} channels",
        hint="keep images with different channels in separate folders",
    )


def _reduce(pixels: np.ndarray, shorter_px: int) -> np.ndarray:
    """Shrink (never enlarge) so that the shorter side is ``shorter_px``; antialiased, same number type."""
    rows, columns = pixels.shape[-2:]
    factor = shorter_px / min(rows, columns)
    if factor >= 1:
        return np.ascontiguousarray(pixels)
    size = (max(1, round(rows * factor)), max(1, round(columns * factor)))
    small = F.interpolate(
        torch.from_numpy(pixels.astype(np.float32))[None], size=size, mode="bilinear", antialias=True
    )[0].numpy()
    if pixels.dtype.kind in "ui":
        limits = np.iinfo(pixels.dtype)
        small = np.rint(small).clip(limits.min, limits.max)
    return small.astype(pixels.dtype)


def _number_type(pixels: np.ndarray) -> np.ndarray:
    """uint8, uint16 and float32 stay; everything else becomes float32 (exact up to 24 bits)."""
    if pixels.dtype in (np.uint8, np.uint16, np.float32):
        return pixels
    return pixels.astype(np.float32)


@dataclass
class _Decoded:
    index: int
    pixels: np.ndarray | None
    original: tuple[int, int] = (0, 0)
    low: float = 0.0
    high: float = 0.0
    sha256: str = ""
    reason: str = ""


def _decode(source: Source, index: int, cache_px: int) -> _Decoded:
    try:
        pixels = _number_type(source.read(index).pixels)
        if pixels.ndim != 3:
            raise DataError(
                f"{source.records[index].id} is a volume; image training needs 2D images",
                got=f"shape {pixels.shape}",
                expected="[C Y X]",
            )
        if not np.isfinite(pixels).all():
            raise DamagedFile(f"{source.records[index].id}: contains NaN or infinite values")
        low, high = float(pixels.min()), float(pixels.max())
        original = (int(pixels.shape[1]), int(pixels.shape[2]))
        return _Decoded(index, _reduce(pixels, cache_px), original, low, high, source.content_hash(index))
    except DamagedFile as error:
        return _Decoded(index, None, reason=error.what)


def _decode_all(source: Source, indices: Sequence[int], cache_px: int, report: Report | None) -> Iterator[_Decoded]:
    """Decode in threads (decoders release the interpreter lock), hand back in order."""
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        for done, item in enumerate(pool.map(lambda i: _decode(source, i, cache_px), indices), start=1):
            if report is not None:
                report(done, len(indices))
            yield item


def _pixel_range(number_type: np.dtype, low: float, high: float) -> tuple[float, float]:
    """(offset, scale): fixed for 8-bit data, the observed range for 16-bit and float data."""
    if number_type == np.uint8:
        return 0.0, 255.0
    return low, (high - low) or 1.0


class _Store:
    """Grows one flat array; moves to an unnamed file on disk when it passes the memory limit."""

    def __init__(self, memory_limit_mib: float):
        self.limit = memory_limit_mib * 2**20
        self.parts: list[np.ndarray] = []
        self.held = 0
        self.file: IO[bytes] | None = None

    def add(self, pixels: np.ndarray) -> None:
        self.parts.append(pixels.reshape(-1))
        self.held += pixels.nbytes
        if self.held > self.limit:
            self._spill()

    def _spill(self) -> None:
        try:
            if self.file is None:
                # Without a name, so that nothing stays behind however the process ends.
                self.file = tempfile.TemporaryFile(prefix="saccade-cache-")  # noqa: SIM115
            for part in self.parts:
                self.file.write(part.tobytes())
            self.file.flush()
        except OSError as error:
            raise StorageError(
                f"the decoded images do not fit in {tempfile.gettempdir()}",
                got=error.strerror,
                hint="set TMPDIR to a larger disk, or make them smaller with --set data.cache_px=SIZE",
            ) from error
        self.parts, self.held = [], 0

    def array(self, number_type: np.dtype) -> np.ndarray:
        if self.file is None:
            return np.concatenate(self.parts)
        self._spill()
        return np.memmap(self.file, dtype=number_type, mode="r")


def build_cache(
    source: Source,
    *,
    cache_px: int,
    channels: int | None = None,
    max_bad: float = 0.05,
    memory_limit_mib: float = 8192,
    report: Report | None = None,
) -> ImageCache:
    """Decode a whole source.

    cache_px   shorter side after reduction, in pixels (smaller images keep their size)
    channels   None takes the most frequent number of channels of the first 64 images
    max_bad    fraction of damaged images above which TooManyDamaged is raised
    Damaged images are left out and listed in ``damaged``.
    """
    store = _Store(memory_limit_mib)
    kept: list[_Decoded] = []
    shapes: list[tuple[int, ...]] = []
    damaged: list[tuple[str, str]] = []
    number_type: np.dtype | None = None
    channels = channels or usual_channels(source)
    for item in _decode_all(source, range(len(source)), cache_px, report):
        name = source.records[item.index].id
        if item.pixels is not None:
            try:
                pixels = convert_channels(item.pixels, channels, name)
                number_type = number_type or pixels.dtype
                if pixels.dtype != number_type:
                    raise DamagedFile(
                        f"{name}: number type {pixels.dtype} differs from the rest of the data ({number_type})"
                    )
            except DamagedFile as error:
                item = _Decoded(item.index, None, reason=error.what)
        if item.pixels is None:
            damaged.append((name, item.reason))
            continue
        store.add(pixels)
        shapes.append(pixels.shape)
        item.pixels = None
        kept.append(item)
    check_damage(source.name, damaged, len(source), max_bad)
    assert number_type is not None
    shape_table = np.array(shapes, dtype=np.int64)
    counts = shape_table.prod(axis=1)
    offset, scale = _pixel_range(number_type, min(k.low for k in kept), max(k.high for k in kept))
    cache = ImageCache(
        flat=store.array(number_type),
        shapes=shape_table,
        starts=np.concatenate([[0], np.cumsum(counts)[:-1]]),
        records=[source.records[k.index] for k in kept],
        hashes=[k.sha256 for k in kept],
        original_px=np.array([k.original for k in kept]),
        damaged=damaged,
        offset=offset,
        scale=scale,
    )
    return with_statistics(cache)


def usual_channels(source: Source) -> int:
    """Number of channels most images have, by the first that can be read."""
    counts: Counter[int] = Counter()
    for index in range(min(64, len(source))):
        try:
            counts[source.read(index).pixels.shape[0]] += 1
        except DamagedFile:
            continue
    if not counts:
        raise DataError(f"{source.name}: none of the first images can be read", hint="saccade show lists the reasons")
    return counts.most_common(1)[0][0]


def typical_px(source: Source) -> int:
    """Median shorter side of the first readable images."""
    sides = []
    for index in range(min(16, len(source))):
        try:
            sides.append(min(source.read(index).pixels.shape[-2:]))
        except DamagedFile:
            continue
    if not sides:
        raise DataError(f"{source.name}: none of the first images can be read", hint="saccade show lists the reasons")
    return int(statistics.median(sides))


def check_damage(name: str, damaged: Sequence[tuple[str, str]], total: int, max_bad: float) -> None:
    """Raise TooManyDamaged, with the files named, when more than ``max_bad`` of all are damaged."""
    if total and (len(damaged) > max_bad * total or len(damaged) == total):
        listed = "\n".join(f"    {file}: {reason}" for file, reason in damaged[:20])
        more = f"\n    and {len(damaged) - 20} more" if len(damaged) > 20 else ""
        raise TooManyDamaged(
            f"{name}: {len(damaged)} of {total} images cannot be used\n{listed}{more}",
            expected=f"at most {max_bad:.1%}",
            hint="repair or remove them, or raise --max-bad",
        )


def with_statistics(cache: ImageCache) -> ImageCache:
    """Per-channel mean and standard deviation in 0..1, from at most 2,000 images evenly spread."""
    chosen = np.unique(np.linspace(0, len(cache) - 1, min(2000, len(cache))).astype(int))
    sums = np.zeros((2, cache.channels))
    count = 0
    for index in chosen:
        pixels = (cache.image(int(index)).astype(np.float64) - cache.offset) / cache.scale
        sums += np.stack([pixels.sum(axis=(1, 2)), (pixels**2).sum(axis=(1, 2))])
        count += pixels[0].size
    mean = sums[0] / count
    std = np.sqrt(np.maximum(sums[1] / count - mean**2, 1e-8))
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
    )


def fit_range(spec: InputSpec, number_type: np.dtype, low: float, high: float) -> InputSpec:
    """The spec with the range of pixels of another depth: unchanged where both have 8 bits, or both more."""
    if spec.eight_bit == (number_type == np.uint8):
        return spec
    offset, scale = _pixel_range(number_type, low, high)
    return dataclasses.replace(spec, offset=offset, scale=scale)


def batch_indices(images: int, step: int, batch: int, seed: int) -> np.ndarray:
    """The images of one step: a stream of whole permutations, one after another, cut into batches."""
    first = step * batch
    positions = np.arange(first, first + batch)
    epochs = positions // images
    chosen = np.empty(batch, dtype=np.int64)
    for epoch in np.unique(epochs):
        order = numpy_generator(seed, "order", int(epoch)).permutation(images)
        here = epochs == epoch
        chosen[here] = order[positions[here] % images]
    return chosen
