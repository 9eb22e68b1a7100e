"""The images a run learns from, and their record in data.json."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from saccade.base import run_folder
from saccade.base.contracts import Record, Source
from saccade.base.places import base_name, without_folders
from saccade.base.random import numpy_generator
from saccade.data.cache.image_cache import ImageCache, with_statistics
from saccade.data.open import open_data, tiling_in
from saccade.data.probe import check_spacing_known
from saccade.data.slides.slide_source import SlideTiles, tiles_in
from saccade.data.sources.source import TileRecords, select, with_split
from saccade.data.splits import draw_test, given_test, grouped_split
from saccade.data.volumes.intensity import decide_intensity, make_intensity
from saccade.errors import DamagedFile, DataError, UsageError
from saccade.evaluation.contamination import seen_in_pretraining
from saccade.features.embed_slides import as_trained
from saccade.train.run_config import ResolvedRun
from saccade.train.settings import ALL_BUT_TEST, NO_TILES, DataConfig


@dataclasses.dataclass(frozen=True)
class DataSubset:
    """The images a run may learn from, and the ids of those held out as test part."""

    source: Source
    held_out: list[str]


@dataclasses.dataclass(frozen=True)
class LoadedData:
    """A subset, decoded.

    Parameters
    ----------
    name, images
        Of the source, damaged files included.
    slides
        The slides it is cut from and the numbers of those with tiles in it; None for other images.
    """

    name: str
    images: int
    held_out: list[str]
    cache: ImageCache
    slides: tuple[SlideTiles, np.ndarray] | None = None


@dataclasses.dataclass(frozen=True)
class TrainValSplit:
    """Training images of a run, and its validation images, where there are any."""

    train: ImageCache
    validation: ImageCache | None

    @property
    def classes(self) -> tuple[str, ...]:
        """Labels of all images the run sees, sorted."""
        return tuple(sorted({str(record.label) for record in self.everything()[0] if record.label is not None}))

    def everything(self) -> tuple[list[Record], list[str]]:
        """Records and hashes of all images the run has seen."""
        parts = [self.train, *([self.validation] if self.validation is not None else [])]
        return [r for part in parts for r in part.records], [digest for part in parts for digest in part.hashes]


def open_all(data: DataConfig, weights: str) -> Source:
    """All images that the settings name. Slides are cut as these say, or else as the run was that made ``weights``."""
    settings = dataclasses.asdict(data)
    return open_data(settings, as_trained(weights, tiling_in(settings)) if weights and data.tile_px != 0 else None)


def open_subset(data: DataConfig, weights: str, source: Source | None = None) -> DataSubset:
    """The source a run names, limited to its part; ``source`` is what ``open_all`` gives, where it is open already."""
    return subset_of(open_all(data, weights) if source is None else source, data)


def subset_of(source: Source, data: DataConfig) -> DataSubset:
    """What a run learns from.

    By default that is everything but the test part: the one the data bring, or, where labels but no test part with
    labels are there, the one that ``evaluate`` would draw. ``all`` takes everything, any other name is a split.
    """
    records = source.records
    if data.split == "all":
        return DataSubset(source, [])
    if data.split not in (None, ALL_BUT_TEST):
        return DataSubset(with_split(source, [data.split]), [])
    test = given_test(records)
    left_out = {i for i, record in enumerate(records) if test is not None and record.split == test}
    drawn: set[int] = set()
    if labels_in(source) and all(records[i].label is None for i in left_out):
        drawn = set(draw_test(records, [hash_of(source, i) for i in range(len(source))], seed=0))
    selected = [i for i in range(len(records)) if i not in left_out | drawn]
    held_out = [records[i].id for i in sorted(drawn)]
    return DataSubset(select(source, selected) if len(selected) < len(records) else source, held_out)


def resolve_tiles(data: DataConfig, source: Source) -> DataConfig:
    """Decide how slides are cut. Raises UsageError for settings without effect."""
    slide_tiles = tiles_in(source)
    if slide_tiles is not None:
        tiling = slide_tiles[0].tiling
        return dataclasses.replace(data, mpp=tiling.mpp, tile_px=tiling.tile_px, tissue=tiling.min_tissue)
    for name in ("stream", "workers"):
        if getattr(data, name):
            raise UsageError(f"data.{name} is for slides", got=source.name, hint="leave it out")
    return dataclasses.replace(data, **NO_TILES)


def slides_of(source: Source) -> tuple[SlideTiles, np.ndarray] | None:
    """The slides that a source is cut from, and the numbers of those with tiles in it; None for other images."""
    slide_tiles = tiles_in(source)
    if slide_tiles is None:
        return None
    tiles, indices = slide_tiles
    return tiles, np.unique(tiles.slide_of[indices])


def resolve_intensity(data: DataConfig, source: Source) -> DataConfig:
    """Decide how volumes are scaled to 0..1. Raises UsageError for settings without effect."""
    if source.axes == 2:
        for name in ("intensity", "window", "size_mm"):
            if getattr(data, name):
                raise UsageError(f"data.{name} has no effect on images", hint="it is for volumes")
        return data
    if data.size_mm:
        check_spacing_known(source)
    how = make_intensity(data.intensity, data.window or ()) if data.intensity else None
    if how is None:
        how = decide_intensity(source) if data.window is None else make_intensity("window", data.window)
    return dataclasses.replace(data, intensity=how.kind, window=how.window)


def draw_nested(records: Sequence[Record], candidates: np.ndarray, count: int, seed: int) -> np.ndarray:
    """``count`` of the candidates, stratified by class, each class at least once; smaller draws lie inside larger ones.

    Images are drawn one by one, not by whole groups: the number of images is what a learning curve counts.
    """
    order = candidates[numpy_generator(seed, "limit").permutation(len(candidates))]
    total = Counter(records[int(i)].label for i in candidates)
    drawn: Counter[str | None] = Counter()
    keys = []
    for index in order:
        label = records[int(index)].label
        keys.append((drawn[label] + 0.5) / total[label] if drawn[label] else 0.0)
        drawn[label] += 1
    return np.sort(order[np.argsort(keys, kind="stable")[:count]])


def divide(cache: ImageCache, data: DataConfig, *, labels: bool, seed: int) -> TrainValSplit:
    """Labelled images only where the method needs labels; validation images apart; then ``data.limit`` of the rest."""
    records = cache.records
    chosen = np.arange(len(cache))
    if labels:
        chosen = np.array([i for i in chosen if records[int(i)].label is not None], np.int64)
        if len({records[int(i)].label for i in chosen}) < 2:
            raise DataError(
                "training with labels needs at least two classes",
                got=f"{len(chosen)} labelled images of one class" if len(chosen) else "no labels",
                hint="name a table with a label column, or use one folder a class",
            )
    validation = np.array([], np.int64)
    if data.validation and len(chosen):
        given = [int(i) for i in chosen if records[int(i)].split == "val"]
        if given and len(given) < len(chosen):
            validation = np.array(given)
        else:
            validation = chosen[grouped_split([records[int(i)] for i in chosen], data.validation, seed)[1]]
        chosen = np.setdiff1d(chosen, validation)
    if data.limit and data.limit < len(chosen):
        chosen = draw_nested(records, chosen, data.limit, data.limit_seed)
    # What a run is judged by must not set the statistics its input is normalised with.
    train = cache if len(chosen) == len(cache) else with_statistics(cache.select(chosen))
    return TrainValSplit(train, cache.select(validation) if len(validation) else None)


def labels_in(source: Source) -> bool:
    return len({record.label for record in source.records if record.label is not None}) > 1


def hash_of(source: Source, index: int) -> str | None:
    """The content hash of an image; None where it cannot be read."""
    try:
        return source.content_hash(index)
    except DamagedFile:
        return None


def files_of(split: TrainValSplit) -> list[dict[str, str | None]]:
    """Id, hashes and group of every image a run has seen; of tiles, those of their slides, each once."""
    files: dict[str, dict[str, str | None]] = {}
    for part in (split.train, split.validation):
        if part is None:
            continue
        tiles = isinstance(part.records, TileRecords)
        for i, (record, digest) in enumerate(zip(part.records, part.hashes)):
            name = record.id.rpartition("#")[0] if tiles else record.id
            file: dict[str, str | None] = {"id": name, "sha256": digest, "group": record.group}
            if part.pixel_hashes and not tiles:
                file["pixels_sha256"] = part.pixel_hashes[i]
            if part.perceptual and not tiles and part.perceptual[i]:
                file["perceptual"] = part.perceptual[i]
            files.setdefault(name, file)
    return list(files.values())


def describe_data(loaded: LoadedData, split: TrainValSplit, run: ResolvedRun) -> dict[str, Any]:
    """data.json: what was learned from, with the hashes and groups the contamination guard needs."""
    weights, cache = run.model.weights, split.train
    records = split.everything()[0]
    files = files_of(split)
    by_hash: dict[str | None, list[str]] = {}
    for file in files:
        by_hash.setdefault(file["sha256"], []).append(str(file["id"]))
    label_counts = Counter(record.label for record in records if record.label is not None)
    return {
        "source": base_name(loaded.name),
        "images": loaded.images,
        "used": len(records),
        "validation": 0 if split.validation is None else len(split.validation),
        "split": run.data.split,
        "held_out": loaded.held_out,
        "channels": cache.channels,
        "dtype": str(cache.flat.dtype),
        "intensity": cache.intensity.text() if cache.intensity else None,
        "range": [cache.offset, cache.offset + cache.scale],
        "size_px": {
            "min": [int(v) for v in cache.original_px.min(axis=0)],
            "max": [int(v) for v in cache.original_px.max(axis=0)],
        },
        "labels": dict(sorted(label_counts.items())),
        "groups": len({record.group for record in records if record.group is not None}),
        "duplicates": [ids for ids in by_hash.values() if len(ids) > 1],
        "damaged": [{"id": name, "reason": without_folders(reason)} for name, reason in cache.damaged],
        "files": files,
        "ancestors": seen_in_pretraining(run_folder.data_record(weights)) if weights else [],
    }
