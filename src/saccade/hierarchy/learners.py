"""The learners compared on slides: heads on frozen vectors, a head with the region network fine-tuned, and logistic
regression on one vector per slide.

Each satisfies ``evaluation.nested_cv.Learner``; nested cross-validation selects from ``choices``.
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
from saccade.hierarchy.end_to_end import Progress, Regions, fit_end_to_end, no_progress
from saccade.hierarchy.heads import Bags, FittedHead, HeadConfig, fit_head

DECAYS = (0.3, 0.01)  # weight decay of AdamW
RATES = (1e-5, 1e-4)  # peak learning rate of a fine-tuned region network; that of the head is 3e-3


@dataclass(frozen=True)
class HeadLearner:
    """A head on frozen grids of region vectors; ``choices`` are weight decays."""

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
class EndToEndLearner:
    """A head and the region network below it, trained on together (see ``together``), a new copy for every fold.

    progress   as in ``together.fit_end_to_end``: one training can take minutes
    """

    name: str
    reader: Reader
    slides: Sequence[Regions]
    classes: int
    config: HeadConfig
    progress: Progress = no_progress
    choices: Sequence[float] = RATES

    def scores(
        self, train: np.ndarray, labels: np.ndarray, test: np.ndarray, *, choice: float, seed: int
    ) -> np.ndarray:
        slides = [self.slides[i] for i in train]
        fitted = fit_end_to_end(
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
    """Logistic regression on one vector per slide [S D]: the mean of tiles or regions, or from the slide level."""

    name: str
    vectors: np.ndarray
    classes: int
    choices: Sequence[float] = C_GRID

    def scores(
        self, train: np.ndarray, labels: np.ndarray, test: np.ndarray, *, choice: float, seed: int
    ) -> np.ndarray:
        x, z = to_row_space(*standardise(self.vectors[train], self.vectors[test]))
        probabilities = np.zeros((len(test), self.classes))
        with threadpool_limits(1):
            model = LogisticRegression(C=choice, max_iter=500, class_weight="balanced").fit(x, labels)
        probabilities[:, model.classes_] = model.predict_proba(z)
        return probabilities
