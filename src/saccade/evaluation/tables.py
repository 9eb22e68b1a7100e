"""Results as a table in the form of Table 10 of the DINO paper: text, Markdown and CSV, with conclusions in words."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from saccade.evaluation.protocol import EvalReport
from saccade.evaluation.small_samples import few_words
from saccade.evaluation.small_samples import mark as mark_of

TITLES = {"knn": "weighted k-NN", "logistic": "logistic regression"}


def _headline_rows(report: EvalReport, rows: Sequence[dict[str, Any]], probe: str) -> list[dict[str, Any]]:
    headline_k = report.protocol["headline_k"]
    return [
        r
        for r in rows
        if r["probe"] == probe and r["metric"] == "accuracy" and (probe != "knn" or r["k_asked"] == headline_k)
    ]


def models_of(report: EvalReport) -> list[str]:
    """Models in the order of the table."""
    return list(dict.fromkeys(row["model"] for row in report.rows))


def _cells(report: EvalReport, probe: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows: labels, one column per model, and the difference of the first two with its mean."""
    models = models_of(report)
    mark = "*" if report.protocol.get("overlap") else ""
    rows = {(r["model"], r["fraction"]): r for r in _headline_rows(report, report.rows, probe)}
    gaps = {(d["against"], d["fraction"]): d for d in _headline_rows(report, report.differences, probe)}
    header = ["labels", *models] + ([f"Δ ({models[0]} − {models[1]})"] if len(models) > 1 else [])
    body, differences = [], []
    mark_few = mark_of(report.protocol)
    interval_format, signed_format = "", ""
    if report.protocol["units_test"] > 1:  # a bootstrap over one group has no variance
        interval_format = f" [{{:.1f}}, {{:.1f}}]{mark_few}"
        signed_format = f" [{{:+.1f}}, {{:+.1f}}]{mark_few}"
    for fraction in report.protocol["fractions"]:
        row = rows[models[0], fraction]
        line = [f"{fraction * 100:g} % (n={row['n_train']})"]
        for model in models:
            r = rows[model, fraction]
            line.append(f"{100 * r['mean']:.1f}{mark}" + interval_format.format(100 * r["low"], 100 * r["high"]))
        if len(models) > 1:
            d = gaps[models[1], fraction]
            differences.append(d["difference"])
            line.append(f"{100 * d['difference']:+.1f}{mark}" + signed_format.format(100 * d["low"], 100 * d["high"]))
        body.append(line)
    if len(models) > 1:
        mean = sum(differences) / len(differences)
        body.append(["mean Δ", *[""] * len(models), f"{100 * mean:+.1f}{mark}"])
    return header, body


def headline(report: EvalReport) -> str:
    """Conclusions in words; a lead is claimed only when its paired interval excludes zero."""
    model = models_of(report)[0]
    lines = []
    for fraction in report.protocol["fractions"]:
        gaps = [
            d
            for probe in TITLES
            for d in _headline_rows(report, report.differences, probe)
            if d["fraction"] == fraction
        ]
        ahead = _names([d for d in gaps if d["clear"] and d["difference"] > 0])
        behind = _names([d for d in gaps if d["clear"] and d["difference"] < 0])
        equal = _names([d for d in gaps if not d["clear"]])
        parts = [
            f"ahead of {ahead}" if ahead else "",
            f"behind {behind}" if behind else "",
            f"not clearly different from {equal}" if equal else "",
        ]
        lines.append(f"At {fraction * 100:g} % of the labels {model} is " + "; ".join(p for p in parts if p) + ".")
    return "\n".join(lines) if any(report.differences) else ""


def _names(differences: Sequence[dict[str, Any]]) -> str:
    by_model: dict[str, list[str]] = {}
    for d in differences:
        by_model.setdefault(d["against"], []).append("k-NN" if d["probe"] == "knn" else "logistic")
    return ", ".join(f"{model} ({' and '.join(probes)})" for model, probes in by_model.items())


def to_text(report: EvalReport) -> str:
    """For the terminal."""
    blocks = []
    for probe, title in TITLES.items():
        header, body = _cells(report, probe)
        widths = [max(len(row[i]) for row in [header, *body]) for i in range(len(header))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in [header, *body]]
        blocks.append("\n".join([f"{title}, accuracy in %, 95 % intervals", *lines]))
    if report.protocol.get("overlap"):
        blocks.append("* part of the test part was seen in pretraining")
    return "\n\n".join([*blocks, *_masks(report), *_doubt(report), headline(report), report.protocol["text"]])


def _masks(report: EvalReport) -> list[str]:
    return [report.masks["text"]] if report.masks else []


def _doubt(report: EvalReport) -> list[str]:
    words = few_words(report.protocol)
    return [words] if words else []


def to_markdown(report: EvalReport) -> str:
    blocks = []
    for probe, title in TITLES.items():
        header, body = _cells(report, probe)
        lines = ["| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *body]]
        blocks.append("\n".join([f"**{title}**, accuracy in %, 95 % intervals", "", *lines]))
    masks = [block.replace("\n", "  \n") for block in _masks(report)]
    return "\n\n".join([*blocks, *masks, *_doubt(report), headline(report), report.protocol["text"]]) + "\n"


def to_csv(report: EvalReport) -> str:
    """All rows, with every metric and k."""
    columns = [
        "model",
        "probe",
        "k",
        "k_asked",
        "fraction",
        "metric",
        "mean",
        "low",
        "high",
        "n_train",
        "repeats",
        "overlap",
    ]
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, restval="")
    writer.writeheader()
    for row in report.rows:
        writer.writerow(row | {"overlap": bool(report.protocol.get("overlap"))})
    return file.getvalue()
