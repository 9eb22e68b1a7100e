"""Logistic regression with the strength chosen inside the training part: saccade beside scikit-learn called naively.

    python benchmarks/logistic.py [MODEL] [DATA] [--rounds 2] [--json] [--smoke]

Naively: LogisticRegressionCV with the same strengths, folds and groups on all training rows, standardised.
The last line is one JSON object: fits a second of ``ours`` and ``peer``, ``ratio``, and both test accuracies.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from sklearn.linear_model import LogisticRegressionCV
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import harness
from harness import Work
from saccade import api
from saccade.evaluation.probes import C_GRID, CV_FOLDS, logistic_scores
from saccade.features.table import FeatureTable

SMOKE = {"data": "synthetic:tissue?n=80&size=32", "model": "random:resnet10_w8", "rounds": 1}


@dataclass(frozen=True)
class Task:
    """Features, labels as numbers and groups; which rows are the test part."""

    features: np.ndarray
    labels: np.ndarray
    groups: list[str | None]
    test: np.ndarray


def embedded(model: str, data: str) -> Task:
    table = api.embed(model, data)
    assert isinstance(table, FeatureTable)
    names = sorted({str(label) for label in table.labels})
    labels = np.array([names.index(str(label)) for label in table.labels])
    return Task(table.features, labels, table.groups, np.array([split == "test" for split in table.splits]))


def fit_ours(task: Task) -> float:
    train, test = np.flatnonzero(~task.test), np.flatnonzero(task.test)
    x, groups = task.features, [task.groups[i] for i in train]
    scores, _ = logistic_scores(x[train], task.labels[train], groups, x[test], int(task.labels.max()) + 1)
    return float((scores.argmax(axis=1) == task.labels[test]).mean())


def fit_naively(task: Task) -> float:
    train = np.flatnonzero(~task.test)
    groups = np.array([str(task.groups[i]) for i in train])
    folds = StratifiedGroupKFold(CV_FOLDS, shuffle=True, random_state=0).split(train, task.labels[train], groups)
    chosen = LogisticRegressionCV(Cs=list(C_GRID), cv=list(folds), max_iter=1000)
    fitted = make_pipeline(StandardScaler(), chosen).fit(task.features[train], task.labels[train])
    return float(fitted.score(task.features[task.test], task.labels[task.test]))


def set_up(fit: Callable[[Task], float], task: Task) -> Work:
    def work() -> int:
        fit(task)
        return 1

    return work


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="random:resnet10_w32")
    parser.add_argument("data", nargs="?", default="synthetic:tissue")
    parser.add_argument("--rounds", type=int, default=2)
    options = harness.parse(parser, SMOKE, argv)
    task = embedded(options.model, options.data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        accuracies = {"accuracy": round(fit_ours(task), 4), "peer_accuracy": round(fit_naively(task), 4)}
    mine, theirs = harness.abab(partial(set_up, fit_ours, task), partial(set_up, fit_naively, task), options.rounds)
    text = f"saccade {1 / mine:.1f} s, naive scikit-learn {1 / theirs:.1f} s: {mine / theirs:.1f} times; {accuracies}"
    result = {"ours": round(mine, 4), "peer": round(theirs, 4), "ratio": round(mine / theirs, 2)}
    harness.finish(options, result | accuracies, [text])


if __name__ == "__main__":
    main()
