"""Few-label evaluation: the same draws and the same resamples for every model, a stated protocol with every number.

Follows the frozen-feature protocol of DINO (Caron et al. 2021, Table 10 and section 4.1), extended for medical data by
whole groups, repeated draws and paired intervals.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from saccade.base import frames
from saccade.base.random import numpy_generator
from saccade.data.splits import unit_names
from saccade.errors import EvaluationError, UsageError
from saccade.evaluation.knn import HEADLINE_K, REPORTED_K, TEMPERATURE, knn_scores_of
from saccade.evaluation.metrics import METRICS, Metric, Row, bootstrap, resampling_weights, summarise_models
from saccade.evaluation.probes import C_GRID, CV_IMAGES, logistic_scores
from saccade.evaluation.small_samples import FEW_UNITS, few_units
from saccade.features.table import FeatureTable

Tables = Mapping[str, tuple[FeatureTable, FeatureTable]]
Key = tuple[str, int | None]  # probe and, for k-NN, k as asked for


@dataclass(frozen=True)
class ProtocolConfig:
    """What is measured, and how often.

    Parameters
    ----------
    fractions
        Of the training labels, 0 to 1.
    repeats
        Draws of each fraction below 1.
    knn
        Values of k, all reported; ``headline_k`` is the one in tables.
    bootstrap
        Resamples of the test groups.

    Raises
    ------
    UsageError
        For fractions out of range or given twice, and for fewer than one draw.
    """

    fractions: tuple[float, ...] = (1.0, 0.1, 0.01)
    repeats: int = 5
    knn: tuple[int, ...] = REPORTED_K
    headline_k: int = HEADLINE_K
    temperature: float = TEMPERATURE
    bootstrap: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        fractions = self.fractions
        if not fractions or len(set(fractions)) < len(fractions) or not all(0 < f <= 1 for f in fractions):
            raise UsageError(
                "fractions of the labels must differ and lie between 0 and 1",
                got=", ".join(f"{f:g}" for f in fractions),
                expected="for example 1,0.1,0.01",
                hint="10 % is 0.1",
            )
        if self.repeats < 1:
            raise UsageError("every fraction needs at least one draw", got=f"repeats = {self.repeats}")


@dataclass(frozen=True)
class EvalReport(frames.Tabular):
    """Result of an evaluation, as in evaluation.json (docs/reference/files.md).

    Parameters
    ----------
    protocol
        Every rule and number, with ``text`` for people.
    rows
        One per model, probe, fraction and metric.
    differences
        Between the first model and each other, paired.
    masks
        Agreement of the attention with masks, where it was asked for.
    """

    protocol: dict[str, Any]
    rows: list[dict[str, Any]]
    differences: list[dict[str, Any]]
    masks: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        return {key: value for key, value in dataclasses.asdict(self).items() if value is not None}

    def frame_columns(self) -> dict[str, list[Any]]:
        """The rows."""
        return frames.columns_of(self.rows)

    def _repr_html_(self) -> str:
        return frames.to_html("Evaluation", self.frame_columns())

    def with_context(
        self, *, data: str, split: str, overlap: bool, grey: bool, warnings: Sequence[str] = ()
    ) -> EvalReport:
        """The same report, its protocol completed by data, split, overlap with pretraining and colour."""
        words = [f"Test part: {split}."]
        if grey:
            words.append("All images were shown without colour.")
        if overlap:
            words.append("WARNING: part of the test part was seen in pretraining.")
        words += [f"WARNING: {warning}" for warning in warnings]
        protocol = self.protocol | {"data": data, "split": split, "overlap": overlap, "grey": grey}
        if warnings:
            protocol["warnings"] = list(warnings)
        protocol["text"] = " ".join([*words, self.protocol["text"]])
        mark = {"overlap": True} if overlap else {}
        return EvalReport(protocol, [r | mark for r in self.rows], [d | mark for d in self.differences])


# --- draws --------------------------------------------------------------------------------------


def draw_fraction(
    labels: np.ndarray, groups: Sequence[str | None], fraction: float, *, seed: int, repeat: int
) -> tuple[np.ndarray, bool]:
    """Draw about ``fraction`` of the training images, every class present.

    Where groups have one class each, groups are drawn class by class while that brings the count nearer the target, at
    least one per class. Where groups mix classes, whole groups are drawn while that brings the total nearer; if a class
    is missing then or the total is off by more than half, images are drawn class by class instead.

    Returns
    -------
    Sorted indices, and whether groups are whole.

    Examples
    --------
    >>> draw_fraction(np.array([0, 0, 1, 1]), ["a", "a", "b", "b"], 0.5, seed=0, repeat=0)
    (array([0, 1, 2, 3]), True)
    """
    rng = numpy_generator(seed, "fraction", round(fraction * 1e6), repeat)
    if fraction >= 1:
        return np.arange(len(labels)), True
    unique, which = np.unique(unit_names(groups), return_inverse=True)
    members = [np.flatnonzero(which == g) for g in range(len(unique))]
    pure = all(len(np.unique(labels[m])) == 1 for m in members)
    if pure:
        chosen: list[np.ndarray] = []
        for c in np.unique(labels):
            of_class = [m for m in members if labels[m[0]] == c]
            chosen += _take([of_class[i] for i in rng.permutation(len(of_class))], fraction * (labels == c).sum())
        return np.sort(np.concatenate(chosen)), True
    target = fraction * len(labels)
    drawn = np.concatenate(_take([members[i] for i in rng.permutation(len(members))], target))
    if len(np.unique(labels[drawn])) == len(np.unique(labels)) and abs(len(drawn) - target) <= 0.5 * target:
        return np.sort(drawn), True
    items = [
        rng.permutation(np.flatnonzero(labels == c))[: max(1, round(fraction * (labels == c).sum()))]
        for c in np.unique(labels)
    ]
    return np.sort(np.concatenate(items)), False


def _take(groups: Sequence[np.ndarray], target: float) -> list[np.ndarray]:
    """Groups in the order given while each brings the count nearer the target; at least one."""
    taken, count = [groups[0]], len(groups[0])
    for group in groups[1:]:
        if abs(count + len(group) - target) < abs(count - target):
            taken.append(group)
            count += len(group)
    return taken


@dataclass(frozen=True)
class _Draw:
    fraction: float
    indices: np.ndarray
    whole_groups: bool


def _draws(labels: np.ndarray, groups: Sequence[str | None], config: ProtocolConfig) -> list[_Draw]:
    draws = []
    for fraction in config.fractions:
        for repeat in range(config.repeats if fraction < 1 else 1):
            indices, whole_groups = draw_fraction(labels, groups, fraction, seed=config.seed, repeat=repeat)
            draws.append(_Draw(fraction, indices, whole_groups))
    return draws


# --- measuring ----------------------------------------------------------------------------------


def evaluate(
    models: Tables, config: ProtocolConfig, *, progress: Callable[[int, int], None] | None = None
) -> EvalReport:
    """Measure every model; the first one is compared with each of the others.

    Parameters
    ----------
    models
        Name to training table and test table; all hold the same images in the same order.
    progress
        Called with the number of measured models and of all.

    Raises
    ------
    EvaluationError
        A class is missing in the training part.
    """
    first_train, first_test = next(iter(models.values()))
    classes = sorted({str(label) for label in first_train.labels})
    unseen = sorted({str(label) for label in first_test.labels} - set(classes))
    if unseen or len(classes) < 2:
        raise EvaluationError(
            "the training part lacks a class",
            got=f"classes {', '.join(classes[:10])}"
            + (f"; only in the test part: {', '.join(unseen[:5])}" if unseen else ""),
            expected="at least two classes, all of them in the training part",
            hint="choose another split, or merge classes",
        )
    number = {name: i for i, name in enumerate(classes)}
    y = np.array([number[str(label)] for label in first_train.labels])
    truth = np.array([number[str(label)] for label in first_test.labels])
    draws = _draws(y, first_train.groups, config)
    units = len(set(unit_names(first_test.groups)))
    weights = resampling_weights(first_test.groups, config.bootstrap, config.seed)
    scores: dict[str, list[dict[Key, np.ndarray]]] = {}
    fallbacks = 0
    for done, (name, (train, test)) in enumerate(models.items()):
        scores[name] = []
        for draw in draws:
            by_probe, fixed = _probe(train, test, y, draw.indices, len(classes), config)
            scores[name].append(by_probe)
            fallbacks += fixed
        if progress is not None:
            progress(done + 1, len(models))
    rows, differences = _summarise(scores, truth, draws, weights, config, units)
    return EvalReport(_protocol(config, draws, first_test, classes, fallbacks, units), rows, differences)


def _probe(
    train: FeatureTable,
    test: FeatureTable,
    y: np.ndarray,
    chosen: np.ndarray,
    classes: int,
    config: ProtocolConfig,
) -> tuple[dict[Key, np.ndarray], bool]:
    """Scores [M C] of every probe for one draw, and whether C of logistic regression had to be fixed."""
    features, labels = train.features[chosen], y[chosen]
    by_k = knn_scores_of(features, labels, test.features, config.knn, classes, config.temperature)
    scores: dict[Key, np.ndarray] = {("knn", k): by_k[k] for k in config.knn}
    groups = [train.groups[i] for i in chosen]
    scores["logistic", None], c = logistic_scores(features, labels, groups, test.features, classes)
    return scores, c is None


def _summarise(
    scores: Mapping[str, list[dict[Key, np.ndarray]]],
    truth: np.ndarray,
    draws: Sequence[_Draw],
    weights: np.ndarray,
    config: ProtocolConfig,
    units: int,
) -> tuple[list[Row], list[Row]]:
    rows: list[Row] = []
    differences: list[Row] = []
    for fraction in config.fractions:
        members = [i for i, draw in enumerate(draws) if draw.fraction == fraction]
        n_train = round(float(np.mean([len(draws[i].indices) for i in members])))
        picks = numpy_generator(config.seed, "picks", round(fraction * 1e6)).integers(len(members), size=len(weights))
        for (probe, k), (metric, measure) in itertools.product(next(iter(scores.values()))[0], METRICS.items()):
            # AUROC sorts for every resample: a fifth of them is enough, and only where it is shown.
            if metric == "auroc" and k not in (None, config.headline_k):
                continue
            used = weights[: len(weights) // 5] if metric == "auroc" else weights
            about = {"probe": probe, "fraction": fraction, "metric": metric, "n_train": n_train}
            about |= {"repeats": len(members)} | ({"k": min(k, n_train), "k_asked": k} if k else {})
            estimates = {
                model: bootstrap(partial(_measure, measure, by_draw, (probe, k), truth), members, picks, used)
                for model, by_draw in scores.items()
            }
            new_rows, new_differences = summarise_models(estimates, about, units=units)
            rows += new_rows
            differences += new_differences
    return rows, differences


def _measure(
    measure: Metric,
    by_draw: list[dict[Key, np.ndarray]],
    key: Key,
    truth: np.ndarray,
    draw: int,
    weights: np.ndarray,
) -> np.ndarray:
    return measure(by_draw[draw][key], truth, weights)


def _protocol(
    config: ProtocolConfig,
    draws: Sequence[_Draw],
    test: FeatureTable,
    classes: Sequence[str],
    fallbacks: int,
    units: int,
) -> dict[str, Any]:
    groups = {g for g in test.groups if g is not None}
    below = [d for d in draws if d.fraction < 1]
    broken = sorted({d.fraction for d in below if not d.whole_groups}, reverse=True)
    over = f"{units} groups" if groups else f"{units} images (no groups are known)"
    words = [
        f"{len(classes)} classes, {len(test):,} test images; 95 % intervals by Student's t and a bootstrap over "
        f"{over}, "
        f"{config.bootstrap} resamples (AUROC {config.bootstrap // 5}).",
        f"k-NN: cosine similarity, votes exp(s/{config.temperature}), k = {config.headline_k} "
        "(capped by the training size).",
        f"Logistic regression: L2, C from {', '.join(f'{c:g}' for c in C_GRID)} by cross-validation "
        f"(groups apart) inside the training part (where it is larger, on about {CV_IMAGES:,} of its images).",
    ]
    if len(set(test.labels)) == 1:
        words.append(f"All test images are of class {test.labels[0]}: there is no AUROC, which needs two.")
    if units < FEW_UNITS:
        words.append(f"With only {units} of them the intervals mean nothing and no difference is called clear.")
    if below:
        words.append(
            f"Below 100 % of the labels: {config.repeats} stratified draws, mean over draws; "
            "each resample also picks a draw."
        )
    if broken:
        percentages = ", ".join(f"{f:.0%}" for f in broken)
        words.append(f"At {percentages} groups could not be kept whole inside the training part; images were drawn.")
    if fallbacks:
        words.append(f"In {fallbacks} fits a class had too few groups for cross-validation; C = 1 was used.")
    words.append("Differences are paired: same draws, same resamples.")
    return dataclasses.asdict(config) | {
        "classes": list(classes),
        "n_test": len(test),
        "groups_test": len(groups),
        "units_test": units,
        "few_units": bool(few_units({"units_test": units})),
        "strengths": list(C_GRID),
        "fixed_strength_fits": fallbacks,
        "text": " ".join(words),
    }
