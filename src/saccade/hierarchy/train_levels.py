"""Train the levels of a hierarchy in turn: tiles, regions, slides (HIPT, Chen et al. 2022, arXiv:2206.02647).

Every level is an ordinary training run with the same loop, diagnosis, checkpoints and report; the upper ones take
vectors instead of pixels. Completed work is never repeated, so resuming means running the same command again.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saccade.base import config, places, run_folder
from saccade.base.contracts import InputSpec, Source
from saccade.base.files import write_text
from saccade.base.locks import lock_folder
from saccade.data.audit.slides import describe_slides
from saccade.data.feature_grids import cut_blocks, write_grids
from saccade.data.open import open_data, tiling_in
from saccade.data.slide_features import save_parquet
from saccade.data.slides.slide_source import SlideTiles
from saccade.errors import DataError, TrainingError, UsageError
from saccade.evaluation.contamination import seen_in_pretraining
from saccade.features.embed_slides import Embedder, Say, check_unreadable, load_for_tiles
from saccade.features.slide_files import read_if_current, update_labels
from saccade.features.table import storable
from saccade.hierarchy.embed_regions import Reader, embed_grids, reader_of
from saccade.hierarchy.settings import (
    FILE,
    LEVELS,
    HierarchyRequest,
    HiptConfig,
    Level,
    read_request,
    settings_of,
    split_settings,
)
from saccade.methods.diagnosis import Diagnosis
from saccade.reporting.write import write_report
from saccade.train import checkpoint
from saccade.train import pretrain as training
from saccade.train.diagnose import examine_run
from saccade.train.loop import Console
from saccade.train.recipes import config_for
from saccade.train.run_config import RunConfig, absolute_paths
from saccade.train.settings import DataConfig

FEWEST_REGIONS, FEW_REGIONS = 4, 100
"""Minimum number of regions to train a region level, and the number below which a warning is printed."""
INPUT = "input.json"
"""Input specification of the tile level, stored with its vectors where the weights have none."""
FEWEST_SLIDES = 32
"""Minimum number of slides to train a slide level; with fewer, a slide is the mean of its regions."""


@dataclass(frozen=True)
class Hierarchy:
    """A trained hierarchy.

    Parameters
    ----------
    run : Path
        Its folder.
    tile : str
        MODEL of the tile level.
    region : Reader
        Region level.
    slide : Reader or None
        Slide level, if there is one.
    side : int
        Tiles along the side of a region.
    min_tissue : float
        Minimum fraction of a region's tiles that are tissue.
    """

    run: Path
    tile: str
    region: Reader
    slide: Reader | None
    side: int
    min_tissue: float


def start(request: HierarchyRequest, out: Path, console: Console) -> Path:
    """Train all levels of a new hierarchy in an empty folder. Returns the folder."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(
            "the levels of a hierarchy are trained by one process",
            got=f"{os.environ['WORLD_SIZE']} processes",
            hint="train each level as a run of its own, and name it with hipt.tile=MODEL, hipt.region=MODEL",
        )
    with lock_folder(out):
        if (out / FILE).exists():
            raise UsageError("this folder already holds a hierarchy", got=out, hint="--resume continues it")
        run_folder.prepare(out, resume=False)
        tiles = _open_checked(request, console)  # before anything is written: what is refused leaves no folder
        values = request.to_dict()
        places.write_places(out / places.FILE, places.places_of(values, out))
        write_text(out / FILE, config.to_yaml(places.without_places(values)))
        return train(out, request, tiles, console)


def resume(out: Path, data: str | None, settings: Mapping[str, Any], console: Console) -> Path:
    """Continue a hierarchy. Settings given with --resume must equal the saved ones."""
    with lock_folder(out):
        return _continue(out, data, settings, console)


