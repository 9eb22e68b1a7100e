"""The section of a report on a classifier trained with labels: test figures, and which classes are confused."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from saccade.evaluation.small_samples import few_units, few_words, mark
from saccade.reporting.html import Html, breakable, facts, h, number, section, sequence, table


def classifier_section(found: Mapping[str, Any]) -> Html | None:
    """What ``classifier.json`` says; None where there is none."""
    if not found:
        return None
    rows = [
        [str(row["metric"]).replace("_", " "), _percent(row["mean"]), _interval(row, found)]
        for row in sequence(found.get("rows"))
    ]
    classes = [str(name) for name in sequence(found.get("classes"))]
    return section(
        "classifier",
        "Trained with labels",
        table("figures on the test part", ["metric", "test part", "95 % interval"], rows),
        h("p", None, few_words(found)) if few_units(found) else None,
        h("h3", None, "Which classes are taken for which"),
        _confusion(classes, sequence(found.get("confusion"))),
        h("p", None, str(found.get("protocol", {}).get("text", ""))),
    )


def classifier_numbers(found: Mapping[str, Any]) -> list[tuple[object, object]]:
    """Key numbers for the head of the page."""
    return [
        (f"{str(row['metric']).replace('_', ' ')}, test part", _percent(row["mean"]))
        for row in sequence(found.get("rows"))[:1]
    ]


def classifier_finding(name: str, found: Mapping[str, Any]) -> str | None:
    """The test accuracy in one plain sentence; None where there is none."""
    row = next((r for r in sequence(found.get("rows")) if r.get("metric") == "accuracy"), None)
    if row is None:
        return None
    mark = " WARNING: part of the test part was seen before." if found.get("protocol", {}).get("overlap") else ""
    interval = _interval(row, found) if found.get("units_test") == 1 else f"95 % interval {_interval(row, found)}"
    if few_units(found):
        interval += f", over {few_units(found)}, which means nothing"
    return (
        f"{name}, trained with labels, names {100 * number(row['mean']):.1f} % of {found.get('n_test'):,} test images "
        f"rightly ({interval}); always answering the most frequent class gives "
        f"{100 * number(found.get('majority')):.1f} %.{mark}"
    )


def _percent(value: Any) -> str:
    """A dash for what could not be measured."""
    return f"{100 * number(value):.1f} %" if math.isfinite(number(value)) else "–"


def _interval(row: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    if found.get("units_test") == 1:
        return "one group: no interval"
    if not math.isfinite(number(row["low"])):
        return "–"
    return f"{100 * number(row['low']):.1f} to {100 * number(row['high']):.1f} %{mark(found)}"


def _confusion(classes: Sequence[str], counts: Sequence[Any]) -> Html:
    """Rows are true classes, columns the answers; shares of the row."""
    if len(classes) > 12:  # a table of more columns cannot be read; the file has the figures
        found = [(breakable(name), f"{_share(row, i)} found") for i, (name, row) in enumerate(zip(classes, counts))]
        return facts(found)
    columns = range(len(classes))
    rows = [[breakable(name), *(_share(row, column) for column in columns)] for name, row in zip(classes, counts)]
    return table("true class by row, answer by column", ["true \\ answer", *map(breakable, classes)], rows)


def _share(row: Sequence[Any], column: int) -> str:
    total = sum(number(value) for value in row)
    return f"{100 * number(row[column]) / total:.0f} %" if total else "–"
