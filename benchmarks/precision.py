"""Does bf16 cost accuracy? k-NN after the same number of steps in bf16 and in fp32, several seeds.

    python benchmarks/precision.py [DATA] [--steps 500] [--seeds 3] [--json]

For each seed both precisions train at the same time, on a core of their own. The k-NN is that of ``saccade evaluate``
at all labels. The last line is one JSON object: mean k-NN of ``ours`` (bf16) and ``peer`` (fp32), ``ratio`` of the
time that training took (fp32 by bf16), all values, and their standard deviations.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

from saccade import api
from saccade.evaluation.protocol import ProtocolConfig
from saccade.tasks.evaluate import EvaluateOptions

PRECISIONS = ("bf16", "fp32")


def train(precision: str, options: argparse.Namespace, core: int, answers: Any) -> None:
    os.sched_setaffinity(0, {core})
    torch.set_num_threads(1)
    protocol = ProtocolConfig(fractions=(1.0,), repeats=1)
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
        answers.put((precision, knn, lines[-1]["seconds"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="?", default="synthetic:tissue")
    parser.add_argument("--backbone", default="resnet10_w32")
    parser.add_argument("--recipe", default="short")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print only the JSON line")
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    runs = [context.Process(target=train, args=(p, options, core, answers)) for core, p in enumerate(PRECISIONS)]
    for process in runs:
        process.start()
    found = [answers.get() for _ in range(len(PRECISIONS) * options.seeds)]
    for process in runs:
        process.join()
    knn = {p: [round(value, 4) for name, value, _ in found if name == p] for p in PRECISIONS}
    seconds = {p: statistics.mean(s for name, _, s in found if name == p) for p in PRECISIONS}
    if not options.json:
        for p in PRECISIONS:
            print(f"{p}: {knn[p]}, {seconds[p]:.0f} s a run")
    mean = {p: round(statistics.mean(knn[p]), 4) for p in PRECISIONS}
    spread = {p: round(statistics.stdev(knn[p]), 4) for p in PRECISIONS} if options.seeds > 1 else {}
    ratio = round(seconds["fp32"] / seconds["bf16"], 2)
    print(json.dumps({"ours": mean["bf16"], "peer": mean["fp32"], "ratio": ratio, "knn": knn, "sd": spread}))


if __name__ == "__main__":
    main()
