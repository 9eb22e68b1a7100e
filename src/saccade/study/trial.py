"""One trial of a study: train on the first n images of a seed, predict every test image, write both.

``cell.json`` is written last: a trial without it is run again.
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
from saccade.base import run_folder
from saccade.base.config import override
from saccade.base.contracts import InputSpec
from saccade.data.cache.image_cache import ImageCache
from saccade.errors import TrainingError
from saccade.evaluation.knn import knn_scores
from saccade.evaluation.metrics import accuracy, balanced_accuracy
from saccade.evaluation.probes import logistic_scores
from saccade.features.embed_images import embed_cached, predict_view
from saccade.models.backbones.weights import load_model
from saccade.study.conditions import ANGLES, conditions_of, drift, under
from saccade.study.design import StudyConfig, Trial, settings_of, training_steps
from saccade.study.images import Images
from saccade.tasks.finetune import FinetuneOptions, supervised_config
from saccade.train import pretrain as training
from saccade.train.classifier import load_classifier
from saccade.train.data_selection import LoadedData, divide
from saccade.train.loop import Quiet
from saccade.train.recipes import apply_recipe
from saccade.train.run_config import RunConfig, default_config

K = 20
STEADY = {"optim.weight_decay": 0.05, "optim.weight_decay_end": 0.05}
"""Supervised trials train for the full budget: the few images are not split for validation."""
Scores = dict[str, np.ndarray]  # condition -> [M C]


class TrialRun:
    """The inputs that all trainings of one trial share."""

    def __init__(self, out: Path, study: StudyConfig, images: Images, trial: Trial):
        self.study, self.images, self.trial = study, images, trial
        self.folder = trial.folder(out)
        self.device = runtime.pick_device()
        self.precision = runtime.usual_precision(self.device)
        self.truth = images.test.numbered(images.classes).labels
        assert self.truth is not None
        self.batch = min(study.batch, trial.size)

    def settings(self, regime: str) -> dict[str, Any]:
        """Settings of one training, for any starting weights."""
        study, trial = self.study, self.trial
        steps = training_steps(study, trial.backbone, regime, self.images.train.channels, self.batch)
        return {
            "data.source": study.data,
            "data.grey": study.grey,
            "data.cache_px": round(1.5 * study.size_px),
            "data.limit": trial.size,
            "data.limit_seed": trial.seed,
            "model.size_px": study.size_px,
            "train.batch": self.batch,
            "train.steps": steps,
            "train.seed": trial.seed,
            "train.evaluate_every": steps,
            "train.save_every": steps,
            "train.keep": 1,
        } | settings_of(study, "dino" if regime == "dino" else "supervised")

    def train(self, config: RunConfig, name: str) -> Path:
        run = self.folder / name
        loaded = LoadedData(self.images.name, len(self.images.train), [], self.images.train)
        training.start(config, run, Quiet(), loaded)
        last_step = int(run_folder.read_json(run / "model" / "config.json")["about"]["step"])
        if last_step != config.train.steps:
            raise TrainingError(
                "the training was interrupted", got=f"step {last_step}", hint="run saccade compare again"
            )
        # Only the model is used later; checkpoints would fill the disk.
        for part in ("checkpoints", "tensorboard"):
            shutil.rmtree(run / part, ignore_errors=True)
        return run

    def supervised(self, augment: str, name: str, weights: Path | None = None) -> tuple[Scores, Path]:
        """Train a classifier and predict the test images under every condition."""
        settings = self.settings("supervised")
        if weights is not None:
            settings["model.weights"] = str(weights)
        options = FinetuneOptions(augment, recipe=self.study.recipe)
        run = self.train(supervised_config(self.trial.backbone, options, settings, STEADY), name)
        classifier = load_classifier(run)
        network = classifier.network.to(self.device)
        logits = self.under_conditions(network, network.classify, classifier.spec)
        return {c: torch.softmax(torch.from_numpy(x), dim=1).numpy() for c, x in logits.items()}, run

    def under_conditions(self, network: nn.Module, output: Callable[[Tensor], Tensor], spec: InputSpec) -> Scores:
        test, scores = self.images.test, {}
        for condition in conditions_of(spec):
            view = under(condition, test, spec, self.device)
            indices = np.arange(len(test))
            scores[condition] = predict_view(
                view, network, output, indices, device=self.device, precision=self.precision
            )
        return scores

    def dino(self) -> tuple[Path, RunConfig]:
        config = apply_recipe(default_config("dino"), self.study.dino_recipe)
        config = override(config, {"model.backbone": self.trial.backbone} | self.settings("dino"))
        return self.train(config, "dino"), config

    def probes(self, run: Path, config: RunConfig) -> dict[str, Scores]:
        """k-NN and logistic regression on frozen features, with the labels of the pretraining images."""
        loaded = load_model(run)
        network = loaded.backbone.to(self.device)
        labelled: ImageCache = divide(
            self.images.train, config.data, labels=False, seed=self.trial.seed
        ).train.numbered(self.images.classes)
        indices = np.arange(len(labelled))
        train = embed_cached(network, labelled, indices, loaded.spec, device=self.device, precision=self.precision)
        test = self.under_conditions(network, lambda x: network(x).cls, loaded.spec)
        labels, classes = labelled.labels, len(self.images.classes)
        assert labels is not None
        groups = [record.group for record in labelled.records]
        stacked = np.concatenate(list(test.values()))
        probes = {
            "dino-knn": knn_scores(train, labels, stacked, min(K, len(train)), classes),
            "dino-logistic": logistic_scores(train, labels, groups, stacked, classes)[0],
        }
        count = len(self.images.test)
        return {
            name: {condition: scores[i * count : (i + 1) * count] for i, condition in enumerate(test)}
            for name, scores in probes.items()
        }

    def drift_of(self, run: Path) -> list[float]:
        loaded = load_model(run)
        network = loaded.backbone.to(self.device)
        return drift(lambda x: network(x).cls, self.images.test, loaded.spec, self.device)

    def figures(self, series: dict[str, Scores]) -> dict[str, Any]:
        assert self.truth is not None
        weights = np.ones((1, len(self.truth)))
        return {
            name: {
                "accuracy": {c: round(float(accuracy(x, self.truth, weights)[0]), 5) for c, x in scores.items()},
                "balanced_accuracy": round(float(balanced_accuracy(scores["plain"], self.truth, weights)[0]), 5),
            }
            for name, scores in series.items()
        }


def run_trial(out: Path, study: StudyConfig, images: Images, trial: Trial, *, with_drift: bool) -> dict[str, Any]:
    """Run one trial and write it. Returns the content of ``cell.json``.

    with_drift   also measure how far the feature vector moves when the image is rotated
    """
    start = time.perf_counter()
    work = TrialRun(out, study, images, trial)
    shutil.rmtree(work.folder, ignore_errors=True)
    work.folder.mkdir(parents=True)
    if trial.regime == "dino":
        run, config = work.dino()
        series = work.probes(run, config)
        series["dino-finetuned"], _ = work.supervised(study.augment, "finetuned", weights=run)
    else:
        augment = "none" if trial.regime == "supervised" else study.augment
        scores, run = work.supervised(augment, "run")
        series = {trial.regime: scores}
    arrays = {f"{name}|{c}": x.astype(np.float16) for name, scores in series.items() for c, x in scores.items()}
    np.savez_compressed(work.folder / "answers.npz", **arrays)  # type: ignore[arg-type]
    result = {
        "backbone": trial.backbone,
        "way": trial.regime,
        "size": trial.size,
        "seed": trial.seed,
        "steps": work.settings(trial.regime)["train.steps"],
        "series": work.figures(series),
        "drift": {"angles": list(ANGLES), "error": work.drift_of(run)} if with_drift else None,
        "seconds": round(time.perf_counter() - start, 1),
    }
    run_folder.write_json(work.folder / "cell.json", result)
    return result
