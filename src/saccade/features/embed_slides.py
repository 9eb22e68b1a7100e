"""Features of the tiles of slides, slide by slide: one file per slide, or one table of all tiles.

Worker processes read tiles while the network computes; only a few batches are in memory. A slide whose file is up to
date (see slide_files) is skipped, so that an interrupted pass continues.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from saccade import runtime
from saccade.augment.views import plain_view
from saccade.base import config, run_folder
from saccade.base.contracts import InputSpec
from saccade.base.files import check_writable
from saccade.data.cache.image_cache import ImageCache, check_damage, fit_range, input_spec
from saccade.data.cache.slide_cache import stream_tiles, usual_workers
from saccade.data.slide_features import SlideFeatures, about_step, save_features
from saccade.data.slides.slide import COARSE_UM, some_of
from saccade.data.slides.slide_source import SlideTiles, skipped_note
from saccade.data.slides.streaming import TileStore
from saccade.data.slides.tiling import Tiling
from saccade.errors import ModelError, UsageError
from saccade.features import stores
from saccade.features.embed_images import predict_view
from saccade.features.lancedb_store import complete, save_lance_from
from saccade.features.slide_files import name_files, read_if_current, update_labels
from saccade.features.table import COLUMNS, TableWriter, storable, table_of_records
from saccade.models.backbones.weights import LoadedModel, fingerprint, load_model

Say = Callable[[str], None]
Report = Callable[[int, int], None]
BATCH = 64


@dataclass(frozen=True)
class EmbeddedSlides:
    """The files of a pass over slides, of which ``skipped`` were up to date; tiles with features, and their width."""

    files: list[Path]
    slides: int
    skipped: int
    tiles: int
    width: int


class Embedder:
    """A model and the tiles of slides; worker processes start with the first slide.

    Tiles that cannot be read are skipped and reported once per slide; more than the fraction ``max_bad`` of a slide
    raises TooManyDamaged.

    as_before   input settings of an earlier pass to reproduce; None: those of the model (random weights have none)
    """

    def __init__(
        self,
        model: LoadedModel,
        tiles: SlideTiles,
        *,
        say: Say,
        workers: int | None = None,
        max_bad: float = 0.05,
        as_before: InputSpec | None = None,
    ):
        self.tiles, self.say, self.workers, self.max_bad = tiles, say, workers or usual_workers(), max_bad
        self.device = runtime.pick_device()
        self._given = as_before or model.spec
        self._has_input = as_before is not None or not model.name.startswith("random:")
        self.model = dataclasses.replace(model, spec=self._given)
        self.model_sha256 = fingerprint(model.backbone)
        self._cache: ImageCache | None = None

    def cache(self) -> ImageCache:
        """The tiles, read on demand at the input size of the model."""
        if self._cache is None:
            spec = self.model.spec
            cache = stream_tiles(
                self.tiles,
                cache_px=spec.size_px,
                workers=self.workers,
                max_bad=self.max_bad,
                say=self.say,
                leave_out=True,
            )
            if self._has_input:
                spec = fit_range(spec, cache.flat.dtype, cache.offset, cache.offset + cache.scale)
            else:
                spec = input_spec(cache, spec.size_px, grey=spec.grey)
            self.model = dataclasses.replace(self.model, spec=spec)
            self._cache = dataclasses.replace(cache, offset=spec.offset, scale=spec.scale)
        return self._cache

    @cached_property
    def input(self) -> dict[str, Any]:
        """How pixels of a tile become the input of the network; known before a tile is read.

        Range and statistics are the model's own (``offset``, ``scale``, ``mean``, ``std``); or they are
        computed from the tiles of this pass (random weights, or another bit depth), identified by the hash ``of``.
        """
        spec = self._given
        values = {"size_px": spec.size_px, "grey": spec.grey}
        eight = self.tiles.slides[int(self.tiles.slide_of[0])].dtype == np.uint8
        if self._has_input and spec.eight_bit == eight:
            return values | {"offset": spec.offset, "scale": spec.scale, "mean": [*spec.mean], "std": [*spec.std]}
        digest = hashlib.sha256()
        for slide, cut in zip(self.tiles.hashes, self.tiles.tilings):
            digest.update(f"{slide} {cut.grid.step_px}".encode() + cut.grid.coords.tobytes())
        return values | {"of": digest.hexdigest()}

    def about(self, number: int) -> dict[str, Any]:
        """Metadata in the feature file of one slide."""
        tiles, record = self.tiles, self.tiles.entries[number].record
        grid, slide = tiles.grid(number), tiles.slides[number]
        return {
            "slide": storable(record.id),
            "slide_sha256": tiles.hashes[number],
            "model": self.model.name,
            "model_sha256": self.model_sha256,
            "mpp": tiles.mpp,
            "tile_px": tiles.tile_px,
            **about_step(*grid.step_px),
            "slide_px": list(slide.size_px),
            "tissue": tiles.tiling.min_tissue,
            "tiles": len(grid),
            "input": self.input,
            "mode": tiles.tilings[number].mode,
            "label": storable(record.label),
            "group": storable(record.group or record.id),
            "split": record.split,
        }

    def about_table(self) -> dict[str, Any]:
        """Metadata of a table of all tiles: how to cut them again, and how to embed another one."""
        self.cache()  # settles the input
        return self.identity() | {"spec": dataclasses.asdict(self.model.spec)}

    def identity(self) -> dict[str, Any]:
        """The part of ``about_table`` that is known before a tile is read."""
        return {
            "rows": "tiles",
            "tiling": _recorded(self.tiles.tiling),
            "weights": self.model_sha256,
            "precision": runtime.usual_precision(self.device),
        }

    def readable(self, number: int) -> np.ndarray:
        """bool [n]: which tiles of one slide could be read; reports the others."""
        store, indices = self.cache().flat, self.tiles.tiles_of(number)
        assert isinstance(store, TileStore)
        failed = [store.failed[int(index)] for index in indices if int(index) in store.failed]
        if failed:
            slide = self.tiles.entries[number]
            reason = failed[0].removeprefix(f"{slide.path}: ")
            self.say(
                f"{slide.record.id}: {len(failed):,} of {len(indices):,} tiles cannot be read and are skipped; "
                f"the first: {reason}"
            )
        return np.array([int(index) not in store.failed for index in indices])

    def features(self, number: int, done: Callable[[int], None] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Features [k D] float32 of the readable tiles of one slide in the order of its grid, and which these are,
        bool [n]."""
        cache, indices = self.cache(), self.tiles.tiles_of(number)
        at = 0

        def view(items: np.ndarray) -> torch.Tensor:
            nonlocal at
            at += len(items)
            batch = cache.batch(items)
            cache.expect(indices[at : at + BATCH])
            if done is not None:
                done(len(items))
            return plain_view(batch, self.model.spec)

        network = self.model.backbone.to(self.device)
        vectors = predict_view(
            view,
            network,
            lambda x: network(x).cls,
            indices,
            device=self.device,
            precision=runtime.usual_precision(self.device),
            batch=BATCH,
        )
        readable = self.readable(number)
        return vectors[readable], readable

    def slide(self, number: int, done: Callable[[int], None] | None = None) -> SlideFeatures:
        grid = self.tiles.grid(number)
        if not len(grid):
            width = self.model.backbone.dim
            return SlideFeatures(grid.coords, np.zeros((0, width), np.float32), self.about(number))
        features, readable = self.features(number, done)
        left_out = {} if readable.all() else {"left_out": int((~readable).sum())}
        return SlideFeatures(grid.coords[readable], features, self.about(number) | left_out)


