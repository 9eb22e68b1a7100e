"""What keeps DINO from collapsing: each guard taken away in turn, and what the doctor says of it.

    python benchmarks/collapse.py [DATA] [--backbone resnet10_w32] [--steps 400] [--out docs/studies/collapse]

Trains DINO as it is, without centring, without sharpening, without both, with a teacher that is the student of the
step before (momentum 0), and without small crops; KoLeo is off throughout, so that nothing else keeps vectors apart.
Writes ``BACKBONE.md`` with a table and the doctor's words, ``BACKBONE.csv``, and five charts of the course of each.
"""

from __future__ import annotations

import argparse
import csv
import io
import math
import os
import tempfile
from pathlib import Path
from typing import Any

import saccade
from saccade.base import run_folder
from saccade.errors import SaccadeError
from saccade.viz.interval_charts import Curve, band_svg

WARM = {"dino.teacher_temp": 0.1, "dino.teacher_temp_start": 0.1}
VARIANTS: dict[str, dict[str, Any]] = {
    "DINO": {},
    "no centring": {"dino.centering": "none"},
    "no sharpening": WARM,
    "neither": {"dino.centering": "none"} | WARM,
    "momentum 0": {"dino.momentum": 0.0, "dino.momentum_end": 0.0},
    "no small crops": {"views.local_count": 0},
}
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
    } | changes
    try:
        saccade.pretrain(data, out=folder, backbone=backbone, recipe="short", settings=settings)
    except SaccadeError as error:
        print(f"{folder.name}: {error}")
    return run_folder.read_metrics(folder / "metrics.jsonl")


def last(lines: list[dict[str, float]], key: str) -> float:
    return next((line[key] for line in reversed(lines) if key in line), math.nan)


def chart(found: dict[str, list[dict[str, float]]], key: str) -> str:
    title, unit = CHARTS[key]
    scale = 100.0 if key == "knn" else 1.0
    curves = []
    for style, (name, lines) in enumerate(found.items()):
        points = [line for line in lines if key in line]
        curves.append(Curve(name, style, [p["step"] for p in points], [scale * p[key] for p in points]))
    end = max(curve.x[-1] for curve in curves if len(curve.x))
    ticks = [float(round(end * i / 4)) for i in range(5)]
    return band_svg(curves, title=title, x_label="step", y_label=unit, log=False, ticks=ticks, size=(560, 300))


def words(folder: Path) -> str:
    """The doctor's diagnoses, one a line."""
    found = saccade.examine(folder)
    return "\n".join(f"* {one.text()}" for one in found) or "* nothing is wrong"


def page(found: dict[str, list[dict[str, float]]], named: dict[str, str], told: dict[str, str], made: str) -> str:
    rows = ["| | teacher's entropy | of its mean answer | KL | effective rank | k-NN | named by the doctor |"]
    rows.append("|---|---|---|---|---|---|---|")
    for name, lines in found.items():
        values = [last(lines, key) for key in CHARTS]
        shown = " | ".join(f"{x:.{places}f}" for x, places in zip(values[:4], (2, 2, 3, 1), strict=True))
        shown += f" | {100 * values[4]:.1f} %"
        rows.append(f"| {name} | {shown} | {named[name]} |")
    text = "\n\n".join(f"**{name}**\n\n{said}" for name, said in told.items())
    return f"{made}\n\n" + "\n".join(rows) + "\n\n## In the doctor's words\n\n" + text + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", default="synthetic:tissue")
    parser.add_argument("--backbone", default="resnet10_w32")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--out", type=Path, default=Path("docs/studies/collapse"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    found, named, told = {}, {}, {}
    with tempfile.TemporaryDirectory() as temporary:
        for name, changes in VARIANTS.items():
            folder = Path(temporary) / name.replace(" ", "-")
            found[name] = train(given.data, given.backbone, given.steps, changes, folder)
            told[name] = words(folder)
            named[name] = ", ".join(f"{one.name} (step {one.since})" for one in saccade.examine(folder)) or "–"
            print(f"{name}: k-NN {100 * last(found[name], 'knn'):.1f}, {named[name]}", flush=True)
    made = f"`{given.data}`, `{given.backbone}`, {given.steps} steps of 64 images, 64 px, KoLeo off, one seed."
    (given.out / f"{given.backbone}.md").write_text(page(found, named, told, made), encoding="utf-8")
    buffer = io.StringIO()
    table = csv.writer(buffer)
    table.writerow(["variant", "step", *CHARTS])
    for name, lines in found.items():
        table.writerows([name, int(x["step"]), *(x.get(key, "") for key in CHARTS)] for x in lines)
    (given.out / f"{given.backbone}.csv").write_text(buffer.getvalue(), encoding="utf-8")
    for key in CHARTS:
        (given.out / f"{given.backbone}-{key}.svg").write_text(chart(found, key) + "\n", encoding="utf-8")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
