"""``saccade evaluate``: embed, check for overlap with pretraining, fit probes, write the table."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from saccade import runtime
from saccade.attention import image
from saccade.attention.mask_scores import mask_reader, mask_scores
from saccade.base import config, run_folder
from saccade.base.contracts import Source
from saccade.base.files import check_writable, make_folder, write_text
from saccade.base.places import base_name
from saccade.data.cache.image_cache import ImageCache
from saccade.data.open import absolute, left_aside, open_source
from saccade.data.slides.slide_source import skipped_note
from saccade.data.slides.tiling import Tiling
from saccade.data.splits import Parts, choose_parts
from saccade.errors import UsageError
from saccade.evaluation.contamination import (
    check_overlap,
    doubts,
    held_out_of,
    refuse_overlap,
    refuse_shared,
    seen_in_pretraining,
)
from saccade.evaluation.protocol import EvalReport, ProtocolConfig
from saccade.evaluation.protocol import evaluate as run_protocol
from saccade.evaluation.tables import to_csv, to_markdown
from saccade.features import embed_images
from saccade.features.embed_slides import as_trained
from saccade.features.table import FeatureTable
from saccade.models.backbones.weights import LoadedModel, load_model
from saccade.reporting.write import write_report
from saccade.train.loop import Console, Quiet


def fitted_model(model: str | Path, decoded: embed_images.Decoded) -> tuple[LoadedModel, str | None]:
    """A model with its input adapted to the data, and a message about the adaptation."""
    axes = decoded.source.axes
    largest = {2: 224, 3: 64}[axes]
    loaded = load_model(model, channels=decoded.channels, size_px=min(largest, decoded.typical_px), axes=axes)
    return embed_images.fit_input(loaded, decoded)


@dataclasses.dataclass(frozen=True)
class EvaluateOptions:
    """Options of ``evaluate``.

    Parameters
    ----------
    labels : Path, optional
        CSV or Parquet table with labels; ``label`` and ``group`` name its columns.
    label, group : str, optional
        Column with the class; column with the patient, slide or source tile.
    keep_na : bool
        Classes and groups may be called n/a, NA or nan; by default these stand for no value.
    grey : bool
        Convert the images to greyscale.
    baselines : bool
        Add random weights, raw pixels and a color histogram.
    masks : str or Path, optional
        Also measure how well the attention agrees with masks: "auto" (those recognised beside the images) or a folder.
    allow_overlap : bool
        Continue although test images were seen in pretraining; all results are marked.
    max_bad : float
        Largest fraction of damaged files that is tolerated.
    tiling : Tiling, optional
        How slides are cut into tiles; unset values are those of the first model's training.
    protocol : ProtocolConfig
        Label fractions, draws, bootstrap.
    """

    labels: Path | None = None
    label: str | None = None
    group: str | None = None
    keep_na: bool = False
    grey: bool = False
    baselines: bool = True
    masks: str | Path | None = None
    allow_overlap: bool = False
    max_bad: float = 0.05
    tiling: Tiling | None = None
    protocol: ProtocolConfig = dataclasses.field(default_factory=ProtocolConfig)


def evaluate(
    models: Sequence[str | Path],
    data: str | Path,
    *,
    options: EvaluateOptions | None = None,
    out: Path | None = None,
    console: Console | None = None,
) -> EvalReport:
    """Evaluate frozen features with few labels, by the protocols of docs/reference/protocols.md.

    Parameters
    ----------
    models : sequence of str or Path
        Run folders, weights files, ``random:NAME`` or ``timm:NAME``.
    data : str or Path
        Labelled images.
    options : EvaluateOptions, optional
        Labels, baselines, protocol.
    out : Path, optional
        Folder for evaluation.json, .csv and .md; None: the run folder of a single model.
    console : Console, optional
        Receives messages.

    Returns
    -------
    EvalReport
        One row per model, probe, label fraction and metric, with 95 % intervals; baselines included.

    Raises
    ------
    ContaminationError
        When test images or groups were seen in pretraining.

    Examples
    --------
    >>> import saccade
    >>> options = saccade.EvaluateOptions(
    ...     protocol=saccade.ProtocolConfig(fractions=(1.0,), bootstrap=20), baselines=False
    ... )
    >>> report = saccade.evaluate(["random:resnet10_w8"], "synthetic:tissue?n=80&size=32&groups=8", options=options)
    >>> sorted({row["probe"] for row in report.rows})
    ['knn', 'logistic']
    """
    options, console = options or EvaluateOptions(), console or Quiet()
    names = [str(m) for m in models if str(m) != "pixels"]
    if not names:
        raise UsageError("evaluate needs at least one model besides pixels", hint="for example random:resnet18")
    folder = out or _run_folder(names)
    if folder is not None:
        check_writable(folder)
    source = _open_labelled(data, options, names[0], console)
    decoded = embed_images.Decoded(source, max_bad=options.max_bad, report=None)
    loaded: dict[str, LoadedModel] = {}
    for name, model in _names(names).items():
        network, message = fitted_model(model, decoded)
        if message:
            console.say(message)
        loaded[name] = dataclasses.replace(network, name=name)
    first = next(iter(loaded.values())).spec
    cache = decoded.at(first.size_px, first.channels)
    pretrained = [record for m in names if (record := run_folder.data_record(m)) is not None]
    held_out = held_out_of(pretrained, cache.hashes)
    parts = choose_parts(cache.records, cache.hashes, seed=options.protocol.seed, held_out=held_out)
    overlap = _guard(pretrained, cache, parts, options.allow_overlap)
    warnings = _doubts(pretrained, cache, parts)
    for warning in warnings:
        console.say(f"warning: {warning}")
    tables = _tables(loaded, decoded, options, console)
    console.say("fitting probes")
    report = run_protocol(embed_images.split_tables(tables, parts.train, parts.test), options.protocol)
    report = report.with_context(
        data=base_name(str(absolute(data))),
        split=parts.text,
        overlap=overlap,
        grey=options.grey,
        warnings=warnings,
    )
    if options.masks is not None:
        report = dataclasses.replace(report, masks=_mask_scores(loaded, decoded, parts.test.tolist(), options))
    if folder is not None:
        _write_evaluation(folder, report, options.grey)
        if (folder / "config.yaml").exists():
            if not options.grey:  # the report's pictures show the images as they are
                image.draw(folder, tables, loaded, decoded, (parts.train, parts.test))
            write_report(folder)
    return report


def _open_labelled(data: str | Path, options: EvaluateOptions, model: str, console: Console) -> Source:
    """The images as the options say, slides cut as for the model; notes about the data are printed."""
    tiling = as_trained(model, options.tiling)
    source = open_source(
        data,
        manifest=options.labels,
        label=options.label,
        group=options.group,
        keep_na=options.keep_na,
        tiling=tiling,
    )
    for note in filter(None, (left_aside(source), skipped_note(source))):
        console.say(note)
    if options.masks is not None:
        mask_reader(source, options.masks)  # fails before work where the data have no masks
    return source


def _tables(
    loaded: Mapping[str, LoadedModel], decoded: embed_images.Decoded, options: EvaluateOptions, console: Console
) -> dict[str, FeatureTable]:
    device = runtime.pick_device()
    runtime.keep_freed_memory()
    first = next(iter(loaded.values()))
    models = [*loaded.values()] + (
        [embed_images.random_twin(first, options.protocol.seed + 1)] if options.baselines else []
    )
    tables: dict[str, FeatureTable] = {}
    for model in models:
        console.say(f"embedding {len(decoded.source):,} images with {model.name}")
        tables[model.name] = embed_images.embed_model(
            model, decoded, device=device, precision=runtime.usual_precision(device), grey=options.grey
        )
    if options.baselines:
        tables |= embed_images.embed_baselines(decoded, first.spec.size_px, grey=options.grey or first.spec.grey)
    return tables


def _mask_scores(
    loaded: Mapping[str, LoadedModel], decoded: embed_images.Decoded, test: Sequence[int], options: EvaluateOptions
) -> dict[str, Any]:
    """Agreement of the attention with masks, of the models and of random weights in the first one's place."""
    assert options.masks is not None
    seed = options.protocol.seed
    twin = embed_images.random_twin(next(iter(loaded.values())), seed + 1)
    models = dict(loaded) | ({twin.name: twin} if options.baselines else {})
    return mask_scores(models, decoded, test, options.masks, bootstrap=options.protocol.bootstrap, seed=seed)


