"""The levels of a hierarchy, one after another: tiles, regions, slides (HIPT, Chen et al. 2022, arXiv:2206.02647).

Every level is an ordinary run: the same loop, doctor, checkpoints and report; the upper ones read vectors instead of
pixels. Nothing larger than a tile ever goes through a network as pixels. What is there already is never done again, so
resuming is running the same command once more.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saccade.base import config, run_folder
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
from saccade.hierarchy.settings import FILE, LEVELS, HiptConfig, Level, Wanted, read_wanted, settings_of, share_out
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
"""Regions that a region level is trained with at least, and below which that is said to be few."""
INPUT = "input.json"
"""How the tile level sees pixels, beside its vectors, where its weights do not bring that."""
FEWEST_SLIDES = 32
"""Slides that a slide level is trained with at least; below, a slide is the mean of its regions."""


@dataclass(frozen=True)
class Hierarchy:
    """A trained hierarchy. ``tile`` and, where there is one, ``slide`` name a MODEL; ``side``: tiles along a region."""

    run: Path
    tile: str
    region: Reader
    slide: Reader | None
    side: int
    least: float


def start(wanted: Wanted, out: Path, console: Console) -> Path:
    """Begin a hierarchy in an empty folder and train all its levels. Returns the folder."""
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
        tiles = _open_checked(wanted, console)  # before anything is written: what is refused leaves an empty folder
        write_text(out / FILE, config.to_yaml(wanted.to_dict()))
        return train(out, wanted, tiles, console)


def resume(out: Path, data: str | None, settings: Mapping[str, Any], console: Console) -> Path:
    """Go on with a hierarchy where it stands. What was typed beside --resume must be what it began with."""
    with lock_folder(out):
        return _continue(out, data, settings, console)


def _continue(out: Path, data: str | None, settings: Mapping[str, Any], console: Console) -> Path:
    known = read_wanted(out)
    typed = share_out(known.data if data is None else data, known.method, known.recipe, settings)
    differ = [] if typed.data == known.data else ["data"]
    for level in LEVELS:
        own = known.levels[level]
        differ += [f"{level}.{k}" for k, v in typed.levels[level].items() if v != own.get(k) and k != "model.backbone"]
    usual = HiptConfig()
    for field in dataclasses.fields(HiptConfig):
        value = getattr(typed.hipt, field.name)
        if value != getattr(usual, field.name) and value != getattr(known.hipt, field.name):
            differ.append(f"hipt.{field.name}")
    if differ:
        raise UsageError(
            "--resume continues with the settings the hierarchy has",
            got="other values for " + ", ".join(differ),
            hint="leave them out, or start a new one that begins with its levels: --set hipt.tile=" + str(out / "tile"),
        )
    return train(out, known, _open_checked(known, console), console)


def train(out: Path, wanted: Wanted, tiles: SlideTiles, console: Console) -> Path:
    """All levels in turn, from wherever they stand; the page of the whole is written after each."""
    _train_levels(out, wanted, tiles, console)
    write_report(out)
    return out


def _train_levels(out: Path, wanted: Wanted, tiles: SlideTiles, console: Console) -> None:
    hipt, side = wanted.hipt, wanted.hipt.side(tiles.tile_px)
    tile = hipt.tile or str(_level(out, "tile", wanted, wanted.data, console))
    learned = _learned(tiles, tile)
    settle_input(tile, tiles, out / "features" / "tile", console)
    every = embed_tiles(tile, tiles, out / "features" / "tile", console)
    files = [every[k] for k in learned]
    _note_slides(out, tiles, learned, tile)
    grids = write_grids(out / "grids" / "region", files, side=side, min_fraction=hipt.least)
    region = hipt.region or str(_level(out, "region", wanted, str(grids.resolve()), console))
    files = embed_grids(
        reader_of(region), files, out / "features" / "region", side=side, least=hipt.least, console=console
    )
    if hipt.slide or len(files) < FEWEST_SLIDES:
        if not hipt.slide:
            console.say(
                f"{len(files)} slides are too few for a slide level, which needs {FEWEST_SLIDES}: "
                "a slide is the mean of its regions"
            )
        return
    grids = write_grids(out / "grids" / "slide", files, side=0, min_fraction=0.0)
    _level(out, "slide", wanted, str(grids.resolve()), console)


def _open_checked(wanted: Wanted, console: Console) -> SlideTiles:
    """The tiles of the slides. Raises UsageError where their regions are too few to learn from, before a tile is."""
    tiles = open_tiles(wanted.data, settings_of(wanted.levels["tile"]))
    hipt, side = wanted.hipt, wanted.hipt.side(tiles.tile_px)
    if hipt.region:
        return tiles
    count = count_regions(tiles, side, hipt.least)
    told = f"{len(tiles.entries)} slides, {len(tiles):,} tiles of {tiles.tile_px} px at {tiles.mpp:g} um/px"
    if count >= FEW_REGIONS:
        return tiles
    smaller = {side // 2**n * tiles.tile_px: count_regions(tiles, side // 2**n, hipt.least) for n in (1, 2, 3)}
    known = [f"{px:,} px: {found:,}" for px, found in smaller.items() if px >= 2 * tiles.tile_px and found > count]
    hint = f"regions of other sides (hipt.region_px): {', '.join(known)}; or " if known else ""
    hint += "smaller tiles (data.tile_px, data.mpp), less tissue in a region (hipt.least), more slides"
    what = f"{count} {'region' if count == 1 else 'regions'} of {hipt.region_px:,} px"
    if count < FEWEST_REGIONS:
        raise UsageError(f"{what}: too few to learn from", got=told, expected=f"{FEWEST_REGIONS}, better {FEW_REGIONS}",
                         hint=hint)  # fmt: skip
    console.say(f"{what} in {told}: the region level will learn little from so few. {hint[0].upper()}{hint[1:]}")
    return tiles


def count_regions(tiles: SlideTiles, side: int, least: float) -> int:
    """Regions of ``side`` x ``side`` tiles that have the share ``least`` of them, on all slides."""
    return sum(len(cut_blocks(Path(), cut.grid.cells, side, least)) for cut in tiles.tilings) if side > 1 else 0


def open_tiles(data: str, settings: Mapping[str, Any], told: tuple[float, frozenset[str]] | None = None) -> SlideTiles:
    """The tiles of the slides that ``data`` names, cut as the settings of the tile level say (``data.mpp``...).

    told   see ``Tiling``
    """
    own = {key: value for key, value in settings.items() if key.startswith("data.")} | {"data.source": data}
    named = dataclasses.asdict(config.override_section("data", DataConfig(), own))
    source: Source = open_data(named, dataclasses.replace(tiling_in(named), assumed_mpp=told))
    if not isinstance(source, SlideTiles):
        raise DataError(f"{data}: a hierarchy is made of slides", expected="a slide, a folder or a table of slides")
    return source


def tile_embedder(model: str, tiles: SlideTiles, folder: Path, *, say: Say, max_bad: float = 0.05) -> Embedder:
    """The tile level on these slides, with the input that ``settle_input`` has noted in ``folder``, if it has."""
    spec = None
    if (folder / INPUT).is_file():
        noted = run_folder.read_json(folder / INPUT)
        values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in noted.items()}
        spec = InputSpec(**values)
    return Embedder(load_for_tiles(model, tiles), tiles, say=say, max_bad=max_bad, as_before=spec)


def settle_input(model: str, tiles: SlideTiles, folder: Path, console: Console) -> None:
    """Note in ``folder`` how the tile level sees the slides of its hierarchy, where that follows from the slides.

    Weights that bring no input of their own (random ones, or of another depth than the slides) would else see every
    slide that comes later by itself, and the levels above were trained on vectors of these.
    """
    if (folder / INPUT).is_file():
        return
    embedder = Embedder(load_for_tiles(model, tiles), tiles, say=console.say)
    if "of" in embedder.input:
        embedder.cache()
        folder.mkdir(parents=True, exist_ok=True)
        run_folder.write_json(folder / INPUT, dataclasses.asdict(embedder.model.spec))


def embed_tiles(model: str, tiles: SlideTiles, folder: Path, console: Console, *, max_bad: float = 0.05) -> list[Path]:
    """A file of vectors for every slide, in the order of ``tiles.entries``; those that are there are used again."""
    embedder = tile_embedder(model, tiles, folder, say=console.say, max_bad=max_bad)
    check_unreadable(tiles, embedder.max_bad, console.say)
    files, kept = [], 0
    for number in range(len(tiles.entries)):
        file = folder / tile_file(tiles, number)
        about = embedder.about(number)
        there = read_if_current(file, about, max_bad)
        if there is not None:
            update_labels(file, there, about)
            kept += 1
        else:
            save_parquet(file, embedder.slide(number))
        files.append(file)
        console.progress(number + 1, len(tiles.entries), {})
    if kept:
        console.say(f"tile level: vectors of {kept:,} of {len(files):,} slides were there and are used again")
    return files


def tile_file(tiles: SlideTiles, number: int) -> str:
    """What the file of one slide's vectors is called. Slides of two folders may be called alike, hence the hash."""
    stem = storable(Path(tiles.entries[number].record.id).stem)
    return f"{stem}-{tiles.hashes[number][:8]}.parquet"


