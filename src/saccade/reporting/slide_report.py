"""The report of slide heads (``saccade finetune HIERARCHY SLIDES``): comparison, intervals and protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from saccade.base import run_folder
from saccade.base.files import write_text
from saccade.evaluation.small_samples import few_units, few_words, mark
from saccade.reporting.html import Html, breakable, h, join, note, page, percent, section, table
from saccade.viz.charts import Interval, interval_svg

RESULTS, PAGE = "slides.json", "report.html"
METRICS = {"auroc": "AUROC", "balanced_accuracy": "balanced accuracy"}

Row = Mapping[str, Any]


def _shares(results: Row) -> list[tuple[float, int]]:
    """Fractions of the labels, and the number of slides of each."""
    return list(dict.fromkeys((row["fraction"], row["n_train"]) for row in results["rows"]))


def _models(results: Row) -> list[str]:
    return list(dict.fromkeys(row["model"] for row in results["rows"]))


def _labels(fraction: float, count: int) -> str:
    return f"{percent(fraction)} of the labels, {count:,} slides"


def _between(row: Row, doubt: str) -> str:
    return f"{row['mean']:.3f} ({row['low']:.3f} to {row['high']:.3f}){doubt}"


def finding(results: Row) -> str:
    """The first head against all others at the most labels, in one sentence; only clear differences are reported."""
    first = _models(results)[0]
    fraction = max(fraction for fraction, _ in _shares(results))
    first_row = next(
        r for r in results["rows"] if (r["model"], r["metric"], r["fraction"]) == (first, "auroc", fraction)
    )
    gaps = [d for d in results["differences"] if d["metric"] == "auroc" and d["fraction"] == fraction]
    ahead = [d["against"] for d in gaps if d["clear"] and d["difference"] > 0]
    behind = [d["against"] for d in gaps if d["clear"] and d["difference"] < 0]
    unclear = [d["against"] for d in gaps if not d["clear"]]
    words = [f"{first}: AUROC {_between(first_row, '')} with {percent(fraction)} of the labels."]
    if few := few_units(results["protocol"]):
        words.append(f"The interval rests on {few}: too few to conclude.")
    for names, what in ((ahead, "Ahead of"), (behind, "Behind"), (unclear, "Not clearly different from")):
        if names:
            words.append(f"{what} {'; '.join(names)}.")
    return " ".join(words)


def _chart(results: Row, metric: str) -> Html:
    models = _models(results)
    rows = [
        Interval(_labels(*part), model, row["mean"], row["low"], row["high"], strong=model == models[0])
        for part in _shares(results)
        for model in models
        for row in results["rows"]
        if (row["model"], row["metric"], row["fraction"]) == (model, metric, part[0])
    ]
    name, few = METRICS.get(metric, metric), few_units(results["protocol"])
    label = "mean and 95 % interval" + (f", over {few} only" if few else "")
    return Html(interval_svg(rows, title=name, x_label=label, width=560, digits=3, most_letters=44))


def _figures(results: Row, metric: str) -> Html:
    rows_by_model = {(r["model"], r["fraction"]): r for r in results["rows"] if r["metric"] == metric}
    gaps = {(d["against"], d["fraction"]): d for d in results["differences"] if d["metric"] == metric}
    shares, doubt = _shares(results), mark(results["protocol"])

    def cells(model: str) -> list[object]:
        line: list[object] = [breakable(model)]
        for fraction, _ in shares:
            row, gap = rows_by_model[model, fraction], gaps.get((model, fraction))
            line.append(_between(row, doubt))
            line.append(_difference(gap, doubt) if gap else "–")
        return line

    head = [METRICS.get(metric, metric)]
    for part in shares:
        head += [_labels(*part), "first − this"]
    return table(f"{METRICS.get(metric, metric)} of every head", head, [cells(model) for model in _models(results)])


def _difference(gap: Row, doubt: str) -> Html:
    words = f"{gap['difference']:+.3f} ({gap['low']:+.3f} to {gap['high']:+.3f}){doubt}".replace("-", "−")
    return h("strong", None, words) if gap["clear"] else join([words, " ", h("small", None, "not clear")])


def render(results: Row, name: str) -> str:
    """The page of the contents of slides.json as text."""
    metrics: Sequence[str] = list(dict.fromkeys(row["metric"] for row in results["rows"]))
    protocol = results["protocol"]
    classes = ", ".join(map(str, protocol["classes"]))
    sections = [
        section(metric, METRICS.get(metric, metric), _chart(results, metric), _figures(results, metric))
        for metric in metrics
    ]
    about = section(
        "protocol",
        "Protocol",
        h("p", None, protocol["text"]),
        h(
            "p",
            None,
            f"Classes: {classes}. Differences are paired; one is reported only where its interval excludes 0.",
        ),
    )
    return page(
        f"{name} · slides · saccade",
        "en",
        h(
            "header",
            None,
            h("p", {"class": "eyebrow"}, "saccade", h("span", None, " · slides, from few labels")),
            h("h1", None, breakable(name)),
            h("p", {"class": "finding"}, finding(results)),
            note("WARNING: slides of the test folds were used in pretraining.") if protocol.get("overlap") else None,
            note(few_words(protocol)) if few_units(protocol) else None,
        ),
        h("main", None, sections, about),
        h("footer", None, "One file without scripts or external resources. Written by saccade report."),
    )


def write_slide_report(folder: Path) -> Path:
    """Write FOLDER/report.html from its slides.json; returns its path. Raises StorageError."""
    target = folder / PAGE
    write_text(target, render(run_folder.read_json(folder / RESULTS), folder.resolve().name))
    return target
