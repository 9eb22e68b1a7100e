"""Accuracy, balanced accuracy and AUROC with resampling weights, and the bootstrap over groups.

Every metric takes ``weights`` [R M], how often each of M test images counts in each of R resamples (a row of ones is
the test part itself), and returns [R].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import stdtrit

from saccade.base.random import numpy_generator
from saccade.data.splits import unit_names
from saccade.evaluation.small_samples import FEW_UNITS

Metric = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def accuracy(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Fraction of correct predictions: scores [M C], labels [M], weights [R M] to [R].

    Examples
    --------
    >>> accuracy(np.eye(2), np.array([0, 0]), np.ones((1, 2)))
    array([0.5])
    """
    correct = (scores.argmax(axis=1) == labels).astype(np.float64)
    fractions: np.ndarray = weights @ correct / weights.sum(axis=1)
    return fractions


def balanced_accuracy(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean recall of the classes; classes absent from a resample are left out of its mean.

    Examples
    --------
    >>> balanced_accuracy(np.array([[1, 0], [1, 0], [1, 0]]), np.array([0, 0, 1]), np.ones((1, 3)))
    array([0.5])
    """
    correct = (scores.argmax(axis=1) == labels).astype(np.float64)
    recalls = []
    for c in np.unique(labels):
        inside = weights[:, labels == c]
        total = inside.sum(axis=1)
        hits = inside @ correct[labels == c]
        recalls.append(np.divide(hits, total, out=np.full(len(weights), np.nan), where=total > 0))
    means: np.ndarray = np.nanmean(np.stack(recalls), axis=0)
    return means


def auroc(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Area under the ROC curve, one class against the rest, mean over classes; ties count half.

    NaN for resamples with one class only.

    Examples
    --------
    >>> auroc(np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([0, 1]), np.ones((1, 2)))
    array([1.])
    """
    areas = np.stack([_area(scores[:, c], labels == c, weights) for c in np.unique(labels)])
    empty = np.isnan(areas).all(axis=0)
    areas[:, empty] = 0.5
    return np.where(empty, np.nan, np.nanmean(areas, axis=0))


def _area(score: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    order = np.argsort(score, kind="stable")
    starts = np.flatnonzero(np.diff(score[order], prepend=-np.inf) > 0)
    w = weights[:, order].astype(np.float64)
    up = np.add.reduceat(w * positive[order], starts, axis=1)
    down = np.add.reduceat(w * ~positive[order], starts, axis=1)
    below = np.cumsum(down, axis=1) - down
    pairs = up.sum(axis=1) * down.sum(axis=1)
    ranked_above = (up * (below + 0.5 * down)).sum(axis=1)
    area: np.ndarray = np.divide(ranked_above, pairs, out=np.full(len(weights), np.nan), where=pairs > 0)
    return area


METRICS: dict[str, Metric] = {"accuracy": accuracy, "balanced_accuracy": balanced_accuracy, "auroc": auroc}


def resampling_weights(groups: Sequence[str | None], resamples: int, seed: int) -> np.ndarray:
    """[R M] counts of a bootstrap over groups; images without a group are groups of their own."""
    _, which = np.unique(unit_names(groups), return_inverse=True)
    count = int(which.max()) + 1
    drawn = numpy_generator(seed, "bootstrap").multinomial(count, np.full(count, 1 / count), size=resamples)
    return drawn[:, which]


def figure(value: float) -> float | None:
    """A number for JSON: None where it is not finite, as AUROC on images of one class."""
    return float(value) if math.isfinite(value) else None


def margin(resampled: np.ndarray, units: int, level: float = 0.95) -> float:
    """Half the interval of ``interval`` at any level, before it is clipped; NaN where all of ``resampled`` are."""
    if np.isnan(resampled).all():
        return math.nan
    freedom = max(1, units - 1)
    return float(stdtrit(freedom, 0.5 + level / 2) * np.nanstd(resampled) * math.sqrt(units / freedom))


def interval(
    mean: float, resampled: np.ndarray, units: int, bounds: tuple[float, float] = (0.0, 1.0)
) -> tuple[float, float]:
    """95 % interval of a metric by Student's t and the standard error of a bootstrap over groups.

    A percentile interval is too narrow for few groups: a bootstrap of G groups has (G - 1)/G of the variance, and its
    tails are those of a normal distribution. The standard error is therefore multiplied by sqrt(G / (G - 1)), and the
    quantile is that of Student's t with G - 1 degrees of freedom.

    Parameters
    ----------
    mean : float
        Value on the test part itself.
    resampled : ndarray of shape (R,)
        Value in every resample; NaN where it is undefined.
    units : int
        Number of resampled groups.
    bounds : tuple of float, default (0, 1)
        Range of the metric; the limits are clipped to it.

    Returns
    -------
    tuple of float
        Lower and upper limit; NaN where the metric is undefined.

    References
    ----------
    Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapters 6 and 12.

    Examples
    --------
    >>> low, high = interval(0.5, np.linspace(0.4, 0.6, 1001), units=20)
    >>> round(low, 3), round(high, 3)
    (0.376, 0.624)
    """
    half = margin(resampled, units)
    if math.isnan(half) or math.isnan(mean):
        return math.nan, math.nan
    low, high = np.clip([mean - half, mean + half], *bounds)
    return float(low), float(high)


# --- one metric over draws of the labels and resamples of the test part ----------------------------


@dataclass(frozen=True)
class Resampled:
    """The mean over draws of the training labels, and the value in every resample [R]."""

    mean: float
    resampled: np.ndarray


def bootstrap(
    measure: Callable[[int, np.ndarray], np.ndarray], draws: Sequence[int], picks: np.ndarray, weights: np.ndarray
) -> Resampled:
    """Measure every draw on the test part itself, and one draw in every resample.

    Parameters
    ----------
    measure
        (draw, weights [R M]) to the metric [R].
    picks
        [R] the draw of each resample, as an index into ``draws``; more than R are ignored.
    """
    unweighted = np.ones((1, weights.shape[1]))
    means = [float(measure(draw, unweighted)[0]) for draw in draws]
    resampled = np.empty(len(weights))
    for j, draw in enumerate(draws):
        picked = picks[: len(weights)] == j
        if picked.any():
            resampled[picked] = measure(draw, weights[picked])
    return Resampled(float(np.mean(means)), resampled)


Row = dict[str, Any]


def summarise_models(
    estimates: Mapping[str, Resampled], about: Mapping[str, Any], *, units: int
) -> tuple[list[Row], list[Row]]:
    """Rows of all models and paired differences between the first and each other, with 95 % intervals.

    Parameters
    ----------
    about
        What the estimates have in common: fraction, metric and so on.
    units
        Number of resampled groups; with too few of them no difference is called clear.
    """
    rows: list[Row] = []
    differences: list[Row] = []
    first_name, first = next(iter(estimates.items()))
    for name, estimate in estimates.items():
        low, high = interval(estimate.mean, estimate.resampled, units)
        rows.append({"model": name, **about, "mean": figure(estimate.mean), "low": figure(low), "high": figure(high)})
        if name == first_name:
            continue
        mean = first.mean - estimate.mean
        low, high = interval(mean, first.resampled - estimate.resampled, units, (-1.0, 1.0))
        difference = figure(mean)
        clear = bool(low > 0 or high < 0) and units >= FEW_UNITS
        differences.append(
            {"model": first_name, "against": name, **about}
            | {"difference": difference, "low": figure(low), "high": figure(high), "clear": clear}
        )
    return rows, differences
