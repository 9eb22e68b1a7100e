"""Nested cross-validation that keeps patients together: every slide is tested by a head that has not seen its patient.

Outer folds give the results; inner folds, inside the training part of each, select the penalty of a head (Varma and
Simon 2006 show the bias without them). Folds, draws and resamples are the same for every learner, so differences are
paired. AUROC is computed within each outer fold and averaged: scores of two heads have no common scale.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from saccade.base.random import numpy_generator
from saccade.data.splits import unit_names
from saccade.errors import EvaluationError, UsageError
from saccade.evaluation.metrics import (
    Metric,
    Row,
    auroc,
    balanced_accuracy,
    bootstrap,
    resampling_weights,
    summarise_models,
)
from saccade.evaluation.protocol import EvalReport, draw_fraction
from saccade.evaluation.small_samples import FEW_UNITS, few_units

TRIALS = 20
"""Random outer folds that are tried before their number is reduced."""
MEASURED: dict[str, Metric] = {"auroc": auroc, "balanced_accuracy": balanced_accuracy}


@dataclass(frozen=True)
class NestedConfig:
    """Settings of nested cross-validation.

    Parameters
    ----------
    folds, inner
        Outer folds, and folds within each training part.
    fractions, repeats
        Of the training labels, and draws of each fraction below 1.
    bootstrap
        Resamples of the patients.
    """

    folds: int = 5
    inner: int = 3
    fractions: tuple[float, ...] = (1.0, 0.25)
    repeats: int = 3
    bootstrap: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.folds < 2 or self.inner < 2 or self.repeats < 1:
            got = f"folds {self.folds}, inner {self.inner}, repeats {self.repeats}"
            raise UsageError("cross-validation needs two folds or more", got=got)
        if not self.fractions or not all(0 < f <= 1 for f in self.fractions):
            raise UsageError("fractions of the labels lie between 0 and 1", got=self.fractions, expected="e.g. 1,0.25")


class Learner(Protocol):
    """A classifier of slides. ``choices``: values of its penalty, the strongest first."""

    @property
    def name(self) -> str: ...

    @property
    def choices(self) -> Sequence[float]: ...

    def scores(
        self, train: np.ndarray, labels: np.ndarray, test: np.ndarray, *, choice: float, seed: int
    ) -> np.ndarray:
        """Scores [M K] of the slides at ``test`` after learning from those at ``train`` with ``labels`` [N]."""
        ...


@dataclass(frozen=True)
class Cohort:
    """S labelled slides: class numbers [S], patients, the names of the classes, and which slides [S] may be tested on
    (those that pretraining has not seen)."""

    labels: np.ndarray
    groups: list[str | None]
    classes: tuple[str, ...]
    testable: np.ndarray


def outer_folds(cohort: Cohort, count: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(train, test) of each outer fold: every testable slide is tested once, whole patients apart.

    Slides that pretraining has seen only ever train. Patients with slides of several classes can take all of a class
    into one fold; then other folds are drawn, and fewer of them at last. EvaluationError where there are too few
    patients of a class.
    """
    units = np.array(unit_names(cohort.groups))
    testable = np.flatnonzero(cohort.testable)
    fewest = min(
        (len(set(units[testable][cohort.labels[testable] == c])) for c in range(len(cohort.classes))), default=0
    )
    if fewest < 2:
        raise EvaluationError(
            "too few patients to test on",
            got=f"{fewest} of the rarest class" + ("" if cohort.testable.all() else ", not seen in pretraining"),
            expected="two or more of every class",
            hint="pretrain on other slides, or mark every number with --allow-overlap",
        )
    for parts in range(min(count, fewest), 1, -1):
        for trial in range(TRIALS):
            drawn = StratifiedGroupKFold(parts, shuffle=True, random_state=seed + trial)
            folds = []
            for _, test in drawn.split(testable, cohort.labels[testable], units[testable]):
                inside = np.isin(units, units[testable[test]])
                folds.append((np.flatnonzero(~inside), testable[test]))
            if _all_classes(cohort, folds):
                return folds
    raise EvaluationError(
        "cannot build folds that keep patients together and contain every class",
        got=f"{len(set(units[testable]))} patients, many of them with slides of several classes",
        hint="slides of more patients; or is the column of patients the right one?",
    )


