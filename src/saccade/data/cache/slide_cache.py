"""Tiles of slides for a training: which are decoded once, and which are read as they are wanted."""

from __future__ import annotations

import dataclasses

import numpy as np

from saccade import runtime
from saccade.base.contracts import Source
from saccade.base.machine import usable_cores
from saccade.data.cache.image_cache import ImageCache, with_statistics
from saccade.data.slides.slide_source import tiles_in
from saccade.data.slides.streaming import Say, TileSpec, TileStore
from saccade.errors import DamagedFile, UsageError

MAX_DECODED_BYTES = 2**30
SEEN = 256  # tiles for mean, standard deviation and range


def must_stream(source: Source, cache_px: int) -> bool:
    """Whether the tiles of a source are too many to be kept decoded: above 1 GiB."""
    return tiles_in(source) is not None and len(source) * 3 * cache_px**2 > MAX_DECODED_BYTES


def usual_workers() -> int:
    """Processes that read tiles: one a core, at most eight; shared out over the processes of a run."""
    cores = usable_cores()
    return max(1, min(8, cores) // runtime.world_size())


def stream_tiles(
    source: Source, *, cache_px: int, workers: int, max_bad: float, say: Say, leave_out: bool = False
) -> ImageCache:
    """A cache whose pixels are read from slides when a batch is made; mean, spread and range are of 256 tiles.

    cache_px   side of the tiles in the batch; they are read at that size, resampled once
    max_bad, leave_out   what becomes of tiles that cannot be read, see TileStore
    """
    slides_and_tiles = tiles_in(source)
    if slides_and_tiles is None:
        raise UsageError("data.stream has no effect on other data than slides", got=source.name)
    tiles, numbers = slides_and_tiles
    size = min(cache_px, tiles.tile_px)
    first = tiles.sample().pixels
    spec = TileSpec(size, len(first), first.dtype)
    store = TileStore(tiles, spec, workers=workers, max_bad=max_bad, say=say, leave_out=leave_out)
    examined = np.unique(np.linspace(0, len(numbers) - 1, min(SEEN, len(numbers))).astype(int))
    examples = store.images(numbers[examined])
    good = np.array([int(number) not in store.failed for number in numbers[examined]])
    if not good.any():
        raise DamagedFile(f"{tiles.name}: none of {len(good)} tiles spread over it can be read")
    examples, examined = examples[good], examined[good]
    eight = examples.dtype == np.uint8
    cache = ImageCache(
        flat=store,
        shapes=np.tile(np.array(examples.shape[1:], np.int64), (len(numbers), 1)),
        starts=numbers.astype(np.int64),
        records=source.records,
        hashes=[tiles.hashes[int(k)] for k in tiles.slide_of[numbers]],
        original_px=np.full((len(numbers), 2), tiles.tile_px),
        damaged=list(tiles.unreadable),
        offset=0.0 if eight else float(examples.min()),
        scale=255.0 if eight else float(examples.max() - examples.min()) or 1.0,
    )
    statistics = with_statistics(cache.select(examined))
    return dataclasses.replace(cache, mean=statistics.mean, std=statistics.std)
