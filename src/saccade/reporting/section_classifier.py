"""The report section on a supervised classifier: test metrics and the confusion matrix."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from saccade.evaluation.small_samples import few_units, few_words, mark
from saccade.reporting.html import Html, breakable, facts, h, number, section, sequence, table


def classifier_section(results: Mapping[str, Any]) -> Html | None:
    """The contents of ``classifier.json``; None where there is none."""
    if not results:
        return None
    rows = [
        [str(row["metric"]).replace("_", " "), _percent(row["mean"]), _interval(row, results)]
        for row in sequence(results.get("rows"))
    ]
    classes = [str(name) for name in sequence(results.get("classes"))]
    return section(
        "classifier",
        "Supervised classifier",
        table("figures on the test part", ["metric", "test part", "95 % interval"], rows),
        h("p", None, few_words(results)) if few_units(results) else None,
        h("h3", None, "Confusion matrix"),
        _confusion(classes, sequence(results.get("confusion"))),
        h("p", None, str(results.get("protocol", {}).get("text", ""))),
    )


def classifier_numbers(results: Mapping[str, Any]) -> list[tuple[object, object]]:
    """Key figures for the head of the page."""
    return [
        (f"{str(row['metric']).replace('_', ' ')}, test part", _percent(row["mean"]))
        for row in sequence(results.get("rows"))[:1]
    ]


def classifier_finding(name: str, results: Mapping[str, Any]) -> str | None:
    """The test accuracy in one sentence; None where there is none."""
    row = next((r for r in sequence(results.get("rows")) if r.get("metric") == "accuracy"), None)
    if row is None:
        return None
    mark = (
        " WARNING: part of the test part was used in pretraining." if results.get("protocol", {}).get("overlap") else ""
    )
    interval = _interval(row, results) if results.get("units_test") == 1 else f"95 % interval {_interval(row, results)}"
    if few_units(results):
        interval += f", over {few_units(results)}: too few to conclude"
    return (
        f"{name}, trained with labels, classifies {100 * number(row['mean']):.1f} % of "
        f"{results.get('n_test'):,} test images correctly ({interval}); the majority class gives "
        f"{100 * number(results.get('majority')):.1f} %.{mark}"
    )


def _percent(value: Any) -> str:
    """A dash for values that were not measured."""
    return f"{100 * number(value):.1f} %" if math.isfinite(number(value)) else "–"


def _interval(row: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    if results.get("units_test") == 1:
        return "no interval: one group"
    if not math.isfinite(number(row["low"])):
        return "–"
    return f"{100 * number(row['low']):.1f} to {100 * number(row['high']):.1f} %{mark(results)}"


def _confusion(classes: Sequence[str], counts: Sequence[Any]) -> Html:
    """Rows are true classes, columns predictions; percentages of the row."""
    if len(classes) > 12:  # a wider table is unreadable; the file has the counts
        recalls = [(breakable(name), f"recall {_share(row, i)}") for i, (name, row) in enumerate(zip(classes, counts))]
        return facts(recalls)
    columns = range(len(classes))
    rows = [[breakable(name), *(_share(row, column) for column in columns)] for name, row in zip(classes, counts)]
    return table("true class by row, prediction by column", ["true \\ predicted", *map(breakable, classes)], rows)


def _share(row: Sequence[Any], column: int) -> str:
    total = sum(number(value) for value in row)
    return f"{100 * number(row[column]) / total:.0f} %" if total else "–"
