"""``saccade finetune``: supervised training from a model or from random weights, with early stopping and a test split.

The run is an ordinary run (settings, checkpoints, metrics, model, report); ``classifier.json`` holds the test metrics
and ``predictions.csv`` the predicted probabilities of every test image.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from saccade import runtime
from saccade.base import config, frames, run_folder
from saccade.base.contracts import Source
from saccade.base.files import check_writable, write_text
from saccade.data.cache.image_cache import build_cache
from saccade.data.sources.source import select
from saccade.data.splits import Parts, choose_parts, unit_names
from saccade.data.volumes.intensity import intensity_of
from saccade.errors import UsageError, unknown
from saccade.evaluation.contamination import (
    Overlap,
    check_overlap,
    doubts,
    refuse_overlap,
    refuse_shared,
    seen_in_pretraining,
)
from saccade.evaluation.metrics import METRICS, figure, interval, resampling_weights
from saccade.evaluation.small_samples import FEW_UNITS, few_words, mark
from saccade.models.backbones.weights import load_model
from saccade.train import pretrain as training
from saccade.train.classifier import Classifier, load_classifier
from saccade.train.data_selection import hash_of, labels_in, open_all, subset_of
from saccade.train.loop import Console
from saccade.train.recipes import apply_recipe
from saccade.train.run_config import RunConfig, absolute_paths, default_config, load_config
from saccade.train.settings import DataConfig

Augment = Literal["none", "weak", "strong"]
PLAIN = {
    "views.global_count": 1,
    "views.local_count": 0,
    "views.jitter_prob": 0.0,
    "views.grey_prob": 0.0,
    "views.stain": 0.0,
    "views.blur_prob": (0.0, 0.0, 0.0),
    "views.low_resolution_prob": 0.0,
    "views.solarise_prob": 0.0,
}
AUGMENT: dict[str, dict[str, Any]] = {
    # The full image, without augmentation.
    "none": PLAIN
    | {
        "views.global_scale": (1.0, 1.0),
        "views.aspect": (1.0, 1.0),
        "views.hflip": False,
        "views.vflip": False,
        "views.turn90": False,
    },
    # Geometry: crops, and the flips and rotations by 90 degrees that the recipe allows.
    "weak": PLAIN | {"views.global_scale": (0.6, 1.0)},
    # As DINO's global views, with colour, blur and free rotation.
    "strong": {
        "views.global_count": 1,
        "views.local_count": 0,
        "views.global_scale": (0.35, 1.0),
        "views.rotate_degrees": 45.0,
        "views.blur_prob": (0.2, 0.2, 0.2),
    },
}
"""Views of supervised training, by strength; they override those of the recipe."""

USUAL: dict[str, Any] = {
    "optim.weight_decay": 0.05,
    "optim.weight_decay_end": 0.05,
    "data.validation": 0.2,
    "train.patience": 5,
}


@dataclass(frozen=True)
class FinetuneOptions:
    """Options of ``finetune``.

    Parameters
    ----------
    augment : {"none", "weak", "strong"}
        Augmentation: none; crops and flips; also color, blur and rotation.
    frozen : bool
        Train only the classifier.
    recipe : str
        Augmentation recipes, separated by commas.
    allow_overlap : bool
        Continue although test images were seen in pretraining; all results are marked.
    """

    augment: str = "weak"
    frozen: bool = False
    recipe: str = "microscopy"
    allow_overlap: bool = False


FILE = "classifier.json"


@dataclass(frozen=True)
class FinetuneReport(frames.Tabular):
    """Test metrics of a network trained with labels: the content of ``classifier.json``.

    Parameters
    ----------
    classes : list of str
        In the order of the outputs and of ``confusion``.
    n_test, units_test : int
        Test images, and groups (or single images) that the intervals are over.
    majority : float
        Accuracy of predicting the most frequent class.
    rows : list of dict
        ``metric``, ``mean``, ``low`` and ``high`` of accuracy, balanced accuracy and AUROC; None where undefined.
    confusion : list of list of int
        [K K] counts, rows are true classes.
    protocol : dict
        ``split``, ``overlap`` and ``text``.
    """

    classes: list[str]
    n_test: int
    units_test: int
    majority: float
    rows: list[dict[str, Any]]
    confusion: list[list[int]]
    protocol: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def frame_columns(self) -> dict[str, list[Any]]:
        """The rows."""
        return frames.columns_of(self.rows)

    def _repr_html_(self) -> str:
        return frames.to_html("Test metrics", self.frame_columns())

    def text(self) -> str:
        """The metrics as text for a terminal."""
        about = self.to_dict()
        lines = [self.protocol["text"], ""]
        for row in self.rows:
            name = str(row["metric"]).replace("_", " ")
            if row["mean"] is None:
                lines.append(f"{name:18s}     –")
                continue
            limits = f" [{100 * row['low']:.1f}, {100 * row['high']:.1f}]{mark(about)}" if self.units_test > 1 else ""
            lines.append(f"{name:18s} {100 * row['mean']:5.1f} %{limits}")
        return "\n".join([*lines, *filter(None, [few_words(about)])])


def read_report(run: Path) -> FinetuneReport | None:
    """The test metrics of a finished run; None where it was trained on all images. Raises StorageError."""
    return FinetuneReport(**run_folder.read_json(run / FILE)) if (run / FILE).exists() else None


def supervised_config(
    backbone: str, options: FinetuneOptions, settings: Mapping[str, Any], usual: Mapping[str, Any] = USUAL
) -> RunConfig:
    """The settings of a supervised run. Raises UsageError for an unknown augmentation."""
    if options.augment not in get_args(Augment):
        raise unknown("augmentation", options.augment, get_args(Augment))
    run = apply_recipe(default_config("supervised"), options.recipe)
    run = config.override(run, AUGMENT[options.augment] | dict(usual))
    run = config.override(run, {"model.backbone": backbone, "supervised.frozen": options.frozen})
    return config.override(run, settings)


def named_model(model: str | Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of MODEL: a backbone with random weights, or pretrained weights with their input settings."""
    kind, sign, name = str(model).partition(":")
    if sign and kind == "random":
        return {"model.backbone": name}
    loaded = load_model(model)
    slices = {"model.slices": count} if (count := loaded.backbone.config().get("slices")) else {}
    location = str(model) if str(model).startswith("timm:") else str(Path(model).resolve())
    # A model of grey images needs grey images; a model of color images takes both.
    grey = {"data.grey": True} if loaded.spec.grey else {}
    return {"model.backbone": loaded.backbone.name, "model.weights": location} | grey | slices


