"""Pretraining from image files, images a second: ``saccade pretrain`` beside a lightly script.

    python benchmarks/end_to_end.py [--steps 10] [--rounds 2] [--json]

ViT-Ti/8, 64-px PNG files, 2 x 64 and 8 x 32 px, batch 64, K = 4,096. lightly: its transform in a DataLoader with one
process a core, its head, loss and moving average, fp32 as it ships. Each run is a fresh process; what counts is the
training itself, from its first batch to its last step, without start-up, live evaluation and saccade's decoding,
which happens once before the first step.

The last line is one JSON object: images a second of ``ours`` and ``peer``, and their ``ratio``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from peer import BOTTLENECK, HIDDEN, VIT, LightlyDino, timm_vit
from views import BATCH, LOCAL, PNG64, Files, write_images

OUT_DIM = 4096
SETTINGS = {
    "views.local_count": LOCAL,
    "views.local_px": PNG64.local_px,
    "views.local_scale": [0.05, 0.4],
    "dino.out_dim": OUT_DIM,
    "dino.head_hidden": HIDDEN,
    "dino.bottleneck": BOTTLENECK,
    "train.log_every": 1,
    "train.save_every": 1000,  # a run of ten steps would otherwise write ten checkpoints
    "train.evaluate_every": 1000,
}


def run_ours(images: Path, steps: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [sys.executable, "-m", "saccade", "pretrain", str(images), "--out", str(run)]
        command += ["--backbone", "vit_tiny_patch8", "--size", str(PNG64.global_px), "--batch", str(BATCH)]
        command += ["--steps", str(steps)]
        for key, value in SETTINGS.items():
            command += ["--set", f"{key}={json.dumps(value)}"]
        subprocess.run(command, check=True, capture_output=True)
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["images_per_second"] for line in lines if "images_per_second" in line][-1]


def train_peer(images: Path, steps: int) -> float:
    model = LightlyDino(timm_vit("tiny", 8, PNG64.global_px), VIT["tiny"][0], OUT_DIM)
    loader = DataLoader(
        Files(images, PNG64), batch_size=BATCH, shuffle=True, drop_last=True, num_workers=torch.get_num_threads()
    )
    done, began = 0, time.perf_counter()
    while True:
        for views in loader:
            model.step(views[:2], views[2:])
            done += 1
            if done == steps:
                return steps * BATCH / (time.perf_counter() - began)


def run_peer(images: Path, steps: int) -> float:
    """In a fresh process, as a script would be."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
        return fresh.submit(train_peer, images, steps).result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print only the JSON line")
    options = parser.parse_args()
    rates: tuple[list[float], list[float]] = ([], [])
    with tempfile.TemporaryDirectory() as folder:
        write_images(PNG64, Path(folder))
        for _ in range(options.rounds):
            rates[0].append(run_ours(Path(folder), options.steps))
            rates[1].append(run_peer(Path(folder), options.steps))
    mine, theirs = (statistics.median(one) for one in rates)
    if not options.json:
        print(f"saccade {mine:.1f} images/s, lightly {theirs:.1f}: {mine / theirs:.2f} times")
    print(json.dumps({"ours": round(mine, 2), "peer": round(theirs, 2), "ratio": round(mine / theirs, 3)}))


if __name__ == "__main__":
    main()
