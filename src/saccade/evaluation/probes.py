"""Weighted k-NN (Wu et al. 2018, as in DINO) and L2 logistic regression, on frozen features."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from threadpoolctl import threadpool_limits

from saccade.base.random import numpy_generator
from saccade.data.splits import unit_names
from saccade.features.table import nearest

STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0)  # scikit-learn's C
FOLDS = 3
CHOOSING = 1000  # training images, or about so many, that choose the strength: more cost minutes and change little


def vote(similarity: np.ndarray, neighbour_labels: np.ndarray, classes: int, temperature: float = 0.07) -> np.ndarray:
    """Votes [M classes] of neighbours [M k] weighted exp(similarity / temperature), as shares of 1."""
    weights = np.exp((similarity - similarity[:, :1]) / temperature)
    votes = np.zeros((len(similarity), classes), dtype=np.float64)
    for c in range(classes):
        votes[:, c] = (weights * (neighbour_labels == c)).sum(axis=1)
    return (votes / votes.sum(axis=1, keepdims=True)).astype(np.float32)


def knn_scores(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    k: int,
    classes: int,
    temperature: float = 0.07,
) -> np.ndarray:
    """Weighted k-NN: class shares [M classes] for test rows. k is capped by the number of training rows."""
    similarity, indices = nearest(train, test, k)
    return vote(similarity, train_labels[indices], classes, temperature)


def standardise(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both by mean and standard deviation of the training rows; constant features become zero."""
    mean, std = train.mean(axis=0), train.std(axis=0)
    scale = np.where(std > 1e-8, std, np.inf)
    return (train - mean) / scale, (test - mean) / scale


def to_row_space(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Turn very wide features (D > 4 N) into at most N numbers without changing any L2-penalised solution.

    The solution lies in the span of the training rows (representer theorem), so both parts are expressed in
    an orthonormal basis of that span: train = U S, test = test V, from the Gram matrix. Training rows of nothing but
    zeros span nothing: both parts are one column of zeros then.
    """
    if train.shape[1] <= 4 * train.shape[0]:  # the turn itself costs N cubed
        return train, test
    gram = train.astype(np.float64) @ train.T.astype(np.float64)
    values, vectors = np.linalg.eigh(gram)
    keep = values > max(values[-1], 0) * 1e-10
    if not keep.any():
        return np.zeros((len(train), 1), np.float32), np.zeros((len(test), 1), np.float32)
    length, basis = np.sqrt(values[keep]), vectors[:, keep]
    cross = test.astype(np.float64) @ train.T.astype(np.float64)
    return (basis * length).astype(np.float32), (cross @ (basis / length)).astype(np.float32)


def _fit(x: np.ndarray, y: np.ndarray, strength: float) -> LogisticRegression:
    model = LogisticRegression(C=strength, max_iter=200, tol=1e-3)
    # One thread: between the many small products of L-BFGS, threads wait longer for each other than they
    # compute (two cores: 0.3 s a fit against 0.006 s).
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(x, y)


def folds(y: np.ndarray, groups: Sequence[str | None]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Cross-validation parts with groups apart; empty when some class has too few groups or images."""
    grouped = any(g is not None for g in groups)
    groups = unit_names(groups)
    smallest = min(
        len({groups[int(i)] for i in np.flatnonzero(y == c)}) if grouped else int((y == c).sum()) for c in np.unique(y)
    )
    count = min(FOLDS, smallest)
    if count < 2:
        return []
    if grouped:
        parts = StratifiedGroupKFold(count, shuffle=True, random_state=0).split(y, y, np.array(groups))
    else:
        parts = StratifiedKFold(count, shuffle=True, random_state=0).split(y, y)
    return [(a, b) for a, b in parts if len(np.unique(y[a])) == len(np.unique(y))]


def draw_choosing(y: np.ndarray, groups: Sequence[str | None], count: int) -> np.ndarray:
    """Indices of about ``count`` images, drawn at random class by class: each class in its share, and images of at
    least FOLDS groups (images, where no groups are known) where it has so many, or its folds would fail."""
    order = numpy_generator(0, "strength").permutation(len(y))
    _, unit = np.unique(unit_names(groups), return_inverse=True)
    chosen = []
    for c in np.unique(y):
        own = order[y[order] == c]
        first = np.sort(np.unique(unit[own], return_index=True)[1])[:FOLDS]
        rest = np.setdiff1d(np.arange(len(own)), first)
        share = max(len(first), round(count * len(own) / len(y)))
        chosen.append(own[np.concatenate([first, rest])[:share]])
    return np.sort(np.concatenate(chosen))


def choose_strength(x: np.ndarray, y: np.ndarray, groups: Sequence[str | None]) -> float | None:
    """The C with the best mean accuracy over the folds (the stronger penalty on a tie); None without folds.

    About CHOOSING images take part where there are more.
    """
    if len(y) > CHOOSING:
        chosen = draw_choosing(y, groups, CHOOSING)
        x, y, groups = x[chosen], y[chosen], [groups[int(i)] for i in chosen]
    x, _ = to_row_space(x, x[:1])
    parts = folds(y, groups)
    if not parts:
        return None
    accuracy = [np.mean([_fit(x[a], y[a], c).score(x[b], y[b]) for a, b in parts]) for c in STRENGTHS]
    return STRENGTHS[int(np.argmax(accuracy))]


def logistic_scores(
    train: np.ndarray, labels: np.ndarray, groups: Sequence[str | None], test: np.ndarray, classes: int
) -> tuple[np.ndarray, float | None]:
    """Class probabilities [M classes] of L2 logistic regression, and the chosen C.

    C is None where cross-validation was impossible (a class with one image or group); 1.0 was used then.
    """
    x, z = standardise(np.asarray(train, np.float32), np.asarray(test, np.float32))
    strength = choose_strength(x, labels, groups)
    x, z = to_row_space(x, z)
    scores = np.zeros((len(test), classes), dtype=np.float32)
    present = np.unique(labels)
    if len(present) == 1:
        scores[:, present[0]] = 1.0
        return scores, None
    model = _fit(x, labels, 1.0 if strength is None else strength)
    scores[:, model.classes_] = model.predict_proba(z)
    return scores, strength
