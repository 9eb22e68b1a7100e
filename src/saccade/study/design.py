"""The design of a study: its settings, its trials, their folders, and the budget of each training."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saccade.base import config, places
from saccade.base.files import make_folder, write_text
from saccade.base.locks import is_lock
from saccade.cost import flops as cost
from saccade.errors import UsageError, unknown
from saccade.methods.registry import method_names

REGIMES = {
    "supervised": "labels only, every image always alike",
    "augmented": "labels only, with augmentation",
    "dino": "DINO on the same images without labels; then k-NN, logistic regression and fine-tuning with the labels",
}
SERIES = {
    "supervised": ("supervised",),
    "augmented": ("augmented",),
    "dino": ("dino-knn", "dino-logistic", "dino-finetuned"),
}
"""The learning curves of each regime."""
FORWARD_AND_BACKWARD = 3  # a training step costs about three forward passes


@dataclass(frozen=True)
class StudyConfig:
    """Settings that all trials of a study have in common.

    ``steps`` and ``flops`` are the budget of one training, in optimizer steps or floating-point operations; one of them
    is 0. Fine-tuning after DINO has the same budget again.
    """

    data: str = ""
    manifest: str = ""
    label: str = ""
    group: str = ""
    keep_na: bool = False
    """Classes and groups may be called n/a, NA or nan; by default these stand for no value."""
    grey: bool = False
    size_px: int = 64
    batch: int = 64
    steps: int = 300
    flops: float = 0.0
    augment: str = "weak"
    recipe: str = "microscopy"
    dino_recipe: str = "microscopy,short"
    test_limit: int = 2000
    """Largest number of test images, stratified by class. 0: all."""
    allow_overlap: bool = False
    """Continue although training and test data share images or groups."""
    settings: tuple[str, ...] = ()
    """Further ``key=value`` pairs for every training."""


@dataclass(frozen=True)
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


@dataclass(frozen=True)
class Design:
    """Backbones, regimes, training sizes and seeds; every combination is a trial."""

    backbones: tuple[str, ...]
    regimes: tuple[str, ...]
    sizes: tuple[int, ...]
    seeds: tuple[int, ...]

    def trials(self) -> Iterator[Trial]:
        """Seed by seed and small sizes first, so that an interrupted study has complete curves."""
        for seed in self.seeds:
            for size in sorted(self.sizes):
                for regime in self.regimes:
                    for backbone in self.backbones:
                        yield Trial(backbone, regime, size, seed)


@dataclass(frozen=True)
class Trial:
    backbone: str
    regime: str
    size: int
    seed: int

    def folder(self, out: Path) -> Path:
        return out / "cells" / self.backbone / self.regime / f"n{self.size:06d}-seed{self.seed}"

    def is_done(self, out: Path) -> bool:
        return (self.folder(out) / "cell.json").exists()

    def __str__(self) -> str:
        return f"{self.backbone}, {self.regime}, {self.size:,} images, seed {self.seed}"


def check_design(design: Design, study: StudyConfig) -> None:
    """Raise UsageError for unknown regimes, duplicates and values out of range."""
    for regime in design.regimes:
        if regime not in REGIMES:
            raise unknown("training regime", regime, REGIMES)
    if len(design.backbones) < 2:
        raise UsageError("a comparison needs two or more backbones", got=", ".join(design.backbones))
    for what, values in (("backbone", design.backbones), ("size", design.sizes), ("regime", design.regimes)):
        if len(set(values)) < len(values):
            raise UsageError(f"duplicate {what}", got=", ".join(map(str, values)))
    if min(design.sizes) < 2:
        raise UsageError("the training-set size is too small", got=min(design.sizes), expected="2 or more")
    if bool(study.steps) == bool(study.flops) or study.steps < 0 or study.flops < 0:
        got = f"steps {study.steps}, flops {study.flops:g}"
        raise UsageError(
            "the budget must be a number of steps or of operations", got=got, expected="one of them, above 0"
        )


def training_steps(study: StudyConfig, backbone: str, regime: str, channels: int, batch: int) -> int:
    """Optimiser steps of one training under the budget of the study."""
    if study.steps:
        return study.steps
    flops_per_image = cost.cost(backbone, size_px=study.size_px, channels=channels).flops
    passes = FORWARD_AND_BACKWARD
    if regime == "dino":  # two global crops through the student and the teacher; local ones are a third as large
        passes = 2 * FORWARD_AND_BACKWARD + 2 + round(2 * FORWARD_AND_BACKWARD * (96 / 224) ** 2)
    return max(1, round(study.flops / (flops_per_image * passes * batch)))


def write_settings(out: Path, study: StudyConfig) -> None:
    """Write study.yaml of a new study. Raises UsageError when ``out`` holds a study with other settings."""
    path = out / "study.yaml"
    if not path.exists():
        if out.exists() and (not out.is_dir() or not all(map(is_lock, out.iterdir()))):
            raise UsageError("--out is neither empty nor the folder of a study", got=out, hint="choose a new folder")
        make_folder(out)
        values = {"study": config.section_to_dict(study)}
        places.write_places(out / places.FILE, places.places_of(values, out))
        write_text(path, config.to_yaml(places.without_places(values)))
        return
    stored = read_settings(out)
    differ = [f.name for f in dataclasses.fields(study) if getattr(stored, f.name) != getattr(study, f.name)]
    if differ:
        raise UsageError(
            "the study in --out has other settings",
            got=", ".join(f"{name}={getattr(study, name)}" for name in differ),
            expected=", ".join(f"{name}={getattr(stored, name)}" for name in differ),
            hint="choose a new --out; only backbones, sizes, regimes and seeds of a study may change",
        )


def read_settings(out: Path) -> StudyConfig:
    return config.section_from_dict("study", StudyConfig, config.load(out / "study.yaml")["study"])


def find_trials(out: Path) -> list[Trial]:
    """All completed trials, sorted by name."""
    trials = []
    for path in sorted((out / "cells").glob("*/*/n*-seed*/cell.json")):
        match = re.fullmatch(r"n(\d+)-seed(\d+)", path.parent.name)
        if match:
            trials.append(Trial(path.parts[-4], path.parts[-3], int(match[1]), int(match[2])))
    return trials


def settings_of(study: StudyConfig, method: str) -> dict[str, Any]:
    """The ``settings`` of the study for trainings by one method, without the sections of other methods."""
    settings = dict(config.split_pair(pair) for pair in study.settings)
    others = {f"{name}." for name in method_names() if name != method}
    return {key: value for key, value in settings.items() if not key.startswith(tuple(others))}
