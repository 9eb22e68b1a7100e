"""The public functions: the same words as the command line, for notebooks and scripts."""

from __future__ import annotations

import dataclasses
import platform
import shutil
from collections.abc import Mapping, Sequence
from importlib import metadata, util
from pathlib import Path
from typing import Any

import torch

from saccade import runtime
from saccade.attention import image as panels
from saccade.attention import single_file
from saccade.attention import text as sentences
from saccade.attention.options import AttendOptions
from saccade.attention.slide import SlideAttention, SlideOptions
from saccade.attention.slide import attend_slide as look_at_slide
from saccade.attention.volume import AttendedVolume
from saccade.base import config
from saccade.base.files import check_writable
from saccade.cost.plan_report import Planned
from saccade.data.audit.grids import GridAudit
from saccade.data.audit.images import Audit
from saccade.data.audit.show import show_source
from saccade.data.audit.slides import SlideAudit
from saccade.data.open import absolute, open_source
from saccade.data.slides.slide_source import SlideTiles
from saccade.data.slides.tiling import Tiling
from saccade.errors import UsageError
from saccade.features.embed_slides import Embedder, as_trained, load_for_tiles
from saccade.hierarchy import attend as hierarchy_attend
from saccade.hierarchy import evaluate_slides, train_levels
from saccade.hierarchy import settings as layout
from saccade.hierarchy.evaluate_slides import HeadOptions
from saccade.methods.diagnosis import Diagnosis
from saccade.models import export as exporting
from saccade.models.text_tokens import TextOptions
from saccade.reporting.write import write_report
from saccade.study import runner
from saccade.study.design import REGIMES, Design, StudyConfig
from saccade.tasks import finetune as finetuning
from saccade.tasks import plan as planning
from saccade.tasks import search as searching
from saccade.tasks.embed import embed
from saccade.tasks.evaluate import evaluate
from saccade.tasks.finetune import FinetuneOptions
from saccade.tasks.plan import PlanOptions
from saccade.tasks.plan_hierarchy import PlannedHierarchy, plan_hierarchy
from saccade.tasks.search import SearchOptions
from saccade.tasks.search_slides import search as slide_search
from saccade.train import pretrain as training
from saccade.train.diagnose import examine_run
from saccade.train.loop import Console, Quiet
from saccade.train.prepare import absolute_paths
from saccade.train.recipes import sections_for
from saccade.train.replay import replay as replay_step

__all__ = [
    "attend",
    "attend_hierarchy",
    "attend_slide",
    "attend_text",
    "compare",
    "doctor",
    "embed",
    "evaluate",
    "examine",
    "export",
    "finetune",
    "finetune_slides",
    "open_source",
    "plan",
    "pretrain",
    "replay",
    "report",
    "report_interactive",
    "resume",
    "search",
    "show",
]


def show(
    data: str | Path,
    *,
    group: str | None = None,
    max_bad: float = 0.05,
    sheet: Path | None = None,
    tiling: Tiling | None = None,
) -> Audit | SlideAudit | GridAudit:
    """What is in there: counts, sizes, depth, labels, groups, duplicates, damaged files; of slides, tissue and tiles;
    of features, slides, tiles, regions and the length of the vectors.

    sheet   where to write a contact sheet (PNG); None writes none
    tiling  how slides are cut into tiles
    """
    if sheet is not None:
        check_writable(sheet)
    return show_source(open_source(data, group=group, tiling=tiling), max_bad=max_bad, sheet=sheet)


