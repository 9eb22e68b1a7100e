"""Slide-level results of a hierarchy: slide vectors, heads trained with few labels, and their comparison.

Tile and region level stay frozen, as HIPT recommends (Chen et al. 2022: AUC .821 to .980 frozen, .762 to .936
fine-tuned). Heads are trained and compared by nested cross-validation over patients. Optionally the region level is
fine-tuned too, as additional rows.
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
from saccade.evaluation.contamination import canonical_id, seen_in_pretraining
from saccade.evaluation.nested_cv import Cohort, Learner, NestedConfig, choose, nested
from saccade.evaluation.protocol import EvalReport
from saccade.evaluation.small_samples import few_words, mark
from saccade.features.embed_slides import assumed_mpp_of
from saccade.features.table import FeatureTable, table_of_records
from saccade.features.thumbnails import SLIDES
from saccade.hierarchy.embed_regions import embed_grids
from saccade.hierarchy.end_to_end import regions_of
from saccade.hierarchy.head_io import save_head
from saccade.hierarchy.heads import KINDS, HeadConfig, pad_bags
from saccade.hierarchy.learners import EndToEndLearner, HeadLearner, MeanLearner
from saccade.hierarchy.settings import read_request, settings_of
from saccade.hierarchy.train_levels import Hierarchy, embed_tiles, load, open_tiles, random_twin, recorded
from saccade.reporting.slide_report import write_slide_report
from saccade.train.loop import Console

HIERARCHY, RANDOM, TILES, UNFROZEN = (
    "hierarchy",
    "random second level",
    "mean of tiles",
    "hierarchy, region level fine-tuned",
)


@dataclass(frozen=True)
class HeadOptions:
    """How heads are trained and compared.

    Parameters
    ----------
    heads : tuple of str
        ``abmil``, ``transformer`` or both; logistic regression on the mean of regions is always added.
    head : HeadConfig
        Training of each head; kind and weight decay are set by the comparison.
    nested : NestedConfig
        Folds, fractions of labels and repeats.
    allow_overlap : bool
        Test on slides seen in pretraining too, and mark every figure.
    baselines : bool
        Add a random second level and the mean of tiles.
    random_seeds : int
        Number of random second levels.
    unfrozen : bool
        Add one row per head with the region level fine-tuned.
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
            raise UsageError("no head given", expected="abmil, transformer or both")


@dataclass(frozen=True)
class Embedded:
    """Vectors of slides at every level, for the S slides that have regions.

    Parameters
    ----------
    slides : list of int
        Indices of these slides.
    tiles, regions : list of Path
        Files of tile and of region vectors.
    vectors : ndarray [S D]
        One vector per slide.
    """

    slides: list[int]
    tiles: list[Path]
    regions: list[Path]
    vectors: np.ndarray


def slides_of(run: Path, data: str, settings: Mapping[str, Any]) -> SlideTiles:
    """The slides of ``data``, tiled as in the training of the hierarchy; ``settings`` name table and columns."""
    tile_settings = settings_of(read_request(run).levels["tile"])
    cut = {k: v for k, v in tile_settings.items() if k in ("data.mpp", "data.tile_px", "data.tissue")}
    assumed_mpp = assumed_mpp_of(run, float(tile_settings.get("data.slide_mpp") or 0))
    return open_tiles(data, cut | dict(settings), assumed_mpp)