def finetune(
    model: str | Path, out: Path, options: FinetuneOptions, settings: Mapping[str, Any], console: Console
) -> FinetuneReport | None:
    """Train with labels and measure on the test split; None where all images are trained on (``data.split=all``).

    settings   by dotted key, including ``data.source``
    """
    settings = named_model(model, settings) | dict(settings)
    run = absolute_paths(supervised_config(str(settings["model.backbone"]), options, settings))
    if run.frozen and not run.model.weights:
        raise UsageError("--frozen has no effect with random weights", hint="start from a pretrained MODEL")
    if not run.data.validation:
        run = config.override(run, {"train.patience": 0})
    check_writable(out)  # before all images are read
    with training.lock_run(out):
        _guard_before(run.data, run.model.weights, options.allow_overlap)
        training.begin(run, out, console)
        return measure(out, console, allow=options.allow_overlap)


def _parts(source: Source, held_out: set[str]) -> tuple[Parts, list[str]]:
    hashes = [hash_of(source, i) or f"unreadable {i}" for i in range(len(source))]
    return choose_parts(source.records, hashes, seed=0, held_out=held_out), hashes


def _guard_before(data: DataConfig, weights: str, allow: bool) -> None:
    """Refuse test images that are training or pretraining images, before the training starts."""
    if data.split == "all":
        return
    source = open_all(data, weights)
    if not labels_in(source):
        return  # reported later, when classes are looked up
    part = subset_of(source, data)
    parts, hashes = _parts(source, set(part.held_out))
    refuse_shared(source.records, hashes, parts.train.tolist(), parts.test.tolist(), allow=allow)
    learned = {record.id for record in part.source.records}
    training = [(r, digest) for r, digest in zip(source.records, hashes) if r.id in learned and r.label is not None]
    files = [{"sha256": digest, "group": r.group} for r, digest in training]
    _refuse_learned(check_overlap(files, source.records, hashes, parts.test.tolist()), data, allow)
    record = run_folder.data_record(weights) if weights else None
    refuse_overlap(
        check_overlap(seen_in_pretraining(record), source.records, hashes, parts.test.tolist()),
        allow=allow,
        where=f"{weights} was pretrained on part of the test split",
        hint="pretrain with a table whose split column marks the test images, and with the same --group",
    )


def _refuse_learned(overlap: Overlap, data: DataConfig, allow: bool) -> bool:
    """Raise ContaminationError where test images are training images; returns whether results must be marked."""
    return refuse_overlap(
        overlap,
        allow=allow,
        where=f"{data.source}: images or groups of the test split are also training data",
        hint="mark the test images, by group, in a split column; --set data.split=all trains without a test split",
    )