def pretrain(
    data: str | Path,
    *,
    out: str | Path,
    method: str = "dino",
    backbone: str | None = None,
    recipe: str = "microscopy",
    settings: Mapping[str, Any] | None = None,
    console: Console | None = None,
) -> Path:
    """Learn from the images of ``data`` without labels. Returns the run folder ``out``.

    settings   dotted keys, e.g. ``{"train.minutes": 5, "model.size_px": 64, "dino.out_dim": 1024}``;
               what is left open is decided from the data and printed; ``model.weights`` names a MODEL to go on
               from, whose network, size and statistics are taken unless they are named as well
    backbone   ``hipt``: ``data`` are slides, and a hierarchy is trained: tiles, regions, slides
    Raises UsageError, ModelError, DataError, NonFiniteLoss, StorageError.
    """
    if backbone == layout.NAME:
        wanted = layout.share_out(str(absolute(data)), method, recipe, settings or {})
        return train_levels.start(wanted, Path(out), console or Quiet())
    sections = sections_for(method, recipe)
    sections = config.override(sections, {"data.source": str(absolute(data))})
    given = dict(settings or {}) | ({} if backbone is None else {"model.backbone": backbone})
    if weights := str(given.pop("model.weights", "")):
        given = finetuning.named_model(weights, given) | given
    sections = config.override(sections, given)
    sections = absolute_paths(sections)
    folder = training.start(sections, Path(out), console or Quiet())
    return _reported(folder)


