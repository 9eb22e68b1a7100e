"""Weighted k-NN on frozen features (Wu et al. 2018, as in DINO): the one place that knows the protocol.

Cosine similarity s, votes weighted exp(s / 0.07); k = 10, 20, 100 and 200 are reported, and k = 20 is the headline.
Each k is capped by the number of training images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from saccade.features.table import nearest

TEMPERATURE = 0.07
REPORTED_K = (10, 20, 100, 200)
HEADLINE_K = 20


def vote(
    similarity: np.ndarray, neighbour_labels: np.ndarray, classes: int, temperature: float = TEMPERATURE
) -> np.ndarray:
    """Class scores from neighbours, each vote weighted exp(similarity / temperature).

    Parameters
    ----------
    similarity
        [M k] cosines of the k neighbours of M images, the nearest first.
    neighbour_labels
        [M k] class numbers of the neighbours.

    Returns
    -------
    [M classes] float32; every row sums to 1.

    Examples
    --------
    >>> vote(np.array([[0.9, 0.9, 0.9]]), np.array([[1, 1, 0]]), classes=2).round(2)
    array([[0.33, 0.67]], dtype=float32)
    """
    weights = np.exp((similarity - similarity[:, :1]) / temperature)
    votes = np.zeros((len(similarity), classes), dtype=np.float64)
    for c in range(classes):
        votes[:, c] = (weights * (neighbour_labels == c)).sum(axis=1)
    scores: np.ndarray = (votes / votes.sum(axis=1, keepdims=True)).astype(np.float32)
    return scores


def knn_scores_of(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    ks: Sequence[int],
    classes: int,
    temperature: float = TEMPERATURE,
) -> dict[int, np.ndarray]:
    """Class scores [M classes] of the test rows for every k of ``ks``, from one search; see ``knn_scores``."""
    similarity, neighbours = nearest(train, test, max(ks))
    labels = train_labels[neighbours]
    return {k: vote(similarity[:, :k], labels[:, :k], classes, temperature) for k in ks}


def knn_scores(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    k: int,
    classes: int,
    temperature: float = TEMPERATURE,
) -> np.ndarray:
    """Class scores of weighted k-NN.

    Parameters
    ----------
    train, test
        Features [N D] and [M D]; scaled to length 1 here.
    train_labels
        [N] class numbers.
    k
        Neighbours; capped by N.

    Returns
    -------
    [M classes] float32; every row sums to 1.

    Examples
    --------
    >>> features, labels = np.eye(2), np.array([0, 1])
    >>> knn_scores(features, labels, np.array([[0.9, 0.1]]), k=1, classes=2)
    array([[1., 0.]], dtype=float32)
    """
    return knn_scores_of(train, train_labels, test, (k,), classes, temperature)[k]


@dataclass(frozen=True)
class LabelVote:
    """Votes of the neighbours of one image.

    Parameters
    ----------
    label
        The label with most of the votes.
    fractions
        Fraction of the votes of every label, the largest first.
    counts
        Neighbours with each label.
    """

    label: str
    fractions: Mapping[str, float]
    counts: Mapping[str, int]

    def text(self) -> str:
        votes = ", ".join(f"{name} {part:.0%} ({self.counts[name]})" for name, part in self.fractions.items())
        return f"the neighbours vote for {self.label}: {votes}"


def vote_label(neighbours: Sequence[tuple[str | None, float]]) -> LabelVote | None:
    """The vote of labelled neighbours (label, cosine similarity), the nearest first; None where none has a label.

    Examples
    --------
    >>> vote_label([("benign", 0.9), (None, 0.9), ("tumour", 0.8)]).text()
    'the neighbours vote for benign: benign 81% (1), tumour 19% (1)'
    """
    labelled = [(label, similarity) for label, similarity in neighbours if label]
    if not labelled:
        return None
    names = list(dict.fromkeys(label for label, _ in labelled))
    numbers = np.array([[names.index(label) for label, _ in labelled]])
    fractions = vote(np.array([[similarity for _, similarity in labelled]]), numbers, len(names))[0]
    order = sorted(range(len(names)), key=lambda i: -float(fractions[i]))
    counts = np.bincount(numbers[0])
    return LabelVote(
        names[order[0]],
        {names[i]: float(fractions[i]) for i in order},
        {name: int(count) for name, count in zip(names, counts)},
    )
