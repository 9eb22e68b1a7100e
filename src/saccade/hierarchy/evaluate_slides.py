"""From a hierarchy to slide-level results: vectors of slides, heads that learn from few labels, and their comparison.

Tile and region level rest: HIPT's own figures say so (Chen et al. 2022: AUC of a frozen second level .821 to .980, of a
fine-tuned one .762 to .936). What is learned from labels is a head, by nested cross-validation with patients apart.
Asked for, the region level is trained on as well, as a row beside the resting one.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from saccade.base import run_folder
from saccade.base.files import write_text
from saccade.data.feature_grids import cells_of, cut_blocks, fill
from saccade.data.slide_features import load_parquet, read_about
from saccade.data.slides.slide_source import SlideTiles
from saccade.data.splits import patients_of
from saccade.errors import ContaminationError, DataError, UsageError, unknown
from saccade.evaluation.contamination import seen_in_pretraining
from saccade.evaluation.nested_cv import Cohort, Learner, NestedConfig, choose, nested
from saccade.evaluation.small_samples import few_words, mark
from saccade.features.embed_slides import told_to
from saccade.features.table import FeatureTable
from saccade.features.thumbnails import SLIDES
from saccade.hierarchy.embed_regions import embed_grids
from saccade.hierarchy.end_to_end import regions_of
from saccade.hierarchy.head_io import save_head
from saccade.hierarchy.heads import KINDS, HeadConfig, pad_bags
from saccade.hierarchy.learners import HeadLearner, MeanLearner, TogetherLearner
from saccade.hierarchy.settings import read_wanted, settings_of
from saccade.hierarchy.train_levels import Hierarchy, embed_tiles, load, open_tiles, random_twin, recorded
from saccade.reporting.slide_report import write_slide_report
from saccade.train.loop import Console

OWN, RANDOM, TILES, UNFROZEN = "hierarchy", "random second level", "mean of tiles", "hierarchy, region level trained on"


@dataclass(frozen=True)
class HeadOptions:
    """How heads are trained and compared.

    heads     of abmil and transformer; the mean of the regions comes besides
    baselines random second level and mean of tiles
    unfrozen  each head once more, with the region level trained on together with it
    head      how each head is trained; its kind and weight decay are chosen elsewhere
    """

    heads: tuple[str, ...] = KINDS
    head: HeadConfig = dataclasses.field(default_factory=HeadConfig)
    nested: NestedConfig = dataclasses.field(default_factory=NestedConfig)
    allow_overlap: bool = False
    baselines: bool = True
    random_seeds: int = 1
    unfrozen: bool = False

    def __post_init__(self) -> None:
        for head in self.heads:
            if head not in KINDS:
                raise unknown("head", head, KINDS)
        if not self.heads:
            raise UsageError("no head is named", expected="abmil, transformer or both")


@dataclass(frozen=True)
class Embedded:
    """The vectors of slides at every level. Lists have one entry for each of the S slides that have regions.

    tiles [S] and regions [S]: files of vectors      vectors [S D]: one vector a slide
    """

    slides: list[int]
    tiles: list[Path]
    regions: list[Path]
    vectors: np.ndarray


def slides_of(run: Path, data: str, settings: Mapping[str, Any]) -> SlideTiles:
    """The slides of ``data``, cut as the hierarchy in ``run`` is used to; ``settings`` name table and columns."""
    known = settings_of(read_wanted(run).levels["tile"])
    cut = {k: v for k, v in known.items() if k in ("data.mpp", "data.tile_px", "data.tissue")}
    told = told_to(run, float(known.get("data.slide_mpp") or 0))
    return open_tiles(data, cut | dict(settings), told)


def embed_levels(
    hierarchy: Hierarchy, tiles: SlideTiles, console: Console, *, seed: int | None = None, max_bad: float = 0.05
) -> Embedded:
    """Vectors at every level, from the files in RUN/features where they are there.

    seed     None: the trained second level; a number: one with random weights instead
    max_bad  share of the slides, and of the tiles of each, that may be unreadable; they are left out
    """
    folder = hierarchy.run / "features"
    files = embed_tiles(hierarchy.tile, tiles, folder / "tile", console, max_bad=max_bad)
    region = hierarchy.region if seed is None else random_twin(hierarchy.region, seed)
    place = folder / ("region" if seed is None else f"region-random-{seed}")
    found = embed_grids(region, files, place, side=hierarchy.side, least=hierarchy.least, console=console)
    slides = [k for k, file in enumerate(files) if place / file.name in set(found)]
    if hierarchy.slide is not None and seed is None:
        whole = embed_grids(hierarchy.slide, found, folder / "slide", side=0, least=0.0, console=console)
        vectors = np.concatenate([load_parquet(file).features for file in whole])
    else:
        vectors = np.stack([load_parquet(file).features.mean(axis=0) for file in found])
    return Embedded(slides, [files[k] for k in slides], found, vectors)


def whole_grid(file: Path) -> np.ndarray:
    """All vectors of one slide as one grid [D + 1, Y, X]."""
    found = load_parquet(file)
    cells = cells_of(found)
    return fill(found, cells, cut_blocks(file, cells, 0, 0.0)[0])


def weights_of(hierarchy: Hierarchy, tile_file: Path) -> str:
    """One hash for the weights of all levels; ``tile_file`` holds vectors of the tile level."""
    readers = [hierarchy.region, *([hierarchy.slide] if hierarchy.slide else [])]
    levels = [str(read_about(tile_file)["model_sha256"]), *(reader.hash for reader in readers)]
    return hashlib.sha256(" ".join(levels).encode()).hexdigest()


def embed(run: Path, tiles: SlideTiles, console: Console, *, max_bad: float = 0.05) -> FeatureTable:
    """One vector a slide: the slide level's, or the mean of its regions where there is none."""
    hierarchy = load(run)
    found = embed_levels(hierarchy, tiles, console, max_bad=max_bad)
    records = [tiles.entries[k].record for k in found.slides]
    name = f"{run.name} ({'slide level' if hierarchy.slide else 'mean of regions'})"
    return FeatureTable(
        features=found.vectors.astype(np.float32),
        ids=[r.id for r in records],
        labels=[r.label for r in records],
        groups=[r.group for r in records],
        splits=[r.split for r in records],
        hashes=[tiles.hashes[k] for k in found.slides],
        model=name,
        about={
            "rows": SLIDES,
            "weights": weights_of(hierarchy, found.tiles[0]),
            "tiling": dataclasses.asdict(tiles.tiling),
            "side": hierarchy.side,
            "least": hierarchy.least,
        },
    )


