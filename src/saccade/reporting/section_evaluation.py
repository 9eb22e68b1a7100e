"""The few-label evaluation of a report: tables and charts of evaluation.json.

The table has the form of Table 10 of Caron et al. 2021 (DINO, arXiv:2104.14294): frozen features, logistic regression
and k-NN, fractions of the labels below each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from saccade.evaluation.small_samples import few_units, few_words
from saccade.reporting.evaluation_results import (
    METRICS,
    PROBES,
    Evaluation,
    Row,
    clear,
    points,
    undecided,
)
from saccade.reporting.html import (
    Html,
    breakable,
    count,
    details,
    h,
    note,
    number,
    percent,
    score_table,
    table,
)
from saccade.viz.charts import Interval, interval_svg


def low_label_table(evaluation: Evaluation) -> Html:
    """Models as columns; fractions of the labels as rows, for each probe; intervals under the means."""
    head = h(
        "tr",
        None,
        h("th", {"scope": "col"}, "labels"),
        [h("th", {"scope": "col"}, breakable(m)) for m in evaluation.models],
    )
    bodies = []
    for probe in evaluation.probes:
        rows = [
            h(
                "tr",
                {"class": "group"},
                h("th", {"colspan": len(evaluation.models) + 1, "scope": "rowgroup"}, _probe(evaluation, probe)),
            )
        ]
        for fraction in evaluation.fractions:
            cells = [evaluation.row(m, probe, fraction) for m in evaluation.models]
            if any(cells):
                rows.append(_table_row(evaluation, fraction, cells))
        bodies.append(h("tbody", None, rows))
    label = f"{evaluation.metric_name} in % by model and fraction of the labels"
    caption = [
        f"Frozen features, {evaluation.metric_name} in %. Below each mean its 95 % interval. ",
        h("span", {"class": "best"}, "●"),
        " marks the highest mean of a row.",
    ]
    return score_table(label, caption, head, bodies, len(evaluation.models) + 1)


def _table_row(evaluation: Evaluation, fraction: float, cells: Sequence[Row | None]) -> Html:
    means = [number(c.get("mean")) if c else math.nan for c in cells]
    finite = [m for m in means if math.isfinite(m)]
    # A tie on the printed decimal marks both.
    top = points(max(finite)) if finite and len(cells) > 1 else None
    first = next(c for c in cells if c)
    labels, repeats = count(first.get("n_train")), number(first.get("repeats"))
    size_text = f"{labels} images" + (f", {repeats:.0f} draws" if repeats > 1 else "")
    name = h("th", {"scope": "row"}, percent(fraction), h("small", None, size_text))
    mark = "†" if evaluation.protocol.get("overlap") else ""
    table_cells = []
    for cell, mean in zip(cells, means):
        best = top is not None and points(mean) == top
        value: object = h("strong", None, points(mean) + mark) if best else points(mean) + mark
        dot = h("span", {"class": "best", "title": "highest mean of the row"}, "●") if best else None
        table_cells.append(h("td", None, dot, value, h("small", None, _interval(cell)) if cell else None))
    return h("tr", None, name, table_cells)


def _interval(row: Row, *, sign: bool = False) -> str:
    low, high = number(row.get("low")), number(row.get("high"))
    if not (math.isfinite(low) and math.isfinite(high)):
        return "no interval"
    middle = " to " if sign else " – "
    return points(low, sign=sign) + middle + points(high, sign=sign) + str(row.get("doubt", ""))


def _probe(evaluation: Evaluation, probe: str) -> str:
    sizes = sorted({int(number(r["k"])) for r in evaluation.rows if r["probe"] == probe and number(r.get("k")) > 0})
    name = PROBES.get(probe, probe)
    return name + (f", k = {' or '.join(map(str, sizes))}" if sizes else "")


def difference_table(evaluation: Evaluation) -> Html | None:
    """The evaluated model minus every other, paired on the same test images; the mean at the right."""
    pairs = list(dict.fromkeys((str(d["model"]), str(d["against"])) for d in evaluation.differences))
    pairs.sort(key=lambda pair: pair[0] != evaluation.primary)
    if not pairs:
        return None
    columns = [*(percent(f) for f in evaluation.fractions), "mean"]
    head = h("tr", None, h("th", {"scope": "col"}, "minus"), [h("th", {"scope": "col"}, c) for c in columns])
    bodies = []
    for probe in evaluation.probes:
        name = h("th", {"colspan": len(columns) + 1, "scope": "rowgroup"}, _probe(evaluation, probe))
        rows = [_difference_row(evaluation, pair, probe) for pair in pairs]
        bodies.append(h("tbody", None, h("tr", {"class": "group"}, name), rows))
    caption = [breakable(evaluation.primary), " minus the model named at the left."]
    return score_table("paired differences in percentage points", caption, head, bodies, len(columns) + 1)


def _difference_row(evaluation: Evaluation, pair: tuple[str, str], probe: str) -> Html:
    differences = [d for d in evaluation.differences if (d["model"], d["against"], d["probe"]) == (*pair, probe)]
    by_fraction = {number(d["fraction"]): d for d in differences}
    cells = [h("td", None, _difference(by_fraction.get(f))) for f in evaluation.fractions]
    sizes = [s for s in (number(d.get("difference")) for d in differences) if math.isfinite(s)]
    mean = points(sum(sizes) / len(sizes), sign=True) if sizes else "–"
    first = None if pair[0] == evaluation.primary else [breakable(pair[0]), " − "]
    return h("tr", None, h("th", {"scope": "row"}, first, breakable(pair[1])), cells, h("td", None, mean))


def _difference(row: Row | None) -> Html:
    if row is None:
        return h("span", None, "–")
    size = points(number(row.get("difference")), sign=True)
    interval = h("small", None, _interval(row, sign=True))
    if clear(row):
        return h("span", None, h("strong", None, size), interval)
    return h("span", {"class": "unclear"}, size, interval, h("small", None, "not clear"))


def interval_charts(evaluation: Evaluation) -> Html:
    charts, few = [], few_units(evaluation.protocol)
    for probe in evaluation.probes:
        rows = [
            Interval(
                f"{percent(fraction)} of the labels",
                str(row["model"]),
                100 * number(row.get("mean")),
                100 * number(row.get("low")),
                100 * number(row.get("high")),
                strong=row["model"] == evaluation.primary,
            )
            for fraction in evaluation.fractions
            for model in evaluation.models
            if (row := evaluation.row(model, probe, fraction)) is not None
        ]
        charts.append(
            Html(
                interval_svg(
                    rows,
                    title=PROBES.get(probe, probe),
                    x_label=f"{evaluation.metric_name} in %" + (f", intervals over {few} only" if few else ""),
                )
            )
        )
    return h("div", {"class": "charts"}, charts)


def every_number(evaluation: Evaluation) -> Html:
    """All rows of evaluation.json, with every metric and every k, folded."""
    rows = [
        [
            breakable(r["model"]),
            str(PROBES.get(r["probe"], r["probe"])) + (f", k = {count(r['k'])}" if r.get("k") is not None else ""),
            percent(number(r["fraction"])),
            METRICS.get(r["metric"], r["metric"]),
            points(number(r.get("mean"))),
            _interval(r),
            count(r.get("n_train")),
        ]
        for r in evaluation.all_rows
    ]
    head = ["model", "probe", "labels", "metric", "mean, %", "95 % interval", "training images"]
    return details(
        f"Every number ({len(rows)} rows)",
        table("every number of the evaluation", head, rows, "numbers-table"),
    )


def evaluation_blocks(evaluation: Evaluation) -> list[object]:
    """The contents of the few-label section."""
    blocks: list[object] = []
    if evaluation.protocol.get("overlap"):
        blocks.append(
            note(
                "† Test images or groups were used in pretraining: these numbers are optimistic and must not be cited."
            )
        )
    if few_units(evaluation.protocol):
        blocks.append(note(few_words(evaluation.protocol)))
    blocks += [low_label_table(evaluation), interval_charts(evaluation)]
    differences = difference_table(evaluation)
    if differences is not None:
        blocks += [
            h("h3", None, "Paired differences"),
            h(
                "p",
                None,
                "Both models are evaluated on the same test images, which cancels variance common to both. "
                "In percentage points, with 95 % intervals; an interval that includes zero is inconclusive.",
            ),
            differences,
        ]
        silent = undecided(evaluation)
        if silent:
            blocks.append(
                h("p", None, f"No clear difference, at any fraction of the labels, from: {', '.join(silent)}.")
            )
    return [*blocks, every_number(evaluation)]
