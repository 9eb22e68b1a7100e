"""What a study compares: settings, cells, where each lies on disk, and how long each may train."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saccade.base import config
from saccade.base.files import make_folder, write_text
from saccade.base.locks import is_lock
from saccade.cost import flops as cost
from saccade.errors import UsageError, unknown
from saccade.methods.registry import method_names

WAYS = {
    "supervised": "labels only, every image always alike",
    "augmented": "labels only, with augmentation",
    "dino": "DINO on the same images without labels; then k-NN, logistic regression and fine-tuning with the labels",
}
SERIES = {
    "supervised": ("supervised",),
    "augmented": ("augmented",),
    "dino": ("dino-knn", "dino-logistic", "dino-finetuned"),
}
"""What each way is measured by, one learning curve each."""
FORWARD_AND_BACKWARD = 3  # a training step costs about three forward passes


@dataclass(frozen=True)
class StudyConfig:
    """Everything that must stay the same between cells, so that they can be compared.

    steps, flops   the budget of one training: optimiser steps, or floating-point operations; one of them is 0.
                   Fine-tuning after DINO has the same again.
    """

    data: str = ""
    manifest: str = ""
    label: str = ""
    group: str = ""
    grey: bool = False
    size_px: int = 64
    batch: int = 64
    steps: int = 300
    flops: float = 0.0
    augment: str = "weak"
    recipe: str = "microscopy"
    dino_recipe: str = "microscopy,short"
    test_limit: int = 2000
    """At most so many test images, drawn class by class. 0: all."""
    allow_overlap: bool = False
    """Go on although training and test part share images or groups."""
    settings: tuple[str, ...] = ()
    """Further ``key=value`` pairs for every training."""


@dataclass(frozen=True)
class Grid:
    """Backbones, ways, training sizes and seeds; every combination is a cell."""

    backbones: tuple[str, ...]
    ways: tuple[str, ...]
    sizes: tuple[int, ...]
    seeds: tuple[int, ...]

    def cells(self) -> Iterator[Cell]:
        """Seed by seed and small sizes first, so that a study that is stopped shows whole curves."""
        for seed in self.seeds:
            for size in sorted(self.sizes):
                for way in self.ways:
                    for backbone in self.backbones:
                        yield Cell(backbone, way, size, seed)


@dataclass(frozen=True)
class Cell:
    backbone: str
    way: str
    size: int
    seed: int

    def folder(self, out: Path) -> Path:
        return out / "cells" / self.backbone / self.way / f"n{self.size:06d}-seed{self.seed}"

    def done(self, out: Path) -> bool:
        return (self.folder(out) / "cell.json").exists()

    def __str__(self) -> str:
        return f"{self.backbone}, {self.way}, {self.size:,} images, seed {self.seed}"


def check_grid(grid: Grid, study: StudyConfig) -> None:
    """Raise UsageError for words and numbers that cannot be meant."""
    for way in grid.ways:
        if way not in WAYS:
            raise unknown("way of training", way, WAYS)
    if len(grid.backbones) < 2:
        raise UsageError("a comparison needs two backbones", got=", ".join(grid.backbones))
    for what, values in (("backbone", grid.backbones), ("size", grid.sizes), ("way", grid.ways)):
        if len(set(values)) < len(values):
            raise UsageError(f"a {what} is named twice", got=", ".join(map(str, values)))
    if min(grid.sizes) < 2:
        raise UsageError("a training part needs images", got=min(grid.sizes), expected="2 or more")
    if bool(study.steps) == bool(study.flops) or study.steps < 0 or study.flops < 0:
        got = f"steps {study.steps}, flops {study.flops:g}"
        raise UsageError("the budget is a number of steps or of operations", got=got, expected="one of them, above 0")


def training_steps(study: StudyConfig, backbone: str, way: str, channels: int, batch: int) -> int:
    """Optimiser steps of one training under the budget of the study."""
    if study.steps:
        return study.steps
    one = cost.cost(backbone, size_px=study.size_px, channels=channels).flops
    passes = FORWARD_AND_BACKWARD
    if way == "dino":  # two global crops through the student and the teacher; local ones are a third as large
        passes = 2 * FORWARD_AND_BACKWARD + 2 + round(2 * FORWARD_AND_BACKWARD * (96 / 224) ** 2)
    return max(1, round(study.flops / (one * passes * batch)))


def remember(out: Path, study: StudyConfig) -> None:
    """Keep the settings of a new study; raise UsageError where ``out`` holds one with other settings."""
    path = out / "study.yaml"
    if not path.exists():
        if out.exists() and (not out.is_dir() or not all(map(is_lock, out.iterdir()))):
            raise UsageError("--out is neither empty nor a study", got=out, hint="choose a new folder")
        make_folder(out)
        write_text(path, config.to_yaml(config.to_dict({"study": study})))
        return
    known = config.from_dict({"study": StudyConfig}, config.load(path))["study"]
    differ = [f.name for f in dataclasses.fields(study) if getattr(known, f.name) != getattr(study, f.name)]
    if differ:
        raise UsageError(
            "this study was begun with other settings",
            got=", ".join(f"{name}={getattr(study, name)}" for name in differ),
            expected=", ".join(f"{name}={getattr(known, name)}" for name in differ),
            hint="its cells could not be compared; only backbones, sizes, ways and seeds may change; take a new --out",
        )


def recall(out: Path) -> StudyConfig:
    return config.from_dict({"study": StudyConfig}, config.load(out / "study.yaml"))["study"]


def find_cells(out: Path) -> list[Cell]:
    """Every cell that is done, in the order of the names."""
    found = []
    for path in sorted((out / "cells").glob("*/*/n*-seed*/cell.json")):
        match = re.fullmatch(r"n(\d+)-seed(\d+)", path.parent.name)
        if match:
            found.append(Cell(path.parts[-4], path.parts[-3], int(match[1]), int(match[2])))
    return found


def pairs(study: StudyConfig, method: str) -> dict[str, Any]:
    """The study's own settings for trainings by one method; those of another method's section are not for it."""
    given = dict(config.split_pair(pair) for pair in study.settings)
    others = {f"{name}." for name in method_names() if name != method}
    return {key: value for key, value in given.items() if not key.startswith(tuple(others))}