# --- heads ---------------------------------------------------------------------------------------


def cohort_of(tiles: SlideTiles, slides: Sequence[int], run: Path, allow: bool) -> tuple[Cohort, np.ndarray, bool]:
    """The labelled slides; their places in ``slides``; and whether figures must be marked.

    Slides and patients that the hierarchy learned from are not tested on, unless ``allow``. A patient counts as
    learned from when the hierarchy knew it by that name, or any slide of it: no patients may have been named then.
    """
    records = [tiles.entries[k].record for k in slides]
    rows = np.array([i for i, record in enumerate(records) if record.label is not None], np.int64)
    classes = tuple(sorted({str(records[i].label) for i in rows}))
    if len(classes) < 2:
        raise DataError(
            "slides need labels of at least two classes",
            got=f"{len(rows)} labelled slides, {len(classes)} classes",
            hint="name a table with --labels CSV (columns path,label,patient)",
        )
    seen = seen_in_pretraining(run_folder.data_record(run))
    hashes, groups = {item["sha256"] for item in seen}, {item["group"] for item in seen}
    owners = patients_of([one.record for one in tiles.entries], tiles.hashes)
    learned = {
        owner
        for owner, one, digest in zip(owners, tiles.entries, tiles.hashes)
        if digest in hashes or (one.record.group or one.record.id) in groups
    }
    own = [owners[slides[i]] for i in rows]
    known = np.array([owner in learned for owner in own], dtype=bool)
    if known.all() and not allow:
        raise ContaminationError(
            "the hierarchy has learned from all of these slides; the figures would flatter it",
            got=f"{len(rows)} labelled slides, all of them or their patients seen",
            expected="slides of other patients",
            hint="pretrain with a split column that names the test part, or mark every number with --allow-overlap",
        )
    labels = np.array([classes.index(str(records[i].label)) for i in rows], np.int64)
    return Cohort(labels, list(own), classes, ~known | allow), rows, bool(known.any() and allow)


