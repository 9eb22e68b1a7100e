"""Does bf16 cost accuracy? k-NN after the same number of steps in bf16 and in fp32, several seeds.

    python benchmarks/precision.py [DATA] [--steps 500] [--seeds 3] [--json] [--smoke]

For each seed both precisions train at the same time, on a core of their own. The k-NN is that of ``saccade evaluate``
at all labels. The last line is one JSON object: mean k-NN of ``ours`` (bf16) and ``peer`` (fp32), ``ratio`` of the
time that training took (fp32 by bf16), all values, and their standard deviations.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

import harness
from saccade import api
from saccade.evaluation.protocol import ProtocolConfig
from saccade.tasks.evaluate import EvaluateOptions

PRECISIONS = ("bf16", "fp32")
SMOKE = {"data": "synthetic:tissue?n=120&size=32", "backbone": "resnet10_w8", "steps": 2, "seeds": 1}


def train(precision: str, options: argparse.Namespace) -> list[tuple[float, float]]:
    """k-NN accuracy and seconds of training, for every seed."""
    torch.set_num_threads(1)
    protocol = ProtocolConfig(fractions=(1.0,), repeats=1)
    results = []
    for seed in range(options.seeds):
        with tempfile.TemporaryDirectory() as folder:
            run = api.pretrain(
                options.data,
                out=Path(folder) / "run",
                backbone=options.backbone,
                recipe=options.recipe,
                settings={"train.steps": options.steps, "train.seed": seed, "train.precision": precision},
            )
            lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
            report = api.evaluate([run], options.data, options=EvaluateOptions(baselines=False, protocol=protocol))
        knn = next(row["mean"] for row in report.to_dict()["rows"] if row["probe"] == "knn")
        results.append((knn, lines[-1]["seconds"]))
    return results


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="?", default="synthetic:tissue")
    parser.add_argument("--backbone", default="resnet10_w32")
    parser.add_argument("--recipe", default="short")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=3)
    options = harness.parse(parser, SMOKE, argv)
    runs = harness.side_by_side({precision: partial(train, precision, options) for precision in PRECISIONS})
    knn = {p: [round(value, 4) for value, _ in results] for p, results in runs.items()}
    seconds = {p: statistics.mean(s for _, s in results) for p, results in runs.items()}
    mean = {p: round(statistics.mean(knn[p]), 4) for p in PRECISIONS}
    spread = {p: round(statistics.stdev(knn[p]), 4) for p in PRECISIONS} if options.seeds > 1 else {}
    ratio = round(seconds["fp32"] / seconds["bf16"], 2)
    result: dict[str, Any] = {"ours": mean["bf16"], "peer": mean["fp32"], "ratio": ratio, "knn": knn, "sd": spread}
    harness.finish(options, result, [f"{p}: {knn[p]}, {seconds[p]:.0f} s a run" for p in PRECISIONS])


if __name__ == "__main__":
    main()
