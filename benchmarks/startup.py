"""Seconds until something happens: ``saccade --help``, and a whole pretraining of one step.

    python benchmarks/startup.py [--rounds 5] [--json] [--smoke]

The run of one step decodes 640 PNG files, builds ViT-Ti/8, takes the step, and writes checkpoint, model and report.
Beside it: a Python that only imports what a lightly script needs. The last line is one JSON object: seconds of
``ours`` (help), ``peer`` (imports), ``ratio`` (peer by ours) and ``first_step``.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import harness
from views import BATCH, PNG64, write_images

IMPORTS = "import torch, timm; from lightly.loss import DINOLoss; from lightly.transforms import DINOTransform"


def seconds_of(command: Sequence[str]) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, *command], check=True, capture_output=True)
    return time.perf_counter() - began


def first_step(images: Path) -> float:
    with tempfile.TemporaryDirectory() as folder:
        command = ["-m", "saccade", "pretrain", str(images), "--out", f"{folder}/run", "--steps", "1"]
        return seconds_of([*command, "--backbone", "vit_tiny_patch8", "--size", "64", "--batch", "64"])


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    options = harness.parse(parser, {"rounds": 1}, argv)
    with tempfile.TemporaryDirectory() as folder:
        write_images(replace(PNG64, images=BATCH) if options.smoke else PNG64, Path(folder))
        taken: list[tuple[float, float, float]] = []
        for _ in range(options.rounds):
            taken.append(
                (seconds_of(["-m", "saccade", "--help"]), seconds_of(["-c", IMPORTS]), first_step(Path(folder)))
            )
    helped, imported, stepped = (statistics.median(seconds) for seconds in zip(*taken))
    text = f"saccade --help {helped:.2f} s, one step {stepped:.1f} s; imports of a lightly script {imported:.1f} s"
    result = {"ours": round(helped, 3), "peer": round(imported, 3), "ratio": round(imported / helped, 2)}
    harness.finish(options, result | {"first_step": round(stepped, 2)}, [text])


if __name__ == "__main__":
    main()
