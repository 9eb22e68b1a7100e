"""Accuracy, balanced accuracy and AUROC, each under resampling weights, so that intervals are one product.

Every function takes ``weights`` [R M]: how often each of M test images counts in each of R resamples (a row of
ones is the test part itself), and returns [R].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from saccade.base.random import numpy_generator
from saccade.data.splits import unit_names

Metric = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def accuracy(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """scores [M C], labels [M] int, weights [R M] to [R]."""
    correct = (scores.argmax(axis=1) == labels).astype(np.float64)
    return weights @ correct / weights.sum(axis=1)


def balanced_accuracy(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean over classes of the share found; classes absent from a resample are left out of its mean."""
    correct = (scores.argmax(axis=1) == labels).astype(np.float64)
    shares = []
    for c in np.unique(labels):
        inside = weights[:, labels == c]
        total = inside.sum(axis=1)
        found = inside @ correct[labels == c]
        shares.append(np.divide(found, total, out=np.full(len(weights), np.nan), where=total > 0))
    return np.nanmean(np.stack(shares), axis=0)


def auroc(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Area under the ROC curve, one class against the rest, mean over classes; ties count half."""
    areas = [_area(scores[:, c], labels == c, weights) for c in np.unique(labels)]
    found = np.stack(areas)
    empty = np.isnan(found).all(axis=0)
    found[:, empty] = 0.5
    return np.where(empty, np.nan, np.nanmean(found, axis=0))


def _area(score: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    order = np.argsort(score, kind="stable")
    starts = np.flatnonzero(np.diff(score[order], prepend=-np.inf) > 0)
    w = weights[:, order].astype(np.float64)
    up = np.add.reduceat(w * positive[order], starts, axis=1)
    down = np.add.reduceat(w * ~positive[order], starts, axis=1)
    below = np.cumsum(down, axis=1) - down
    pairs = up.sum(axis=1) * down.sum(axis=1)
    won = (up * (below + 0.5 * down)).sum(axis=1)
    return np.divide(won, pairs, out=np.full(len(weights), np.nan), where=pairs > 0)


METRICS: dict[str, Metric] = {"accuracy": accuracy, "balanced_accuracy": balanced_accuracy, "auroc": auroc}


def resampling_weights(groups: Sequence[str | None], resamples: int, seed: int) -> np.ndarray:
    """[R M] counts of a bootstrap that draws whole groups; images without a group stand for themselves."""
    _, which = np.unique(unit_names(groups), return_inverse=True)
    count = int(which.max()) + 1
    drawn = numpy_generator(seed, "bootstrap").multinomial(count, np.full(count, 1 / count), size=resamples)
    return drawn[:, which]


def figure(value: float) -> float | None:
    """A figure as it is handed on: None where it could not be measured, as AUROC on images of one class."""
    return float(value) if math.isfinite(value) else None


def interval(values: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of resampled values; NaN where none of them could be measured."""
    if np.isnan(values).all():
        return math.nan, math.nan
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)
