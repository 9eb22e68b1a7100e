"""What evaluation.json says, in words, tables and charts: the low-label part of a report.

The table has the form of Table 10 of Caron et al. 2021 (DINO, arXiv:2104.14294): frozen features, logistic
regression and k-NN, fractions of the labels below each other. A claim is made only where the 95 % interval of
the paired difference excludes zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from saccade.evaluation.small_samples import few_units, few_words, mark
from saccade.reporting.html import Html, breakable, count, details, h, note, number, score_table, sequence, share, table
from saccade.viz.charts import Interval, interval_svg

HEADLINE_K = 20
PROBES = {"logistic": "Logistic regression", "knn": "k-NN"}
METRICS = {"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "auroc": "AUROC"}
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Evaluation:
    """Rows and differences of one metric and one k, ready to be shown; ``all_rows`` as on disk."""

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
        """The model in question: the first one named."""
        return self.models[0]

    @property
    def metric_name(self) -> str:
        return METRICS.get(self.metric, self.metric)

    def row(self, model: str, probe: str, fraction: float) -> Row | None:
        wanted = (model, probe, fraction)
        return next((r for r in self.rows if (r["model"], r["probe"], number(r["fraction"])) == wanted), None)


def read_evaluation(values: Any) -> Evaluation | None:
    """Pick what is shown from evaluation.json; None when it holds no usable row.

    One test group has no spread: what a file says of its intervals, of width zero, is left out. Intervals over a few
    groups are marked (``doubt`` of each row).
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
    shown = _headline_k([r for r in rows if r["metric"] == metric], ("model",))
    differences = [
        _without(d, left_out) | doubt
        for d in sequence(values.get("differences"))
        if _usable(d, ("model", "against", "probe", "fraction", "metric")) and d["metric"] == metric
    ]
    known = dict.fromkeys(r["probe"] for r in shown)
    return Evaluation(
        protocol=protocol,
        metric=metric,
        models=tuple(dict.fromkeys(str(r["model"]) for r in shown)),
        probes=tuple([p for p in PROBES if p in known] + [p for p in known if p not in PROBES]),
        fractions=tuple(sorted({number(r["fraction"]) for r in shown}, reverse=True)),
        rows=tuple(shown),
        differences=tuple(_headline_k(differences, ("model", "against"))),
        all_rows=tuple(rows),
    )


def _without(row: Row, keys: Sequence[str]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in keys}


def _usable(row: Any, keys: Sequence[str]) -> bool:
    return isinstance(row, Mapping) and all(k in row for k in keys) and math.isfinite(number(row["fraction"]))


def _headline_k(rows: Sequence[Row], keys: Sequence[str]) -> list[Row]:
    """Of the k-NN rows that differ in k only, the one nearest to 20 (not above it where that is possible)."""
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
    """True when the 95 % interval of the paired difference excludes zero, and rests on enough groups."""
    low, high = number(difference.get("low")), number(difference.get("high"))
    return bool(difference.get("clear", True)) and math.isfinite(low) and math.isfinite(high) and (low > 0 or high < 0)


def points(value: float, *, sign: bool = False) -> str:
    """A score or a difference in percent points, one decimal; a dash for NaN."""
    if not math.isfinite(value):
        return "–"
    text = f"{100 * value:+.1f}" if sign else f"{100 * value:.1f}"
    return text.replace("-", "−")


def finding(found: Evaluation) -> str:
    """One sentence, by rule: what is clear at the smallest fraction at which anything is clear."""
    return ("Measured on images seen in pretraining: " if found.protocol.get("overlap") else "") + _finding(found)


def _finding(found: Evaluation) -> str:
    for fraction in reversed(found.fractions):
        for probe in found.probes:
            sentence = _claim(found, probe, fraction)
            if sentence:
                return sentence
    if found.differences:
        return (
            f"No difference between {found.primary} and the other models is clear: "
            "every 95 % interval of a paired difference includes zero, or rests on too few groups."
        )
    fraction = found.fractions[0]
    row = found.row(found.primary, found.probes[0], fraction) or found.rows[0]
    score = f"{points(number(row.get('mean')))} % {found.metric_name}"
    labels = share(number(row["fraction"]))
    return f"With {labels} of the labels, {row['model']} reaches {score}; nothing was compared with it."


