"""Frozen backbone over the tiles of slides, slide by slide: one file of features a slide, or one table of all.

Tiles are read by worker processes while the network computes; no more than a few batches are in memory. A slide whose
file still holds (see slide_files) is left out: embedding twice is free, and a stopped pass goes on.
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
from saccade.data.slides.slide_source import SlideTiles
from saccade.data.slides.streaming import TileStore
from saccade.data.slides.tiling import Tiling
from saccade.errors import ModelError, UsageError
from saccade.features import stores
from saccade.features.embed_images import answers_to
from saccade.features.lancedb_store import complete, save_lance_from
from saccade.features.slide_files import name_files, note_known, what_holds
from saccade.features.table import COLUMNS, FeatureTable, TableWriter, storable
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
    """A model and the tiles of slides. Processes start with the first slide that is asked for.

    Tiles that cannot be read are left out and named once for each slide; more of them than the share ``max_bad`` of a
    slide raise TooManyDamaged.

    as_before   the input of an earlier pass, which this one must be like; None: the model's own (random ones have none)
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
        """The tiles, read as they are wanted, at the size the model is used to."""
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
        """What decides how the pixels of a tile become the network's input, known before one is read.

        Range and statistics are the model's own (``offset``, ``scale``, ``mean``, ``std``); or they follow the tiles
        of all slides of this pass (random weights, slides of another depth than the model's), named by a hash: ``of``.
        """
        spec = self._given
        said = {"size_px": spec.size_px, "grey": spec.grey}
        eight = self.tiles.slides[int(self.tiles.slide_of[0])].dtype == np.uint8
        if self._has_input and spec.eight_bit == eight:
            return said | {"offset": spec.offset, "scale": spec.scale, "mean": [*spec.mean], "std": [*spec.std]}
        digest = hashlib.sha256()
        for slide, cut in zip(self.tiles.hashes, self.tiles.tilings):
            digest.update(f"{slide} {cut.grid.step_px}".encode() + cut.grid.coords.tobytes())
        return said | {"of": digest.hexdigest()}

    def about(self, number: int) -> dict[str, Any]:
        """What a file of features says of one slide."""
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
        """What a table of the tiles of all slides says of them: how to cut them again, and how to embed one more."""
        self.cache()  # settles the input
        return self.asked() | {"spec": dataclasses.asdict(self.model.spec)}

    def asked(self) -> dict[str, Any]:
        """That part of ``about_table`` which is known before a tile is read."""
        return {
            "rows": "tiles",
            "tiling": dataclasses.asdict(self.tiles.tiling),
            "weights": self.model_sha256,
            "precision": runtime.usual_precision(self.device),
        }

    def readable(self, number: int) -> np.ndarray:
        """[n] bool: which tiles of one slide could be read, after they were asked for. Names the others."""
        store, indices = self.cache().flat, self.tiles.tiles_of(number)
        assert isinstance(store, TileStore)
        failed = [store.failed[int(index)] for index in indices if int(index) in store.failed]
        if failed:
            one = self.tiles.entries[number]
            reason = failed[0].removeprefix(f"{one.path}: ")
            self.say(
                f"{one.record.id}: {len(failed):,} of {len(indices):,} tiles cannot be read and are left out; "
                f"the first: {reason}"
            )
        return np.array([int(index) not in store.failed for index in indices])

    def features(self, number: int, done: Callable[[int], None] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """[k D] float32 of those tiles of one slide that can be read, in the order of its grid; and which these are,
        bool [n]."""
        cache, indices = self.cache(), self.tiles.tiles_of(number)
        at = 0

        def shown(items: np.ndarray) -> torch.Tensor:
            nonlocal at
            at += len(items)
            batch = cache.batch(items)
            cache.expect(indices[at : at + BATCH])
            if done is not None:
                done(len(items))
            return plain_view(batch, self.model.spec)

        network = self.model.backbone.to(self.device)
        found = answers_to(
            shown,
            network,
            lambda x: network(x).cls,
            indices,
            device=self.device,
            precision=runtime.usual_precision(self.device),
            batch=BATCH,
        )
        there = self.readable(number)
        return found[there], there

    def slide(self, number: int, done: Callable[[int], None] | None = None) -> SlideFeatures:
        grid = self.tiles.grid(number)
        if not len(grid):
            width = self.model.backbone.dim
            return SlideFeatures(grid.coords, np.zeros((0, width), np.float32), self.about(number))
        features, there = self.features(number, done)
        left_out = {} if there.all() else {"left_out": int((~there).sum())}
        return SlideFeatures(grid.coords[there], features, self.about(number) | left_out)


def as_trained(model: str | Path, asked: Tiling | None) -> Tiling:
    """How to cut slides for a model: what was asked for, the rest as the run that made it had them.

    What it was told of slides that do not say their resolution holds for those slides, and for no others.
    """
    asked = asked or Tiling()
    settings = Path(model) / "config.yaml"
    data = config.load(settings)["data"] if settings.is_file() else {}
    if not data.get("tile_px"):
        return asked
    mpp, tile_px = asked.mpp or data["mpp"], asked.tile_px or data["tile_px"]
    tissue = data["tissue"] if asked.min_tissue is None else asked.min_tissue
    return Tiling(mpp, tile_px, tissue, asked.slide_mpp, told_to(model, data["slide_mpp"]), from_model=not asked.asked)


def told_to(run: str | Path, slide_mpp: float | None) -> tuple[float, frozenset[str]] | None:
    """``Tiling.assumed_mpp`` of a run whose settings have this ``slide_mpp``."""
    record = run_folder.data_record(run) if slide_mpp else None
    return (float(slide_mpp), frozenset(item["sha256"] for item in record["files"])) if slide_mpp and record else None


def load_for_tiles(name: str | Path, tiles: SlideTiles) -> LoadedModel:
    """A model for the tiles of these slides; one without a size of its own takes the side of the tiles.

    Raises ModelError for a model that reads anything but flat images.
    """
    loaded = load_model(name, channels=len(tiles.sample().pixels), size_px=min(224, tiles.tile_px))
    if loaded.spec.axes != 2:
        raise ModelError(
            f"{name} reads volumes, and {tiles.name} is cut into flat tiles",
            expected="a model of images",
            hint="take a run that was trained on slides or images, or try random:vit_micro_patch8",
        )
    if loaded.spec.grid:
        raise ModelError(
            f"{name} reads grids of vectors, and {tiles.name} is cut into tiles of pixels",
            expected="a model of images, or a hierarchy",
            hint=_below_a_grid(Path(name)),
        )
    return loaded


def _below_a_grid(model: Path) -> str:
    """What to take instead of a level that reads vectors."""
    whole = next(
        (folder for folder in (model.parent, model.parent.parent) if (folder / run_folder.HIERARCHY).exists()), None
    )
    if whole is None:
        return "take the hierarchy it belongs to, or that hierarchy's tile level"
    return f"take the hierarchy: {whole}" + (
        f", or its tile level: {tile}" if (tile := whole / "tile").exists() else ""
    )


def embed_slides(embedder: Embedder, out: Path, *, suffix: str = ".h5", report: Report | None = None) -> EmbeddedSlides:
    """Write the features of every slide into the folder ``out``, a file each; up-to-date files are skipped."""
    tiles = embedder.tiles
    files = name_files(out, suffix, [one.record.id for one in tiles.entries], tiles.hashes)
    skipped = done = left_out = 0

    def more(count: int) -> None:
        nonlocal done
        done += count
        if report is not None:
            report(done, len(tiles))

    for number, path in enumerate(files):
        about = embedder.about(number)
        there = what_holds(path, about, embedder.max_bad)
        if there is not None:
            note_known(path, there, about)
            skipped += 1
            more(about["tiles"])
        else:
            check_writable(path)
            made = embedder.slide(number, more)
            there = made.about
            save_features(path, made)
        left_out += there.get("left_out", 0)
    return EmbeddedSlides(files, len(tiles.entries), skipped, len(tiles) - left_out, embedder.model.backbone.dim)


def embed_table(
    embedder: Embedder, out: Path, *, origin: Mapping[str, str | None], report: Report | None = None
) -> EmbeddedSlides:
    """Write one feature table (see store) with a row a tile, slide by slide.

    origin   where the slides lie (``data``, ``labels``) and who ``made_by``, for the table's ``about``
    """
    tiles = embedder.tiles
    about = embedder.about_table() | dict(origin)
    with TableWriter(out) as writer:
        rows = done = 0
        for number in range(len(tiles.entries)):
            indices = tiles.tiles_of(number)
            if not len(indices):
                continue
            features, there = embedder.features(number)
            records = list(tiles.records.take(indices[there]))
            found = FeatureTable(
                features=features,
                ids=[r.id for r in records],
                labels=[r.label for r in records],
                groups=[r.group for r in records],
                splits=[r.split for r in records],
                hashes=[tiles.hashes[number]] * len(records),
                model=embedder.model.name,
                about=about,
            )
            writer.add(found)
            rows, done = rows + len(records), done + len(indices)
            if report is not None:
                report(done, len(tiles))
    return EmbeddedSlides([out], len(tiles.entries), 0, rows, embedder.model.backbone.dim)


def rows_there(embedder: Embedder, out: str | Path, origin: Mapping[str, str | None]) -> int | None:
    """How many rows the table ``out`` has, if they are what ``embed_table`` would write now; else None.

    They are where weights, input, tiling and origin are the same, and so are the slides' contents and all that is
    known of them. Tiles that could not be read have no row: up to ``max_bad`` of a slide's.
    """
    found = stores.said_of(out)
    if found is None:
        return None
    said, columns = found
    about, spec = dict(said.get("about", {})), embedder.model.spec
    had = about.pop("spec", {})
    wanted = json.loads(json.dumps({"model": embedder.model.name, "about": embedder.asked() | dict(origin)}))
    if {"model": said.get("model"), "about": about} != wanted:
        return None
    if (had.get("grey"), had.get("size_px")) != (spec.grey, spec.size_px):
        return None
    rows, tiles, at = list(zip(*(columns[name] for name in COLUMNS))), embedder.tiles, 0
    for number in range(len(tiles.entries)):
        missing = 0
        for record in tiles.records.take(tiles.tiles_of(number)):
            known = (record.id, record.label, record.group, record.split, tiles.hashes[number])
            there = at < len(rows) and rows[at] == tuple(map(storable, known))
            at, missing = at + there, missing + (not there)
        if missing > embedder.max_bad * len(tiles.grid(number)):
            return None
    return at if at == len(rows) else None


def write_features(
    embedder: Embedder, out: str | Path | None, *, origin: Mapping[str, str | None], report: Report
) -> EmbeddedSlides:
    """Write the features of every tile where and as ``out`` says: FILE.parquet or DATABASE/NAME.lance, a row a tile,
    FOLDER.h5, or another folder (Parquet), with a file a slide. A table for LanceDB is made whole in a file of its own
    first (TMPDIR says where), and goes from there in batches. What has these features already is left as it is.

    Raises UsageError where ``out`` is missing, TooManyDamaged, StorageError.
    """
    if out is None:
        raise UsageError(
            "features of slides go to files", expected="out=FILE.parquet, DATABASE/NAME.lance, FOLDER.h5 or a folder"
        )
    place, tiles = Path(out), embedder.tiles
    check_unreadable(tiles, embedder.max_bad, embedder.say)
    if stores.is_lance(out) or place.suffix == ".parquet":
        rows = rows_there(embedder, out, origin)
        if rows is not None:
            embedder.say(f"{out} has these tiles by these weights already, and is left as it is")
            if stores.is_lance(out):
                complete(out)
            return EmbeddedSlides([place], len(tiles.entries), len(tiles.entries), rows, embedder.model.backbone.dim)
        stores.check_writable(out)
    if stores.is_lance(out):
        with tempfile.TemporaryDirectory(prefix="saccade-tiles-") as folder:
            found = embed_table(embedder, Path(folder) / "tiles.parquet", origin=origin, report=report)
            save_lance_from(out, found.files[0])
        return dataclasses.replace(found, files=[place])
    if place.suffix == ".parquet":
        return embed_table(embedder, place, origin=origin, report=report)
    return embed_slides(embedder, place, suffix=".h5" if place.suffix == ".h5" else ".parquet", report=report)


def check_unreadable(tiles: SlideTiles, max_bad: float, say: Say) -> None:
    """Name the slides that cannot be read, and those told to be oddly coarse. Raises TooManyDamaged above the share
    ``max_bad``."""
    bad = tiles.unreadable
    check_damage(tiles.name, bad, len(bad) + len(tiles.entries), max_bad, what="slides")
    if bad:
        say("slides that cannot be read are left out:\n" + "\n".join(f"  {name}: {why}" for name, why in bad[:20]))
    coarse = [one.record.id for one in tiles.entries if one.mpp is not None and one.mpp > COARSE_UM]
    if coarse:
        say(f"more than {COARSE_UM:g} micrometres a pixel, by the table: {some_of(coarse)}. Is that the right number?")
