"""Every pretext task at equal wall-clock: k-NN, logistic regression, images a second and peak memory.

    python benchmarks/methods.py DATA [--size 64] [--seconds 120] [--recipe short] [--group COLUMN]
        [--methods dino,same_image,...] [--backbones vit_micro_patch8,resnet10_w32] --out FOLDER
        [--json] [--smoke]

First every method is timed: seconds a step on synthetic tissue of that size, all methods in turn, two rounds, the
lower quartile (other work on the machine only adds). Then each is trained on DATA for as many steps as fit into
``--seconds``, in a process of its own on one thread (the peak memory is that process's, images included), and
evaluated with saccade's protocol beside random weights. Counting steps instead of seconds keeps a busy machine from
favouring whoever came at a quiet moment. Results that exist are used again. ``FOLDER/table.md`` is the
table. The last line is one JSON object: k-NN accuracy of the best method (``ours``) and of random weights (``peer``).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import harness
import saccade
from saccade.tasks.evaluate import EvaluateOptions

METHODS = ("dino", "dinov2", "moco_v3", "lejepa", "same_image", "relative_position", "mae", "ijepa", "supervised")
MASKING = ("dinov2", "mae", "ijepa")
BATCH, ROUNDS, STEPS = 64, 2, 12
SMOKE = {
    "data": "synthetic:tissue?n=120&size=32",
    "size": 32,
    "seconds": 0.01,
    "methods": "dino",
    "backbones": "resnet10_w8",
    "out": harness.TEMPORARY,
}


def train(options: argparse.Namespace, name: str, data: str, out: Path, settings: dict[str, Any]) -> float:
    """Pretrain on one thread; the peak memory of the process in MiB."""
    torch.set_num_threads(1)
    method, backbone = name.split(" ")
    settings = {"model.size_px": options.size, "train.batch": BATCH} | settings
    if options.group and data == options.data:
        settings["data.group"] = options.group
    saccade.pretrain(data, out=out, method=method, backbone=backbone, recipe=options.recipe, settings=settings)
    return harness.peak_mib()


def evaluate(options: argparse.Namespace, run: Path, baselines: bool) -> None:
    torch.set_num_threads(1)
    choices = EvaluateOptions(group=options.group, baselines=baselines)
    saccade.evaluate([run], options.data, options=choices, out=run)


def metrics(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def step_seconds(options: argparse.Namespace, names: list[str]) -> dict[str, float]:
    """Seconds a step of every method and network, while nothing else is heavy."""
    tissue = f"synthetic:tissue?n={2 * BATCH if options.smoke else 400}&size={round(1.5 * options.size)}"
    settings = {"train.steps": STEPS, "train.log_every": 1, "train.evaluate_every": 10 * STEPS}
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for turn in range(1 if options.smoke else ROUNDS):
            for name in names:
                out = Path(temporary) / f"{name.replace(' ', '-')}-{turn}"
                harness.run_in_child(train, options, name, tissue, out, settings)
                speeds = [line["images_per_second"] for line in metrics(out) if "images_per_second" in line]
                seconds.setdefault(name, []).extend(BATCH / speed for speed in speeds[3:])
    return {name: statistics.quantiles(values, n=4)[0] for name, values in seconds.items()}


def accuracy(rows: list[dict[str, Any]], model: str, probe: str, fraction: float) -> str:
    """Accuracy in %, with its 95 % interval."""
    for row in rows:
        if (row["model"], row["probe"], row["fraction"], row["metric"]) == (model, probe, fraction, "accuracy"):
            return f"{100 * row['mean']:.1f} ({100 * row['low']:.1f} to {100 * row['high']:.1f})"
    return "–"


def knn(options: argparse.Namespace, name: str, random_weights: bool) -> float:
    """k-NN accuracy with all labels, of a run or of the random weights measured beside it."""
    rows = json.loads((options.out / name.replace(" ", "-") / "evaluation.json").read_text())["rows"]
    model = "random weights" if random_weights else rows[0]["model"]
    return next(
        float(row["mean"])
        for row in rows
        if (row["model"], row["probe"], row["fraction"], row["metric"]) == (model, "knn", 1.0, "accuracy")
    )


def line(options: argparse.Namespace, name: str, price: float | None) -> str:
    """One row of the table; ``price`` None: the random weights that were measured beside this run."""
    method, backbone = name.split(" ")
    out = options.out / name.replace(" ", "-")
    rows = json.loads((out / "evaluation.json").read_text())["rows"]
    models = list(dict.fromkeys(row["model"] for row in rows))
    model = models[0] if price is not None else "random weights"
    cells = [accuracy(rows, model, probe, part) for probe, part in (("knn", 1.0), ("logistic", 1.0), ("logistic", 0.1))]
    if price is None:
        return f"| random weights | {backbone} | {' | '.join(cells)} | | | |"
    peak = float((out / "peak.txt").read_text())
    steps = int(metrics(out)[-1]["step"])
    return f"| {method} | {backbone} | {' | '.join(cells)} | {steps:,} | {BATCH / price:.0f} | {peak:,.0f} |"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--recipe", default="short")
    parser.add_argument("--group", default="")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--backbones", default="vit_micro_patch8,resnet10_w32")
    parser.add_argument("--out", type=Path)
    options = harness.parse(parser, SMOKE, argv, required=("data", "out"))
    options.out.mkdir(parents=True, exist_ok=True)
    names = [
        f"{method} {backbone}"
        for backbone in options.backbones.split(",")
        for method in options.methods.split(",")
        if backbone.startswith("vit_") or method not in MASKING
    ]
    times_file = options.out / "prices.json"
    seconds: dict[str, float] = json.loads(times_file.read_text()) if times_file.exists() else {}
    if missing := [name for name in names if name not in seconds]:
        seconds |= step_seconds(options, missing)
        times_file.write_text(json.dumps(seconds, indent=1))
    head = "| method | network | k-NN, 100 % | logistic, 100 % | logistic, 10 % | steps | images/s | peak MiB |"
    table = [head, "|---|---|---|---|---|---|---|---|"]
    first = {name.split(" ")[1]: name for name in reversed(names)}  # evaluated beside the baselines
    for name in names:
        out = options.out / name.replace(" ", "-")
        if not (out / "model").exists():
            steps = max(10, round(options.seconds / seconds[name]))
            peak = harness.run_in_child(train, options, name, options.data, out, {"train.steps": steps})
            (out / "peak.txt").write_text(str(peak))
        if not (out / "evaluation.json").exists():
            harness.run_in_child(evaluate, options, out, name in first.values())
        table.append(line(options, name, seconds[name]))
        if not options.json:
            print(table[-1], flush=True)
    for name in first.values():
        table.append(line(options, name, None))
    (options.out / "table.md").write_text("\n".join(table) + "\n")
    ours, peer = max(knn(options, name, False) for name in names), max(knn(options, n, True) for n in first.values())
    harness.finish(options, {"ours": ours, "peer": peer, "ratio": round(ours / max(peer, 1e-9), 3), "seconds": seconds})


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
