"""Every pretext task at equal wall-clock: k-NN, logistic regression, images a second and peak memory.

    python benchmarks/methods.py DATA [--size 64] [--seconds 120] [--recipe short] [--group COLUMN]
        [--methods dino,same_image,...] [--backbones vit_micro_patch8,resnet10_w32] --out FOLDER

First every method is priced: seconds a step on synthetic tissue of that size, all methods in turn, two rounds, the
lower quartile (other work on the machine only adds). Then each is trained on DATA for as many steps as fit into
``--seconds``, in a process of its own on one thread (the peak memory is that process's, images included), and
evaluated with saccade's protocol beside random weights. Counting steps instead of seconds keeps a busy machine from
favouring whoever came at a quiet moment. What is there is not done again. ``FOLDER/table.md`` is the table.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

METHODS = ("dino", "dinov2", "moco_v3", "lejepa", "same_image", "relative_position", "mae", "ijepa", "supervised")
HIDING = ("dinov2", "mae", "ijepa")
BATCH, ROUNDS, STEPS = 64, 2, 12
MEASURED = """
import resource, sys
from saccade.cli import app
try:
    app(sys.argv[2:])
finally:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB
    open(sys.argv[1], "w").write(str(peak / 1024))
"""


def call(words: list[str], peak: Path) -> None:
    """``saccade`` with these words in a process of its own, its peak memory in MiB written to a file."""
    done = subprocess.run([sys.executable, "-c", MEASURED, str(peak), *words], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"saccade {' '.join(words)}\n{done.stdout}\n{done.stderr}")


def metrics(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def pretrain(given: argparse.Namespace, method: str, backbone: str, steps: int, data: str, out: Path) -> list[str]:
    words = ["pretrain", data, "--out", str(out), "--method", method, "--backbone", backbone, "--steps", str(steps)]
    words += ["--recipe", given.recipe, "--size", str(given.size), "--batch", str(BATCH)]
    return words + (["--group", given.group] if given.group and data == given.data else [])


def prices(given: argparse.Namespace, pairs: list[tuple[str, str]]) -> dict[str, float]:
    """Seconds a step of every method and network, while nothing else is heavy."""
    tissue = f"synthetic:tissue?n=400&size={round(1.5 * given.size)}"
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for turn in range(ROUNDS):
            for method, backbone in pairs:
                out = Path(temporary) / f"{method}-{backbone}-{turn}"
                often = ["--set", "train.log_every=1", "--set", f"train.evaluate_every={10 * STEPS}"]
                call(pretrain(given, method, backbone, STEPS, tissue, out) + often, out.with_suffix(".peak"))
                speeds = [line["images_per_second"] for line in metrics(out) if "images_per_second" in line]
                found.setdefault(f"{method} {backbone}", []).extend(BATCH / speed for speed in speeds[3:])
    return {name: statistics.quantiles(values, n=4)[0] for name, values in found.items()}


def share(rows: list[dict[str, Any]], model: str, probe: str, fraction: float) -> str:
    """Accuracy in %, with its 95 % interval."""
    for row in rows:
        if (row["model"], row["probe"], row["fraction"], row["metric"]) == (model, probe, fraction, "accuracy"):
            return f"{100 * row['mean']:.1f} ({100 * row['low']:.1f} to {100 * row['high']:.1f})"
    return "–"


def line(given: argparse.Namespace, name: str, price: float | None) -> str:
    """One row of the table; ``price`` None: the random weights that were measured beside this run."""
    method, backbone = name.split(" ")
    out = given.out / name.replace(" ", "-")
    rows = json.loads((out / "evaluation.json").read_text())["rows"]
    models = list(dict.fromkeys(row["model"] for row in rows))
    model = models[0] if price is not None else "random weights"
    cells = [share(rows, model, probe, part) for probe, part in (("knn", 1.0), ("logistic", 1.0), ("logistic", 0.1))]
    if price is None:
        return f"| random weights | {backbone} | {' | '.join(cells)} | | | |"
    peak = float((out / "peak.txt").read_text())
    steps = int(metrics(out)[-1]["step"])
    return f"| {method} | {backbone} | {' | '.join(cells)} | {steps:,} | {BATCH / price:.0f} | {peak:,.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--recipe", default="short")
    parser.add_argument("--group")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--backbones", default="vit_micro_patch8,resnet10_w32")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    pairs = [
        (method, backbone)
        for backbone in given.backbones.split(",")
        for method in given.methods.split(",")
        if backbone.startswith("vit_") or method not in HIDING
    ]
    priced = given.out / "prices.json"
    known: dict[str, float] = json.loads(priced.read_text()) if priced.exists() else {}
    if missing := [pair for pair in pairs if " ".join(pair) not in known]:
        known |= prices(given, missing)
        priced.write_text(json.dumps(known, indent=1))
    head = "| method | network | k-NN, 100 % | logistic, 100 % | logistic, 10 % | steps | images/s | peak MiB |"
    table = [head, "|---|---|---|---|---|---|---|---|"]
    first = {backbone: method for method, backbone in reversed(pairs)}
    for method, backbone in pairs:
        name = f"{method} {backbone}"
        out = given.out / name.replace(" ", "-")
        if not (out / "model").exists():
            steps = max(10, round(given.seconds / known[name]))
            call(pretrain(given, method, backbone, steps, given.data, out), given.out / "peak.tmp")
            (given.out / "peak.tmp").rename(out / "peak.txt")
        if not (out / "evaluation.json").exists():
            words = ["--group", given.group] if given.group else []
            words += [] if method == first[backbone] else ["--no-baselines"]  # the same for all methods of a network
            call(["evaluate", str(out), given.data, *words], given.out / "evaluation.tmp")
        table.append(line(given, name, known[name]))
        print(table[-1], flush=True)
    for backbone in dict.fromkeys(backbone for _, backbone in pairs):
        table.append(line(given, next(f"{m} {b}" for m, b in pairs if b == backbone), None))
    (given.out / "table.md").write_text("\n".join(table) + "\n")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
