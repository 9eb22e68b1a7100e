"""The results in evaluation.json, also in damaged or older files, and what they show in one sentence.

A difference is reported only where the 95 % interval of the paired difference excludes zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from saccade.evaluation.small_samples import mark
from saccade.reporting.html import (
    count,
    number,
    percent,
    sequence,
)

HEADLINE_K = 20
PROBES = {"logistic": "Logistic regression", "knn": "k-NN"}
METRICS = {"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "auroc": "AUROC"}
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Evaluation:
    """Rows and differences of one metric and one k, ready for display; ``all_rows`` as on disk."""

    protocol: Mapping[str, Any]
    metric: str
    models: tuple[str, ...]
    probes: tuple[str, ...]
    fractions: tuple[float, ...]
    rows: tuple[Row, ...]
    differences: tuple[Row, ...]
    all_rows: tuple[Row, ...]

    @property
    def primary(self) -> str:
        """The evaluated model: the first one named."""
        return self.models[0]

    @property
    def metric_name(self) -> str:
        return METRICS.get(self.metric, self.metric)

    def row(self, model: str, probe: str, fraction: float) -> Row | None:
        key = (model, probe, fraction)
        return next((r for r in self.rows if (r["model"], r["probe"], number(r["fraction"])) == key), None)


def read_evaluation(values: Any) -> Evaluation | None:
    """Select what is displayed of evaluation.json; None when it has no usable row.

    Intervals over a single test group have width zero and are dropped; intervals over few groups are marked
    (``doubt`` of each row).
    """
    if not isinstance(values, Mapping):
        return None
    rows = [r for r in sequence(values.get("rows")) if _usable(r, ("model", "probe", "fraction", "metric"))]
    if not rows:
        return None
    protocol = values["protocol"] if isinstance(values.get("protocol"), Mapping) else {}
    left_out = ("low", "high") if protocol.get("units_test") == 1 else ()
    doubt = {"doubt": mark(protocol)}
    rows = [_without(row, left_out) | doubt for row in rows]
    metrics = list(dict.fromkeys(r["metric"] for r in rows))
    metric = "accuracy" if "accuracy" in metrics else metrics[0]
    main_rows = _headline_k([r for r in rows if r["metric"] == metric], ("model",))
    differences = [
        _without(d, left_out) | doubt
        for d in sequence(values.get("differences"))
        if _usable(d, ("model", "against", "probe", "fraction", "metric")) and d["metric"] == metric
    ]
    probes = dict.fromkeys(r["probe"] for r in main_rows)
    return Evaluation(
        protocol=protocol,
        metric=metric,
        models=tuple(dict.fromkeys(str(r["model"]) for r in main_rows)),
        probes=tuple([p for p in PROBES if p in probes] + [p for p in probes if p not in PROBES]),
        fractions=tuple(sorted({number(r["fraction"]) for r in main_rows}, reverse=True)),
        rows=tuple(main_rows),
        differences=tuple(_headline_k(differences, ("model", "against"))),
        all_rows=tuple(rows),
    )


def _without(row: Row, keys: Sequence[str]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in keys}


def _usable(row: Any, keys: Sequence[str]) -> bool:
    return isinstance(row, Mapping) and all(k in row for k in keys) and math.isfinite(number(row["fraction"]))


def _headline_k(rows: Sequence[Row], keys: Sequence[str]) -> list[Row]:
    """Of k-NN rows that differ in k only, the one nearest to 20, not above it where possible."""
    best: dict[tuple[object, ...], Row] = {}
    for row in rows:
        key = (*(row[k] for k in keys), row["probe"], row["fraction"])
        if key not in best or _distance(row) < _distance(best[key]):
            best[key] = row
    return list(best.values())


def _distance(row: Row) -> float:
    k = number(row.get("k"))
    if not math.isfinite(k):
        return 0.0
    return HEADLINE_K - k if k <= HEADLINE_K else 1000 + k


# --- words and numbers ---------------------------------------------------------------------------


def clear(difference: Row) -> bool:
    """Whether the 95 % interval of the paired difference excludes zero and rests on enough groups."""
    low, high = number(difference.get("low")), number(difference.get("high"))
    return bool(difference.get("clear", True)) and math.isfinite(low) and math.isfinite(high) and (low > 0 or high < 0)


def points(value: float, *, sign: bool = False) -> str:
    """A score or a difference in percentage points, one decimal; a dash for NaN."""
    if not math.isfinite(value):
        return "–"
    text = f"{100 * value:+.1f}" if sign else f"{100 * value:.1f}"
    return text.replace("-", "−")


def finding(evaluation: Evaluation) -> str:
    """The clear differences at the smallest fraction of the labels that has any; first a model that wins by k-NN."""
    start = "Evaluated on images used in pretraining: " if evaluation.protocol.get("overlap") else ""
    text, winner = _finding(evaluation), _winner(evaluation)
    return start + (text if winner is None else f"{winner}; {text[0].lower()}{text[1:]}")


def _winner(evaluation: Evaluation) -> str | None:
    """The model that beats the evaluated one most by k-NN, at the largest fraction of the labels that has one."""
    for fraction in evaluation.fractions:
        losses = [d for d in main_differences(evaluation) if d["probe"] == "knn" and number(d["fraction"]) == fraction]
        losses = [d for d in losses if clear(d) and number(d.get("difference")) < 0]
        if losses:
            worst = min(losses, key=lambda d: number(d["difference"]))
            name, labels = str(worst["against"]), percent(fraction)
            rows = [evaluation.row(model, "knn", fraction) for model in (name, evaluation.primary)]
            means = [points(number(row.get("mean"))) if row else "–" for row in rows]
            low, high = (points(-number(worst[key])) for key in ("high", "low"))
            gain = points(-number(worst["difference"]))
            return (
                f"{name[0].upper()}{name[1:]} is better by {gain} points [{low} to {high}] by k-NN with {labels} "
                f"of the labels ({means[0]} % against {means[1]} % for {evaluation.primary})"
            )
    return None


def _finding(evaluation: Evaluation) -> str:
    for fraction in reversed(evaluation.fractions):
        for probe in evaluation.probes:
            sentence = _claim(evaluation, probe, fraction)
            if sentence:
                return sentence
    if evaluation.differences:
        return (
            f"No difference between {evaluation.primary} and the other models is clear: "
            "every 95 % interval of a paired difference includes zero, or rests on too few groups."
        )
    fraction = evaluation.fractions[0]
    row = evaluation.row(evaluation.primary, evaluation.probes[0], fraction) or evaluation.rows[0]
    score = f"{points(number(row.get('mean')))} % {evaluation.metric_name}"
    labels = percent(number(row["fraction"]))
    return f"With {labels} of the labels, {row['model']} reaches {score}; no other model was evaluated."


def _claim(evaluation: Evaluation, probe: str, fraction: float) -> str | None:
    row = evaluation.row(evaluation.primary, probe, fraction)
    here = [d for d in main_differences(evaluation) if d["probe"] == probe and number(d["fraction"]) == fraction]
    firm = [d for d in here if clear(d) and math.isfinite(number(d.get("difference")))]
    if row is None or not firm:
        return None
    more = [d for d in firm if number(d["difference"]) > 0]
    less = [d for d in firm if number(d["difference"]) < 0]
    clauses = [_listed(more, "more")] if more else []
    clauses += (
        [("but " if more else "") + _listed(less, "fewer" if evaluation.metric == "accuracy" else "less")]
        if less
        else []
    )
    labels = count(row.get("n_train"))
    with_labels = f"{percent(fraction)} of the labels" + (f" ({labels} images)" if labels != "–" else "")
    score = points(number(row.get("mean")))
    if evaluation.metric == "accuracy":
        start = f"With {with_labels}, {evaluation.primary} classifies {score} % of the test images correctly"
    else:
        start = f"With {with_labels}, {evaluation.primary} reaches {score} % {evaluation.metric_name}"
    return f"{start}: {', '.join(clauses)}."


def _listed(differences: Sequence[Row], word: str) -> str:
    each = [f"{points(abs(number(d['difference'])))} points {word} than {d['against']}" for d in differences]
    return each[0] if len(each) == 1 else ", ".join(each[:-1]) + " and " + each[-1]


def undecided(evaluation: Evaluation) -> list[str]:
    """Models without a clear difference from the evaluated one, at any fraction or probe."""
    others = dict.fromkeys(str(d["against"]) for d in main_differences(evaluation))
    firm = {str(d["against"]) for d in main_differences(evaluation) if clear(d)}
    return [name for name in others if name not in firm]


def main_differences(evaluation: Evaluation) -> list[Row]:
    return [d for d in evaluation.differences if d["model"] == evaluation.primary]