def _continue(out: Path, data: str | None, settings: Mapping[str, Any], console: Console) -> Path:
    saved = read_request(out)
    typed = split_settings(saved.data if data is None else data, saved.method, saved.recipe, settings)
    differ = [] if typed.data == saved.data else ["data"]
    for level in LEVELS:
        before = saved.levels[level]
        typed_level = typed.levels[level].items()
        differ += [f"{level}.{k}" for k, v in typed_level if v != before.get(k) and k != "model.backbone"]
    usual = HiptConfig()
    for field in dataclasses.fields(HiptConfig):
        value = getattr(typed.hipt, field.name)
        if value != getattr(usual, field.name) and value != getattr(saved.hipt, field.name):
            differ.append(f"hipt.{field.name}")
    if differ:
        raise UsageError(
            "--resume continues with the saved settings",
            got="other values for " + ", ".join(differ),
            hint="leave them out, or start a new one that begins with its levels: --set hipt.tile=" + str(out / "tile"),
        )
    return train(out, saved, _open_checked(saved, console), console)


def train(out: Path, request: HierarchyRequest, tiles: SlideTiles, console: Console) -> Path:
    """Train all levels that are not finished; the report is written after each."""
    _train_levels(out, request, tiles, console)
    write_report(out)
    return out


def _train_levels(out: Path, request: HierarchyRequest, tiles: SlideTiles, console: Console) -> None:
    hipt, side = request.hipt, request.hipt.side(tiles.tile_px)
    tile = hipt.tile or str(_level(out, "tile", request, request.data, console))
    learned = _learned(tiles, tile)
    settle_input(tile, tiles, out / "features" / "tile", console)
    every = embed_tiles(tile, tiles, out / "features" / "tile", console)
    files = [every[k] for k in learned]
    _note_slides(out, tiles, learned, tile)
    grids = write_grids(out / "grids" / "region", files, side=side, min_fraction=hipt.min_tissue)
    region = hipt.region or str(_level(out, "region", request, str(grids.resolve()), console))
    files = embed_grids(
        reader_of(region), files, out / "features" / "region", side=side, min_tissue=hipt.min_tissue, console=console
    )
    if hipt.slide or len(files) < FEWEST_SLIDES:
        if not hipt.slide:
            console.say(
                f"{len(files)} slides are too few for a slide level, which needs {FEWEST_SLIDES}: "
                "a slide is the mean of its regions"
            )
        return
    grids = write_grids(out / "grids" / "slide", files, side=0, min_fraction=0.0)
    _level(out, "slide", request, str(grids.resolve()), console)


def _open_checked(request: HierarchyRequest, console: Console) -> SlideTiles:
    """The tiles of the slides. Raises UsageError before training where there are too few regions."""
    tiles = open_tiles(request.data, settings_of(request.levels["tile"]))
    hipt, side = request.hipt, request.hipt.side(tiles.tile_px)
    if hipt.region:
        return tiles
    count = count_regions(tiles, side, hipt.min_tissue)
    tiling_text = f"{len(tiles.entries)} slides, {len(tiles):,} tiles of {tiles.tile_px} px at {tiles.mpp:g} um/px"
    if count >= FEW_REGIONS:
        return tiles
    smaller = {side // 2**n * tiles.tile_px: count_regions(tiles, side // 2**n, hipt.min_tissue) for n in (1, 2, 3)}
    alternatives = [
        f"{px:,} px: {regions:,}" for px, regions in smaller.items() if px >= 2 * tiles.tile_px and regions > count
    ]
    hint = f"regions of other sides (hipt.region_px): {', '.join(alternatives)}; or " if alternatives else ""
    hint += "smaller tiles (data.tile_px, data.mpp), less tissue in a region (hipt.min_tissue), more slides"
    what = f"{count} {'region' if count == 1 else 'regions'} of {hipt.region_px:,} px"
    if count < FEWEST_REGIONS:
        needed = f"{FEWEST_REGIONS}, better {FEW_REGIONS}"
        raise UsageError(f"{what}: too few to train on", got=tiling_text, expected=needed, hint=hint)
    console.say(f"{what} in {tiling_text}: few for training the region level. {hint[0].upper()}{hint[1:]}")
    return tiles


def count_regions(tiles: SlideTiles, side: int, min_tissue: float) -> int:
    """Number of regions of ``side`` x ``side`` tiles with at least ``min_tissue`` of them tissue, on all slides."""
    return sum(len(cut_blocks(Path(), cut.grid.cells, side, min_tissue)) for cut in tiles.tilings) if side > 1 else 0


def open_tiles(
    data: str, settings: Mapping[str, Any], assumed_mpp: tuple[float, frozenset[str]] | None = None
) -> SlideTiles:
    """The tiles of the slides in ``data``, tiled by the settings of the tile level."""
    values = {key: value for key, value in settings.items() if key.startswith("data.")} | {"data.source": data}
    data_settings = dataclasses.asdict(config.override_section("data", DataConfig(), values))
    source: Source = open_data(data_settings, dataclasses.replace(tiling_in(data_settings), assumed_mpp=assumed_mpp))
    if not isinstance(source, SlideTiles):
        raise DataError(f"{data}: a hierarchy needs slides", expected="a slide, a folder or a table of slides")
    return source


def tile_embedder(model: str, tiles: SlideTiles, folder: Path, *, say: Say, max_bad: float = 0.05) -> Embedder:
    """The tile level on these slides, with the input specification stored in ``folder``, if any."""
    spec = None
    if (folder / INPUT).is_file():
        noted = run_folder.read_json(folder / INPUT)
        values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in noted.items()}
        spec = InputSpec(**values)
    return Embedder(load_for_tiles(model, tiles), tiles, say=say, max_bad=max_bad, as_before=spec)


