"""Few-label evaluation of models: embed, guard against overlap, fit probes, write the table (``saccade evaluate``)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from saccade import runtime
from saccade.attention import image
from saccade.base import config, run_folder
from saccade.base.files import check_writable, make_folder, write_text
from saccade.data.cache.image_cache import ImageCache
from saccade.data.open import left_aside, open_source
from saccade.data.slides.tiling import Tiling
from saccade.data.splits import Parts, choose_parts
from saccade.errors import UsageError
from saccade.evaluation.contamination import (
    check_overlap,
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
    """A model with its input fitted to the data, and what there is to say about that."""
    axes = decoded.source.axes
    largest = {2: 224, 3: 64}[axes]
    loaded = load_model(model, channels=decoded.channels, size_px=min(largest, decoded.typical_px), axes=axes)
    return embed_images.fit_input(loaded, decoded)


@dataclasses.dataclass(frozen=True)
class EvaluateOptions:
    """What ``evaluate`` measures beside the models themselves.

    tiling   how slides are cut; what is left open is as the first model was trained
    """

    labels: Path | None = None
    label: str | None = None
    group: str | None = None
    grey: bool = False
    baselines: bool = True
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
    """Few-label evaluation by the protocols of docs/reference/protocols.md.

    The baselines (random weights of the first model, raw pixels, colour histogram) come with every table.
    Results go to ``out``, or to the run folder when there is exactly one model and it is a run.
    Raises ContaminationError when test images or groups were seen in pretraining.
    """
    options, console = options or EvaluateOptions(), console or Quiet()
    named = [str(m) for m in models if str(m) != "pixels"]
    if not named:
        raise UsageError("evaluate needs at least one model besides pixels", hint="for example random:resnet18")
    folder = out or _run_folder(named)
    if folder is not None:
        check_writable(folder)
    tiling = as_trained(named[0], options.tiling)
    source = open_source(data, manifest=options.labels, label=options.label, group=options.group, tiling=tiling)
    if aside := left_aside(source):
        console.say(aside)
    decoded = embed_images.Decoded(source, max_bad=options.max_bad, report=None)
    loaded: dict[str, LoadedModel] = {}
    for name, model in _names(named).items():
        network, said = fitted_model(model, decoded)
        if said:
            console.say(said)
        loaded[name] = dataclasses.replace(network, name=name)
    first = next(iter(loaded.values())).spec
    cache = decoded.at(first.size_px, first.channels)
    pretrained = [record for m in named if (record := run_folder.data_record(m)) is not None]
    held_out = held_out_of(pretrained, cache.hashes)
    parts = choose_parts(cache.records, cache.hashes, seed=options.protocol.seed, held_out=held_out)
    overlap = _guard(pretrained, cache, parts, options.allow_overlap)
    tables = _tables(loaded, decoded, options, console)
    console.say("fitting probes")
    found = run_protocol(embed_images.split_tables(tables, parts.train, parts.test), options.protocol)
    found = found.with_context(data=_place(data), split=parts.text, overlap=overlap, grey=options.grey)
    if folder is not None:
        _write_evaluation(folder, found, options.grey)
        if (folder / "config.yaml").exists():
            if not options.grey:  # the report's pictures show the images as they are
                image.draw(folder, tables, loaded, decoded, (parts.train, parts.test))
            write_report(folder)
    return found


def _place(data: str | Path) -> str:
    """DATA as the settings of a run name theirs: a path in full, other words as they are."""
    return str(Path(data).resolve()) if Path(data).exists() else str(data)


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


def _names(models: Sequence[str]) -> dict[str, str]:
    """A name for each model in the table: a run is ``dino resnet10``, with its folder where two would read alike."""
    if len({Path(model).absolute() for model in models}) < len(models):
        raise UsageError("a model is named twice", got=", ".join(models), hint="name each model once")
    names: dict[str, str] = {}
    for model in models:
        path = Path(model)
        name = model
        if (path / "config.yaml").exists():
            values = config.load(path / "config.yaml")
            plain = f"{values['train']['method']} {values['model']['backbone']}"
            place = path.absolute()
            spellings = (
                [plain]
                if len(models) == 1
                else [f"{plain} ({place.name})", f"{plain} ({place.parent.name}/{place.name})"]
            )
            name = next((word for word in spellings if word not in names), f"{plain} ({place})")
        names[name] = model
    return names


def _guard(pretrained: Sequence[Mapping[str, Any]], cache: ImageCache, parts: Parts, allow: bool) -> bool:
    """Refuse, or mark, a test part that also lies in the training part or that a model has learned from."""
    marked = refuse_shared(cache.records, cache.hashes, parts.train.tolist(), parts.test.tolist(), allow=allow)
    for record in pretrained:
        seen = seen_in_pretraining(record)
        overlap = check_overlap(seen, cache.records, cache.hashes, parts.test.tolist())
        marked |= refuse_overlap(
            overlap,
            allow=allow,
            where="pretraining saw part of the test part",
            hint="pretrain with a table whose split column names the test part, and with the same --group",
        )
    return marked


def _run_folder(named: Sequence[str]) -> Path | None:
    runs_named = [Path(m) for m in named if (Path(m) / "config.yaml").exists()]
    return runs_named[0] if len(runs_named) == len(named) == 1 else None


def _write_evaluation(folder: Path, found: EvalReport, grey: bool) -> None:
    make_folder(folder)
    stem = "evaluation-grey" if grey else "evaluation"
    run_folder.write_json(folder / f"{stem}.json", found.to_dict())
    write_text(folder / f"{stem}.csv", to_csv(found))
    write_text(folder / f"{stem}.md", to_markdown(found))
