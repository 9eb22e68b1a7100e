"""What is compared on slides: heads on vectors of regions or tiles, and logistic regression on their mean.

Each satisfies ``evaluation.nested.Learner``; ``choices`` is what nested cross-validation may choose from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from saccade.evaluation.probes import STRENGTHS, standardise, to_row_space
from saccade.hierarchy.heads import Bags, FittedHead, HeadConfig, fit_head

DECAYS = (0.3, 0.01)  # weight decay of AdamW


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
class MeanLearner:
    """Logistic regression on one vector a slide [S D]: the mean of its tiles, of its regions, or a slide's own."""

    name: str
    vectors: np.ndarray
    classes: int
    choices: Sequence[float] = STRENGTHS

    def scores(
        self, train: np.ndarray, labels: np.ndarray, test: np.ndarray, *, choice: float, seed: int
    ) -> np.ndarray:
        x, z = to_row_space(*standardise(self.vectors[train], self.vectors[test]))
        found = np.zeros((len(test), self.classes))
        with threadpool_limits(1):
            model = LogisticRegression(C=choice, max_iter=500, class_weight="balanced").fit(x, labels)
        found[:, model.classes_] = model.predict_proba(z)
        return found
