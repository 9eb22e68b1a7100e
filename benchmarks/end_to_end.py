"""Pretraining from image files, images a second: ``saccade pretrain`` beside a lightly script.

    python benchmarks/end_to_end.py [--steps 10] [--rounds 2] [--json] [--smoke]

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
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

import harness
from peer import BOTTLENECK, HIDDEN, VIT, LightlyDino, timm_vit
from saccade import api
from views import BATCH, LOCAL, PNG64, Files, write_images

OUT_DIM = 4096
SETTINGS: dict[str, Any] = {
    "model.size_px": PNG64.global_px,
    "train.batch": BATCH,
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


def train_ours(images: Path, steps: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        settings = SETTINGS | {"train.steps": steps}
        run = api.pretrain(
            images,
            out=Path(folder) / "run",
            method="dino",
            backbone="vit_tiny_patch8",
            recipe="microscopy",
            settings=settings,
        )
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["images_per_second"] for line in lines if "images_per_second" in line][-1]


def train_peer(images: Path, steps: int) -> float:
    model = LightlyDino(timm_vit("tiny", 8, PNG64.global_px), VIT["tiny"][0], OUT_DIM)
    loader = DataLoader(
        Files(images, PNG64),
        batch_size=BATCH,
        shuffle=True,
        drop_last=True,
        num_workers=torch.get_num_threads(),
        multiprocessing_context="fork",
    )
    done, began = 0, time.perf_counter()
    while True:
        for views in loader:
            model.step(views[:2], views[2:])
            done += 1
            if done == steps:
                return steps * BATCH / (time.perf_counter() - began)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=2)
    options = harness.parse(parser, {"steps": 1, "rounds": 1}, argv)
    rates: tuple[list[float], list[float]] = ([], [])
    with tempfile.TemporaryDirectory() as folder:
        write_images(replace(PNG64, images=BATCH) if options.smoke else PNG64, Path(folder))
        for _ in range(options.rounds):
            rates[0].append(harness.run_in_child(train_ours, Path(folder), options.steps))
            rates[1].append(harness.run_in_child(train_peer, Path(folder), options.steps))
    mine, theirs = (statistics.median(values) for values in rates)
    text = f"saccade {mine:.1f} images/s, lightly {theirs:.1f}: {mine / theirs:.2f} times"
    result = {"ours": round(mine, 2), "peer": round(theirs, 2), "ratio": round(mine / theirs, 3)}
    harness.finish(options, result, [text])


if __name__ == "__main__":
    main()