def settle_input(model: str, tiles: SlideTiles, folder: Path, console: Console) -> None:
    """Store the input specification of the tile level in ``folder``, where it is derived from the slides.

    Weights without an input specification (random ones, or of another bit depth) would otherwise normalise each later
    slide by itself, and the upper levels were trained on vectors normalised over all training slides.
    """
    if (folder / INPUT).is_file():
        return
    embedder = Embedder(load_for_tiles(model, tiles), tiles, say=console.say)
    if "of" in embedder.input:
        embedder.cache()
        folder.mkdir(parents=True, exist_ok=True)
        run_folder.write_json(folder / INPUT, dataclasses.asdict(embedder.model.spec))


def embed_tiles(model: str, tiles: SlideTiles, folder: Path, console: Console, *, max_bad: float = 0.05) -> list[Path]:
    """One file of tile vectors per slide, in the order of ``tiles.entries``; up-to-date files are reused."""
    embedder = tile_embedder(model, tiles, folder, say=console.say, max_bad=max_bad)
    check_unreadable(tiles, embedder.max_bad, console.say)
    files, reused = [], 0
    for number in range(len(tiles.entries)):
        file = folder / tile_file(tiles, number)
        about = embedder.about(number)
        there = read_if_current(file, about, max_bad)
        if there is not None:
            update_labels(file, there, about)
            reused += 1
        else:
            save_parquet(file, embedder.slide(number))
        files.append(file)
        console.progress(number + 1, len(tiles.entries), {})
    if reused:
        console.say(f"tile level: vectors of {reused:,} of {len(files):,} slides are up to date and reused")
    return files


def tile_file(tiles: SlideTiles, number: int) -> str:
    """File name of the vectors of one slide. The hash separates slides of the same name in two folders."""
    stem = storable(Path(tiles.entries[number].record.id).stem)
    return f"{stem}-{tiles.hashes[number][:8]}.parquet"


def _level(out: Path, level: Level, request: HierarchyRequest, data: str, console: Console) -> Path:
    """Train one level in ``out``/``level``, continue it, or reuse it. Returns its folder."""
    folder = out / level
    if finished(folder):
        console.say(f"{level} level: trained already ({folder})")
        return folder
    console.say(f"{level} level")
    if (folder / "config.yaml").exists():
        training.resume(folder, console, {})
    else:
        shutil.rmtree(folder, ignore_errors=True)  # remains of a start that was interrupted before the first step
        training.start(config_of(level, request, data), folder, console)
    write_report(folder)
    write_report(out)
    if not finished(folder):
        raise TrainingError(f"stopped in the {level} level", hint=f"saccade pretrain --resume --out {out} continues")
    return folder


