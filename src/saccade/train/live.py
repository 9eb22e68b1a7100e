"""What is measured while a run goes: effective rank always, weighted k-NN where labels exist."""

from __future__ import annotations

import numpy as np
import torch

from saccade.data.loader import ImageCache
from saccade.data.splits import grouped_split, unit_names
from saccade.embedding import embed_cached
from saccade.evaluation.probes import knn_scores
from saccade.seeds import numpy_generator
from saccade.train.health import effective_rank
from saccade.train.loop import Plan


class LiveProbe:
    """A fixed sample of the run's own images, embedded every ``evaluate_every`` steps.

    It uses up to 1,000 labelled images to vote and 500 to test, whole groups apart; labels never reach
    the training. Without labels, or with one group only, the effective rank of 512 images is measured.
    """

    finished: str | None = None

    def __init__(self, backbone: torch.nn.Module, cache: ImageCache, plan: Plan):
        self.backbone, self.cache, self.plan = backbone, cache, plan
        seed = plan.train.seed
        labels = [record.label for record in cache.records]
        order = numpy_generator(seed, "live").permutation(len(cache))
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

    def __call__(self, step: int) -> dict[str, float]:
        plan = self.plan
        features = embed_cached(
            self.backbone,
            self.cache,
            self.indices,
            plan.spec,
            device=plan.device,
            precision=str(plan.train.precision),
        )
        found = {"rank": effective_rank(torch.from_numpy(features[:512]))}
        if self.labelled:
            k = min(20, len(self.train))
            scores = knn_scores(features[self.train], self.labels[self.train], features[self.test], k, self.classes)
            found["knn"] = float((scores.argmax(axis=1) == self.labels[self.test]).mean())
        return found