def embed_levels(
    hierarchy: Hierarchy, tiles: SlideTiles, console: Console, *, seed: int | None = None, max_bad: float = 0.05
) -> Embedded:
    """Vectors at every level; up-to-date files in RUN/features are reused.

    Parameters
    ----------
    hierarchy : Hierarchy
        The trained hierarchy.
    tiles : SlideTiles
        Tiles of the slides.
    console : Console
        Receives messages and progress.
    seed : int, optional
        Seed of a region level with random weights instead of the trained one.
    max_bad : float
        Fraction of the slides, and of the tiles of each, that may be unreadable; they are skipped.
    """
    folder = hierarchy.run / "features"
    files = embed_tiles(hierarchy.tile, tiles, folder / "tile", console, max_bad=max_bad)
    region = hierarchy.region if seed is None else random_twin(hierarchy.region, seed)
    region_folder = folder / ("region" if seed is None else f"region-random-{seed}")
    region_files = embed_grids(
        region, files, region_folder, side=hierarchy.side, min_tissue=hierarchy.min_tissue, console=console
    )
    slides = [k for k, file in enumerate(files) if region_folder / file.name in set(region_files)]
    if hierarchy.slide is not None and seed is None:
        slide_files = embed_grids(
            hierarchy.slide, region_files, folder / "slide", side=0, min_tissue=0.0, console=console
        )
        vectors = np.concatenate([load_parquet(file).features for file in slide_files])
    else:
        vectors = np.stack([load_parquet(file).features.mean(axis=0) for file in region_files])
    return Embedded(slides, [files[k] for k in slides], region_files, vectors)


def slide_grid(file: Path) -> np.ndarray:
    """All vectors of one slide as a grid [D+1 Y X]; the last channel marks cells that have a vector."""
    vectors = load_parquet(file)
    cells = cells_of(vectors)
    return fill(vectors, cells, cut_blocks(file, cells, 0, 0.0)[0])


def weights_of(hierarchy: Hierarchy, tile_file: Path) -> str:
    """Hash of the weights of all levels; ``tile_file`` is a file of tile vectors."""
    readers = [hierarchy.region, *([hierarchy.slide] if hierarchy.slide else [])]
    levels = [str(read_about(tile_file)["model_sha256"]), *(reader.hash for reader in readers)]
    return hashlib.sha256(" ".join(levels).encode()).hexdigest()


def embed(run: Path, tiles: SlideTiles, console: Console, *, max_bad: float = 0.05) -> FeatureTable:
    """One vector per slide: from the slide level, or the mean of its regions."""
    hierarchy = load(run)
    embedded = embed_levels(hierarchy, tiles, console, max_bad=max_bad)
    records = [tiles.entries[k].record for k in embedded.slides]
    name = f"{run.name} ({'slide level' if hierarchy.slide else 'mean of regions'})"
    about = {
        "rows": SLIDES,
        "weights": weights_of(hierarchy, embedded.tiles[0]),
        "tiling": dataclasses.asdict(tiles.tiling),
        "side": hierarchy.side,
        "least": hierarchy.min_tissue,
    }
    hashes = [tiles.hashes[k] for k in embedded.slides]
    return table_of_records(records, embedded.vectors.astype(np.float32), hashes, name, about)


# --- heads ---------------------------------------------------------------------------------------