def config_of(level: Level, request: HierarchyRequest, data: str) -> RunConfig:
    """Settings of the training run of one level on ``data``."""
    upper = level != "tile"
    run = config_for(request.hipt.method if upper else request.method, "microscopy" if upper else request.recipe)
    run = config.override(run, {"data.source": data} | ({"data.split": "all"} if upper else {}))
    return absolute_paths(config.override(run, settings_of(request.levels[level])))


def finished(run: Path) -> bool:
    """Whether a run has reached its last step and saved a model."""
    if not (run / "model" / "config.json").exists() or not (run / "config.yaml").exists():
        return False
    steps = int(config.load(run / "config.yaml")["train"]["steps"])
    return max(checkpoint.available(run), default=0) >= steps


def _learned(tiles: SlideTiles, tile: str) -> list[int]:
    """Indices of the training slides: those of the tile level, else all but a test split."""
    record = run_folder.data_record(tile)
    hashes = {item["sha256"] for item in record["files"]} if record else set()
    learned = [k for k, digest in enumerate(tiles.hashes) if digest in hashes]
    if learned:
        return learned
    splits = [slide.record.split for slide in tiles.entries]
    return [k for k, split in enumerate(splits) if len(set(splits)) == 1 or split != "test"]


def recorded(tiles: SlideTiles, slides: Sequence[int]) -> list[dict[str, Any]]:
    """Entries of data.json for training slides."""
    files = []
    for k in slides:
        record = tiles.entries[k].record
        files.append({"id": record.id, "sha256": tiles.hashes[k], "group": record.group or record.id})
    return files


def _note_slides(out: Path, tiles: SlideTiles, learned: Sequence[int], tile: str) -> None:
    """Write data.json: the training slides, and the pretraining data of the tile level."""
    files = recorded(tiles, learned)
    learned_hashes = {item["sha256"] for item in files}
    before = [
        item for item in seen_in_pretraining(run_folder.data_record(tile)) if item["sha256"] not in learned_hashes
    ]
    record: dict[str, Any] = {places.KEY: places.read_places(out / places.FILE), "source": places.base_name(tiles.name)}
    record |= {"files": files, "ancestors": _unique(before), "slides": describe_slides(tiles, learned, out)}
    run_folder.write_json(out / places.FILE, record)


def _unique(items: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One entry per hash and group: all tiles of a slide have the same."""
    return list({(item["sha256"], item["group"]): item for item in items}.values())


def load(run: str | Path) -> Hierarchy:
    """Load a hierarchy. Raises UsageError where its tile or region level is not trained."""
    out = Path(run)
    request = read_request(out)
    hipt = request.hipt
    for level in LEVELS[:2]:
        if not getattr(hipt, level) and not finished(out / level):
            raise UsageError(
                f"the {level} level is not trained yet", got=out, hint=f"saccade pretrain --resume --out {out}"
            )
    record = run_folder.read_json(out / "grids" / "region" / "grids.json")
    slide = out / "slide" if not hipt.slide and finished(out / "slide") else None
    if hipt.slide and hipt.slide != "none":
        slide = Path(hipt.slide)
    return Hierarchy(
        out,
        hipt.tile or str(out / "tile"),
        reader_of(hipt.region or out / "region"),
        reader_of(slide) if slide is not None else None,
        int(record["side"]),
        float(record["least"]),
    )


def examine(out: Path) -> list[Diagnosis]:
    """Diagnose every level from its logs; settings are named as in the hierarchy (``region.optim.lr``)."""
    diagnoses = []
    for level in LEVELS:
        for diagnosis in examine_run(out / level) if (out / level / "config.yaml").exists() else ():
            change = {f"{level}.{key}": value for key, value in diagnosis.change.items()}
            diagnoses.append(dataclasses.replace(diagnosis, name=f"{level} level: {diagnosis.name}", change=change))
    return diagnoses


def random_twin(reader: Reader, seed: int) -> Reader:
    """The same network with random weights and the same input, as a baseline."""
    from saccade.features.embed_images import random_twin as twin

    return Reader(dataclasses.replace(twin(reader.model, seed)), f"random {seed}")
