"""What is measured while a run goes: effective rank, agreement of two views, and weighted k-NN where labels exist."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from saccade.augment.views import make_views
from saccade.base.random import numpy_generator
from saccade.data.cache.image_cache import ImageCache
from saccade.data.splits import grouped_split, unit_names
from saccade.evaluation.knn import knn_scores
from saccade.features.embed_images import embed_cached, predict_view
from saccade.methods.base import Method
from saccade.methods.registry import card_of
from saccade.train.health import effective_rank
from saccade.train.loop import Plan

EXAMINED = 256
EXAM = 1_000_000_000  # a step that no run reaches: views of its own


class LiveProbe:
    """A fixed sample of the run's own images, embedded every ``evaluate_every`` steps.

    It uses up to 1,000 labelled images to vote and 500 to test, whole groups apart; labels never reach
    the training. Tested are images of classes that the others show. Where groups have one class each and are few,
    nothing may be left to tell apart: no k-NN then, and ``note`` says why. Without labels, or with one group only,
    the effective rank of 512 images is measured.
    Methods without labels are asked besides which of two images a view comes from: ``agreement`` is how often, among
    256 images, the student's vector of a view lies closer to the teacher's of another view of that image than to the
    teacher's of a view of another image; 0.5 is chance.
    """

    stop_reason: str | None = None
    note: str | None = None

    def __init__(self, method: Method, cache: ImageCache, plan: Plan):
        self.method, self.cache, self.plan = method, cache, plan
        seed = plan.train.seed
        labels = [record.label for record in cache.records]
        order = numpy_generator(seed, "live").permutation(len(cache))
        self.examined = order[:EXAMINED] if len(cache) > 1 and not card_of(plan.train.method).uses_labels else None
        self.labelled = all(label is not None for label in labels) and len(set(labels)) > 1
        self.indices = np.sort(order[: 1500 if self.labelled else 512])
        if self.labelled:
            names = {name: i for i, name in enumerate(sorted({str(label) for label in labels}))}
            self.classes = len(names)
            self.labels = np.array([names[str(labels[i])] for i in self.indices])
            chosen = [cache.records[int(i)] for i in self.indices]
            # Images of one slide cannot be parted: no live k-NN then.
            self.labelled = len(set(unit_names([r.group for r in chosen]))) > 1
        if self.labelled:
            self.train, self.test = grouped_split(chosen, 1 / 3, seed)
            classes = np.unique(self.labels[self.train])
            self.test = self.test[np.isin(self.labels[self.test], classes)]
            self.labelled = len(classes) > 1 and len(self.test) > 0
            if not self.labelled:
                self.note = "live k-NN off: too few classes remain when groups are kept apart"

    def __call__(self, step: int, fraction: float) -> dict[str, float]:
        plan = self.plan
        features = embed_cached(
            self.method.backbone,
            self.cache,
            self.indices,
            plan.spec,
            device=plan.device,
            precision=plan.train.precision,
        )
        figures = {"rank": effective_rank(torch.from_numpy(features[:512]))}
        if self.labelled:
            k = min(20, len(self.train))
            scores = knn_scores(features[self.train], self.labels[self.train], features[self.test], k, self.classes)
            figures["knn"] = float((scores.argmax(axis=1) == self.labels[self.test]).mean())
        if self.examined is not None:
            figures["agreement"] = self._agreement(self.examined)
        return figures

    def _agreement(self, indices: np.ndarray) -> float:
        plan, method = self.plan, self.method
        views = dataclasses.replace(plan.views, global_count=2, local_count=0)

        def vectors(network: torch.nn.Module, number: int) -> np.ndarray:
            def view(items: np.ndarray) -> torch.Tensor:
                # The same two views at every evaluation, so that figures differ by what was learned alone.
                made = make_views(self.cache.batch(items), views, plan.spec, seed=plan.train.seed, step=EXAM)
                return made[number].pixels

            precision = plan.train.precision
            features = predict_view(
                view, network, lambda x: network(x).cls, indices, device=plan.device, precision=precision
            )
            features -= features.mean(axis=0)  # what all images have in common does not identify one
            unit: np.ndarray = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
            return unit

        similarity = vectors(method.student_network, 0) @ vectors(method.backbone, 1).T
        same_image = np.diagonal(similarity)[:, None]
        return float(((similarity < same_image).sum(axis=1) / (len(indices) - 1)).mean())