def learners_of(
    name: str, files: Sequence[Path], vectors: np.ndarray | None, classes: int, options: HeadOptions
) -> list[Learner]:
    """Every head on the regions of slides, and logistic regression on their mean (or on a slide's own vector)."""
    bags = pad_bags([whole_grid(file) for file in files])
    found: list[Learner] = []
    for kind in options.heads:
        config = dataclasses.replace(options.head, kind=kind)  # type: ignore[arg-type]
        found.append(HeadLearner(f"{name}, {kind}", bags, classes, config))
    found.append(MeanLearner(f"{name}, mean", bags.means(), classes))
    if vectors is not None:
        found.append(MeanLearner(f"{name}, slide level", vectors, classes))
    return found


def _teller(console: Console) -> Callable[[str, int, int], None]:
    """Says each learner when its turn comes, and how many folds are done."""
    said: set[str] = set()

    def tell(learner: str, done: int, total: int) -> None:
        if learner not in said:
            said.add(learner)
            console.say(f"learning: {learner}")
        console.progress(done, total, {"folds": float(done)})

    return tell


def unfrozen_of(
    hierarchy: Hierarchy, files: Sequence[Path], classes: int, options: HeadOptions, console: Console
) -> list[Learner]:
    """Every head with the region level trained on, from the files of the vectors of tiles."""
    regions = [regions_of(hierarchy.region, f, side=hierarchy.side, least=hierarchy.least) for f in files]
    found: list[Learner] = []
    for kind in options.heads:
        config = dataclasses.replace(options.head, kind=kind)  # type: ignore[arg-type]
        found.append(
            TogetherLearner(f"{UNFROZEN}, {kind}", hierarchy.region, regions, classes, config, console.progress)
        )
    return found


def finetune(
    run: Path, data: str, out: Path, options: HeadOptions, settings: Mapping[str, Any], console: Console
) -> dict[str, Any]:
    """Train slide heads on a frozen hierarchy and compare them. Returns what ``out``/slides.json holds.

    The first head, fitted to all labelled slides, is kept in ``out``/head for ``attend``.
    """
    hierarchy = load(run)
    run_folder.prepare(out, resume=False)
    tiles = slides_of(run, data, settings)
    own = embed_levels(hierarchy, tiles, console)
    cohort, rows, marked = cohort_of(tiles, own.slides, run, options.allow_overlap)

    def some(files: Sequence[Path]) -> list[Path]:
        return [files[i] for i in rows]

    classes = len(cohort.classes)
    level = own.vectors[rows] if hierarchy.slide is not None else None
    learners = learners_of(OWN, some(own.regions), level, classes, options)
    if options.unfrozen:
        learners += unfrozen_of(hierarchy, some(own.tiles), classes, options, console)
    if options.baselines:
        for seed in range(1, 1 + options.random_seeds):
            other = embed_levels(hierarchy, tiles, console, seed=seed)
            name = RANDOM if options.random_seeds == 1 else f"{RANDOM} {seed}"
            learners += learners_of(name, some(other.regions), None, classes, options)
        means = np.stack([load_parquet(file).features.mean(axis=0) for file in some(own.tiles)])
        learners.append(MeanLearner(TILES, means, classes))
    console.say(f"{len(rows)} labelled slides, {len(learners)} learners")
    found = nested(learners, cohort, options.nested, progress=_teller(console))
    if marked:
        found = _marked(found)
    files = recorded(tiles, [own.slides[i] for i in rows])
    run_folder.write_json(out / "data.json", {"source": data, "files": files, "ancestors": []})
    named = {"data.source": data} | {key: str(value) for key, value in settings.items()}
    _keep_first(learners[0], cohort, out, options, hierarchy, named)
    run_folder.write_json(out / "slides.json", found)
    write_text(out / "slides.md", to_markdown(found))
    write_slide_report(out)
    return found