# --- measuring ----------------------------------------------------------------------------------


def measure(run: Path, console: Console, *, allow: bool = False) -> FinetuneReport | None:
    """Test metrics of a finished run, written to ``classifier.json`` and ``predictions.csv``; None without a test part.

    Raises ContaminationError where test images were training images, unless ``allow`` marks the results.
    """
    settings = load_config(run)
    data, record = settings.data, run_folder.read_json(run / "data.json")
    if data.split == "all":
        console.say("trained on all images (data.split=all): no test split to measure on")
        return None
    source = open_all(data, "")
    parts, hashes = _parts(source, set(record["held_out"]))
    learned = check_overlap(seen_in_pretraining(record), source.records, hashes, parts.test.tolist())
    overlap = _refuse_learned(learned, data, allow)
    classifier = load_classifier(run)
    test = select(source, parts.test.tolist())
    cache = build_cache(
        test,
        cache_px=settings.model.size_px,
        channels=classifier.spec.channels,
        max_bad=data.max_bad,
        intensity=intensity_of(classifier.spec),
        size_mm=classifier.spec.size_mm,
    )
    everything = range(len(cache))
    copies = check_overlap(
        seen_in_pretraining(record), cache.records, cache.hashes, everything, pixels=cache.pixel_hashes
    )
    overlap |= _refuse_learned(copies, data, allow)
    warnings = doubts(seen_in_pretraining(record), cache.records, cache.perceptual, everything, where="training")
    for warning in warnings:
        console.say(f"warning: {warning}")
    device = runtime.pick_device(settings.train.device)
    scores = classifier.scores(cache, np.arange(len(cache)), device, settings.train.precision)
    figures = score(scores, [str(r.label) for r in cache.records], [r.group for r in cache.records], classifier)
    text = " ".join([*(f"WARNING: {warning}" for warning in warnings), _text(figures, parts, overlap)])
    report = FinetuneReport(**figures, protocol={"split": parts.text, "overlap": overlap, "text": text})
    run_folder.write_json(run / FILE, report.to_dict())
    write_text(run / "predictions.csv", _predictions(scores, cache.records, classifier.classes))
    return report


def score(scores: np.ndarray, labels: list[str], groups: list[str | None], classifier: Classifier) -> dict[str, Any]:
    """The fields of ``FinetuneReport`` but for ``protocol``; intervals are 95 % over groups."""
    unseen = sorted(set(labels) - set(classifier.classes))
    if unseen:
        raise UsageError("the test split has classes that the training split lacks", got=", ".join(unseen[:5]))
    number = {name: i for i, name in enumerate(classifier.classes)}
    truth = np.array([number[label] for label in labels])
    weights = resampling_weights(groups, 1000, 0)
    units = len(set(unit_names(groups)))
    unit_weights = np.ones((1, len(truth)))
    rows = []
    for metric, function in METRICS.items():
        mean = float(function(scores, truth, unit_weights)[0])
        low, high = interval(mean, function(scores, truth, weights[:200] if metric == "auroc" else weights), units)
        rows.append({"metric": metric, "mean": figure(mean), "low": figure(low), "high": figure(high)})
    confusion = np.zeros((len(number), len(number)), np.int64)
    np.add.at(confusion, (truth, scores.argmax(axis=1)), 1)
    return {
        "classes": list(classifier.classes),
        "n_test": len(truth),
        "units_test": units,
        "majority": float(np.bincount(truth).max() / len(truth)),
        "rows": rows,
        "confusion": confusion.tolist(),
    }


def _text(report: Mapping[str, Any], parts: Parts, overlap: bool) -> str:
    words = [f"Test split: {parts.text}; {report['n_test']:,} images, {len(report['classes'])} classes."]
    units = report["units_test"]
    words.append(f"95 % intervals by bootstrap over {units} groups or images.")
    if units < FEW_UNITS:
        words.append("So few of them give unreliable intervals." if units > 1 else "A single one has no interval.")
    words.append(f"Predicting the most frequent class gives {100 * report['majority']:.1f} % accuracy.")
    if any(row["mean"] is None for row in report["rows"]):
        words.append("All of them are of one class, so that AUROC is undefined.")
    if overlap:
        words.append("WARNING: part of the test split was used in training or pretraining.")
    return " ".join(words)


def _predictions(scores: np.ndarray, records: Sequence[Any], classes: tuple[str, ...]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["path", "label", "predicted", *classes])
    for row, record in zip(scores, records):
        writer.writerow([record.id, record.label, classes[int(row.argmax())], *(f"{p:.5f}" for p in row)])
    return file.getvalue()