def as_trained(model: str | Path, requested: Tiling | None) -> Tiling:
    """How to cut slides for a model: as requested, otherwise as in the run that trained it.

    A resolution that the run assumed for slides without one applies to those slides only.
    """
    requested = requested or Tiling()
    settings = Path(model) / "config.yaml"
    data = config.load(settings)["data"] if settings.is_file() else {}
    if not data.get("tile_px"):
        return requested
    mpp, tile_px = requested.mpp or data["mpp"], requested.tile_px or data["tile_px"]
    tissue = data["tissue"] if requested.min_tissue is None else requested.min_tissue
    return Tiling(
        mpp,
        tile_px,
        tissue,
        requested.slide_mpp,
        assumed_mpp_of(model, data["slide_mpp"]),
        from_model=not requested.asked,
        skip_unknown_mpp=requested.skip_unknown_mpp,
    )


def _recorded(tiling: Tiling) -> dict[str, Any]:
    """The tiling as tables store it; a table without ``skip_unknown_mpp``, as of version 0.1, left no slide out."""
    return {key: value for key, value in dataclasses.asdict(tiling).items() if value or key != "skip_unknown_mpp"}


def assumed_mpp_of(run: str | Path, slide_mpp: float | None) -> tuple[float, frozenset[str]] | None:
    """``Tiling.assumed_mpp`` of a run whose settings have this ``slide_mpp``."""
    record = run_folder.data_record(run) if slide_mpp else None
    return (float(slide_mpp), frozenset(item["sha256"] for item in record["files"])) if slide_mpp and record else None


