"""Going on from weights of other images: carefully, as saccade does, and naively, beside the start and random weights.

    python benchmarks/weights.py SOURCE TARGET [--group COLUMN] [--backbones resnet10_w32,vit_micro_patch8]
        [--first-steps 800] [--steps 300] [--seeds 2] --out FOLDER

Each network learns from SOURCE with DINO (``--first-steps``). Then TARGET's training part is learned from, in grey, in
these ways, with every seed:

    careful   what ``--weights`` decides: new heads alone first, slower early layers, back and slower where k-NN falls
    naive     everything learns at once at the full rate, nothing is taken back, the last checkpoint is the model
    naive xN  the same at N times the rate, as when a rate is copied from a larger batch
    random    the usual run, from random weights

All are evaluated by saccade's protocol on TARGET's test part, and so is the start itself. ``FOLDER/table.md`` is the
table, ``FOLDER/BACKBONE-knn.svg`` the live k-NN inside the training part. What is there is not done again.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import saccade
from saccade.base import config, run_folder
from saccade.tasks.evaluate import EvaluateOptions
from saccade.viz.interval_charts import Curve, band_svg

NAIVE: dict[str, Any] = {
    "optim.freeze_fraction": 0.0,
    "optim.layer_decay": 1.0,
    "train.on_collapse": "warn",
    "train.choose": "last",
}
RECIPE = "grey,short"
FACTORS = (4, 16)


def learn(out: Path, data: str, backbone: str, settings: dict[str, Any]) -> Path:
    """One run, unless it is there already."""
    if not (out / "model").exists():
        saccade.pretrain(data, out=out, backbone=backbone, recipe=RECIPE, settings=settings)
    return out


def measured(given: argparse.Namespace, model: Path, out: Path) -> dict[str, tuple[float, float, float]]:
    """k-NN and logistic accuracy in % with all labels: mean, low, high."""
    file = out / "evaluation-target.json"
    if not file.exists():
        found = saccade.evaluate(
            [model], given.target, options=EvaluateOptions(group=given.group, grey=True, baselines=False), out=out / "e"
        )
        run_folder.write_json(file, found.to_dict())
    return {
        row["probe"]: tuple(100 * row[key] for key in ("mean", "low", "high"))  # type: ignore[misc]
        for row in json.loads(file.read_text())["rows"]
        if row["metric"] == "accuracy" and row["fraction"] == 1.0
    }


def shown(value: tuple[float, float, float]) -> str:
    return f"{value[0]:.1f} ({value[1]:.1f} to {value[2]:.1f})"


def repairs(run: Path) -> int:
    file = run / "repairs.jsonl"
    return len(file.read_text().splitlines()) if file.exists() else 0


def study(given: argparse.Namespace, backbone: str) -> list[str]:
    """The rows of one network, and the chart of its live k-NN."""
    base = {"model.size_px": 64, "train.batch": 64}
    first = learn(given.out / f"{backbone}-first", given.source, backbone, base | {"train.steps": given.first_steps})
    target = {"train.batch": 64, "train.steps": given.steps, "train.evaluate_every": max(1, given.steps // 15)}
    target |= {"data.group": given.group} if given.group else {}
    started = target | {"model.weights": str(first)}
    start = measured(given, first, given.out / f"{backbone}-first")
    rows = [f"| {backbone} | the start | {shown(start['knn'])} | {shown(start['logistic'])} | | | |"]
    curves = []
    for seed in range(given.seeds):
        ways: dict[str, dict[str, Any]] = {"careful": started, "naive": started | NAIVE}
        ways |= {f"naive x{factor}": ways["naive"] for factor in FACTORS}  # their rates follow from the naive run's
        ways["random"] = target | {"model.size_px": 64}
        for style, (way, settings) in enumerate(ways.items()):
            if " x" in way:
                usual = config.load(given.out / f"{backbone}-naive-{seed}" / "config.yaml")["optim"]["lr"]
                settings = settings | {"optim.lr": int(way.partition(" x")[2]) * usual}
            name = f"{backbone}-{way.replace(' ', '-')}-{seed}"
            run = learn(given.out / name, given.target, backbone, settings | {"train.seed": seed})
            found = measured(given, run, run)
            live = [line for line in run_folder.read_metrics(run / "metrics.jsonl") if "knn" in line]
            lowest = min(live, key=lambda line: line["knn"])
            rows.append(
                f"| {backbone} | {way}, seed {seed} | {shown(found['knn'])} | {shown(found['logistic'])} | "
                f"{100 * live[0]['knn']:.1f} | {100 * lowest['knn']:.1f} (step {lowest['step']:.0f}) | {repairs(run)} |"
            )
            print(rows[-1], flush=True)
            if seed == 0:
                curves.append(Curve(way, style, [x["step"] for x in live], [100 * x["knn"] for x in live]))
    ticks = [float(round(given.steps * i / 4)) for i in range(5)]
    title = f"{backbone}: k-NN inside the training part"
    chart = band_svg(curves, title=title, x_label="step", y_label="in %", log=False, ticks=ticks, size=(560, 300))
    (given.out / f"{backbone}-knn.svg").write_text(chart + "\n", encoding="utf-8")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("target")
    parser.add_argument("--group", default="")
    parser.add_argument("--backbones", default="resnet10_w32,vit_micro_patch8")
    parser.add_argument("--first-steps", type=int, default=800)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    head = "| network | way | k-NN, test | logistic, test | live k-NN at step 0 | lowest on the way | rolled back |"
    table = [head, "|---|---|---|---|---|---|---|"]
    for backbone in given.backbones.split(","):
        table += study(given, backbone)
    (given.out / "table.md").write_text("\n".join(table) + "\n")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