def finetune_slides(
    hierarchy: str | Path,
    data: str | Path,
    *,
    out: str | Path,
    options: HeadOptions | None = None,
    settings: Mapping[str, Any] | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Train slide heads with labels on a hierarchy at rest, by nested cross-validation with patients apart.

    settings   of the slides' table: ``data.manifest``, ``data.label``, ``data.group``
    Returns AUROC and balanced accuracy with 95 % intervals, as in ``out``/slides.json.
    Raises UsageError, DataError, EvaluationError, ContaminationError.
    """
    chosen = options or HeadOptions()
    return evaluate_slides.finetune(
        Path(hierarchy), str(absolute(data)), Path(out), chosen, settings or {}, console or Quiet()
    )


def plan(
    data: str | Path | None = None,
    *,
    method: str = "dino",
    backbone: str | None = None,
    recipe: str = "microscopy",
    settings: Mapping[str, Any] | None = None,
    options: PlanOptions | None = None,
) -> Planned | PlannedHierarchy:
    """What the run that ``pretrain`` would start costs: operations, memory, time, disk, and what would be cheaper.

    data       None: 1,000 images are assumed, and ``model.size_px`` must be among the settings
    backbone   ``hipt``: ``data`` are slides, and every level has its price
    ``.text()`` is for people, ``.to_dict()`` for programs. Raises UsageError, ModelError, DataError.
    """
    runtime.keep_freed_memory()
    given = dict(settings or {}) | ({} if backbone is None else {"model.backbone": backbone})
    if backbone == layout.NAME:
        own = {key: value for key, value in given.items() if key != "model.backbone"}
        return plan_hierarchy(None if data is None else absolute(data), method, recipe, own, options)
    return planning.plan(None if data is None else absolute(data), method, recipe, given, options)


def finetune(
    model: str | Path,
    data: str | Path,
    *,
    out: str | Path,
    options: FinetuneOptions | None = None,
    settings: Mapping[str, Any] | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Train with labels, from MODEL's weights or from ``random:NAME``, and measure on the test part.

    Returns accuracy, balanced accuracy and AUROC with 95 % intervals, as in ``out``/classifier.json.
    Raises UsageError, DataError, ContaminationError, NonFiniteLoss, StorageError.
    """
    named = {"data.source": str(absolute(data))} | dict(settings or {})
    found = finetuning.finetune(model, Path(out), options or FinetuneOptions(), named, console or Quiet())
    _reported(Path(out))
    return found


@dataclasses.dataclass(frozen=True)
class CompareOptions:
    """How ``compare`` trains.

    Parameters
    ----------
    regimes : sequence of str
        Training regimes: any of supervised, augmented, dino.
    seeds : int
        Draws of each training-set size.
    match : str
        "params" or "flops": scale every backbone's width to the first one's value; "" keeps the widths.
    workers : int
        Trials that run in parallel; the cores are divided between them.
    study : StudyConfig
        Budget, input size, batch, recipes.
    """

    regimes: Sequence[str] = tuple(REGIMES)
    seeds: int = 3
    match: str = ""
    workers: int = 1
    study: StudyConfig = dataclasses.field(default_factory=StudyConfig)


def compare(
    data: str | Path,
    *,
    out: str | Path,
    backbones: Sequence[str],
    sizes: Sequence[int],
    options: CompareOptions | None = None,
    console: Console | None = None,
) -> Path:
    """Which inductive bias pays at which size of the data: train every backbone at every size, and compare.

    Returns ``out``/study.html; beside it lie study.json, study.md, study.csv and one folder a cell. Called again with
    the same settings it goes on where it stood; backbones, sizes and seeds may be added.
    Raises UsageError, DataError, TrainingError.
    """
    options = options or CompareOptions()
    names = tuple(backbones)
    study = dataclasses.replace(options.study, data=str(absolute(data)))
    if options.match:
        names = runner.matched_names(names, options.match, study.size_px)
    design = Design(names, tuple(options.regimes), tuple(sizes), tuple(range(options.seeds)))
    return runner.compare(study, design, Path(out), workers=options.workers, console=console or Quiet())


def resume(
    run: str | Path,
    *,
    data: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    console: Console | None = None,
) -> Path:
    """Continue a run that was interrupted; on the CPU its losses are those of an uninterrupted one.

    data, settings   may repeat what the run was started with; raises UsageError when they say something else
    """
    if layout.is_hierarchy(run):
        own = {k: v for k, v in (settings or {}).items() if (k, v) != ("model.backbone", layout.NAME)}
        return train_levels.resume(Path(run), None if data is None else str(absolute(data)), own, console or Quiet())
    named = dict(settings or {}) | ({} if data is None else {"data.source": str(absolute(data))})
    folder = training.resume(Path(run), console or Quiet(), named)
    if config.load(folder / "config.yaml")["train"]["method"] == "supervised":
        # What overlaps was refused before the first step, or allowed then: here it is marked.
        finetuning.measure(folder, console or Quiet(), allow=True)
    return _reported(folder)


def _reported(run: Path) -> Path:
    """Write the report, in the first of several processes only."""
    if runtime.launched_rank() == 0:
        write_report(run)
    return run


def search(
    model: str | Path,
    image: str | Path,
    *,
    store: str | Path,
    options: SearchOptions | None = None,
    console: Console | None = None,
) -> searching.Found:
    """The images of a feature table that are most like one image file; for a hierarchy, the slides like one slide.

    Raises ModelError when another model made the table.
    """
    if layout.is_hierarchy(model):
        return slide_search(Path(model), image, store, options or SearchOptions(), console or Quiet())
    return searching.search(model, image, store, options or SearchOptions())


def export(model: str | Path, *, to: str, out: str | Path) -> float | None:
    """Write a model into the new folder ``out`` for timm, transformers (hf), ONNX (onnx), or as safetensors.

    Returns how far the other program's features are from ours, relative to the largest; None where it is not
    installed to be asked. Raises ModelError where it has no such network.
    """
    return exporting.export(model, to, Path(out))


def attend(
    model: str | Path, image: str | Path, *, options: AttendOptions | None = None
) -> panels.Attended | AttendedVolume:
    """Where does the model look? Attention (or token similarity, for CNNs) of one query over an image or a volume.

    Returns the map with its numbers; ``.save(path)`` writes PNG, SVG (of a volume NIfTI) or CSV by suffix.
    """
    return panels.attend(model, image, options or AttendOptions())


def attend_slide(
    model: str | Path, slide: str | Path, *, options: SlideOptions | None = None, console: Console | None = None
) -> SlideAttention:
    """A score for every tile of a slide: likeness to all of it, or to one tile; or attention inside every tile.

    ``.save(path)`` writes PNG, pyramidal TIFF, GeoJSON for QuPath or CSV by suffix, or a folder with all of them.
    """
    options, console = options or SlideOptions(), console or Quiet()
    source = open_source(slide, tiling=as_trained(model, options.tiling))
    if not isinstance(source, SlideTiles):
        raise UsageError(f"{slide} is no slide", hint="saccade attend MODEL IMAGE looks at images")
    embedder = Embedder(load_for_tiles(model, source), source, say=console.say, max_bad=options.max_bad)
    return look_at_slide(embedder, options, lambda done, total: console.progress(done, total, {}))


def attend_hierarchy(
    model: str | Path,
    slide: str | Path,
    *,
    level: str | None = None,
    slide_mpp: float | None = None,
    max_bad: float = 0.05,
    console: Console | None = None,
) -> list[SlideAttention]:
    """Where a hierarchy looks on a slide: maps of its levels (region, tile, composed), or of the one that is named.

    model   a hierarchy, or a run of ``finetune_slides`` on one, whose head then weighs the regions
    Each map's ``.save(path)`` writes PNG, pyramidal TIFF, GeoJSON or CSV by suffix, or a folder with all of them.
    """
    runtime.keep_freed_memory()
    own = {} if slide_mpp is None else {"data.slide_mpp": slide_mpp}
    return hierarchy_attend.attend(Path(model), str(absolute(slide)), level, own, console or Quiet(), max_bad=max_bad)


def attend_text(
    text: str, *, model: str | Path | None = None, options: TextOptions | None = None
) -> sentences.AttendedText:
    """Which words does a word look at? Attention of one layer of a text model, between words or tokens.

    model  a folder of the transformers library; None is the built-in all-MiniLM-L6-v2 (extra ``text``)
    Returns the numbers; ``.text()`` is for a terminal, ``.save(path)`` writes SVG, PNG, CSV or HTML by suffix.
    """
    return sentences.attend_text(model, text, options or TextOptions())


def report(run: str | Path) -> Path:
    """Write RUN/report.html (or the page of a study, or of heads for slides) again from its files. Returns its path."""
    if (Path(run) / "study.yaml").exists():
        return runner.page_so_far(Path(run))
    return write_report(Path(run))


def report_interactive(
    run: str | Path, out: str | Path, *, images: Sequence[str | Path] = (), size_px: int | None = None
) -> tuple[Path, str]:
    """Write the attention explorer for chosen images as one HTML file ``out``. Returns it, and what it says of itself.

    images  files; without any, a few images of the run's data, one a class
    """
    return single_file.write_interactive(run, out, images, size_px)


def examine(run: str | Path) -> list[Diagnosis]:
    """What is wrong with a run by its logged figures, in the order it showed; empty where nothing is.

    Of a hierarchy, level by level, and settings are named as its command takes them (``region.optim.lr``).
    Raises UsageError when the folder holds no run.
    """
    folder = Path(run)
    return train_levels.examine(folder) if layout.is_hierarchy(folder) else examine_run(folder)


def replay(run: str | Path) -> dict[str, Any]:
    """The step that a run left out as not finite, once more: see train/replay.py. Raises UsageError."""
    return replay_step(Path(run))


def doctor() -> dict[str, Any]:
    """What saccade finds on this machine: versions, devices, precision, optional packages, free disk."""
    device = runtime.pick_device()
    runtime.keep_freed_memory()
    optional = {
        "slides": "openslide",
        "dicom": "pydicom",
        "web": "fastapi",
        "search": "lancedb",
        "map": "openTSNE",
        "umap": "umap",
        "text": "transformers",
        "onnx": "onnx",
    }
    return {
        "saccade": metadata.version("saccade"),
        "python": platform.python_version(),
        **runtime.environment(device),
        "precision": runtime.usual_precision(device),
        "cuda_devices": torch.cuda.device_count(),
        "extras": {name: util.find_spec(module) is not None for name, module in optional.items()},
        "free_disk_gib": round(shutil.disk_usage(Path.cwd()).free / 2**30, 1),
    }