def _level(out: Path, level: Level, wanted: Wanted, data: str, console: Console) -> Path:
    """One level as a run in ``out``/``level``: started, gone on with, or there already. Returns its folder."""
    folder = out / level
    if finished(folder):
        console.say(f"{level} level: trained already ({folder})")
        return folder
    console.say(f"{level} level")
    if (folder / "config.yaml").exists():
        training.resume(folder, console, {})
    else:
        shutil.rmtree(folder, ignore_errors=True)  # of a start that was cut off before anything was learned
        training.start(config_of(level, wanted, data), folder, console)
    write_report(folder)
    write_report(out)
    if not finished(folder):
        raise TrainingError(f"stopped in the {level} level", hint=f"saccade pretrain --resume --out {out} goes on")
    return folder


def config_of(level: Level, wanted: Wanted, data: str) -> RunConfig:
    """The settings of a level as a separate run on ``data``."""
    upper = level != "tile"
    run = config_for(wanted.hipt.method if upper else wanted.method, "microscopy" if upper else wanted.recipe)
    run = config.override(run, {"data.source": data} | ({"data.split": "all"} if upper else {}))
    return absolute_paths(config.override(run, settings_of(wanted.levels[level])))


def finished(run: Path) -> bool:
    """Whether a run has come to its last step and left a model."""
    if not (run / "model" / "config.json").exists() or not (run / "config.yaml").exists():
        return False
    steps = int(config.load(run / "config.yaml")["train"]["steps"])
    return max(checkpoint.available(run), default=0) >= steps