def _marked(found: dict[str, Any]) -> dict[str, Any]:
    text = "WARNING: slides of the test folds were seen in pretraining. " + found["protocol"]["text"]
    return {
        "protocol": found["protocol"] | {"overlap": True, "text": text},
        "rows": [row | {"overlap": True} for row in found["rows"]],
        "differences": [row | {"overlap": True} for row in found["differences"]],
    }


def _keep_first(
    learner: Learner, cohort: Cohort, out: Path, options: HeadOptions, hierarchy: Hierarchy, slides: Mapping[str, str]
) -> None:
    """The first head, fitted to every labelled slide, its penalty chosen by the inner folds."""
    assert isinstance(learner, HeadLearner)
    everything, units = np.arange(len(cohort.labels)), np.array(cohort.groups)
    choice = choose(learner, everything, cohort.labels, units, options.nested, len(cohort.classes))
    head = learner.fit(everything, cohort.labels, choice=choice, seed=options.nested.seed)
    save_head(out / "head", head, learner.config, cohort.classes, hierarchy.run, slides)


def to_markdown(found: Mapping[str, Any], metric: str = "auroc") -> str:
    """A row a learner, a column a share of the labels: AUROC in %, with intervals and the difference to the first."""
    rows = [row for row in found["rows"] if row["metric"] == metric]
    shares = list(dict.fromkeys((row["fraction"], row["n_train"]) for row in rows))
    first = rows[0]["model"]
    lines = ["| " + " | ".join(["AUROC", *(f"{f:.0%} of the labels (n={n})" for f, n in shares)]) + " |"]
    lines.append("|" + " --- |" * (1 + len(shares)))
    for name in dict.fromkeys(row["model"] for row in rows):
        cells = []
        for fraction, _ in shares:
            row = next(r for r in rows if r["model"] == name and r["fraction"] == fraction)
            text = f"{row['mean']:.3f} [{row['low']:.3f}, {row['high']:.3f}]{mark(found['protocol'])}"
            gap = [
                d
                for d in found["differences"]
                if d["against"] == name and d["fraction"] == fraction and d["metric"] == metric
            ]
            if gap:
                sure = "" if gap[0]["clear"] else ", not clear"
                text += f"; {first} less this: {gap[0]['difference']:+.3f}{sure}"
            cells.append(text)
        lines.append("| " + " | ".join([name, *cells]) + " |")
    doubt = [few_words(found["protocol"]), ""] if mark(found["protocol"]) else []
    return "\n".join([*lines, "", *doubt, found["protocol"]["text"], ""])


def to_text(found: Mapping[str, Any]) -> str:
    """The table for a terminal."""
    rows = [row for row in found["rows"] if row["metric"] == "auroc"]
    width = max(len(row["model"]) for row in rows)
    lines = [found["protocol"]["text"], "", "AUROC, 95 % interval"]
    for row in rows:
        label = f"{row['fraction']:4.0%}  {row['model']:{width}s}"
        between = f"[{row['low']:.3f}, {row['high']:.3f}]{mark(found['protocol'])}"
        lines.append(f"{label}  {row['mean']:.3f} {between}  n={row['n_train']}")
    return "\n".join([*lines, *filter(None, [few_words(found["protocol"])])])
