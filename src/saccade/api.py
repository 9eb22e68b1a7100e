"""The public functions: the same words as the command line, for notebooks and scripts."""

from __future__ import annotations

import dataclasses
import platform
import shutil
from collections.abc import Mapping, Sequence
from importlib import metadata, util
from pathlib import Path
from typing import Any

import numpy as np
import torch

from saccade import config, embedding, panels, runs, runtime
from saccade.backbones.weights import LoadedModel, load_model
from saccade.data.audit import Audit, audit, contact_sheet
from saccade.data.open import open_source
from saccade.data.splits import grouped_split
from saccade.errors import EvaluationError, UsageError
from saccade.evaluation.guard import check_overlap, refuse_overlap
from saccade.evaluation.protocol import EvalReport, ProtocolConfig
from saccade.evaluation.protocol import evaluate as run_protocol
from saccade.evaluation.tables import to_csv, to_markdown
from saccade.recipes import apply_recipe
from saccade.reporting.build import write_report
from saccade.store import FeatureTable, save_table
from saccade.train import run as training
from saccade.train.loop import Console

__all__ = ["attend", "doctor", "embed", "evaluate", "open_source", "pretrain", "report", "resume", "show"]


class Quiet:
    """A console that keeps messages and shows nothing."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def say(self, text: str) -> None:
        self.messages.append(text)

    def progress(self, step: int, total: int, logs: dict[str, float]) -> None:
        pass


def show(data: str | Path, *, group: str | None = None, max_bad: float = 0.05, sheet: Path | None = None) -> Audit:
    """What is in there: counts, sizes, bit depth, labels, groups, duplicates, damaged files.

    sheet   where to write a contact sheet (PNG); None writes none
    """
    source = open_source(data, group=group)
    found = audit(source, max_bad=max_bad)
    if sheet is not None:
        contact_sheet(source, sheet)
    return found


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
               what is left open is decided from the data and printed
    Raises UsageError, DataError, NonFiniteLoss, StorageError.
    """
    sections = apply_recipe(training.default_sections(method), recipe)
    sections = config.override(sections, {"data.source": str(_absolute(data))})
    if backbone is not None:
        sections = config.override(sections, {"model.backbone": backbone})
    sections = config.override(sections, settings or {})
    folder = training.start(sections, Path(out), console or Quiet())
    if runtime.rank() == 0:
        write_report(folder)
    return folder


def resume(run: str | Path, *, console: Console | None = None) -> Path:
    """Continue a run that was interrupted; on the CPU its losses are those of an uninterrupted one."""
    folder = training.resume(Path(run), console or Quiet())
    write_report(folder)
    return folder


def _absolute(data: str | Path) -> str | Path:
    return data if str(data).startswith("synthetic:") else Path(data).resolve()


def embed(
    model: str | Path, data: str | Path, *, out: Path | None = None, grey: bool = False, max_bad: float = 0.05
) -> FeatureTable:
    """One feature vector for every image of ``data``; written to ``out`` (Parquet) when named."""
    device = runtime.pick_device()
    decoded = embedding.Decoded(open_source(data), max_bad=max_bad, report=None)
    loaded = _load(model, decoded)
    table = embedding.embed_model(
        loaded, decoded, device=device, precision=_precision(device), grey=grey, own_range=_is_trained(model)
    )
    if out is not None:
        save_table(out, table)
    return table


def _precision(device: torch.device) -> str:
    return "bf16" if runtime.gains_from_bf16(device) else "fp32"


def _is_trained(model: str | Path) -> bool:
    return not str(model).startswith("random:")


def _load(model: str | Path, decoded: embedding.Decoded) -> LoadedModel:
    first = decoded.source.read(0).pixels
    return load_model(model, channels=first.shape[0], size_px=min(224, *first.shape[-2:]))


@dataclasses.dataclass(frozen=True)
class EvaluateOptions:
    """What ``evaluate`` measures beside the models themselves."""

    labels: Path | None = None
    label: str | None = None
    group: str | None = None
    grey: bool = False
    baselines: bool = True
    allow_overlap: bool = False
    max_bad: float = 0.05
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
    source = open_source(data, manifest=options.labels, label=options.label, group=options.group)
    decoded = embedding.Decoded(source, max_bad=options.max_bad, report=None)
    named = [str(m) for m in models if str(m) != "pixels"]
    if not named:
        raise UsageError("evaluate needs at least one model besides pixels", hint="for example random:resnet18")
    loaded = {
        name: dataclasses.replace(_load(m, decoded), name=name) for m in named if (name := _display_name(m, named))
    }
    tables = _tables(loaded, dict(zip(loaded, named)), decoded, options, console)
    train, test, split_text = _parts(next(iter(tables.values())), options)
    overlap = _guard(named, next(iter(tables.values())).select(test), options)
    console.say("fitting probes")
    found = run_protocol(embedding.split_tables(tables, train.tolist(), test.tolist()), options.protocol)
    found = found.with_context(split=split_text, overlap=overlap, grey=options.grey)
    folder = out or _run_folder(named)
    if folder is not None:
        _write_evaluation(folder, found, options.grey)
        if (folder / "config.yaml").exists():
            panels.draw(folder, tables, loaded, decoded, (train, test))
            write_report(folder)
    return found


