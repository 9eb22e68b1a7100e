"""Learning curves of many trainings: means, paired differences, effects and crossings, each with its interval.

A difference is "clear" when its interval at 1 - 0.05/m excludes zero, m being the comparisons made at once: the pairs
of backbones of one series and size, the backbones of one effect and size (Bonferroni).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np

from saccade.errors import EvaluationError, UsageError, unknown
from saccade.evaluation.backbone_roles import couples, default_columns
from saccade.evaluation.findings import conclude
from saccade.evaluation.metrics import METRICS
from saccade.evaluation.resampling import FEW_SEEDS, Chance, Estimate, Values, combine, judge, weighted
from saccade.evaluation.small_samples import FEW_UNITS

PROBES = ("dino-logistic", "dino-knn")


@dataclass(frozen=True)
class Answers:
    """Predictions of one trained backbone for every test image.

    series       "supervised", "augmented", "dino-knn", "dino-logistic", "dino-finetuned"
    size         training images            scores   [M C] class scores of the M test images
    conditions   the same for changed test images, by the name of the change
    """

    backbone: str
    series: str
    size: int
    seed: int
    scores: np.ndarray
    conditions: Mapping[str, np.ndarray]


# --- the grid -----------------------------------------------------------------------------------


class Grid:
    """Metric of all predictions: backbone, series, size and condition to the values of its seeds."""

    def __init__(self, answers: Iterable[Answers], truth: np.ndarray, chance: Chance, metric: str):
        answers = list(answers)
        self.chance = chance
        self.backbones = list(dict.fromkeys(a.backbone for a in answers))
        self.series = list(dict.fromkeys(a.series for a in answers))
        self.sizes = sorted({a.size for a in answers})
        self.conditions = list(dict.fromkeys(name for a in answers for name in a.conditions))
        unweighted = np.ones((1, len(truth)))
        measured: dict[tuple[str, str, int, str], dict[int, float]] = {}
        resampled: dict[tuple[str, str, int, str], dict[int, np.ndarray]] = {}
        for a in answers:
            # Changed images are compared at the largest training size.
            changed = a.conditions if a.size == self.sizes[-1] else {}
            for condition, scores in {"plain": a.scores, **changed}.items():
                key = (a.backbone, a.series, a.size, condition)
                measured.setdefault(key, {})[a.seed] = float(METRICS[metric](scores, truth, unweighted)[0])
                resampled.setdefault(key, {})[a.seed] = METRICS[metric](scores, truth, chance.weights)
        self.values = {key: Values(measured[key], resampled[key]) for key in measured}

    def get(self, backbone: str, series: str, size: int, condition: str = "plain") -> Values:
        """Values without seeds where nothing was trained."""
        return self.values.get((backbone, series, size, condition), Values({}, {}))


def points(grid: Grid) -> list[dict[str, Any]]:
    """The learning curves."""
    rows = []
    for series in grid.series:
        for size in grid.sizes:
            family = {name: grid.get(name, series, size) for name in grid.backbones}
            for name, estimate in judge(family, grid.chance, size, bounds=(0.0, 1.0)).items():
                by_seed = {str(seed): value for seed, value in family[name].measured.items()}
                rows.append(_named(name, series, size) | estimate.row("mean") | {"by_seed": by_seed})
    return rows


def _named(backbone: str, series: str, size: int) -> dict[str, Any]:
    return {"backbone": backbone, "series": series, "size": size}


Pairs = dict[tuple[str, str], Estimate]


def pairs(values: Mapping[str, Values], chance: Chance, size: int) -> Pairs:
    """Every backbone minus every later one: few seeds, so the variance between them is pooled over all pairs."""
    present = {name: by_seed for name, by_seed in values.items() if by_seed.measured}
    family = {(a, b): present[a].minus(present[b]) for a, b in combinations(present, 2)}
    trained_twice = [name for name, by_seed in present.items() if len(by_seed.measured) > 1]
    return judge(family, chance, size, free=len(trained_twice) - 1)


def ordered(differences: Pairs, a: str, b: str) -> Estimate | None:
    """a minus b, in whichever order it is stored."""
    return differences[b, a].turned() if (b, a) in differences else differences.get((a, b))


def effects(grid: Grid, after: str, before: str) -> dict[int, dict[str, Estimate]]:
    """One series minus another, by size and backbone; "" is the mean over the backbones that have both."""
    by_size = {}
    for size in grid.sizes:
        each = {b: grid.get(b, after, size).minus(grid.get(b, before, size)) for b in grid.backbones}
        each = {name: values for name, values in each.items() if values.measured}
        if each:
            by_size[size] = judge(each, grid.chance, size)
            weights = [1 / len(each)] * len(each)
            by_size[size] |= judge({"": combine(list(each.values()), weights)}, grid.chance, size)
    return by_size


def effect_rows(grid: Grid, after: str, before: str) -> dict[str, Any]:
    """Rows of ``effects``, and how the mean effect changes from the smallest size to the largest."""
    by_size = effects(grid, after, before)
    rows = [
        {"after": after, "before": before, "backbone": name, "size": size} | estimate.row()
        for size, by_backbone in by_size.items()
        for name, estimate in by_backbone.items()
    ]
    sizes = [size for size in by_size if "" in by_size[size]]
    change = None
    if len(sizes) > 1:
        first, last = (by_size[size][""] for size in (sizes[0], sizes[-1]))
        change = {"from": sizes[0], "to": sizes[-1]} | _difference(first, last).row()
    return {"rows": rows, "change": change}


def _difference(a: Estimate, b: Estimate) -> Estimate:
    """Difference of two sizes: the test groups are the same, the draws of the seeds are not."""
    return weighted([a, b], (1.0, -1.0), (-2.0, 2.0))


def robustness(grid: Grid) -> list[dict[str, Any]]:
    """Changed test images minus plain ones, at the largest size."""
    rows, size = [], grid.sizes[-1]
    for series in grid.series:
        comparisons = sum((b, series, size, c) in grid.values for b in grid.backbones for c in grid.conditions)
        for condition in grid.conditions:
            family = {b: grid.get(b, series, size, condition).minus(grid.get(b, series, size)) for b in grid.backbones}
            for name, estimate in judge(family, grid.chance, size, comparisons=comparisons).items():
                rows.append(_named(name, series, size) | {"condition": condition} | estimate.row())
    return rows


def equivariance(
    grid: Grid, pairs_of_networks: Sequence[tuple[str, str]], differences: Mapping[tuple[str, int], Pairs]
) -> list[Any]:
    """Equivariant minus plain networks, without and with augmentation, and the change by augmentation."""
    rows = []
    for size in grid.sizes:
        gained = {b: grid.get(b, "supervised", size).minus(grid.get(b, "augmented", size)) for b in grid.backbones}
        judged = {series: differences.get((series, size), {}) for series in ("supervised", "augmented")}
        judged["taken"] = pairs(gained, grid.chance, size)
        for a, b in pairs_of_networks:
            each = {name: estimate for name in judged if (estimate := ordered(judged[name], a, b)) is not None}
            row = {name: replace(estimate, comparisons=len(pairs_of_networks)).row() for name, estimate in each.items()}
            if row:
                rows.append({"equivariant": a, "plain": b, "size": size} | row)
    return rows


# --- crossings ----------------------------------------------------------------------------------


def crossing(curve: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """Training size at which differences [R S] pass from above zero to below for the last time; NaN elsewhere.

    Linear between the sizes in log n.
    """
    log = np.log(np.asarray(sizes, dtype=np.float64))
    result = np.full(len(curve), np.nan)
    valid = np.flatnonzero((curve[:, 0] > 0) & (curve[:, -1] < 0))
    last = curve.shape[1] - 1 - (curve[valid, ::-1] > 0).argmax(axis=1)
    here, after = curve[valid, last], curve[valid, last + 1]
    result[valid] = np.exp(log[last] + (log[last + 1] - log[last]) * here / (here - after))
    return result


def crossings(grid: Grid, differences: Mapping[tuple[str, int], Pairs]) -> list[dict[str, Any]]:
    """For every two backbones of a series: which is ahead at both ends, and where the curves cross."""
    rows = []
    for series in grid.series:
        for a, b in combinations(grid.backbones, 2):
            sizes = [size for size in grid.sizes if (a, b) in differences[series, size]]
            if len(sizes) > 1:
                along = [differences[series, size][a, b] for size in sizes]
                rows.append({"series": series} | _crossing(a, b, sizes, along))
    return rows


def _crossing(a: str, b: str, sizes: list[int], along: list[Estimate]) -> dict[str, Any]:
    if along[0].mean < 0:  # the first is the one that is ahead at the smallest size
        a, b, along = b, a, [estimate.turned() for estimate in along]
    where = crossing(np.stack([estimate.spread for estimate in along], axis=1), sizes)
    at = float(crossing(np.array([[estimate.mean for estimate in along]]), sizes)[0])
    start, end = along[0].row(), along[-1].row()
    verdict = "not shown"
    if start["clear"] and end["clear"]:
        verdict = "passes" if math.isfinite(at) else "stays ahead"
    row: dict[str, Any] = {"first": a, "second": b, "verdict": verdict, "from": sizes[0], "to": sizes[-1]}
    row |= {"share": float(np.isfinite(where).mean()), "n": None, "low": None, "high": None}
    if verdict == "passes":
        low, high = np.nanpercentile(where, [2.5, 97.5])
        row |= {"n": at, "low": float(low), "high": float(high)}
    return row | {"start": start, "end": end}


# --- Table 10 -----------------------------------------------------------------------------------


def table(grid: Grid, columns: tuple[str, str], differences: Mapping[tuple[str, int], Pairs]) -> dict[str, Any]:
    """Two backbones side by side, sizes below each other, in the form of Table 10 of Caron et al. 2021.

    Rows of logistic regression and k-NN; of all series where there are none.
    """
    left, right = columns
    blocks = []
    for series in [name for name in PROBES if name in grid.series] or grid.series:
        rows, along = [], []
        for size in grid.sizes:
            estimate = ordered(differences[series, size], left, right)
            if estimate is not None:
                means = [float(np.mean(list(grid.get(name, series, size).measured.values()))) for name in columns]
                rows.append({"size": size, "left": means[0], "right": means[1]} | estimate.row())
                along.append(estimate)
        if along:
            blocks.append({"series": series, "rows": rows, "mean": _mean(along).row()})
    return {"left": left, "right": right, "blocks": blocks}


def _mean(along: Sequence[Estimate]) -> Estimate:
    """Over sizes."""
    return weighted(along, [1 / len(along)] * len(along), (-1.0, 1.0))


# --- all of it ----------------------------------------------------------------------------------


def summarise(
    answers: Sequence[Answers],
    truth: np.ndarray,
    groups: Sequence[str | None],
    *,
    metric: str = "accuracy",
    columns: tuple[str, str] | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """All results of a study for JSON: curves, differences, effects, crossings, table, conclusions.

    truth     [M] class numbers of the test images        groups    their groups, None for an image of its own
    columns   the two backbones of the table in the form of Table 10; None: the first CNN and the first ViT
    Raises UsageError, EvaluationError.
    """
    _check(answers, truth, groups, metric, columns)
    chance = Chance(groups, resamples, seed)
    grid = Grid(answers, truth, chance, metric)
    between = {
        (series, size): pairs({b: grid.get(b, series, size) for b in grid.backbones}, chance, size)
        for series in grid.series
        for size in grid.sizes
    }
    columns = columns or default_columns(grid.backbones)
    labels = "augmented" if "augmented" in grid.series else "supervised"
    summary: dict[str, Any] = {
        "metric": metric,
        "units": chance.units,
        "resamples": resamples,
        "backbones": grid.backbones,
        "series": grid.series,
        "sizes": grid.sizes,
        "conditions": grid.conditions,
        "points": points(grid),
        "differences": [
            {"first": a, "second": b, "series": series, "size": size} | estimate.row()
            for (series, size), judged in between.items()
            for (a, b), estimate in judged.items()
        ],
        "augmentation": effect_rows(grid, "augmented", "supervised"),
        "pretraining": {
            after: effect_rows(grid, after, labels)
            for after in ("dino-finetuned", "dino-logistic", "dino-knn")
            if after in grid.series
        },
        "equivariance": equivariance(grid, couples(grid.backbones), between),
        "crossings": crossings(grid, between),
        "robustness": robustness(grid),
        "table": table(grid, columns, between) if columns else None,
    }
    return summary | {"protocol": _protocol(grid, summary, len(truth)), "conclusions": conclude(summary)}


def _check(
    answers: Sequence[Answers],
    truth: np.ndarray,
    groups: Sequence[str | None],
    metric: str,
    columns: tuple[str, str] | None,
) -> None:
    if metric not in METRICS:
        raise unknown("metric", metric, METRICS)
    if metric == "auroc" and len(np.unique(truth)) < 2:
        raise EvaluationError("AUROC needs test images of two classes", got=len(np.unique(truth)))
    if not answers:
        raise EvaluationError("no training is finished", expected="predictions of at least one training")
    if len(groups) != len(truth):
        raise EvaluationError("groups and classes do not match", got=f"{len(groups)} groups, {len(truth)} classes")
    keys = set()
    for a in answers:
        key = (a.backbone, a.series, a.size, a.seed)
        if key in keys:
            raise EvaluationError("duplicate training run", got=", ".join(map(str, key)))
        keys.add(key)
        for scores in (a.scores, *a.conditions.values()):
            if len(scores) != len(truth):
                got = f"{len(scores)} predictions of {a.backbone} for {len(truth)} test images"
                raise EvaluationError("predictions and test images do not match", got=got)
    for name in columns or ():
        if name not in {a.backbone for a in answers}:
            raise unknown("backbone", name, {a.backbone for a in answers})
    if columns and columns[0] == columns[1]:
        raise UsageError("a table compares two backbones", got=", ".join(columns))


def _protocol(grid: Grid, summary: Mapping[str, Any], images: int) -> dict[str, Any]:
    """The protocol as text, and its limits."""
    units, seeds = grid.chance.units, max(row["seeds"] for row in summary["points"])
    at_once = max((row["comparisons"] for row in summary["differences"]), default=0)
    words = [
        f"95 % intervals over test groups ({units} units, {images:,} test images, {summary['resamples']:,} bootstrap "
        f"resamples of whole groups) and seeds (at most {seeds}).",
        "The standard error of the groups is that of the bootstrap times sqrt(G / (G - 1)) for G groups, its quantile "
        "that of Student's t with G - 1 degrees of freedom.",
        "The spread between seeds enters by Student's t, its variance pooled over the backbones of a series and size, "
        "without what seeds differ by on single groups, which the bootstrap has.",
        "Differences are paired: same test groups, same seeds.",
        "A difference is called clear when its interval excludes zero at 1 − 0.05/m (Bonferroni), m being the "
        f"comparisons made at once: all pairs of backbones of one series and size (here up to {at_once}), all "
        "backbones of one effect and size, all changes of one series. Means over backbones are judged at 95 %.",
        "Curves are straight lines in log n between the sizes; one backbone passes another where the order is clear "
        "at both ends and differs.",
    ]
    limits = []
    if units < FEW_UNITS:
        limits.append(f"There are only {units} test groups: no difference is called clear below {FEW_UNITS}.")
    if seeds < FEW_SEEDS:
        limits.append(f"Every training was done once: no difference is called clear below {FEW_SEEDS} seeds.")
    elif (len(grid.backbones) - 1) * (seeds - 1) <= 2:
        limits.append(
            f"With {seeds} seeds and {len(grid.backbones)} backbones little is known of the spread between "
            "seeds: intervals are wide, and further seeds would narrow them most."
        )
    return {"text": " ".join(words), "limits": limits, "few_units": FEW_UNITS, "few_seeds": FEW_SEEDS}
