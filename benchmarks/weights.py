"""Starting from weights of other images: saccade's defaults, naive fine-tuning, the starting weights, random weights.

    python benchmarks/weights.py SOURCE TARGET [--group COLUMN] [--backbones resnet10_w32,vit_micro_patch8]
        [--first-steps 800] [--steps 300] [--seeds 2] --out FOLDER [--json] [--smoke]

Each network learns from SOURCE with DINO (``--first-steps``). Then TARGET's training part is learned from, in grey, in
these ways, with every seed:

    careful   the defaults of ``--weights``: new heads first, lower rates for early layers, roll back where k-NN falls
    naive     all layers at the full rate from the start, no roll back, the last checkpoint is the model
    naive xN  the same at N times the rate, as when a rate is copied from a larger batch
    random    the usual run, from random weights

All are evaluated by saccade's protocol on TARGET's test part, and so is the start itself. ``FOLDER/table.md`` is the
table, ``FOLDER/BACKBONE-knn.svg`` the live k-NN inside the training part. Existing results are reused. The last line
is one JSON object: mean k-NN accuracy in % of ``ours`` (careful) and ``peer`` (random), and their ``ratio``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import harness
import saccade
from saccade.base import config, run_folder
from saccade.tasks.evaluate import EvaluateOptions
from saccade.viz.interval_charts import IntervalCurve, band_svg

NAIVE: dict[str, Any] = {
    "optim.freeze_fraction": 0.0,
    "optim.layer_decay": 1.0,
    "train.on_collapse": "warn",
    "train.choose": "last",
}
RECIPE = "grey,short"
FACTORS = (4, 16)
SMOKE = {
    "source": "synthetic:tissue?n=120&size=32&seed=1",
    "target": "synthetic:tissue?n=120&size=32",
    "backbones": "resnet10_w8",
    "first_steps": 2,
    "steps": 2,
    "seeds": 1,
    "out": harness.TEMPORARY,
}


def learn(out: Path, data: str, backbone: str, settings: dict[str, Any]) -> Path:
    """One run, unless it is there already."""
    if not (out / "model").exists():
        saccade.pretrain(data, out=out, method="dino", backbone=backbone, recipe=RECIPE, settings=settings)
    return out


def measured(options: argparse.Namespace, model: Path, out: Path) -> dict[str, tuple[float, ...]]:
    """k-NN and logistic accuracy in % with all labels: mean, low, high."""
    file = out / "evaluation-target.json"
    if not file.exists():
        report = saccade.evaluate(
            [model],
            options.target,
            options=EvaluateOptions(group=options.group, grey=True, baselines=False),
            out=out / "e",
        )
        run_folder.write_json(file, report.to_dict())
    return {
        row["probe"]: tuple(100 * row[key] for key in ("mean", "low", "high"))
        for row in json.loads(file.read_text())["rows"]
        if row["metric"] == "accuracy" and row["fraction"] == 1.0
    }


def with_interval(value: tuple[float, ...]) -> str:
    return f"{value[0]:.1f} ({value[1]:.1f} to {value[2]:.1f})"


def repairs(run: Path) -> int:
    file = run / "repairs.jsonl"
    return len(file.read_text().splitlines()) if file.exists() else 0


def study(options: argparse.Namespace, backbone: str) -> list[str]:
    """The rows of one network, and the chart of its live k-NN."""
    base = {"model.size_px": 64, "train.batch": 64}
    first = learn(
        options.out / f"{backbone}-first", options.source, backbone, base | {"train.steps": options.first_steps}
    )
    target = {"train.batch": 64, "train.steps": options.steps, "train.evaluate_every": max(1, options.steps // 15)}
    target |= {"data.group": options.group} if options.group else {}
    started = target | {"model.weights": str(first)}
    start = measured(options, first, options.out / f"{backbone}-first")
    rows = [f"| {backbone} | the start | {with_interval(start['knn'])} | {with_interval(start['logistic'])} | | | |"]
    curves = []
    for seed in range(options.seeds):
        ways: dict[str, dict[str, Any]] = {"careful": started, "naive": started | NAIVE}
        ways |= {f"naive x{factor}": ways["naive"] for factor in FACTORS}  # their rates follow from the naive run's
        ways["random"] = target | {"model.size_px": 64}
        for style, (way, settings) in enumerate(ways.items()):
            if " x" in way:
                usual = config.load(options.out / f"{backbone}-naive-{seed}" / "config.yaml")["optim"]["lr"]
                settings = settings | {"optim.lr": int(way.partition(" x")[2]) * usual}
            name = f"{backbone}-{way.replace(' ', '-')}-{seed}"
            run = learn(options.out / name, options.target, backbone, settings | {"train.seed": seed})
            accuracies = measured(options, run, run)
            live = [line for line in run_folder.read_metrics(run / "metrics.jsonl") if "knn" in line]
            lowest = min(live, key=lambda line: line["knn"])
            cells = " | ".join(with_interval(accuracies[probe]) for probe in ("knn", "logistic"))
            rows.append(
                f"| {backbone} | {way}, seed {seed} | {cells} | "
                f"{100 * live[0]['knn']:.1f} | {100 * lowest['knn']:.1f} (step {lowest['step']:.0f}) | {repairs(run)} |"
            )
            if not options.json:
                print(rows[-1], flush=True)
            if seed == 0:
                curves.append(IntervalCurve(way, style, [x["step"] for x in live], [100 * x["knn"] for x in live]))
    ticks = [float(round(options.steps * i / 4)) for i in range(5)]
    title = f"{backbone}: k-NN inside the training part"
    chart = band_svg(curves, title=title, x_label="step", y_label="in %", log=False, ticks=ticks, size=(560, 300))
    (options.out / f"{backbone}-knn.svg").write_text(chart + "\n", encoding="utf-8")
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?")
    parser.add_argument("target", nargs="?")
    parser.add_argument("--group", default="")
    parser.add_argument("--backbones", default="resnet10_w32,vit_micro_patch8")
    parser.add_argument("--first-steps", type=int, default=800)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = harness.parse(parser, SMOKE, argv, required=("source", "target", "out"))
    options.out.mkdir(parents=True, exist_ok=True)
    head = "| network | way | k-NN, test | logistic, test | live k-NN at step 0 | lowest on the way | rolled back |"
    table = [head, "|---|---|---|---|---|---|---|"]
    for backbone in options.backbones.split(","):
        table += study(options, backbone)
    (options.out / "table.md").write_text("\n".join(table) + "\n")
    ours, peer = (
        statistics.mean(
            measured(options, run, run)["knn"][0]
            for backbone in options.backbones.split(",")
            for seed in range(options.seeds)
            for run in [options.out / f"{backbone}-{way}-{seed}"]
        )
        for way in ("careful", "random")
    )
    harness.finish(options, {"ours": round(ours, 2), "peer": round(peer, 2), "ratio": round(ours / max(peer, 1e-9), 3)})


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
