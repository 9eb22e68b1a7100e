"""The files of a run that a report reads; missing or truncated files are empty. No torch."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from saccade.base import run_folder
from saccade.base.run_folder import not_a_run
from saccade.base.version_0_1 import with_current_names
from saccade.reporting.evaluation_results import Evaluation, read_evaluation
from saccade.reporting.html import number, sequence
from saccade.train.diagnose import DIAGNOSES

FILES = ("config.yaml", "env.json", "data.json", "metrics.jsonl", "evaluation.json", run_folder.HIERARCHY)


@dataclass(frozen=True)
class RunFiles:
    """The contents of a run folder; empty for a file that is missing or unreadable."""

    folder: Path
    config: Mapping[str, Any]
    env: Mapping[str, Any]
    data: Mapping[str, Any]
    notes: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]
    classifier: Mapping[str, Any]
    chosen: Mapping[str, Any]
    repairs: Sequence[Mapping[str, Any]]
    hierarchy: Mapping[str, Any]
    evaluation: Evaluation | None
    evaluation_grey: Evaluation | None
    figures: Sequence[Mapping[str, Any]]
    doctor: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def setting(self, group: str, key: str) -> Any:
        values = self.config.get(group)
        return values.get(key) if isinstance(values, Mapping) else None


def read_run(folder: Path) -> RunFiles:
    """Read every readable file of a run.

    Raises
    ------
    UsageError
        The folder is not a run.
    """
    if not any((folder / name).exists() for name in FILES):
        raise not_a_run(folder)
    listed = _json(folder / "figures" / "index.json")
    metrics = [line for line in _lines(folder / "metrics.jsonl") if math.isfinite(number(line.get("step")))]
    chosen = mapping(_json(folder / "chosen.json"))
    if not any(number(line.get("knn")) > 0 for line in metrics):
        metrics, chosen = [_without_knn(line) for line in metrics], _without_knn(chosen)
    return RunFiles(
        folder=folder,
        config=mapping(_yaml(folder / "config.yaml")),
        env=mapping(_json(folder / "env.json")),
        data=mapping(_json(folder / "data.json")),
        notes=mapping(_json(folder / "notes.json")),
        metrics=metrics,
        repairs=_lines(folder / "repairs.jsonl"),
        chosen=chosen,
        classifier=mapping(_json(folder / "classifier.json")),
        hierarchy=mapping(_yaml(folder / run_folder.HIERARCHY)),
        evaluation=read_evaluation(_json(folder / "evaluation.json")),
        evaluation_grey=read_evaluation(_json(folder / "evaluation-grey.json")),
        figures=[f for f in sequence(listed) if isinstance(f, Mapping)],
        doctor=mapping(_json(folder / DIAGNOSES)),
    )


def _without_knn(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The record without its live k-NN values, at any depth.

    Older runs have a k-NN accuracy that is always 0 where no tested class could be voted for; it is not a measurement.
    """
    remaining = {key: value for key, value in values.items() if key != "knn"}
    return {key: _without_knn(value) if isinstance(value, Mapping) else value for key, value in remaining.items()}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _json(path: Path) -> Any:
    try:
        return json.loads(_text(path))
    except ValueError:
        return None


def _yaml(path: Path) -> Any:
    try:
        values = yaml.safe_load(_text(path))
    except yaml.YAMLError:
        return None
    return with_current_names(values) if isinstance(values, Mapping) else values


def mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _lines(path: Path) -> list[Mapping[str, Any]]:
    records = []
    for text in _text(path).splitlines():
        try:
            line = json.loads(text)
        except ValueError:  # the last line of an interrupted run
            continue
        if isinstance(line, Mapping):
            records.append(line)
    return records


def last(run: RunFiles, key: str) -> float:
    """The latest finite value of a logged figure; NaN when there is none."""
    values = (number(line.get(key)) for line in reversed(run.metrics))
    return next((v for v in values if math.isfinite(v)), math.nan)


def uniform_entropy(run: RunFiles) -> float:
    """ln K, loss and entropy of a head with K prototypes and uniform output; NaN for methods without prototypes."""
    prototypes = any("teacher_entropy" in line for line in run.metrics)
    k = number(run.setting(str(run.setting("train", "method")), "out_dim")) if prototypes else math.nan
    return math.log(k) if k > 1 else math.nan