def _learned(tiles: SlideTiles, tile: str) -> list[int]:
    """Numbers of the slides that may be learned from: those the tile level has seen, else all but a test split."""
    record = run_folder.data_record(tile)
    seen = {item["sha256"] for item in record["files"]} if record else set()
    own = [k for k, digest in enumerate(tiles.hashes) if digest in seen]
    if own:
        return own
    splits = [one.record.split for one in tiles.entries]
    return [k for k, split in enumerate(splits) if len(set(splits)) == 1 or split != "test"]


def recorded(tiles: SlideTiles, slides: Sequence[int]) -> list[dict[str, Any]]:
    """What data.json says of slides that were learned from."""
    found = []
    for k in slides:
        record = tiles.entries[k].record
        found.append({"id": record.id, "sha256": tiles.hashes[k], "group": record.group or record.id})
    return found


def _note_slides(out: Path, tiles: SlideTiles, learned: Sequence[int], tile: str) -> None:
    """data.json of the hierarchy: the slides its levels learned from, and what the tile level learned from before."""
    files = recorded(tiles, learned)
    known = {item["sha256"] for item in files}
    before = [item for item in seen_in_pretraining(run_folder.data_record(tile)) if item["sha256"] not in known]
    record = {"source": tiles.name, "files": files, "ancestors": _unique(before)}
    run_folder.write_json(out / "data.json", record | {"slides": describe_slides(tiles, learned, out)})


def _unique(items: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Tiles of one slide have one hash: one entry of each is enough."""
    return list({(item["sha256"], item["group"]): item for item in items}.values())


def load(run: str | Path) -> Hierarchy:
    """The hierarchy in a folder. Raises UsageError where its region level is not trained yet."""
    out = Path(run)
    wanted = read_wanted(out)
    hipt = wanted.hipt
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
    """What is wrong with each level by its logged figures; settings by the names that the hierarchy gives them."""
    found = []
    for level in LEVELS:
        for one in examine_run(out / level) if (out / level / "config.yaml").exists() else ():
            change = {f"{level}.{key}": value for key, value in one.change.items()}
            found.append(dataclasses.replace(one, name=f"{level} level: {one.name}", change=change))
    return found


def random_twin(reader: Reader, seed: int) -> Reader:
    """The same network with fresh random weights, and the same input: what the second level must beat."""
    from saccade.features.embed_images import random_twin as twin

    return Reader(dataclasses.replace(twin(reader.model, seed)), f"random {seed}")