def _all_classes(cohort: Cohort, folds: Sequence[tuple[np.ndarray, np.ndarray]]) -> bool:
    """Whether every fold learns from all classes, and every fold is tested on two of them at least."""
    labels, classes = cohort.labels, len(cohort.classes)
    return all(len(set(labels[a])) == classes and len(set(labels[b])) > 1 for a, b in folds)


def inner_folds(labels: np.ndarray, units: np.ndarray, count: int, classes: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Parts of a training part, patients apart, all classes on both sides; empty where there are too few patients."""
    fewest = min(len(set(units[labels == c])) for c in range(classes))
    if fewest < 2:
        return []
    parts = StratifiedGroupKFold(min(count, fewest), shuffle=True, random_state=0).split(labels, labels, units)
    return [(a, b) for a, b in parts if len(set(labels[a])) == classes == len(set(labels[b]))]


def choose(
    learner: Learner, train: np.ndarray, labels: np.ndarray, units: np.ndarray, config: NestedConfig, classes: int
) -> float:
    """The choice with the highest mean AUROC over the inner folds; the strongest penalty on a tie or without folds."""
    folds = inner_folds(labels, units, config.inner, classes) if len(learner.choices) > 1 else []
    if not folds:
        return learner.choices[0]
    means = []
    for choice in learner.choices:
        areas = []
        for a, b in folds:
            scores = learner.scores(train[a], labels[a], train[b], choice=choice, seed=config.seed)
            areas.append(float(auroc(scores, labels[b], np.ones((1, len(b))))[0]))
        means.append(float(np.mean(areas)))
    return learner.choices[int(np.argmax(means))]


@dataclass(frozen=True)
class Draw:
    """One draw of the labels: for every outer fold the rows that train."""

    fraction: float
    train: list[np.ndarray]


def draws(cohort: Cohort, folds: Sequence[tuple[np.ndarray, np.ndarray]], config: NestedConfig) -> list[Draw]:
    """All draws of labels, stratified, whole patients where the fraction allows."""
    result = []
    for fraction in config.fractions:
        for repeat in range(config.repeats if fraction < 1 else 1):
            rows = []
            for train, _ in folds:
                groups = [cohort.groups[i] for i in train]
                picked, _ = draw_fraction(cohort.labels[train], groups, fraction, seed=config.seed, repeat=repeat)
                rows.append(train[picked])
            result.append(Draw(fraction, rows))
    return result


def out_of_fold(
    learner: Learner,
    cohort: Cohort,
    folds: Sequence[tuple[np.ndarray, np.ndarray]],
    draw: Draw,
    config: NestedConfig,
    *,
    on_fold: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """Scores [S K] of every tested slide by the head of its own fold; NaN for slides that are not tested.

    on_fold   called when a fold is done
    """
    units, classes = np.array(unit_names(cohort.groups)), len(cohort.classes)
    scores = np.full((len(cohort.labels), classes), np.nan)
    for (_, test), train in zip(folds, draw.train):
        labels = cohort.labels[train]
        choice = choose(learner, train, labels, units[train], config, classes)
        scores[test] = learner.scores(train, labels, test, choice=choice, seed=config.seed)
        on_fold()
    return scores


def by_folds(
    measure: Metric, scores: np.ndarray, labels: np.ndarray, weights: np.ndarray, folds: Sequence[np.ndarray]
) -> np.ndarray:
    """Mean of a metric over the outer folds, [R] for weights [R S]; folds that a resample leaves empty do not count.

    NaN where it leaves none that can be measured: for AUROC, one with slides of two classes.
    """
    values = []
    for test in folds:
        inside = weights[:, test]
        drawn = inside.sum(axis=1) > 0
        value = np.full(len(weights), np.nan)
        value[drawn] = measure(scores[test], labels[test], inside[drawn])
        values.append(value)
    stacked = np.stack(values)
    measured = ~np.isnan(stacked)
    count = measured.sum(axis=0)
    mean: np.ndarray = np.divide(
        np.where(measured, stacked, 0).sum(axis=0), count, out=np.full(len(weights), np.nan), where=count > 0
    )
    return mean


def nested(
    learners: Sequence[Learner],
    cohort: Cohort,
    config: NestedConfig,
    *,
    progress: Callable[[str, int, int], None] = lambda learner, done, total: None,
) -> EvalReport:
    """Every learner by the same folds, draws and resamples; differences are those from the first.

    progress   called with the learner's name, folds that are done and folds of all learners and draws
    """
    folds = outer_folds(cohort, config.folds, config.seed)
    every = draws(cohort, folds, config)
    total, done = len(learners) * len(every) * len(folds), itertools.count(1)
    scores: dict[str, list[np.ndarray]] = {}
    for number, learner in enumerate(learners):
        progress(learner.name, number * len(every) * len(folds), total)

        def on_fold(name: str = learner.name) -> None:
            progress(name, next(done), total)

        scores[learner.name] = [out_of_fold(learner, cohort, folds, draw, config, on_fold=on_fold) for draw in every]
    return summarise(scores, cohort, folds, every, config)


def summarise(
    scores: Mapping[str, list[np.ndarray]],
    cohort: Cohort,
    folds: Sequence[tuple[np.ndarray, np.ndarray]],
    every: Sequence[Draw],
    config: NestedConfig,
) -> EvalReport:
    """Rows and paired differences with 95 % intervals by bootstrap over patients; a resample also picks a draw."""
    tests = [test for _, test in folds]
    weights = resampling_weights(cohort.groups, config.bootstrap, config.seed)
    rows: list[Row] = []
    differences: list[Row] = []
    units = len({unit_names(cohort.groups)[i] for test in tests for i in test})
    unmeasured = np.isnan(
        by_folds(auroc, np.zeros((len(cohort.labels), len(cohort.classes))), cohort.labels, weights, tests)
    )
    for fraction in config.fractions:
        members = [i for i, draw in enumerate(every) if draw.fraction == fraction]
        picks = numpy_generator(config.seed, "picks", round(fraction * 1e6)).integers(len(members), size=len(weights))
        n_train = round(float(np.mean([len(rows_) for i in members for rows_ in every[i].train])))
        for metric, measure in MEASURED.items():

            def over_folds(by_draw: list[np.ndarray], draw: int, drawn: np.ndarray, measure: Metric = measure) -> Any:
                return by_folds(measure, by_draw[draw], cohort.labels, drawn, tests)

            estimates = {
                name: bootstrap(partial(over_folds, by_draw), members, picks, weights)
                for name, by_draw in scores.items()
            }
            about = {"fraction": fraction, "metric": metric, "n_train": n_train}
            new_rows, new_differences = summarise_models(estimates, about, units=units)
            rows += new_rows
            differences += new_differences
    protocol = dataclasses.asdict(config) | {
        "classes": list(cohort.classes),
        "slides": len(cohort.labels),
        "tested": int(sum(map(len, tests))),
        "units": units,
        "few_units": bool(few_units({"units": units})),
        "unmeasured": float(unmeasured.mean()),
        "text": _text(cohort, folds, units, float(unmeasured.mean()), config),
    }
    return EvalReport(protocol, rows, differences)


def _rarest(cohort: Cohort) -> tuple[str, int]:
    """The class that the fewest patients tested have, and how many they are."""
    units = np.array(unit_names(cohort.groups))
    counts = [len(set(units[cohort.testable & (cohort.labels == c)])) for c in range(len(cohort.classes))]
    least = int(np.argmin(counts))
    return cohort.classes[least], counts[least]


def _text(cohort: Cohort, folds: Sequence[Any], units: int, unmeasured: float, config: NestedConfig) -> str:
    tested = sum(len(test) for _, test in folds)
    words = [
        f"{len(cohort.labels)} labelled slides of {len(set(unit_names(cohort.groups)))} patients, "
        f"{len(cohort.classes)} classes; {tested} slides tested.",
        f"Nested cross-validation, whole patients apart: {len(folds)} outer folds give the figures, {config.inner} "
        "inner ones choose the penalty.",
        "AUROC within each outer fold, mean over folds; "
        f"95 % intervals by bootstrap over {units} patients, {config.bootstrap} resamples, paired.",
    ]
    if not cohort.testable.all():
        words.append(f"{int((~cohort.testable).sum())} slides that pretraining has seen only train.")
    if unmeasured > 0:
        words.append(f"Resamples without slides of two classes in any fold are left out ({unmeasured:.1%}).")
    if min(config.fractions) < 1:
        words.append(f"Below 100 % of the labels: {config.repeats} stratified draws of each training part.")
    rarest, fewest = _rarest(cohort)
    if units < FEW_UNITS:
        words.append(f"With only {units} patients the intervals mean nothing and no difference is called clear.")
    elif fewest < FEW_UNITS:
        words.append(
            f"Only {fewest} patients tested are of class {rarest}: the intervals are narrower than they should be."
        )
    return " ".join(words)
