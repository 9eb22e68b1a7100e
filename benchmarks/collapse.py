"""What keeps DINO from collapsing: each guard taken away in turn, and what the doctor says of it.

    python benchmarks/collapse.py [DATA] [--backbone resnet10_w32] [--steps 400] [--out docs/studies/collapse]
        [--json] [--smoke]

Trains DINO as it is, without centring, without sharpening, without both, with a teacher that is the student of the
step before (momentum 0), and without small crops; KoLeo is off throughout, so that nothing else keeps vectors apart.
Writes ``BACKBONE.md`` with a table and the doctor's words, ``BACKBONE.csv``, and five charts of the course of each.
The last line is one JSON object: final k-NN accuracy of DINO (``ours``), without both guards
(``peer``), and their ``ratio``.
"""

from __future__ import annotations

import argparse
import csv
import io
import math
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import harness
import saccade
from saccade.base import run_folder
from saccade.errors import SaccadeError
from saccade.viz.interval_charts import IntervalCurve, band_svg

WARM = {"dino.teacher_temp": 0.1, "dino.teacher_temp_start": 0.1}
VARIANTS: dict[str, dict[str, Any]] = {
    "DINO": {},
    "no centring": {"dino.centering": "none"},
    "no sharpening": WARM,
    "neither": {"dino.centering": "none"} | WARM,
    "momentum 0": {"dino.momentum": 0.0, "dino.momentum_end": 0.0},
    "no small crops": {"views.local_count": 0},
}
SMOKE = {"data": "synthetic:tissue?n=100&size=32", "backbone": "resnet10_w8", "steps": 2, "out": harness.TEMPORARY}
CHARTS = {
    "teacher_entropy": ("Entropy of the teacher's answers", "nats"),
    "marginal_entropy": ("Entropy of the teacher's mean answer", "nats"),
    "kl": ("KL from teacher to student", "nats"),
    "rank": ("Effective rank of the features", ""),
    "knn": ("k-NN accuracy on the run's own images", "in %"),
}


def train(data: str, backbone: str, steps: int, changes: dict[str, Any], folder: Path) -> list[dict[str, float]]:
    """The logged lines of one run; a run that ends by itself has as many as it came to."""
    settings = {
        "model.size_px": 64,
        "train.batch": 64,
        "train.steps": steps,
        "train.evaluate_every": max(1, steps // 20),
        "dino.koleo": 0.0,
        "dino.coding_rate": 0.0,
    } | changes
    try:
        saccade.pretrain(data, out=folder, method="dino", backbone=backbone, recipe="short", settings=settings)
    except SaccadeError as error:
        print(f"{folder.name}: {error}")
    return run_folder.read_metrics(folder / "metrics.jsonl")


def last(lines: list[dict[str, float]], key: str) -> float:
    return next((line[key] for line in reversed(lines) if key in line), math.nan)


def chart(runs: dict[str, list[dict[str, float]]], key: str) -> str:
    title, unit = CHARTS[key]
    scale = 100.0 if key == "knn" else 1.0
    curves = []
    for style, (name, lines) in enumerate(runs.items()):
        points = [line for line in lines if key in line]
        curves.append(IntervalCurve(name, style, [p["step"] for p in points], [scale * p[key] for p in points]))
    end = max(curve.x[-1] for curve in curves if len(curve.x))
    ticks = [float(round(end * i / 4)) for i in range(5)]
    return band_svg(curves, title=title, x_label="step", y_label=unit, log=False, ticks=ticks, size=(560, 300))


def diagnoses(folder: Path) -> str:
    """The doctor's diagnoses, one a line."""
    return "\n".join(f"* {diagnosis.text()}" for diagnosis in saccade.examine(folder)) or "* no problem detected"


def page(runs: dict[str, list[dict[str, float]]], names: dict[str, str], texts: dict[str, str], setup: str) -> str:
    rows = ["| | teacher's entropy | of its mean answer | KL | effective rank | k-NN | diagnosis |"]
    rows.append("|---|---|---|---|---|---|---|")
    for name, lines in runs.items():
        values = [last(lines, key) for key in CHARTS]
        cells = " | ".join(f"{x:.{places}f}" for x, places in zip(values[:4], (2, 2, 3, 1), strict=True))
        cells += f" | {100 * values[4]:.1f} %"
        rows.append(f"| {name} | {cells} | {names[name]} |")
    text = "\n\n".join(f"**{name}**\n\n{diagnosis}" for name, diagnosis in texts.items())
    return f"{setup}\n\n" + "\n".join(rows) + "\n\n## Diagnoses\n\n" + text + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", default="synthetic:tissue")
    parser.add_argument("--backbone", default="resnet10_w32")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--out", type=Path, default=Path("docs/studies/collapse"))
    options = harness.parse(parser, SMOKE, argv)
    options.out.mkdir(parents=True, exist_ok=True)
    variants = {"DINO": VARIANTS["DINO"], "neither": VARIANTS["neither"]} if options.smoke else VARIANTS
    runs, names, texts = {}, {}, {}
    with tempfile.TemporaryDirectory() as temporary:
        for name, changes in variants.items():
            folder = Path(temporary) / name.replace(" ", "-")
            runs[name] = train(options.data, options.backbone, options.steps, changes, folder)
            texts[name] = diagnoses(folder)
            names[name] = ", ".join(f"{d.name} (step {d.since})" for d in saccade.examine(folder)) or "–"
            if not options.json:
                print(f"{name}: k-NN {100 * last(runs[name], 'knn'):.1f}, {names[name]}", flush=True)
    setup = f"`{options.data}`, `{options.backbone}`, {options.steps} steps of 64 images, 64 px, KoLeo off, one seed."
    (options.out / f"{options.backbone}.md").write_text(page(runs, names, texts, setup), encoding="utf-8")
    buffer = io.StringIO()
    table = csv.writer(buffer)
    table.writerow(["variant", "step", *CHARTS])
    for name, lines in runs.items():
        table.writerows([name, int(x["step"]), *(x.get(key, "") for key in CHARTS)] for x in lines)
    (options.out / f"{options.backbone}.csv").write_text(buffer.getvalue(), encoding="utf-8")
    for key in CHARTS:
        (options.out / f"{options.backbone}-{key}.svg").write_text(chart(runs, key) + "\n", encoding="utf-8")
    ours, peer = (round(last(runs[name], "knn"), 4) for name in ("DINO", "neither"))
    harness.finish(options, {"ours": ours, "peer": peer, "ratio": round(ours / peer, 3)})


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
