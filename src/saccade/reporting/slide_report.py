"""The page of results for slides (``saccade finetune HIERARCHY SLIDES``): what was compared, how sure, and how."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from saccade.base import run_folder
from saccade.base.files import write_text
from saccade.evaluation.small_samples import few_units, few_words, mark
from saccade.reporting.html import Html, breakable, h, join, note, page, section, share, table
from saccade.viz.charts import Interval, interval_svg

FOUND, PAGE = "slides.json", "report.html"
METRICS = {"auroc": "AUROC", "balanced_accuracy": "balanced accuracy"}

Row = Mapping[str, Any]


def _shares(found: Row) -> list[tuple[float, int]]:
    """Fractions of the labels, and how many slides each is."""
    return list(dict.fromkeys((row["fraction"], row["n_train"]) for row in found["rows"]))


def _models(found: Row) -> list[str]:
    return list(dict.fromkeys(row["model"] for row in found["rows"]))


def _labels(fraction: float, count: int) -> str:
    return f"{share(fraction)} of the labels, {count:,} slides"


def _between(row: Row, doubt: str) -> str:
    return f"{row['mean']:.3f} ({row['low']:.3f} to {row['high']:.3f}){doubt}"


def finding(found: Row) -> str:
    """The first head beside all others at the most labels, in plain words; a lead is claimed only where it is clear."""
    first = _models(found)[0]
    fraction = max(fraction for fraction, _ in _shares(found))
    own = next(r for r in found["rows"] if (r["model"], r["metric"], r["fraction"]) == (first, "auroc", fraction))
    gaps = [d for d in found["differences"] if d["metric"] == "auroc" and d["fraction"] == fraction]
    ahead = [d["against"] for d in gaps if d["clear"] and d["difference"] > 0]
    behind = [d["against"] for d in gaps if d["clear"] and d["difference"] < 0]
    unclear = [d["against"] for d in gaps if not d["clear"]]
    words = [f"{first}: AUROC {_between(own, '')} with {share(fraction)} of the labels."]
    if few := few_units(found["protocol"]):
        words.append(f"The interval rests on {few} and means nothing.")
    for names, what in ((ahead, "Ahead of"), (behind, "Behind"), (unclear, "Not clearly different from")):
        if names:
            words.append(f"{what} {'; '.join(names)}.")
    return " ".join(words)


def _chart(found: Row, metric: str) -> Html:
    models = _models(found)
    rows = [
        Interval(_labels(*part), model, row["mean"], row["low"], row["high"], strong=model == models[0])
        for part in _shares(found)
        for model in models
        for row in found["rows"]
        if (row["model"], row["metric"], row["fraction"]) == (model, metric, part[0])
    ]
    name, few = METRICS.get(metric, metric), few_units(found["protocol"])
    label = "mean and 95 % interval" + (f", over {few} only" if few else "")
    return Html(interval_svg(rows, title=name, x_label=label, width=560, digits=3, most_letters=44))


def _figures(found: Row, metric: str) -> Html:
    known = {(r["model"], r["fraction"]): r for r in found["rows"] if r["metric"] == metric}
    gaps = {(d["against"], d["fraction"]): d for d in found["differences"] if d["metric"] == metric}
    shares, doubt = _shares(found), mark(found["protocol"])

    def cells(model: str) -> list[object]:
        line: list[object] = [breakable(model)]
        for fraction, _ in shares:
            row, gap = known[model, fraction], gaps.get((model, fraction))
            line.append(_between(row, doubt))
            line.append(_difference(gap, doubt) if gap else "–")
        return line

    head = [METRICS.get(metric, metric)]
    for part in shares:
        head += [_labels(*part), "first − this"]
    return table(f"{METRICS.get(metric, metric)} of every head", head, [cells(model) for model in _models(found)])


def _difference(gap: Row, doubt: str) -> Html:
    words = f"{gap['difference']:+.3f} ({gap['low']:+.3f} to {gap['high']:+.3f}){doubt}".replace("-", "−")
    return h("strong", None, words) if gap["clear"] else join([words, " ", h("small", None, "not clear")])


def render(found: Row, name: str) -> str:
    """The page as text. ``found``: what slides.json holds."""
    metrics: Sequence[str] = list(dict.fromkeys(row["metric"] for row in found["rows"]))
    protocol = found["protocol"]
    classes = ", ".join(map(str, protocol["classes"]))
    sections = [
        section(metric, METRICS.get(metric, metric), _chart(found, metric), _figures(found, metric))
        for metric in metrics
    ]
    about = section(
        "protocol",
        "How it was measured",
        h("p", None, protocol["text"]),
        h(
            "p",
            None,
            f"Classes: {classes}. Differences are paired; a lead is claimed only where its interval excludes 0.",
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
            h("p", {"class": "finding"}, finding(found)),
            note("WARNING: slides of the test folds were seen in pretraining.") if protocol.get("overlap") else None,
            note(few_words(protocol)) if few_units(protocol) else None,
        ),
        h("main", None, sections, about),
        h("footer", None, "One file, no script, nothing fetched. Written by saccade report."),
    )


def write_slide_report(folder: Path) -> Path:
    """Write FOLDER/report.html from its slides.json; returns its path. Raises StorageError."""
    target = folder / PAGE
    write_text(target, render(run_folder.read_json(folder / FOUND), folder.resolve().name))
    return target
