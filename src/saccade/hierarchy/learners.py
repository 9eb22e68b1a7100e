"""What is compared on slides: heads on vectors of regions or tiles, the region network trained on with its head, and
logistic regression on the mean of vectors.

Each satisfies ``evaluation.nested.Learner``; ``choices`` is what nested cross-validation may choose from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from saccade.evaluation.probes import C_GRID, standardise, to_row_space
from saccade.hierarchy.embed_regions import Reader
from saccade.hierarchy.end_to_end import Progress, Regions, fit_together, untold
from saccade.hierarchy.heads import Bags, FittedHead, HeadConfig, fit_head

DECAYS = (0.3, 0.01)  # weight decay of AdamW
RATES = (1e-5, 1e-4)  # learning rate of a region network that is trained on; the head's own is 3e-3


@dataclass(frozen=True)
class HeadLearner:
    """A head (see ``heads``) on the grids of vectors of slides, frozen as they are."""

    name: str
    bags: Bags
    classes: int
    config: HeadConfig
    choices: Sequence[float] = DECAYS

    def fit(self, train: np.ndarray, labels: np.ndarray, *, choice: float, seed: int) -> FittedHead:
        config = dataclasses.replace(self.config, weight_decay=choice)
        return fit_head(self.bags.select(train), labels, self.classes, config, seed=seed)

    def scores(
        self, train: np.ndarray, labels: np.ndarray, test: np.ndarray, *, choice: float, seed: int
    ) -> np.ndarray:
        return self.fit(train, labels, choice=choice, seed=seed).scores(self.bags.select(test))


@dataclass(frozen=True)
class TogetherLearner:
    """A head and the region network below it, trained on together (see ``together``), a new copy for every fold.

    progress   as in ``together.fit_together``: one training can take minutes
    """

    name: str
    reader: Reader
    slides: Sequence[Regions]
    classes: int
    config: HeadConfig
    progress: Progress = untold
    choices: Sequence[float] = RATES

    def scores(
        self, train: np.ndarray, labels: np.ndarray, test: np.ndarray, *, choice: float, seed: int
    ) -> np.ndarray:
        slides = [self.slides[i] for i in train]
        fitted = fit_together(
            self.reader,
            slides,
            labels,
            self.classes,
            self.config,
            region_lr=choice,
            seed=seed,
            progress=self.progress,
        )
        return fitted.scores([self.slides[i] for i in test])


@dataclass(frozen=True)
class MeanLearner:
    """Logistic regression on one vector a slide [S D]: the mean of its tiles, of its regions, or a slide's own."""

    name: str
    vectors: np.ndarray
    classes: int
    choices: Sequence[float] = C_GRID

    def scores(
        self, train: np.ndarray, labels: np.ndarray, test: np.ndarray, *, choice: float, seed: int
    ) -> np.ndarray:
        x, z = to_row_space(*standardise(self.vectors[train], self.vectors[test]))
        found = np.zeros((len(test), self.classes))
        with threadpool_limits(1):
            model = LogisticRegression(C=choice, max_iter=500, class_weight="balanced").fit(x, labels)
        found[:, model.classes_] = model.predict_proba(z)
        return found