def cohort_of(tiles: SlideTiles, slides: Sequence[int], run: Path, allow: bool) -> tuple[Cohort, np.ndarray, bool]:
    """Labelled slides, their indices in ``slides``, and whether figures must be marked for overlap.

    Slides and patients seen in pretraining are never in a test fold, unless ``allow``. A patient counts as seen if its
    name was in the pretraining data, or any of its slides was.
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
    pretrained = seen_in_pretraining(run_folder.data_record(run))
    hashes, groups = {item["sha256"] for item in pretrained}, {canonical_id(str(item["group"])) for item in pretrained}
    owners = patients_of([entry.record for entry in tiles.entries], tiles.hashes)
    learned = {
        owner
        for owner, entry, digest in zip(owners, tiles.entries, tiles.hashes)
        if digest in hashes or canonical_id(entry.record.group or entry.record.id) in groups
    }
    owner_of_row = [owners[slides[i]] for i in rows]
    is_learned = np.array([owner in learned for owner in owner_of_row], dtype=bool)
    if is_learned.all() and not allow:
        raise ContaminationError(
            "the hierarchy was pretrained on all of these slides or their patients",
            got=f"{len(rows)} labelled slides",
            expected="slides of other patients",
            hint="pretrain with a split column that names the test part, or mark every number with --allow-overlap",
        )
    labels = np.array([classes.index(str(records[i].label)) for i in rows], np.int64)
    return Cohort(labels, list(owner_of_row), classes, ~is_learned | allow), rows, bool(is_learned.any() and allow)


def learners_of(
    name: str, files: Sequence[Path], vectors: np.ndarray | None, classes: int, options: HeadOptions
) -> list[Learner]:
    """One learner per head on region vectors, logistic regression on their mean, and on slide vectors if given."""
    bags = pad_bags([slide_grid(file) for file in files])
    learners: list[Learner] = []
    for kind in options.heads:
        config = dataclasses.replace(options.head, kind=kind)  # type: ignore[arg-type]
        learners.append(HeadLearner(f"{name}, {kind}", bags, classes, config))
    learners.append(MeanLearner(f"{name}, mean", bags.means(), classes))
    if vectors is not None:
        learners.append(MeanLearner(f"{name}, slide level", vectors, classes))
    return learners


def _progress_of(console: Console) -> Callable[[str, int, int], None]:
    """A progress function that names each learner once and counts folds."""
    announced: set[str] = set()

    def tell(learner: str, done: int, total: int) -> None:
        if learner not in announced:
            announced.add(learner)
            console.say(f"training {learner}")
        console.progress(done, total, {"folds": float(done)})

    return tell


def unfrozen_of(
    hierarchy: Hierarchy, files: Sequence[Path], classes: int, options: HeadOptions, console: Console
) -> list[Learner]:
    """One learner per head with the region level fine-tuned, from files of tile vectors."""
    regions = [regions_of(hierarchy.region, f, side=hierarchy.side, min_tissue=hierarchy.min_tissue) for f in files]
    learners: list[Learner] = []
    for kind in options.heads:
        config = dataclasses.replace(options.head, kind=kind)  # type: ignore[arg-type]
        learners.append(
            EndToEndLearner(f"{UNFROZEN}, {kind}", hierarchy.region, regions, classes, config, console.progress)
        )
    return learners


def finetune(
    run: Path, data: str, out: Path, options: HeadOptions, settings: Mapping[str, Any], console: Console
) -> EvalReport:
    """Train slide heads on a frozen hierarchy and compare them.

    Parameters
    ----------
    run : Path
        The hierarchy.
    data : str
        Labelled slides.
    out : Path
        Receives slides.json, slides.md, the report, and in ``head/`` the first head, trained on all labelled slides.
    options : HeadOptions
        Heads and protocol.
    settings : mapping
        Dotted keys that name table and columns (``data.manifest``, ``data.label``, ``data.group``).
    console : Console
        Receives messages and progress.

    Returns
    -------
    EvalReport
        The content of slides.json.

    Raises
    ------
    ContaminationError
        All labelled slides or their patients were seen in pretraining.
    DataError
        Labels of fewer than two classes.
    """
    hierarchy = load(run)
    run_folder.prepare(out, resume=False)
    tiles = slides_of(run, data, settings)
    embedded = embed_levels(hierarchy, tiles, console)
    cohort, rows, marked = cohort_of(tiles, embedded.slides, run, options.allow_overlap)

    def some(files: Sequence[Path]) -> list[Path]:
        return [files[i] for i in rows]

    classes = len(cohort.classes)
    level = embedded.vectors[rows] if hierarchy.slide is not None else None
    learners = learners_of(HIERARCHY, some(embedded.regions), level, classes, options)
    if options.unfrozen:
        learners += unfrozen_of(hierarchy, some(embedded.tiles), classes, options, console)
    if options.baselines:
        for seed in range(1, 1 + options.random_seeds):
            other = embed_levels(hierarchy, tiles, console, seed=seed)
            name = RANDOM if options.random_seeds == 1 else f"{RANDOM} {seed}"
            learners += learners_of(name, some(other.regions), None, classes, options)
        means = np.stack([load_parquet(file).features.mean(axis=0) for file in some(embedded.tiles)])
        learners.append(MeanLearner(TILES, means, classes))
    console.say(f"{len(rows)} labelled slides, {len(learners)} learners")
    report = nested(learners, cohort, options.nested, progress=_progress_of(console))
    if marked:
        report = _marked(report)
    files = recorded(tiles, [embedded.slides[i] for i in rows])
    run_folder.write_json(out / "data.json", {"source": data, "files": files, "ancestors": []})
    slide_settings = {"data.source": data} | {key: str(value) for key, value in settings.items()}
    _keep_first(learners[0], cohort, out, options, hierarchy, slide_settings)
    run_folder.write_json(out / "slides.json", report.to_dict())
    write_text(out / "slides.md", to_markdown(report))
    write_slide_report(out)
    return report


def _marked(report: EvalReport) -> EvalReport:
    text = "WARNING: slides of the test folds were seen in pretraining. " + report.protocol["text"]
    mark = {"overlap": True}
    rows, differences = ([row | mark for row in rows] for rows in (report.rows, report.differences))
    return EvalReport(report.protocol | mark | {"text": text}, rows, differences)


def _keep_first(
    learner: Learner, cohort: Cohort, out: Path, options: HeadOptions, hierarchy: Hierarchy, slides: Mapping[str, str]
) -> None:
    """Train the first head on all labelled slides, with the weight decay chosen by the inner folds, and save it."""
    assert isinstance(learner, HeadLearner)
    everything, units = np.arange(len(cohort.labels)), np.array(cohort.groups)
    choice = choose(learner, everything, cohort.labels, units, options.nested, len(cohort.classes))
    head = learner.fit(everything, cohort.labels, choice=choice, seed=options.nested.seed)
    save_head(out / "head", head, learner.config, cohort.classes, hierarchy.run, slides)


def to_markdown(report: EvalReport, metric: str = "auroc") -> str:
    """Table of AUROC: one row per learner, one column per fraction of labels, with differences to the first row."""
    rows = [row for row in report.rows if row["metric"] == metric]
    shares = list(dict.fromkeys((row["fraction"], row["n_train"]) for row in rows))
    first = rows[0]["model"]
    lines = ["| " + " | ".join(["AUROC", *(f"{f:.0%} of the labels (n={n})" for f, n in shares)]) + " |"]
    lines.append("|" + " --- |" * (1 + len(shares)))
    for name in dict.fromkeys(row["model"] for row in rows):
        cells = []
        for fraction, _ in shares:
            row = next(r for r in rows if r["model"] == name and r["fraction"] == fraction)
            text = f"{row['mean']:.3f} [{row['low']:.3f}, {row['high']:.3f}]{mark(report.protocol)}"
            gap = [
                d
                for d in report.differences
                if d["against"] == name and d["fraction"] == fraction and d["metric"] == metric
            ]
            if gap:
                sure = "" if gap[0]["clear"] else ", not clear"
                text += f"; {first} less this: {gap[0]['difference']:+.3f}{sure}"
            cells.append(text)
        lines.append("| " + " | ".join([name, *cells]) + " |")
    doubt = [few_words(report.protocol), ""] if mark(report.protocol) else []
    return "\n".join([*lines, "", *doubt, report.protocol["text"], ""])


def to_text(report: EvalReport) -> str:
    """The table for a terminal."""
    rows = [row for row in report.rows if row["metric"] == "auroc"]
    width = max(len(row["model"]) for row in rows)
    lines = [report.protocol["text"], "", "AUROC, 95 % interval"]
    for row in rows:
        label = f"{row['fraction']:4.0%}  {row['model']:{width}s}"
        between = f"[{row['low']:.3f}, {row['high']:.3f}]{mark(report.protocol)}"
        lines.append(f"{label}  {row['mean']:.3f} {between}  n={row['n_train']}")
    return "\n".join([*lines, *filter(None, [few_words(report.protocol)])])