def _names(models: Sequence[str]) -> dict[str, str]:
    """Row names of the models: a run is ``dino resnet10``, with its folder where names would collide."""
    if len({Path(model).absolute() for model in models}) < len(models):
        raise UsageError("duplicate model", got=", ".join(models), hint="list each model once")
    names: dict[str, str] = {}
    for model in models:
        path = Path(model)
        name = model
        if (path / "config.yaml").exists():
            values = config.load(path / "config.yaml")
            plain = f"{values['train']['method']} {values['model']['backbone']}"
            folder = path.absolute()
            spellings = (
                [plain]
                if len(models) == 1
                else [f"{plain} ({folder.name})", f"{plain} ({folder.parent.name}/{folder.name})"]
            )
            name = next((word for word in spellings if word not in names), f"{plain} ({folder})")
        names[name] = model
    return names


def _guard(pretrained: Sequence[Mapping[str, Any]], cache: ImageCache, parts: Parts, allow: bool) -> bool:
    """Refuse, or mark, test images that are also training images or that a model was pretrained on."""
    train, test = parts.train.tolist(), parts.test.tolist()
    marked = refuse_shared(cache.records, cache.hashes, train, test, allow=allow, pixels=cache.pixel_hashes)
    for record in pretrained:
        learned = seen_in_pretraining(record)
        overlap = check_overlap(learned, cache.records, cache.hashes, test, cache.pixel_hashes)
        marked |= refuse_overlap(
            overlap,
            allow=allow,
            where="pretraining used part of the test split",
            hint="pretrain with a table whose split column marks the test images, and with the same --group",
        )
    return marked


def _doubts(pretrained: Sequence[Mapping[str, Any]], cache: ImageCache, parts: Parts) -> list[str]:
    """Sentences about test images and groups that are nearly those of pretraining or of the training part."""
    test = parts.test.tolist()
    learned = [file for record in pretrained for file in seen_in_pretraining(record)]
    training = [
        {
            "id": cache.records[i].id,
            "group": cache.records[i].group,
            "perceptual": cache.perceptual[i] if cache.perceptual else "",
        }
        for i in parts.train.tolist()
    ]
    return [
        sentence
        for files, where in ((learned, "pretraining"), (training, "the training part"))
        for sentence in doubts(files, cache.records, cache.perceptual, test, where=where)
    ]


def _run_folder(names: Sequence[str]) -> Path | None:
    runs = [Path(m) for m in names if (Path(m) / "config.yaml").exists()]
    return runs[0] if len(runs) == len(names) == 1 else None


def _write_evaluation(folder: Path, report: EvalReport, grey: bool) -> None:
    make_folder(folder)
    stem = "evaluation-grey" if grey else "evaluation"
    run_folder.write_json(folder / f"{stem}.json", report.to_dict())
    write_text(folder / f"{stem}.csv", to_csv(report))
    write_text(folder / f"{stem}.md", to_markdown(report))