def load_for_tiles(name: str | Path, tiles: SlideTiles) -> LoadedModel:
    """A model for the tiles of these slides; without an input size, that of the tiles is used.

    Raises ModelError for models of volumes and of grids of vectors.
    """
    loaded = load_model(name, channels=len(tiles.sample().pixels), size_px=min(224, tiles.tile_px))
    if loaded.spec.axes != 2:
        raise ModelError(
            f"{name} reads volumes, and {tiles.name} is cut into flat tiles",
            expected="a model of images",
            hint="use a model of slides or images, or try random:vit_micro_patch8",
        )
    if loaded.spec.grid:
        raise ModelError(
            f"{name} reads grids of vectors, and {tiles.name} is cut into tiles of pixels",
            expected="a model of images, or a hierarchy",
            hint=_below_a_grid(Path(name)),
        )
    return loaded


def _below_a_grid(model: Path) -> str:
    """Hint for a level that reads vectors: the model to use instead."""
    hierarchy = next(
        (folder for folder in (model.parent, model.parent.parent) if (folder / run_folder.HIERARCHY).exists()), None
    )
    if hierarchy is None:
        return "use its hierarchy, or the tile level of that hierarchy"
    return f"use the hierarchy: {hierarchy}" + (
        f", or its tile level: {tile}" if (tile := hierarchy / "tile").exists() else ""
    )


def embed_slides(embedder: Embedder, out: Path, *, suffix: str = ".h5", report: Report | None = None) -> EmbeddedSlides:
    """Write one feature file per slide into the folder ``out``; up-to-date files are skipped."""
    tiles = embedder.tiles
    files = name_files(out, suffix, [slide.record.id for slide in tiles.entries], tiles.hashes)
    skipped = done = left_out = 0

    def more(count: int) -> None:
        nonlocal done
        done += count
        if report is not None:
            report(done, len(tiles))

    for number, path in enumerate(files):
        about = embedder.about(number)
        stored = read_if_current(path, about, embedder.max_bad)
        if stored is not None:
            update_labels(path, stored, about)
            skipped += 1
            more(about["tiles"])
        else:
            check_writable(path)
            features = embedder.slide(number, more)
            stored = features.about
            save_features(path, features)
        left_out += stored.get("left_out", 0)
    return EmbeddedSlides(files, len(tiles.entries), skipped, len(tiles) - left_out, embedder.model.backbone.dim)


def embed_table(
    embedder: Embedder, out: Path, *, origin: Mapping[str, str | None], report: Report | None = None
) -> EmbeddedSlides:
    """Write one feature table with one row per tile, slide by slide.

    origin   ``data``, ``labels`` and ``made_by`` for the metadata of the table
    """
    tiles = embedder.tiles
    about = embedder.about_table() | dict(origin)
    with TableWriter(out) as writer:
        rows = done = 0
        for number in range(len(tiles.entries)):
            indices = tiles.tiles_of(number)
            if not len(indices):
                continue
            features, readable = embedder.features(number)
            records = list(tiles.records.take(indices[readable]))
            hashes = [tiles.hashes[number]] * len(records)
            writer.add(table_of_records(records, features, hashes, embedder.model.name, about))
            rows, done = rows + len(records), done + len(indices)
            if report is not None:
                report(done, len(tiles))
    return EmbeddedSlides([out], len(tiles.entries), 0, rows, embedder.model.backbone.dim)


