"""One cell of a study: train on the first n images of a seed, answer for every test image, write both down.

``cell.json`` is written last: a cell without it is done again from its beginning.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from saccade import runtime
from saccade.base import config, run_folder
from saccade.base.config import Sections
from saccade.base.contracts import InputSpec
from saccade.data.cache.image_cache import ImageCache
from saccade.errors import TrainingError
from saccade.evaluation.metrics import accuracy, balanced_accuracy
from saccade.evaluation.probes import knn_scores, logistic_scores
from saccade.features.embed_images import answers_to, embed_cached
from saccade.models.backbones.weights import load_model
from saccade.study.conditions import ANGLES, conditions_of, drift, under
from saccade.study.design import Cell, StudyConfig, pairs, training_steps
from saccade.study.images import Images
from saccade.tasks.finetune import FinetuneOptions, supervised_sections
from saccade.train import pretrain as training
from saccade.train.classifier import load_classifier
from saccade.train.data_selection import Opened, divide
from saccade.train.loop import Quiet
from saccade.train.prepare import default_sections
from saccade.train.recipes import apply_recipe

K = 20
STEADY = {"optim.weight_decay": 0.05, "optim.weight_decay_end": 0.05}
"""Supervised cells train for their whole budget: no validation images are taken from the few there are."""
Scores = dict[str, np.ndarray]  # condition -> [M C]


class CellRun:
    """What all trainings of one cell share."""

    def __init__(self, out: Path, study: StudyConfig, images: Images, cell: Cell):
        self.study, self.images, self.cell = study, images, cell
        self.folder = cell.folder(out)
        self.device = runtime.pick_device()
        self.precision = runtime.usual_precision(self.device)
        self.truth = images.test.numbered(images.classes).labels
        assert self.truth is not None
        self.batch = min(study.batch, cell.size)

    def settings(self, way: str) -> dict[str, Any]:
        """Settings of one training, which are the same wherever it starts from."""
        study, cell = self.study, self.cell
        steps = training_steps(study, cell.backbone, way, self.images.train.channels, self.batch)
        return {
            "data.source": study.data,
            "data.grey": study.grey,
            "data.cache_px": round(1.5 * study.size_px),
            "data.limit": cell.size,
            "data.limit_seed": cell.seed,
            "model.size_px": study.size_px,
            "train.batch": self.batch,
            "train.steps": steps,
            "train.seed": cell.seed,
            "train.evaluate_every": steps,
            "train.save_every": steps,
            "train.keep": 1,
        } | pairs(study, "dino" if way == "dino" else "supervised")

    def train(self, sections: Sections, name: str) -> Path:
        run = self.folder / name
        opened = Opened(self.images.name, len(self.images.train), [], self.images.train)
        training.start(sections, run, Quiet(), opened)
        reached = int(run_folder.read_json(run / "model" / "config.json")["about"]["step"])
        if reached != sections["train"].steps:
            raise TrainingError("the training was stopped from outside", got=f"step {reached}", hint="compare again")
        # The model is what the study goes on with; checkpoints would fill the disk.
        for part in ("checkpoints", "tensorboard"):
            shutil.rmtree(run / part, ignore_errors=True)
        return run

    def supervised(self, augment: str, name: str, weights: Path | None = None) -> tuple[Scores, Path]:
        """Train a classifier and answer for the test images under every condition."""
        settings = self.settings("supervised")
        if weights is not None:
            settings["model.weights"] = str(weights)
        options = FinetuneOptions(augment, recipe=self.study.recipe)
        run = self.train(supervised_sections(self.cell.backbone, options, settings, STEADY), name)
        found = load_classifier(run)
        network = found.network.to(self.device)
        said = self.under_conditions(network, network.classify, found.spec)
        return {c: torch.softmax(torch.from_numpy(x), dim=1).numpy() for c, x in said.items()}, run

    def under_conditions(self, network: nn.Module, answer: Callable[[Tensor], Tensor], spec: InputSpec) -> Scores:
        test, found = self.images.test, {}
        for condition in conditions_of(spec):
            shown = under(condition, test, spec, self.device)
            everything = np.arange(len(test))
            found[condition] = answers_to(
                shown, network, answer, everything, device=self.device, precision=self.precision
            )
        return found

    def dino(self) -> tuple[Path, Sections]:
        sections = apply_recipe(default_sections("dino"), self.study.dino_recipe)
        sections = config.override(sections, {"model.backbone": self.cell.backbone} | self.settings("dino"))
        return self.train(sections, "dino"), sections

    def probes(self, run: Path, sections: Sections) -> dict[str, Scores]:
        """k-NN and logistic regression on frozen features, with the labels of the images that were learned from."""
        loaded = load_model(run)
        network = loaded.backbone.to(self.device)
        learned: ImageCache = divide(
            self.images.train, sections["data"], method="dino", seed=self.cell.seed
        ).train.numbered(self.images.classes)
        everything = np.arange(len(learned))
        train = embed_cached(network, learned, everything, loaded.spec, device=self.device, precision=self.precision)
        test = self.under_conditions(network, lambda x: network(x).cls, loaded.spec)
        labels, classes = learned.labels, len(self.images.classes)
        assert labels is not None
        groups = [record.group for record in learned.records]
        stacked = np.concatenate(list(test.values()))
        found = {
            "dino-knn": knn_scores(train, labels, stacked, min(K, len(train)), classes),
            "dino-logistic": logistic_scores(train, labels, groups, stacked, classes)[0],
        }
        count = len(self.images.test)
        return {
            name: {condition: scores[i * count : (i + 1) * count] for i, condition in enumerate(test)}
            for name, scores in found.items()
        }

    def drift_of(self, run: Path) -> list[float]:
        loaded = load_model(run)
        network = loaded.backbone.to(self.device)
        return drift(lambda x: network(x).cls, self.images.test, loaded.spec, self.device)

    def figures(self, series: dict[str, Scores]) -> dict[str, Any]:
        assert self.truth is not None
        one = np.ones((1, len(self.truth)))
        return {
            name: {
                "accuracy": {c: round(float(accuracy(x, self.truth, one)[0]), 5) for c, x in scores.items()},
                "balanced_accuracy": round(float(balanced_accuracy(scores["plain"], self.truth, one)[0]), 5),
            }
            for name, scores in series.items()
        }


def run_cell(out: Path, study: StudyConfig, images: Images, cell: Cell, *, with_drift: bool) -> dict[str, Any]:
    """Do one cell and write it down. Returns what ``cell.json`` holds.

    with_drift   also measure how far the image vector moves when the image is turned
    """
    began = time.perf_counter()
    work = CellRun(out, study, images, cell)
    shutil.rmtree(work.folder, ignore_errors=True)
    work.folder.mkdir(parents=True)
    if cell.way == "dino":
        run, sections = work.dino()
        series = work.probes(run, sections)
        series["dino-finetuned"], _ = work.supervised(study.augment, "finetuned", weights=run)
    else:
        augment = "none" if cell.way == "supervised" else study.augment
        scores, run = work.supervised(augment, "run")
        series = {cell.way: scores}
    arrays = {f"{name}|{c}": x.astype(np.float16) for name, scores in series.items() for c, x in scores.items()}
    np.savez_compressed(work.folder / "answers.npz", **arrays)  # type: ignore[arg-type]
    found = {
        "backbone": cell.backbone,
        "way": cell.way,
        "size": cell.size,
        "seed": cell.seed,
        "steps": work.settings(cell.way)["train.steps"],
        "series": work.figures(series),
        "drift": {"angles": list(ANGLES), "error": work.drift_of(run)} if with_drift else None,
        "seconds": round(time.perf_counter() - began, 1),
    }
    run_folder.write_json(work.folder / "cell.json", found)
    return found