def _tables(
    loaded: Mapping[str, LoadedModel],
    given: Mapping[str, str],
    decoded: embedding.Decoded,
    options: EvaluateOptions,
    console: Console,
) -> dict[str, FeatureTable]:
    device = runtime.pick_device()
    precision = _precision(device)
    tables: dict[str, FeatureTable] = {}
    for name, model in loaded.items():
        console.say(f"embedding {len(decoded.source):,} images with {name}")
        tables[name] = embedding.embed_model(
            model,
            decoded,
            device=device,
            precision=precision,
            grey=options.grey,
            own_range=_is_trained(given[name]),
        )
    if options.baselines:
        first = next(iter(loaded.values()))
        twin = embedding.random_twin(first, seed=options.protocol.seed + 1)
        tables[twin.name] = embedding.embed_model(twin, decoded, device=device, precision=precision, grey=options.grey)
        tables |= embedding.embed_baselines(decoded, first.spec.size_px, grey=options.grey or first.spec.grey)
    return tables


def _display_name(model: str, others: Sequence[str]) -> str:
    """A run is shown as ``dino resnet10``; its folder is added where two would read alike."""
    path = Path(model)
    if not (path / "config.yaml").exists():
        return model
    values = config.load(path / "config.yaml")
    plain = f"{values['train']['method']} {values['model']['backbone']}"
    return plain if len(others) == 1 else f"{plain} ({path.name})"


def _parts(table: FeatureTable, options: EvaluateOptions) -> tuple[np.ndarray, np.ndarray, str]:
    """Training and test part of the labelled images: the source's own split, or a grouped one."""
    labelled = np.array([label is not None for label in table.labels])
    if labelled.sum() < 2:
        raise EvaluationError(
            "these images have no labels to measure with",
            hint="name a table with --labels CSV (columns path,label,group), or use one folder a class",
        )
    splits = np.array([str(s) for s in table.splits])
    train, test = (
        np.flatnonzero(labelled & (splits == "train")),
        np.flatnonzero(labelled & (splits == "test")),
    )
    if len(train) and len(test):
        return train, test, "the split given with the data"
    chosen = np.flatnonzero(labelled)
    records = [embedding.record_of(table, int(i)) for i in chosen]
    inside_train, inside_test = grouped_split(records, 0.3, options.protocol.seed)
    kind = "whole groups" if any(g is not None for g in table.groups) else "images (no groups are known)"
    return (
        chosen[inside_train],
        chosen[inside_test],
        f"30 % of the {kind} drawn as test part, seed {options.protocol.seed}",
    )


def _guard(named: Sequence[str], test: FeatureTable, options: EvaluateOptions) -> bool:
    found = False
    for model in named:
        record = Path(model) / "data.json"
        if record.exists():
            overlap = check_overlap(runs.read_json(record), test)
            found |= refuse_overlap(overlap, allow=options.allow_overlap)
    return found


def _run_folder(named: Sequence[str]) -> Path | None:
    runs_named = [Path(m) for m in named if (Path(m) / "config.yaml").exists()]
    return runs_named[0] if len(runs_named) == len(named) == 1 else None


def _write_evaluation(folder: Path, found: EvalReport, grey: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    stem = "evaluation-grey" if grey else "evaluation"
    runs.write_json(folder / f"{stem}.json", found.to_dict())
    runs.write_atomic(folder / f"{stem}.csv", to_csv(found))
    runs.write_atomic(folder / f"{stem}.md", to_markdown(found))


def attend(model: str | Path, image: str | Path, *, options: panels.AttendOptions | None = None) -> panels.Attended:
    """Where does the model look? Attention (or token similarity, for CNNs) of one query over an image.

    Returns the map with its numbers; ``.save(path)`` writes PNG, SVG or CSV by suffix.
    """
    return panels.attend(model, image, options or panels.AttendOptions())


def report(run: str | Path) -> Path:
    """Write RUN/report.html again from the files of the run. Returns its path."""
    runs.require_run(Path(run))
    return write_report(Path(run))


def doctor() -> dict[str, Any]:
    """What saccade finds on this machine: versions, devices, precision, optional packages, free disk."""
    device = runtime.pick_device()
    optional = {
        "slides": "openslide",
        "dicom": "pydicom",
        "web": "fastapi",
        "search": "lancedb",
        "text": "transformers",
        "onnx": "onnx",
    }
    return {
        "saccade": metadata.version("saccade"),
        "python": platform.python_version(),
        **runtime.environment(device),
        "precision": _precision(device),
        "cuda_devices": torch.cuda.device_count(),
        "extras": {name: util.find_spec(module) is not None for name, module in optional.items()},
        "free_disk_gib": round(shutil.disk_usage(Path.cwd()).free / 2**30, 1),
    }