def existing_rows(embedder: Embedder, out: str | Path, origin: Mapping[str, str | None]) -> int | None:
    """Number of rows of the table ``out`` if it is up to date, otherwise None.

    It is when weights, input, tiling, origin, the contents of the slides and their labels are the same. Tiles that
    could not be read have no row, up to the fraction ``max_bad`` of a slide.
    """
    metadata = stores.read_metadata(out)
    if metadata is None:
        return None
    stored, columns = metadata
    about, spec = dict(stored.get("about", {})), embedder.model.spec
    had = about.pop("spec", {})
    expected = json.loads(json.dumps({"model": embedder.model.name, "about": embedder.identity() | dict(origin)}))
    if {"model": stored.get("model"), "about": about} != expected:
        return None
    if (had.get("grey"), had.get("size_px")) != (spec.grey, spec.size_px):
        return None
    rows, tiles, at = list(zip(*(columns[name] for name in COLUMNS))), embedder.tiles, 0
    for number in range(len(tiles.entries)):
        missing = 0
        for record in tiles.records.take(tiles.tiles_of(number)):
            fields = (record.id, record.label, record.group, record.split, tiles.hashes[number])
            is_stored = at < len(rows) and rows[at] == tuple(map(storable, fields))
            at, missing = at + is_stored, missing + (not is_stored)
        if missing > embedder.max_bad * len(tiles.grid(number)):
            return None
    return at if at == len(rows) else None


def write_features(
    embedder: Embedder, out: str | Path | None, *, origin: Mapping[str, str | None], report: Report
) -> EmbeddedSlides:
    """Write the features of every tile to FILE.parquet or DATABASE/NAME.lance (one row per tile), to FOLDER.h5 or to
    another folder (Parquet; one file per slide). Up-to-date features are skipped.

    A table for LanceDB is first completed in a temporary file (in TMPDIR) and copied from there in batches.
    Raises UsageError when ``out`` is missing, TooManyDamaged, StorageError.
    """
    if out is None:
        raise UsageError(
            "features of slides need an output file",
            expected="out=FILE.parquet, DATABASE/NAME.lance, FOLDER.h5 or a folder",
        )
    path, tiles = Path(out), embedder.tiles
    check_unreadable(tiles, embedder.max_bad, embedder.say)
    if stores.is_lance(out) or path.suffix == ".parquet":
        rows = existing_rows(embedder, out, origin)
        if rows is not None:
            embedder.say(f"{out} is up to date and is skipped")
            if stores.is_lance(out):
                complete(out)
            return EmbeddedSlides([path], len(tiles.entries), len(tiles.entries), rows, embedder.model.backbone.dim)
        stores.check_writable(out)
    if stores.is_lance(out):
        with tempfile.TemporaryDirectory(prefix="saccade-tiles-") as folder:
            result = embed_table(embedder, Path(folder) / "tiles.parquet", origin=origin, report=report)
            save_lance_from(out, result.files[0])
        return dataclasses.replace(result, files=[path])
    if path.suffix == ".parquet":
        return embed_table(embedder, path, origin=origin, report=report)
    return embed_slides(embedder, path, suffix=".h5" if path.suffix == ".h5" else ".parquet", report=report)


def check_unreadable(tiles: SlideTiles, max_bad: float, say: Say) -> None:
    """Report unreadable slides and implausibly coarse ones. Raises TooManyDamaged above the fraction ``max_bad``."""
    bad = tiles.unreadable
    check_damage(tiles.name, bad, len(bad) + len(tiles.entries), max_bad, what="slides")
    if bad:
        say("unreadable slides are skipped:\n" + "\n".join(f"  {name}: {why}" for name, why in bad[:20]))
    if note := skipped_note(tiles):
        say(note)
    coarse = [slide.record.id for slide in tiles.entries if slide.mpp is not None and slide.mpp > COARSE_UM]
    if coarse:
        say(f"more than {COARSE_UM:g} µm per pixel according to the table: {some_of(coarse)}; check this value")