def _claim(found: Evaluation, probe: str, fraction: float) -> str | None:
    row = found.row(found.primary, probe, fraction)
    here = [d for d in _main(found) if d["probe"] == probe and number(d["fraction"]) == fraction]
    firm = [d for d in here if clear(d) and math.isfinite(number(d.get("difference")))]
    if row is None or not firm:
        return None
    more = [d for d in firm if number(d["difference"]) > 0]
    less = [d for d in firm if number(d["difference"]) < 0]
    said = [_listed(more, "more")] if more else []
    said += (
        [("but " if more else "") + _listed(less, "fewer" if found.metric == "accuracy" else "less")] if less else []
    )
    labels = count(row.get("n_train"))
    with_labels = f"{share(fraction)} of the labels" + (f" ({labels} images)" if labels != "–" else "")
    score = points(number(row.get("mean")))
    if found.metric == "accuracy":
        start = f"With {with_labels}, {found.primary} names {score} % of the test images correctly"
    else:
        start = f"With {with_labels}, {found.primary} reaches {score} % {found.metric_name}"
    return f"{start}: {', '.join(said)}."


def _listed(differences: Sequence[Row], word: str) -> str:
    each = [f"{points(abs(number(d['difference'])))} points {word} than {d['against']}" for d in differences]
    return each[0] if len(each) == 1 else ", ".join(each[:-1]) + " and " + each[-1]


def undecided(found: Evaluation) -> list[str]:
    """Comparisons of the model in question that show nothing at any fraction or probe."""
    others = dict.fromkeys(str(d["against"]) for d in _main(found))
    firm = {str(d["against"]) for d in _main(found) if clear(d)}
    return [name for name in others if name not in firm]


def _main(found: Evaluation) -> list[Row]:
    return [d for d in found.differences if d["model"] == found.primary]


# --- tables --------------------------------------------------------------------------------------


def low_label_table(found: Evaluation) -> Html:
    """Models as columns; 100, 10 and 1 % of the labels as rows, for each probe; intervals under the means."""
    head = h(
        "tr",
        None,
        h("th", {"scope": "col"}, "labels"),
        [h("th", {"scope": "col"}, breakable(m)) for m in found.models],
    )
    bodies = []
    for probe in found.probes:
        rows = [
            h(
                "tr",
                {"class": "group"},
                h("th", {"colspan": len(found.models) + 1, "scope": "rowgroup"}, _probe(found, probe)),
            )
        ]
        for fraction in found.fractions:
            cells = [found.row(m, probe, fraction) for m in found.models]
            if any(cells):
                rows.append(_table_row(found, fraction, cells))
        bodies.append(h("tbody", None, rows))
    label = f"{found.metric_name} in % by model and share of the labels"
    caption = [
        f"Frozen features, {found.metric_name} in %. Below each mean its 95 % interval. ",
        h("span", {"class": "best"}, "●"),
        " marks the highest mean of a row.",
    ]
    return score_table(label, caption, head, bodies, len(found.models) + 1)


def _table_row(found: Evaluation, fraction: float, cells: Sequence[Row | None]) -> Html:
    means = [number(c.get("mean")) if c else math.nan for c in cells]
    finite = [m for m in means if math.isfinite(m)]
    # Equal when printed is equal: a tie on the first decimal marks both.
    top = points(max(finite)) if finite and len(cells) > 1 else None
    first = next(c for c in cells if c)
    labels, repeats = count(first.get("n_train")), number(first.get("repeats"))
    told = f"{labels} images" + (f", {repeats:.0f} draws" if repeats > 1 else "")
    name = h("th", {"scope": "row"}, share(fraction), h("small", None, told))
    mark = "†" if found.protocol.get("overlap") else ""
    shown = []
    for cell, mean in zip(cells, means):
        best = top is not None and points(mean) == top
        value: object = h("strong", None, points(mean) + mark) if best else points(mean) + mark
        dot = h("span", {"class": "best", "title": "highest mean of the row"}, "●") if best else None
        shown.append(h("td", None, dot, value, h("small", None, _interval(cell)) if cell else None))
    return h("tr", None, name, shown)


def _interval(row: Row, *, sign: bool = False) -> str:
    low, high = number(row.get("low")), number(row.get("high"))
    if not (math.isfinite(low) and math.isfinite(high)):
        return "no interval"
    middle = " to " if sign else " – "
    return points(low, sign=sign) + middle + points(high, sign=sign) + str(row.get("doubt", ""))


def _probe(found: Evaluation, probe: str) -> str:
    sizes = sorted({int(number(r["k"])) for r in found.rows if r["probe"] == probe and number(r.get("k")) > 0})
    name = PROBES.get(probe, probe)
    return name + (f", k = {' or '.join(map(str, sizes))}" if sizes else "")


