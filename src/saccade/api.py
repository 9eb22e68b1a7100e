"""The public functions: the same verbs as the command line, for notebooks and scripts.

``import saccade`` exports them; see ``saccade/__init__.pyi`` for the whole public interface.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from saccade import runtime
from saccade.attention import single_file
from saccade.base.files import check_writable
from saccade.cost.plan_report import Planned
from saccade.data.audit.grids import GridAudit
from saccade.data.audit.images import Audit
from saccade.data.audit.show import show_source
from saccade.data.audit.slides import SlideAudit
from saccade.data.open import absolute, open_source
from saccade.data.slides.tiling import Tiling
from saccade.evaluation.protocol import EvalReport
from saccade.hierarchy import evaluate_slides
from saccade.hierarchy import settings as hierarchy_settings
from saccade.hierarchy.evaluate_slides import HeadOptions
from saccade.models import export as model_export
from saccade.reporting.write import write_report
from saccade.study import runner
from saccade.study.design import CompareOptions, Design
from saccade.tasks import finetune as finetuning
from saccade.tasks import plan as planning
from saccade.tasks import search as searching
from saccade.tasks import search_slides
from saccade.tasks.attend import attend, attend_hierarchy, attend_slide, attend_text
from saccade.tasks.doctor import doctor, examine
from saccade.tasks.embed import embed
from saccade.tasks.evaluate import evaluate
from saccade.tasks.finetune import FinetuneOptions, FinetuneReport
from saccade.tasks.plan import PlanOptions
from saccade.tasks.plan_hierarchy import PlannedHierarchy, plan_hierarchy
from saccade.tasks.pretrain import pretrain, resume, write_report_once
from saccade.tasks.quickstart import quickstart
from saccade.tasks.search import SearchOptions, SearchResult
from saccade.tasks.verify import verify
from saccade.train.auto import Names, choose, open_named
from saccade.train.loop import Console, Quiet
from saccade.train.replay import replay as replay_step

__all__ = [
    "CompareOptions",
    "Quiet",
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
    "quickstart",
    "replay",
    "report",
    "report_interactive",
    "resume",
    "search",
    "show",
    "verify",
]


def show(
    data: str | Path,
    *,
    group: str | None = None,
    keep_na: bool = False,
    max_bad: float = 0.05,
    sheet: Path | None = None,
    tiling: Tiling | None = None,
) -> Audit | SlideAudit | GridAudit:
    """Describe a data set.

    Parameters
    ----------
    data : str or Path
        Images, volumes, slides or feature grids; see ``open_source``.
    group : str, optional
        Column with the patient, slide or source tile.
    keep_na : bool
        Classes and groups may be called n/a, NA or nan; by default these stand for no value.
    max_bad : float
        Largest fraction of damaged files that is tolerated.
    sheet : Path, optional
        Write a contact sheet (PNG) to this file.
    tiling : Tiling, optional
        How slides are cut into tiles.

    Returns
    -------
    Audit, SlideAudit or GridAudit
        Counts, sizes, bit depth, labels, groups, damaged and duplicate files; for slides also tissue and tiles.

    Raises
    ------
    DataError
        When the data cannot be opened, or more than ``max_bad`` of the files are damaged.

    Examples
    --------
    >>> import saccade
    >>> saccade.show("synthetic:tissue?n=16&size=32").to_dict()["images"]
    16
    """
    if sheet is not None:
        check_writable(sheet)
    return show_source(open_source(data, group=group, keep_na=keep_na, tiling=tiling), max_bad=max_bad, sheet=sheet)


def plan(
    data: str | Path | None = None,
    *,
    method: str = "auto",
    backbone: str | None = None,
    recipe: str = "auto",
    settings: Mapping[str, Any] | None = None,
    options: PlanOptions | None = None,
) -> Planned | PlannedHierarchy:
    """Estimate the cost of a run before it starts; nothing is trained.

    Parameters
    ----------
    data : str or Path, optional
        None: 1,000 images are assumed, and ``model.size_px`` must be among the settings.
    method, backbone, recipe, settings
        As in ``pretrain``. With ``backbone="hipt"``, every level has its own estimate.
    options : PlanOptions, optional
        Memory limit, attention implementation, and whether steps are timed on this machine.

    Returns
    -------
    Planned or PlannedHierarchy
        Operations, memory, time, disk, and cheaper alternatives; ``.text()`` and ``.to_dict()``.

    Raises
    ------
    UsageError, ModelError, DataError

    Examples
    --------
    >>> import saccade
    >>> settings = {"model.size_px": 64, "train.batch": 8}
    >>> price = saccade.plan(backbone="vit_micro_patch8", settings=settings, options=saccade.PlanOptions(measure=False))
    >>> price.to_dict()["tokens"]["global"]
    64
    """
    runtime.keep_freed_memory()
    path = None if data is None else absolute(data)
    if backbone == hierarchy_settings.NAME:
        explicit = {key: value for key, value in (settings or {}).items() if key != "model.backbone"}
        return plan_hierarchy(path, *hierarchy_settings.method_and_recipe(method, recipe), explicit, options)
    explicit = dict(settings or {}) | ({} if backbone is None else {"model.backbone": backbone})
    axes = {"data.axes": options.axes} if options and path is None else {}
    device = runtime.pick_device(explicit.get("train.device")).type
    names = Names(method, backbone, recipe).with_settings(explicit)
    source = open_named(str(path), explicit) if names.open and path is not None else None
    names = choose(names, source, device, explicit | axes)
    if names.backbone:
        explicit = {"model.backbone": names.backbone} | explicit
    return planning.plan(path, names.method, names.recipe, explicit, options, source)


def finetune(
    model: str | Path,
    data: str | Path,
    *,
    out: str | Path,
    options: FinetuneOptions | None = None,
    settings: Mapping[str, Any] | None = None,
    console: Console | None = None,
) -> FinetuneReport | None:
    """Train with labels and measure on the test split.

    Parameters
    ----------
    model : str or Path
        Pretrained weights to start from, or ``random:NAME``.
    data : str or Path
        Labelled images.
    out : str or Path
        New folder for the run.
    options : FinetuneOptions, optional
        Augmentation, frozen backbone, recipe, overlap.
    settings : mapping, optional
        Settings by dotted key, as in ``pretrain``.
    console : Console, optional
        Receives messages and progress.

    Returns
    -------
    FinetuneReport or None
        Accuracy, balanced accuracy and AUROC with 95 % intervals, as in ``out/classifier.json``; None where all images
        are trained on (``data.split=all``).

    Raises
    ------
    UsageError, DataError, ContaminationError, NonFiniteLoss, StorageError

    Examples
    --------
    >>> import saccade
    >>> small = {"train.steps": 2, "train.batch": 8, "model.size_px": 32}
    >>> data = "synthetic:tissue?n=48&size=32"
    >>> report = saccade.finetune("random:resnet10_w8", data, out="tuned", settings=small)
    >>> [row["metric"] for row in report.rows]
    ['accuracy', 'balanced_accuracy', 'auroc']
    """
    explicit = {"data.source": str(absolute(data))} | dict(settings or {})
    report = finetuning.finetune(model, Path(out), options or FinetuneOptions(), explicit, console or Quiet())
    write_report_once(Path(out))
    return report


def finetune_slides(
    hierarchy: str | Path,
    data: str | Path,
    *,
    out: str | Path,
    options: HeadOptions | None = None,
    settings: Mapping[str, Any] | None = None,
    console: Console | None = None,
) -> EvalReport:
    """Train slide heads on a frozen hierarchy, by nested cross-validation grouped by patient.

    Parameters
    ----------
    hierarchy : str or Path
        A run of ``pretrain`` with ``backbone="hipt"``.
    data : str or Path
        Labelled slides.
    out : str or Path
        New folder for heads and results.
    options : HeadOptions, optional
        Heads, folds, label fractions.
    settings : mapping, optional
        Columns of the slide table: ``data.manifest``, ``data.label``, ``data.group``.
    console : Console, optional
        Receives messages and progress.

    Returns
    -------
    EvalReport
        AUROC and balanced accuracy with 95 % intervals, as in ``out/slides.json``.

    Raises
    ------
    UsageError, DataError, EvaluationError, ContaminationError

    Examples
    --------
    ``hipt`` is a run of ``pretrain`` with ``backbone="hipt"``; the table has the columns path, label and patient.

    >>> options = saccade.HeadOptions(heads=("abmil",), nested=saccade.NestedConfig(folds=5))  # doctest: +SKIP
    >>> report = saccade.finetune_slides("hipt", "slides.csv", out="heads", options=options)  # doctest: +SKIP
    >>> report.to_pandas()  # doctest: +SKIP
    """
    return evaluate_slides.finetune(
        Path(hierarchy), str(absolute(data)), Path(out), options or HeadOptions(), settings or {}, console or Quiet()
    )


def compare(
    data: str | Path,
    *,
    out: str | Path,
    backbones: Sequence[str],
    sizes: Sequence[int],
    options: CompareOptions | None = None,
    console: Console | None = None,
) -> Path:
    """Compare backbones: train each at every training-set size, and write the learning curves.

    Called again with the same settings, a study continues; backbones, sizes and seeds may be added.

    Parameters
    ----------
    data : str or Path
        Labelled images.
    out : str or Path
        Folder of the study.
    backbones : sequence of str
        Two or more architectures.
    sizes : sequence of int
        Numbers of training images.
    options : CompareOptions, optional
        Regimes, seeds, budget.
    console : Console, optional
        Receives messages and progress.

    Returns
    -------
    Path
        ``out/study.html``; study.json, study.md, study.csv and one folder per trial are next to it.

    Raises
    ------
    UsageError, DataError, TrainingError

    Examples
    --------
    Four trainings, half a minute:

    >>> options = saccade.CompareOptions(regimes=("supervised",), seeds=1)  # doctest: +SKIP
    >>> names = ["resnet10_w8", "vit_micro_patch8_w32"]  # doctest: +SKIP
    >>> data = "synthetic:tissue?n=200&size=32"  # doctest: +SKIP
    >>> saccade.compare(data, out="study", backbones=names, sizes=[30, 60], options=options)  # doctest: +SKIP
    PosixPath('study/study.html')
    """
    options = options or CompareOptions()
    names = tuple(backbones)
    study = dataclasses.replace(options.study, data=str(absolute(data)))
    if options.match:
        names = runner.matched_names(names, options.match, study.size_px)
    design = Design(names, tuple(options.regimes), tuple(sizes), tuple(range(options.seeds)))
    return runner.compare(study, design, Path(out), workers=options.workers, console=console or Quiet())


def search(
    model: str | Path,
    image: str | Path,
    *,
    store: str | Path,
    options: SearchOptions | None = None,
    console: Console | None = None,
) -> SearchResult:
    """Search a feature table for the images most similar to one image; with a hierarchy, for similar slides.

    Parameters
    ----------
    model : str or Path
        The model that made the table.
    image : str or Path
        The query image, or slide.
    store : str or Path
        Feature table written by ``embed``.
    options : SearchOptions, optional
        Number of neighbours, filter, index.
    console : Console, optional
        Receives messages and progress.

    Returns
    -------
    SearchResult

    Raises
    ------
    ModelError
        When another model made the table.

    Examples
    --------
    >>> import saccade
    >>> from PIL import Image
    >>> data = "synthetic:tissue?n=8&size=32"
    >>> table = saccade.embed("random:resnet10_w8", data, out="features.parquet")
    >>> pixels = saccade.open_source(data).read(5).pixels
    >>> Image.fromarray(pixels.transpose(1, 2, 0)).save("query.png")
    >>> result = saccade.search("random:resnet10_w8", "query.png", store="features.parquet")
    >>> result.rows()[0]["id"] == table.ids[5]
    True
    """
    options = options or SearchOptions()
    if hierarchy_settings.is_hierarchy(model):
        return search_slides.search(Path(model), image, store, options, console or Quiet())
    return searching.search(model, image, store, options)


def export(model: str | Path, *, to: str, out: str | Path) -> float | None:
    """Export a model to another program and verify its features there.

    Parameters
    ----------
    model : str or Path
        Run folder, weights file, ``random:NAME`` or ``timm:NAME``.
    to : str
        timm, hf (transformers), onnx or safetensors.
    out : str or Path
        New folder.

    Returns
    -------
    float or None
        Largest difference between the features of both programs, relative to the largest feature; None when the other
        program is not installed.

    Raises
    ------
    ModelError
        When the other program does not have this architecture.

    Examples
    --------
    >>> import saccade
    >>> saccade.export("random:vit_micro_patch8", to="safetensors", out="exported")
    0.0
    """
    return model_export.export(model, to, Path(out))


def report(run: str | Path) -> Path:
    """Write the HTML report of a run, study or folder of slide heads from its files. Returns the path of the page."""
    if (Path(run) / "study.yaml").exists():
        return runner.page_so_far(Path(run))
    return write_report(Path(run))


def report_interactive(
    run: str | Path, out: str | Path, *, images: Sequence[str | Path] = (), size_px: int | None = None
) -> tuple[Path, str]:
    """Write the attention explorer for selected images as one HTML file.

    Parameters
    ----------
    run : str or Path
        A run or another model.
    out : str or Path
        The HTML file.
    images : sequence of str or Path
        Image files; empty: a few images of the run's data, one per class.
    size_px : int, optional
        Shorter side of the images; None: the input size of the model.

    Returns
    -------
    (Path, str)
        The file, and a note on its content.
    """
    return single_file.write_interactive(run, out, images, size_px)


def replay(run: str | Path) -> dict[str, Any]:
    """Re-run the last step that a run skipped because its loss was not finite. Raises UsageError without one."""
    return replay_step(Path(run))
