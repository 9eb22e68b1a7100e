"""L2 logistic regression on frozen features, its C chosen by grouped cross-validation inside the training part."""

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

C_GRID = (0.001, 0.01, 0.1, 1.0, 10.0)
"""Inverse strengths of the penalty, as in scikit-learn."""
CV_FOLDS = 3
CV_IMAGES = 1000
"""About so many training images select C: more cost minutes and change little."""


def standardise(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both parts by mean and standard deviation of the training rows; constant features become zero.

    Examples
    --------
    >>> standardise(np.array([[0.0, 1.0], [2.0, 1.0]]), np.array([[1.0, 5.0]]))[1]
    array([[0., 0.]])
    """
    mean, std = train.mean(axis=0), train.std(axis=0)
    scale = np.where(std > 1e-8, std, np.inf)
    return (train - mean) / scale, (test - mean) / scale


def to_row_space(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Reduce very wide features (D > 4 N) to at most N columns without changing any L2-penalised solution.

    The solution lies in the span of the training rows (representer theorem), so both parts are expressed in
    an orthonormal basis of that span: train = U S, test = test V, from the Gram matrix. Where all training rows are
    zero, both parts become one column of zeros.
    """
    if train.shape[1] <= 4 * train.shape[0]:  # the reduction itself costs N cubed
        return train, test
    gram = train.astype(np.float64) @ train.T.astype(np.float64)
    values, vectors = np.linalg.eigh(gram)
    positive = values > max(values[-1], 0) * 1e-10
    if not positive.any():
        return np.zeros((len(train), 1), np.float32), np.zeros((len(test), 1), np.float32)
    singular_values, basis = np.sqrt(values[positive]), vectors[:, positive]
    cross = test.astype(np.float64) @ train.T.astype(np.float64)
    return (basis * singular_values).astype(np.float32), (cross @ (basis / singular_values)).astype(np.float32)


def _fit(x: np.ndarray, y: np.ndarray, c: float) -> LogisticRegression:
    model = LogisticRegression(C=c, max_iter=200, tol=1e-3)
    # One thread: between the many small products of L-BFGS, threads wait longer for each other than they
    # compute (two cores: 0.3 s a fit against 0.006 s).
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(x, y)


def cv_folds(y: np.ndarray, groups: Sequence[str | None]) -> list[tuple[np.ndarray, np.ndarray]]:
    """(train, validation) indices of cross-validation, no group in both; empty where a class has too few groups."""
    grouped = any(g is not None for g in groups)
    groups = unit_names(groups)
    smallest = min(
        len({groups[int(i)] for i in np.flatnonzero(y == c)}) if grouped else int((y == c).sum()) for c in np.unique(y)
    )
    count = min(CV_FOLDS, smallest)
    if count < 2:
        return []
    if grouped:
        parts = StratifiedGroupKFold(count, shuffle=True, random_state=0).split(y, y, np.array(groups))
    else:
        parts = StratifiedKFold(count, shuffle=True, random_state=0).split(y, y)
    return [(a, b) for a, b in parts if len(np.unique(y[a])) == len(np.unique(y))]


def subsample(y: np.ndarray, groups: Sequence[str | None], count: int) -> np.ndarray:
    """Indices of about ``count`` images, stratified by class; every class has at least CV_FOLDS groups where it can."""
    order = numpy_generator(0, "strength").permutation(len(y))
    _, unit = np.unique(unit_names(groups), return_inverse=True)
    chosen = []
    for c in np.unique(y):
        members = order[y[order] == c]
        first = np.sort(np.unique(unit[members], return_index=True)[1])[:CV_FOLDS]
        rest = np.setdiff1d(np.arange(len(members)), first)
        n = max(len(first), round(count * len(members) / len(y)))
        chosen.append(members[np.concatenate([first, rest])[:n]])
    return np.sort(np.concatenate(chosen))


def select_C(x: np.ndarray, y: np.ndarray, groups: Sequence[str | None]) -> float | None:
    """The C of C_GRID with the best mean accuracy over the folds, the smallest on a tie; None without folds.

    Of more than CV_IMAGES images, about CV_IMAGES are used.
    """
    if len(y) > CV_IMAGES:
        chosen = subsample(y, groups, CV_IMAGES)
        x, y, groups = x[chosen], y[chosen], [groups[int(i)] for i in chosen]
    x, _ = to_row_space(x, x[:1])
    parts = cv_folds(y, groups)
    if not parts:
        return None
    accuracy = [np.mean([_fit(x[a], y[a], c).score(x[b], y[b]) for a, b in parts]) for c in C_GRID]
    return C_GRID[int(np.argmax(accuracy))]


def logistic_scores(
    train: np.ndarray, labels: np.ndarray, groups: Sequence[str | None], test: np.ndarray, classes: int
) -> tuple[np.ndarray, float | None]:
    """Class probabilities of L2 logistic regression, and the selected C.

    Parameters
    ----------
    train, test
        Features [N D] and [M D]; standardised here.
    labels
        [N] class numbers.
    groups
        [N] patients or slides, which cross-validation keeps apart; None for an image of its own.

    Returns
    -------
    [M classes] float32, and C; None where a class has too few groups for cross-validation, and C = 1 was used.

    Examples
    --------
    >>> train, labels = np.array([[-1.0], [-2.0], [1.0], [2.0]]), np.array([0, 0, 1, 1])
    >>> scores, _ = logistic_scores(train, labels, [None] * 4, np.array([[3.0]]), classes=2)
    >>> int(scores.argmax())
    1
    """
    x, z = standardise(np.asarray(train, np.float32), np.asarray(test, np.float32))
    c = select_C(x, labels, groups)
    x, z = to_row_space(x, z)
    scores = np.zeros((len(test), classes), dtype=np.float32)
    present = np.unique(labels)
    if len(present) == 1:
        scores[:, present[0]] = 1.0
        return scores, None
    model = _fit(x, labels, 1.0 if c is None else c)
    scores[:, model.classes_] = model.predict_proba(z)
    return scores, c