def difference_table(found: Evaluation) -> Html | None:
    """The model in question minus every other one, paired on the same test images; the mean at the right."""
    pairs = list(dict.fromkeys((str(d["model"]), str(d["against"])) for d in found.differences))
    pairs.sort(key=lambda pair: pair[0] != found.primary)
    if not pairs:
        return None
    columns = [*(share(f) for f in found.fractions), "mean"]
    head = h("tr", None, h("th", {"scope": "col"}, "minus"), [h("th", {"scope": "col"}, c) for c in columns])
    bodies = []
    for probe in found.probes:
        name = h("th", {"colspan": len(columns) + 1, "scope": "rowgroup"}, _probe(found, probe))
        rows = [_difference_row(found, pair, probe) for pair in pairs]
        bodies.append(h("tbody", None, h("tr", {"class": "group"}, name), rows))
    caption = [breakable(found.primary), " minus the model named at the left."]
    return score_table("paired differences in percent points", caption, head, bodies, len(columns) + 1)


def _difference_row(found: Evaluation, pair: tuple[str, str], probe: str) -> Html:
    own = [d for d in found.differences if (d["model"], d["against"], d["probe"]) == (*pair, probe)]
    by_fraction = {number(d["fraction"]): d for d in own}
    cells = [h("td", None, _difference(by_fraction.get(f))) for f in found.fractions]
    sizes = [s for s in (number(d.get("difference")) for d in own) if math.isfinite(s)]
    mean = points(sum(sizes) / len(sizes), sign=True) if sizes else "–"
    first = None if pair[0] == found.primary else [breakable(pair[0]), " − "]
    return h("tr", None, h("th", {"scope": "row"}, first, breakable(pair[1])), cells, h("td", None, mean))


def _difference(row: Row | None) -> Html:
    if row is None:
        return h("span", None, "–")
    size = points(number(row.get("difference")), sign=True)
    interval = h("small", None, _interval(row, sign=True))
    if clear(row):
        return h("span", None, h("strong", None, size), interval)
    return h("span", {"class": "unclear"}, size, interval, h("small", None, "not clear"))


def interval_charts(found: Evaluation) -> Html:
    charts, few = [], few_units(found.protocol)
    for probe in found.probes:
        rows = [
            Interval(
                f"{share(fraction)} of the labels",
                str(row["model"]),
                100 * number(row.get("mean")),
                100 * number(row.get("low")),
                100 * number(row.get("high")),
                strong=row["model"] == found.primary,
            )
            for fraction in found.fractions
            for model in found.models
            if (row := found.row(model, probe, fraction)) is not None
        ]
        charts.append(
            Html(
                interval_svg(
                    rows,
                    title=PROBES.get(probe, probe),
                    x_label=f"{found.metric_name} in %" + (f", intervals over {few} only" if few else ""),
                )
            )
        )
    return h("div", {"class": "charts"}, charts)


def every_number(found: Evaluation) -> Html:
    """All rows of evaluation.json: every metric and every k, folded away."""
    rows = [
        [
            breakable(r["model"]),
            str(PROBES.get(r["probe"], r["probe"])) + (f", k = {count(r['k'])}" if r.get("k") is not None else ""),
            share(number(r["fraction"])),
            METRICS.get(r["metric"], r["metric"]),
            points(number(r.get("mean"))),
            _interval(r),
            count(r.get("n_train")),
        ]
        for r in found.all_rows
    ]
    head = ["model", "probe", "labels", "metric", "mean, %", "95 % interval", "training images"]
    return details(
        f"Every number ({len(rows)} rows)",
        table("every number of the evaluation", head, rows, "numbers-table"),
    )


def evaluation_blocks(found: Evaluation) -> list[object]:
    """Everything between the heading of the low-label section and its end."""
    blocks: list[object] = []
    if found.protocol.get("overlap"):
        blocks.append(note("† Test images or groups were seen in pretraining: these numbers are too good to be cited."))
    if few_units(found.protocol):
        blocks.append(note(few_words(found.protocol)))
    blocks += [low_label_table(found), interval_charts(found)]
    differences = difference_table(found)
    if differences is not None:
        blocks += [
            h("h3", None, "Paired differences"),
            h(
                "p",
                None,
                "Both models answer the same test images, so chance that moves both is taken out. "
                "In percent points, with 95 % intervals; an interval that includes zero shows nothing.",
            ),
            differences,
        ]
        silent = undecided(found)
        if silent:
            blocks.append(h("p", None, f"No clear difference, at any share of the labels, from: {', '.join(silent)}."))
    return [*blocks, every_number(found)]
